"""Templates with conditions, loops and filters: Jinja's, as far as nothing in it can hang or surprise.

Comes in: the setting, then mappings. Goes out: strings. Never here: a call, an assignment, arithmetic, or anything else whose cost
a record could drive up unseen: what a template does is counted, and more than enough of it is a dead letter. What may stand in a
template is looked at when it is compiled, once (:mod:`workers.codecs.jinja_rules`).

A field that is missing or null may be asked for (``if``, ``or``, ``default``, ``is defined``); whatever needs its value, to write
it, to filter it or to go through it, makes the record a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import ChainableUndefined, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.codecs import jinja_filters
from workers.codecs.jinja_rules import COMPARE, CUT, NEED, SEARCH, STEPS, WHOLE, WRITE, Checked, checked
from workers.codecs.plain import UNAVAILABLE
from workers.codecs.values import id_part, missing, scalar, unavailable, wrong_type
from workers.errors import PoisonError

# What a template may do for one record: far more than any text takes, and done in a second.
MOST_ITEMS = 10_000
MOST_CHARACTERS = 1 << 24
# What an item counts for that is only compared, beside its characters; and one that has items itself. It takes as long as these.
ITEM_CHARACTERS, NESTED_CHARACTERS = 8, 40

# What Python says of values that do not go together, or are nested too deeply to be compared.
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, RecursionError)

_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"})


class _Context(Context):
    """A record on its way through a template, and how much that has cost."""

    write: Callable[[object], str | None] = staticmethod(scalar)
    reason = "missing_field"
    done_items = done_characters = 0

    def spend(self, *, items: int = 0, characters: int = 0) -> None:
        """Count what is about to be done.

        Raises:
            PoisonError: it is too much.
        """
        self.done_items += items
        self.done_characters += characters
        if self.done_items > MOST_ITEMS or self.done_characters > MOST_CHARACTERS:
            raise PoisonError(
                "text",
                "too_much",
                f"the template goes through more than {MOST_ITEMS:,} items, or {MOST_CHARACTERS:,} characters, of the record",
            )

    def weigh(self, value: object) -> None:
        """Count what comparing a value may cost: all of its characters, and those that its items count for."""
        stack = [value]
        while stack:
            match stack.pop():
                case str() | bytes() as found:
                    self.spend(characters=len(found))
                case Mapping() as found:
                    self._weigh_items([*found, *found.values()], stack)
                case list() | tuple() as found:
                    self._weigh_items(found, stack)

    def _weigh_items(self, items: Sequence[object], stack: list[object]) -> None:
        """Count items; those that have items of their own are left on the ``stack``."""
        characters = ITEM_CHARACTERS * len(items)
        for each in items:
            if type(each) is str:  # what most are, and quick to ask
                characters += len(each)
            elif isinstance(each, str | bytes | list | tuple | Mapping):
                characters += NESTED_CHARACTERS - ITEM_CHARACTERS
                stack.append(each)
        self.spend(characters=characters)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without what is its own: no globals, our filters and tests, and nothing of an object but a mapping's values."""

    context_class = _Context

    def __init__(self) -> None:
        # White space stays as it is written: a line break that went would join two words.
        super().__init__(undefined=ChainableUndefined, keep_trailing_newline=True, cache_size=0)
        self.globals.clear()
        self.filters = {**jinja_filters.FILTERS, WRITE: _write, NEED: _need, STEPS: _steps}
        self.filters |= {COMPARE: _compare, SEARCH: _search, CUT: _cut}
        self.tests = dict(jinja_filters.TESTS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        found: Any = None
        if isinstance(obj, Mapping):
            found = obj.get(argument) if isinstance(argument, str) else None
        elif isinstance(obj, str | list | tuple) and (isinstance(argument, slice) or type(argument) is int):
            try:
                found = obj[argument]
            except IndexError:
                found = None
        if found is UNAVAILABLE:
            raise unavailable(str(argument))
        # By no name: nobody sees it, and what stands in the brackets may be a list as long as the record.
        return self.undefined(name="item") if found is None else found


class JinjaTemplate:
    """See :class:`workers.codecs.template.Template`."""

    def __init__(self, template: Any, found: Checked) -> None:
        """What :meth:`parse` makes; ``template`` is Jinja's."""
        self._template = template
        self._render: Callable[[Context], Iterator[str]] = template.root_render_func
        self.fields = found.fields
        self.needed = found.needed
        self._names = found.names
        self._whole = found.whole
        self._every = found.every

    @classmethod
    def parse(cls, source: str) -> JinjaTemplate:
        """Compile a template.

        Raises:
            ValueError: it is not one of Jinja's, or holds what is not taken here; the sentence says what, and in which line.
        """
        environment = _Environment()
        try:
            tree = environment.parse(source)
            found = checked(tree, environment.filters, environment.tests)
            template = environment.from_string(found.tree)
        except TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno} of the template: {error.message or 'it is not Jinja'}") from None
        except (RecursionError, SyntaxError):  # the second is what Python says of twenty loops in each other
            raise ValueError("the template is nested too deeply") from None
        return cls(template, found)

    @property
    def has_defaults(self) -> bool:
        """See :class:`workers.codecs.template.Template`."""
        try:
            self.render({})
        except PoisonError:
            return False
        return True

    def render(self, values: Mapping[str, object]) -> str:
        """See :class:`workers.codecs.template.Template`."""
        return self._fill(values, scalar, "missing_field")

    def render_id(self, values: Mapping[str, object]) -> str:
        """See :class:`workers.codecs.template.Template`."""
        return self._fill(values, id_part, "missing_id")

    def _fill(self, values: Mapping[str, object], write: Callable[[object], str | None], reason: str) -> str:
        for name in values if self._every else self._names:
            if values.get(name) is UNAVAILABLE:
                raise unavailable(name)
        given: Any = {**values, WHOLE: values} if self._whole else values
        context = self._template.new_context(given, True)
        context.write, context.reason = write, reason
        try:
            return "".join(self._render(context))
        except PoisonError:
            raise
        except UndefinedError:
            raise PoisonError("text", reason, "the template needs a value that is missing or null") from None
        except _FAILURES as error:
            raise PoisonError(
                "text", "template_failed", f"the template fails at what a field holds ({type(error).__name__})"
            ) from None


