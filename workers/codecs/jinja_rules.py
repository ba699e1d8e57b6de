"""What may stand in a template, and which fields it looks at: seen in its tree, before it is compiled.

Comes in: a tree of Jinja's. Goes out: the tree with what counts and checks put around its expressions, and its fields. Never
here: a record. What is not named here is refused, so a newer Jinja brings nothing in.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError

# Filters that no template can name: a value to write, to do something with, to go through; to compare, to look for something in,
# to cut a piece out of.
WRITE, NEED, STEPS = " write", " need", " steps"
COMPARE, SEARCH, CUT = " compare", " search", " cut"
# The whole record, for fields whose names are no words: fields['product-name'].
WHOLE = "fields"

# Filters and tests that may look at what is missing.
_LOOKS = frozenset({"default", "d", "defined", "undefined", "none"})
# Names that mean something else to Jinja.
_RESERVED = frozenset({"self", "super", "caller", "varargs", "kwargs"})
_BRACES = re.compile(r"\{\s*[A-Za-z_][\w.]*\s*(\|[^{}]*)?\}")
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Concat)
_WORDS: dict[type[nodes.Node], str] = {
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.FromImport: "import",
    nodes.CallBlock: "call",
}


@dataclass(slots=True)
class Checked:
    """A tree that may be compiled.

    ``fields``: as templates name them; ``needed``: paths of those that nothing stands in for; ``names``: those at the top of a
    record; ``whole``: it says :data:`WHOLE`, and ``every``: not for one field alone.
    """

    tree: nodes.Template
    fields: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    whole: bool
    every: bool


def checked(tree: nodes.Template, filters: Mapping[str, Callable[..., Any]], tests: Mapping[str, Any]) -> Checked:
    """Look at a tree.

    Raises:
        TemplateSyntaxError: something in it is not taken; it says what, and in which line.
    """
    rules = _Rules(filters, tests)
    for node in tree.body:
        rules.statement(node, frozenset())
    needed = tuple(path for path, need in rules.found.items() if need)
    names = tuple(dict.fromkeys(path[0] for path in rules.found))
    fields = tuple(".".join(path) for path in rules.found) or ((WHOLE,) if rules.whole else ())
    return Checked(tree, fields, needed, names, rules.whole, rules.every)


@dataclass(slots=True)
class _Rules:
    """The walk. ``bound`` in its methods: names that a loop gives. ``found``: paths, and whether nothing stands in for each."""

    filters: Mapping[str, Callable[..., Any]]
    tests: Mapping[str, Any]
    found: dict[tuple[str, ...], bool] = field(default_factory=dict)
    whole: bool = False
    every: bool = False

    # ---- statements

    def statement(self, node: nodes.Node, bound: frozenset[str]) -> None:
        """Look at a statement and at all in it, and change what it is about."""
        match node:
            case nodes.Output():
                node.nodes = [self._written(each, bound) for each in node.nodes]
            case nodes.If():
                node.test = self._expression(node.test, bound)
                for each in (*node.body, *node.elif_, *node.else_):
                    self.statement(each, bound)
            case nodes.For():
                self._loop(node, bound)
            case _:
                word = _WORDS.get(type(node), type(node).__name__.lower())
                _refuse(node, f"{{% {word} %}} is not taken here: there are if and for")

    def _written(self, node: nodes.Expr, bound: frozenset[str]) -> nodes.Expr:
        if isinstance(node, nodes.TemplateData):
            if mixed := _BRACES.search(node.data):
                inside = mixed[0][1:-1].partition("|")[0].strip()
                _refuse(
                    node,
                    f"fields stand in double braces beside others of Jinja's: {{{{ {inside} }}}} and not {{{inside}}}",
                )
            return node
        return self._wrapped(node, WRITE, bound)

    def _loop(self, node: nodes.For, bound: frozenset[str]) -> None:
        if node.recursive:
            _refuse(node, "a loop may not be recursive")
        node.iter = self._wrapped(node.iter, STEPS, bound)
        targets = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
        names = {each.name for each in targets if isinstance(each, nodes.Name)}
        if len(names) != len(targets):
            _refuse(node, "a loop has one name, or several with commas between them")
        inner = bound | names
        if node.test is not None:
            node.test = self._expression(node.test, inner)
        for each in node.body:
            self.statement(each, inner | {"loop"})
        for each in node.else_:
            self.statement(each, bound)

    # ---- expressions

    def _wrapped(self, node: Any, name: str, bound: frozenset[str]) -> nodes.Expr:
        """An expression whose value is needed, and what it is called when it is not there."""
        path = _path(node, bound)
        shown = f"field {'.'.join(path)}" if path else "an expression of the template"
        inner = self._expression(node, bound)
        return nodes.Filter(inner, name, [nodes.Const(shown)], [], None, None, lineno=node.lineno)

    def _expression(self, node: Any, bound: frozenset[str], *, looks: bool = False) -> Any:
        """``looks``: what it is about may be missing."""
        if (path := _path(node, bound)) is not None:
            self._note(node, path, needed=not looks)
            return node
        match node:
            case nodes.Name() | nodes.Const():
                return node
            case nodes.Getattr():
                node.node = self._expression(node.node, bound, looks=looks)
            case nodes.Getitem():
                node.node = self._expression(node.node, bound, looks=looks)
                if isinstance(node.arg, nodes.Slice):
                    node.node = _counted(node.node, CUT)
                node.arg = self._expression(node.arg, bound)
            case nodes.Slice():
                node.start, node.stop, node.step = (
                    None if each is None else self._expression(each, bound)
                    for each in (node.start, node.stop, node.step)
                )
            case nodes.Filter() | nodes.Test():
                self._application(node, bound)
            case nodes.And() | nodes.Or():
                node.left, node.right = self._expression(node.left, bound), self._expression(node.right, bound)
            case nodes.Not() | nodes.Neg():
                node.node = self._expression(node.node, bound)
            case nodes.Compare():
                node.expr = _counted(self._expression(node.expr, bound), COMPARE)
                for operand in node.ops:
                    name = SEARCH if operand.op in ("in", "notin") else COMPARE
                    operand.expr = _counted(self._expression(operand.expr, bound), name)
            case nodes.CondExpr():
                node.test = self._expression(node.test, bound)
                node.expr1 = self._expression(node.expr1, bound)
                other = node.expr2 if node.expr2 is not None else nodes.Const("", lineno=node.lineno)
                node.expr2 = self._expression(other, bound)
            case nodes.List() | nodes.Tuple():
                node.items = [self._expression(each, bound) for each in node.items]
            case nodes.Call():
                _refuse(node, "a template calls nothing; there are filters, as in {{ title | lower }}")
            case _ if isinstance(node, _ARITHMETIC):
                _refuse(
                    node,
                    "a template does not calculate; texts stand beside each other, and a field whose name is no word is "
                    f"written {WHOLE}['product-name']",
                )
            case _:
                _refuse(node, f"{type(node).__name__.lower()} is not taken here")
        return node

    def _application(self, node: nodes.Filter | nodes.Test, bound: frozenset[str]) -> None:
        what, known = ("filter", self.filters) if isinstance(node, nodes.Filter) else ("test", self.tests)
        if node.node is None or node.name not in known:
            names = sorted(name for name in known if not name.startswith(" "))
            near = difflib.get_close_matches(node.name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            _refuse(node, f"there is no {what} {node.name}: {hint}")
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            _refuse(node, f"{what} {node.name} takes its arguments one by one")
        if what == "test" or node.name in _LOOKS:
            node.node = self._expression(node.node, bound, looks=node.name in _LOOKS)
        else:
            node.node = self._wrapped(node.node, NEED, bound)
        for each in node.kwargs:
            each.value = self._expression(each.value, bound)
        node.args = [self._expression(each, bound) for each in node.args]
        given = [None] * (len(node.args) + (2 if what == "filter" else 1))  # the context and the value come first
        try:
            inspect.signature(known[node.name]).bind(*given, **{str(each.key): None for each in node.kwargs})
        except TypeError:
            _refuse(node, f"{what} {node.name} does not take these arguments")

    def _note(self, node: Any, path: tuple[str, ...], *, needed: bool) -> None:
        root = node
        while not isinstance(root, nodes.Name):
            root = root.node
        if root.name in _RESERVED:
            _refuse(node, f"{root.name} means something else to Jinja: write {WHOLE}.{root.name}")
        self.whole = self.whole or root.name == WHOLE
        if path:
            self.found[path] = self.found.get(path, False) or needed
        else:
            self.every = True


def _counted(node: Any, name: str) -> Any:
    """An expression whose value costs as much as it is long; what stands in the template itself is not long."""
    return node if isinstance(node, nodes.Const) else nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _path(node: Any, bound: frozenset[str]) -> tuple[str, ...] | None:
    """Where in a record an expression leads; () to all of it, None when it is no field, or one of a loop's."""
    match node:
        case nodes.Name(name=name) if name not in bound:
            return () if name == WHOLE else (name,)
        case nodes.Getattr(node=inner, attr=attribute):
            above = _path(inner, bound)
            return None if above is None else (*above, attribute)
        case nodes.Getitem(node=inner, arg=nodes.Const(value=str(name))):
            above = _path(inner, bound)
            return None if above is None else (*above, name)
    return None


def _refuse(node: nodes.Node, message: str) -> NoReturn:
    raise TemplateSyntaxError(message, node.lineno or 1)
