"""The files that a batch job reads: found by name, folder or pattern, on this machine or in an object store.

Comes in: the settings' inputs. Goes out: files with their formats, each once, in the order of their URIs. Never here: a
file's content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from workers import log
from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location, ObjectStore, StoredObject, is_uri

LOG = log.get(__name__)

# Of one input; each is listed before anything starts.
MOST_FILES = 1_000_000

type_format = Literal["parquet", "jsonl", "csv", "text"]

_FORMATS: dict[str, type_format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
}
_PACKED = ".gz"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file: ``stored`` below ``root``, ``packed`` by gzip or not."""

    root: Location
    stored: StoredObject
    format: type_format
    packed: bool = False

    @property
    def uri(self) -> str:
        """Its name, everywhere: in rows, dead letters and messages."""
        return f"{str(self.root).rstrip('/')}/{self.stored.path}"

    @property
    def delimiter(self) -> str:
        """What stands between a CSV file's columns."""
        return "\t" if self.stored.path.removesuffix(_PACKED).endswith(".tsv") else ","


class _Wanted(NamedTuple):
    """An input taken apart: what lies under ``root`` and matches; None: ``name`` itself, or what lies under it."""

    root: Location
    name: str
    pattern: re.Pattern[str] | None


def find(names: Sequence[str], format: str, written: Iterable[Location]) -> list[InputFile]:
    """The files that ``names`` name, each once, by URI.

    Args:
        names: ``batch.inputs``.
        format: ``batch.format``.
        written: what the job writes to, none of which it may read.

    Raises:
        SettingsError: a name is no path or URI, a file's name does not say its format, or a file lies where the job writes.
        EnvironmentFault: a store or folder cannot be listed, or holds nothing that a name names.
    """
    found: dict[str, InputFile] = {}
    for name in names:
        files = list(_of(name, format))
        if not files:
            raise EnvironmentFault(
                f"batch.inputs: {name} names no file that can be read as batch.format says ({format})"
            )
        found |= {file.uri: file for file in files}
    for above in map(str, written):
        if inside := next((uri for uri in found if uri.startswith(f"{above}/")), None):
            raise SettingsError(
                f"batch.inputs: {inside} lies under {above}, where the job writes: it would feed itself"
            )
    return [found[uri] for uri in sorted(found)]


def _of(name: str, format: str) -> Iterable[InputFile]:
    root, last, pattern = _parse(name)
    if pattern is None:
        if last and (stored := ObjectStore(root).stat(last)) is not None:
            return [_file(root, stored, format, named=name)]
        above = root.prefix.rstrip("/")
        root = Location(root.scheme, root.bucket, f"{above}/{last}" if above or root.scheme == "file" else last)
    listed = [stored for stored in ObjectStore(root).listing(MOST_FILES) if not _is_hidden(stored.path)]
    if pattern is not None:
        return [_file(root, stored, format, named=name) for stored in listed if pattern.fullmatch(stored.path)]
    known = [stored for stored in listed if format != "auto" or _format(stored.path) is not None]
    if len(known) < len(listed):
        LOG.info("files of other formats are left out %s", log.fields(input=name, files=len(listed) - len(known)))
    return [_file(root, stored, format, named=name) for stored in known]


def _parse(name: str) -> _Wanted:
    if is_uri(name):
        try:
            location = Location.parse(name)
        except ValueError as error:
            raise SettingsError(f"batch.inputs: {name.partition('?')[0]}: {error}") from None
    else:
        try:
            path = os.path.abspath(Path(name).expanduser())
        except RuntimeError:
            raise SettingsError(f"batch.inputs: {name}: there is no such user") from None
        location = Location("file", "", path)
    parts = location.prefix.split("/")
    wild = next((number for number, part in enumerate(parts) if "*" in part), None)
    cut = len(parts) - 1 if wild is None else wild
    above = "/".join(parts[:cut])
    if not above and location.scheme == "file":
        above = "/"
    root = Location(location.scheme, location.bucket, above)
    return _Wanted(root, parts[-1], None if wild is None else _pattern(parts[wild:]))


def _pattern(parts: Sequence[str]) -> re.Pattern[str]:
    """``*`` is a part of a name, ``**`` any number of folders."""
    told = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            told += ".*" if last else "(?:.*/)?"
        else:
            told += "[^/]*".join(map(re.escape, part.split("*"))) + ("" if last else "/")
    return re.compile(told, re.DOTALL)


def _is_hidden(path: str) -> bool:
    """Whether Spark, Hive and shells would pass it over: ``_SUCCESS``, ``_temporary/…``, ``.part.crc``."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _format(path: str) -> type_format | None:
    found = _FORMATS.get(Path(path.removesuffix(_PACKED)).suffix.lower())
    return None if found == "parquet" and path.endswith(_PACKED) else found


def _file(root: Location, stored: StoredObject, format: str, *, named: str) -> InputFile:
    chosen = _format(stored.path) if format == "auto" else cast("type_format", format)
    if chosen is None:
        raise SettingsError(
            f"batch.inputs: {named} names {stored.path}, whose name does not say what it is: set batch.format, or name others"
        )
    return InputFile(root, stored, chosen, stored.path.endswith(_PACKED) and chosen != "parquet")