# ---- what is put around expressions when a template is compiled


@jinja_filters.pass_context
def _need(context: _Context, value: object, name: str) -> object:
    """A value that something is about to be done with."""
    if value is None or isinstance(value, Undefined):
        raise missing(name, context.reason)
    return value


@jinja_filters.pass_context
def _write(context: _Context, value: object, name: str) -> str:
    """A value as it stands in the text."""
    text = context.write(_need(context, value, name))
    if text is None:
        raise wrong_type(name, value)
    context.spend(characters=len(text))
    return text


@jinja_filters.pass_context
def _steps(context: _Context, value: object, name: str) -> list[object]:
    """What a loop goes through."""
    value = _need(context, value, name)
    if not isinstance(value, list | tuple | Mapping):
        raise wrong_type(name, value)
    found = list(value)
    context.spend(items=len(found))
    return found


@jinja_filters.pass_context
def _compare(context: _Context, value: object) -> object:
    """A value that is compared."""
    context.weigh(value)
    return value


@jinja_filters.pass_context
def _search(context: _Context, value: object) -> object:
    """A value in which something is looked for; in a mapping that takes no time."""
    if not isinstance(value, Mapping):
        context.weigh(value)
    return value


@jinja_filters.pass_context
def _cut(context: _Context, value: object) -> object:
    """A value of which a piece is taken."""
    if isinstance(value, str | bytes | list | tuple):
        context.spend(characters=len(value))
    return value
