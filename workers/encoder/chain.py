"""Which modules a text passes, in order: ``modules.json``, with each Router replaced by the one of its routes that is taken.

Comes in: a model folder, and the task. Goes out: (kind, folder) of each module. Never here: what a module does, or a path
that leads out of the model's folder.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from workers.encoder.modules import read_json, read_object
from workers.errors import EnvironmentFault, SettingsError

KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout", "Router")
_ROUTERS = ("Router", "Asym")  # the second is its older name
# What a stream carries; the task that routes are asked for when the settings name none.
_DOCUMENT = "document"
# In bytes, of a file's name, and about that of a path below the model's own.
_LONGEST_NAME = 255
_LONGEST_PATH = 1024


class Module(NamedTuple):
    """One step: its class's name, and the folder with its files, which may not exist where it needs none."""

    kind: str
    folder: Path


def read_chain(folder: Path, task: str | None = None) -> tuple[list[Module], str]:
    """The modules in order, and the routes taken, joined by ``/``; empty where the model has none.

    Args:
        folder: with a ``modules.json``.
        task: the route to take, such as query or document; None: document, else the model's own default.

    Raises:
        EnvironmentFault: a file is broken, names a module that we do not run, or leads out of the folder.
        SettingsError: there is no route for the task, or several and none is named.
    """
    path = folder / "modules.json"
    listed = read_json(path)
    if not isinstance(listed, list) or not listed or not all(isinstance(module, dict) for module in listed):
        raise EnvironmentFault(f"{path} is not a list of modules")
    chain: list[Module] = []
    routes: list[str] = []
    for entry in listed:
        module = _module(folder, path, str(entry.get("type", "")), str(entry.get("path", "")))
        if module.kind == "Router":
            route, steps = _routed(module.folder, task)
            routes.append(route)
            chain += steps
        else:
            chain.append(module)
    if task is not None and not routes:
        raise SettingsError(f"model.task is {task!r}, but the model has no routes; leave it out")
    return chain, "/".join(routes)


def _module(folder: Path, source: Path, type_name: str, path: str) -> Module:
    kind = type_name.rpartition(".")[2]
    if not type_name.startswith("sentence_transformers."):
        raise EnvironmentFault(f"{source}: module {type_name!r} would run code from outside; it is not supported")
    kind = "Router" if kind in _ROUTERS else kind
    if kind not in KINDS:
        raise EnvironmentFault(f"{source}: module {kind} is not supported; supported are {', '.join(KINDS)}")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise EnvironmentFault(f"{source}: a module's path leads out of the model folder")
    if (
        any(len(part.encode(errors="surrogatepass")) > _LONGEST_NAME for part in parts.parts)
        or len(path) > _LONGEST_PATH
    ):
        raise EnvironmentFault(f"{source}: a module's path is longer than a file system takes")
    return Module(kind, folder / parts)


def _routed(folder: Path, task: str | None) -> tuple[str, list[Module]]:
    path = folder / "router_config.json"
    if not path.is_file():
        path = folder / "config.json"  # as Asym was saved
    config = read_object(path)
    types, structure, parameters = (config.get(key) or {} for key in ("types", "structure", "parameters"))
    sound = all(isinstance(part, dict) for part in (types, structure, parameters)) and len(structure) > 0
    if not sound or not all(
        isinstance(steps, list) and set(map(str, steps)) <= set(types) for steps in structure.values()
    ):
        raise EnvironmentFault(f"{path} does not say which modules its routes are made of")
    route = _route(path, structure, parameters, task)
    steps = [_module(folder, path, str(types[str(name)]), str(name)) for name in structure[route]]
    if any(step.kind == "Router" for step in steps):
        raise EnvironmentFault(f"{path}: a Router in a Router is not supported")
    return route, steps


def _route(path: Path, routes: Mapping[str, Any], parameters: Mapping[str, Any], task: str | None) -> str:
    """The route, found as sentence-transformers finds it; but where it would take the first of several, we ask."""
    mappings = _mappings(path, parameters.get("route_mappings"))
    for wanted in (_DOCUMENT, None) if task is None else (task,):
        for key in ((wanted, "text"), (wanted, None), (None, "text"), (None, None)):
            if mappings.get(key) in routes:
                return mappings[key]
        for name in (wanted, "text"):
            if name in routes:
                return str(name)
    if task is not None:
        raise SettingsError(f"model.task is {task!r}; the model has routes {', '.join(map(repr, routes))}")
    default = parameters.get("default_route")
    if isinstance(default, str) and default in routes:
        return default
    if len(routes) == 1:
        return next(iter(routes))
    raise SettingsError(f"the model has routes {', '.join(map(repr, routes))}: say with model.task which one to take")


def _mappings(path: Path, written: Any) -> dict[tuple[Any, ...], str]:
    mappings = {}
    if written is not None and not isinstance(written, dict):
        raise EnvironmentFault(f"{path}: route_mappings is not a table")
    for key, route in (written or {}).items():
        try:
            mappings[ast.literal_eval(key)] = str(route)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise EnvironmentFault(f"{path}: route_mappings has a key that is no pair of task and modality") from None
    return mappings
