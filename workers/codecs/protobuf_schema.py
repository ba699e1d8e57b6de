"""Protobuf schemas: ``.proto`` as text, compiled; and the messages that are in it.

Comes in: a schema's text (or its descriptor in base64) and what it imports, or a descriptor set. Goes out: messages by name
and by their place. Never here: a record.

The compiler is Google's own, from grpcio-tools, in a process of its own: it writes what it has to say to the process's standard
error, and ends the process when it does not go on.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from workers.schema_registry import Schema

MAIN = "stream-embedder-schema.proto"
COMPILE_S = 60.0
# What a file system says to a name too long, and to one that is a file's and a folder's: a disk that is full is no schema's fault.
_BAD_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
# A line of protoc's that is about a file, and no warning.
_COMPLAINT = re.compile(r"\S+\.proto:(?!.*warning:)")
# What Confluent's serialisers let a schema import without naming it; the interface that they publish.
_CONFLUENT = {
    "confluent/meta.proto": """syntax = "proto3";
package confluent;
import "google/protobuf/descriptor.proto";
message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
extend google.protobuf.FileOptions { Meta file_meta = 1088; }
extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }
""",
    "confluent/type/decimal.proto": """syntax = "proto3";
package confluent.type;
message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }
""",
}


_ANYTHING = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.Any")


class ProtobufSchema:
    """The messages of one file."""

    def __init__(self, schema: Schema | descriptor_pb2.FileDescriptorSet, imports: Path | None = None) -> None:
        """``imports``: a folder of files that it may import. Raises ValueError: it does not compile, or is not whole."""
        files = schema if isinstance(schema, descriptor_pb2.FileDescriptorSet) else compiled(schema, imports)
        if not files.file:
            raise ValueError("it holds no file")
        # A compiler puts what is imported first, and the file itself last.
        self._file = files.file[-1]
        self._pool = descriptor_pool.DescriptorPool()
        try:
            for file in files.file:
                self._pool.Add(file)
            self._classes = {name: self._class(name) for name in self.names}
        except (TypeError, KeyError) as error:
            raise ValueError(f"its files do not go together ({type(error).__name__})") from None

    @property
    def names(self) -> list[str]:
        """The full names of the file's messages, those inside others included."""
        package = f"{self._file.package}." if self._file.package else ""
        return list(_names(package, self._file.message_type))

    @property
    def outer_names(self) -> list[str]:
        """The full names of the messages that are not inside another one."""
        package = f"{self._file.package}." if self._file.package else ""
        return [package + each.name for each in self._file.message_type]

    def named(self, name: str) -> Any:
        """A message by its full name; None: there is none."""
        return self._classes.get(name)

    def placed(self, indexes: tuple[int, ...]) -> Any:
        """A message by its place in the file, then in the message that it is inside of, and so on; None: there is none."""
        inside: Any = self._file.message_type
        name = self._file.package
        for index in indexes:
            # Entries of maps are messages to the compiler alone.
            real = [each for each in inside if not each.options.map_entry]
            if not 0 <= index < len(real):
                return None
            name, inside = f"{name}.{real[index].name}".lstrip("."), real[index].nested_type
        return self._classes.get(name)

    def has(self, name: str, path: tuple[str, ...]) -> bool:
        """Whether a path leads to something in a message; what may hold anything may hold that too."""
        found = self.named(name)
        return found is not None and _leads(found.DESCRIPTOR, path)

    def any_has(self, path: tuple[str, ...]) -> bool:
        """Whether a path leads to something in any of the messages."""
        return any(self.has(name, path) for name in self.names)

    def _class(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))


def compiled(schema: Schema, imports: Path | None = None) -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of a schema and of all that it imports, in the order in which they need each other.

    What it imports is looked for in its references, in the folder ``imports``, and in what comes with the compiler.

    Raises:
        ValueError: it does not compile; the sentence says where.
        OSError: there is no room here to compile it.
    """
    import google.type  # noqa: PLC0415 - Google's common types, as .proto beside their modules
    import grpc_tools  # noqa: PLC0415

    common = Path(next(iter(google.type.__path__))).parents[1]
    standard = Path(next(iter(grpc_tools.__path__))) / "_proto"
    with tempfile.TemporaryDirectory(prefix="stream-embedder-proto-") as folder:
        texts = {**_CONFLUENT, **dict(schema.references), MAIN: schema.text}
        given = Path(folder, "given.descriptors")
        given.write_bytes(_take_descriptors(texts).SerializeToString())
        for name, text in texts.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
                raise ValueError("it imports a file by a name that leads out of its folder")
            place = Path(folder, *path.parts)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8")
            except OSError as error:
                if error.errno not in _BAD_NAME:
                    raise
                raise ValueError("it imports files by names that cannot be a folder's, or not together") from None
        out = Path(folder, "out.descriptors")
        folders = [folder, *([] if imports is None else [imports.absolute()]), standard, common]
        command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{each}" for each in folders)]
        command += [f"--descriptor_set_in={given}", "--include_imports", f"--descriptor_set_out={out}", MAIN]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                cwd=folder,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMPILE_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"the compiler was not done with it after {COMPILE_S:g} s") from None
        if done.returncode != 0 or not out.exists():
            lines = done.stderr.replace(f"{folder}/", "").splitlines()
            said = [line for line in lines if _COMPLAINT.match(line)] or ["protoc does not say why"]
            raise ValueError(f"it does not compile: {' '.join(said[0].split())[:200]}")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


def _leads(message: Any, path: tuple[str, ...]) -> bool:
    if not path or message.full_name in _ANYTHING:
        return True
    field = message.fields_by_name.get(path[0])
    if field is None:
        return False
    path = path[1:]
    inner = field.message_type
    if path and inner is not None and inner.GetOptions().map_entry:
        inner, path = inner.fields_by_name["value"].message_type, path[1:]
    return not path or (inner is not None and _leads(inner, path))


def _take_descriptors(texts: dict[str, str]) -> descriptor_pb2.FileDescriptorSet:
    """Take out of the texts those that are descriptors in base64, by which some clients register their schemas."""
    found = descriptor_pb2.FileDescriptorSet()
    for name, text in list(texts.items()):
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text.strip(), validate=True))
        except (ValueError, DecodeError):
            continue
        if file.name:
            file.name = name
            found.file.append(file)
            del texts[name]
    return found


def _names(above: str, messages: Any) -> Iterator[str]:
    for each in messages:
        if not each.options.map_entry:
            yield above + each.name
            yield from _names(f"{above}{each.name}.", each.nested_type)
