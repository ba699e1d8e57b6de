"""Real text that every machine has: what Python and its standard library say about themselves.

Comes in: the library's source files. Goes out: docstrings of public modules, classes and functions, of the built-in ones,
and pydoc's help topics. Never here: an import of what is read (``pydoc_data.topics``, which is data, apart), or the network.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

# Tests and programs rather than a library; what an installation adds; what nobody should use any more.
SKIPPED = frozenset(
    {
        *("test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"),
        *("distutils", "pydoc_data", "lib-dynload", "antigravity.py", "this.py"),
    }
)
SHORTEST = 40


@dataclass(frozen=True, slots=True)
class Doc:
    """A text: ``id`` is what it describes by its full name, such as ``collections.OrderedDict.move_to_end``."""

    id: str
    title: str
    body: str


def documents(rows: int | None = None) -> Iterator[Doc]:
    """The first ``rows`` documents, default all (4,466 on Python 3.11), in the order of their ids' hashes, which mixes the modules.

    No body is there twice, none is shorter than 40 characters, and the order is the same on every machine of one version.
    """
    found: dict[str, Doc] = {}
    for doc in _all():
        body = doc.body.strip()
        if len(body) >= SHORTEST:
            found.setdefault(body, Doc(doc.id, doc.title, body))
    unique = {doc.id: doc for doc in found.values()}
    ordered = sorted(unique.values(), key=lambda doc: hashlib.sha256(doc.id.encode()).digest())
    yield from ordered[:rows]


def _all() -> Iterator[Doc]:
    for name, text in sorted(topics.items()):
        yield Doc(f"help.{name}", f"Python help on {name}", text)
    yield from _built_in()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        if not SKIPPED.intersection(parts) and _public(module):
            yield from _in_file(path, module)


def _built_in() -> Iterator[Doc]:
    for name, found in sorted(vars(builtins).items()):
        if not _public(name) or not callable(found):
            continue
        yield Doc(name, f"{'class' if isinstance(found, type) else 'function'} {name}", found.__doc__ or "")
        for attribute, method in sorted(vars(found).items()) if isinstance(found, type) else ():
            if _public(attribute) and callable(method):
                yield Doc(f"{name}.{attribute}", f"method {name}.{attribute}", method.__doc__ or "")


def _public(name: str) -> bool:
    """Whether no part of a dotted name begins with an underscore; ``__init__`` and its like repeat what classes say."""
    return not any(part.startswith("_") for part in name.split("."))


def _in_file(path: Path, module: str) -> Iterator[Doc]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in old docstrings
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    yield from _described(tree, module, "module")


def _described(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str
) -> Iterator[Doc]:
    text = ast.get_docstring(node, clean=False)
    if text:
        yield Doc(name, f"{kind} {name}", inspect.cleandoc(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not _public(child.name):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _described(child, f"{name}.{child.name}", "class")
        else:
            inner = "method" if isinstance(node, ast.ClassDef) else "function"
            yield from _described(child, f"{name}.{child.name}", inner)
