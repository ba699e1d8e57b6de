"""Objects under a prefix of a store: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure, or a folder.

Comes in: a URI, and bytes to put where nothing is. Goes out: what lies under it, and its bytes; a fault is one sentence.
Never here: credentials, which the obstore package finds where each store's own tools look, or a store's own message (an
Azure URL may hold a signature).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from workers.errors import EnvironmentFault
from workers.object_faults import why

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES = ("s3", "gs", "az", "abfss", "file")

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9$][\w.$-]*", re.ASCII)
_CONTAINER = re.compile(
    r"[A-Za-z0-9$][\w$-]*(@[A-Za-z0-9-]+\.(dfs|blob)\.(core\.windows\.net|fabric\.microsoft\.com))?", re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# A store that answers 503 or drops a connection is asked again for 20 s (and 20 more where an answer broke off): longer
# than a failover takes. 10 s without a byte count as a dropped connection; the last limit is for trickles only.
_RETRY: RetryConfig = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=3), "base": 2},
}
_CLIENT: ClientConfig = {
    "allow_http": True,  # only where the environment names such an endpoint: the stores' own are https
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(minutes=10),
}
# Who writes waits for an answer that comes when the last byte is there, and asks again himself.
_WRITING_CLIENT: ClientConfig = {**_CLIENT, "read_timeout": timedelta(minutes=2), "timeout": timedelta(minutes=2)}
_WRITING_RETRY: RetryConfig = {**_RETRY, "max_retries": 2, "retry_timeout": timedelta(seconds=10)}

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ENDPOINTS["abfss"] = _ENDPOINTS["az"]


def is_uri(name: str) -> bool:
    """Whether a name is ``scheme://…``, of whatever scheme."""
    return _URI.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Location:
    """A prefix in a bucket; ``str()`` is its URI, which holds nothing secret.

    ``bucket`` is Azure's container, with ``@host`` where the URI names its account, and empty for a folder. ``prefix`` has
    no slash at its ends, but for a folder's, which is absolute.
    """

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Read ``s3://bucket/prefix``, ``gs://…``, ``az://container/…``, ``abfss://container@host/…``, ``file:///folder``.

        The prefix is taken as it is written; only in ``file:`` is ``%20`` a space.

        Raises:
            ValueError: it is none of these. The sentence quotes neither a user's part nor a query.
        """
        found = _URI.fullmatch(uri)
        scheme = found[1].lower() if found is not None else ""
        if found is None or scheme not in SCHEMES:
            raise ValueError(f"a URI starts with {', '.join(f'{known}://' for known in SCHEMES)}")
        bucket, path = found[2], found[3]
        if "?" in uri or "#" in uri or ("@" in bucket and scheme != "abfss") or ":" in bucket:
            raise ValueError(
                f"{scheme}://bucket/prefix is all that a URI has: credentials, endpoints and options are variables of the "
                "environment"
            )
        if scheme == "file":
            path = unquote(path)
            if bucket not in ("", "localhost") or not path.strip("/"):
                raise ValueError("a folder's URI is file:///folder, with three slashes")
            bucket = ""
        elif scheme == "abfss" and not _CONTAINER.fullmatch(bucket):
            raise ValueError("a URI starts as abfss://container@account.dfs.core.windows.net/prefix does")
        elif not _BUCKET.fullmatch(bucket.partition("@")[0]):
            raise ValueError(f"a URI starts with a bucket, as in {scheme}://bucket/prefix")
        prefix = path.strip("/")
        if (
            _CONTROL.search(prefix)
            or "\\" in prefix
            or not {"", ".", ".."}.isdisjoint(prefix.split("/") if prefix else ())
        ):
            raise ValueError(
                "the prefix of a URI has no empty parts, no . or .., no backslash and no control characters"
            )
        return cls(scheme, bucket, f"/{prefix}" if scheme == "file" else prefix)

    @property
    def name(self) -> str:
        """The last part of the path, or the bucket."""
        return self.prefix.rpartition("/")[2] or self.bucket.partition("@")[0]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}{'' if self.scheme == 'file' or not self.prefix else '/'}{self.prefix}"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the store lists it: ``path`` below the prefix, ``size`` in bytes, ``tag`` (its ETag) or ""."""

    path: str
    size: int
    tag: str
    modified: datetime

    @property
    def version(self) -> str:
        """What changes when the object does."""
        return self.tag or self.modified.replace(microsecond=0).isoformat()  # an answer's header has whole seconds


class ObjectStore:
    """A location, to be listed, read and added to by any number of threads. Nothing is asked of the store before that.

    Every method raises EnvironmentFault: no such bucket, no right, wrong credentials or region, out of reach for 20 s or more.
    """

    def __init__(self, location: Location, *, writing: bool = False) -> None:
        """``writing``: make a folder that is not there, and leave trying again to the caller."""
        self.location = location
        self._doing = "list, read or write" if writing else "list or read"
        with self._faults():
            self._store: Any = _open(location, writing=writing)

    def listing(self, most: int) -> list[StoredObject]:
        """What lies under the prefix, in order; refused where it is more than ``most``."""
        import obstore  # noqa: PLC0415 - only who names a store pays for the import

        above = self._above
        found: list[StoredObject] = []
        with self._faults():
            for chunk in obstore.list(self._store, above or None, chunk_size=1000):
                found += [_object(meta, meta["path"].removeprefix(above)) for meta in chunk]
                if len(found) > most:
                    raise EnvironmentFault(
                        f"{self.location}: more than {most:,} objects lie under it; name the folder itself that is meant"
                    )
        return sorted(found, key=lambda each: each.path)

    def stat(self, path: str) -> StoredObject | None:
        """What lies at a path below the prefix; None: no object does."""
        import obstore  # noqa: PLC0415

        with self._faults():
            try:
                return _object(obstore.head(self._store, self._above + path), path)
            except FileNotFoundError:
                return None

    def read(self, wanted: StoredObject, start: int, end: int) -> memoryview:
        """Bytes ``start`` to ``end`` (exclusive) of an object that was listed, if it is still the same."""
        import obstore  # noqa: PLC0415

        with self._faults():
            answer = obstore.get(self._store, self._above + wanted.path, options={"range": (start, end)})
            now, data = _object(answer.meta, wanted.path), memoryview(answer.bytes())
        if (now.size, now.version) != (wanted.size, wanted.version):
            raise EnvironmentFault(
                f"{self.location}: {wanted.path} changed while it was read; try again when it is whole"
            )
        if len(data) != end - start:
            raise EnvironmentFault(f"{self.location}: {wanted.path} was cut short on its way; try again")
        return data

    def names(self, folder: str, after: str = "") -> list[str]:
        """The names of the objects right in a folder below the prefix, in order, those that sort after ``after``."""
        import obstore  # noqa: PLC0415

        above = f"{self._above}{folder}/"
        with self._faults():
            listing = obstore.list(self._store, above, offset=above + after if after else None, chunk_size=1000)
            paths = [meta["path"].removeprefix(above) for chunk in listing for meta in chunk]
        return sorted(path for path in paths if "/" not in path)

    def tail(self, path: str, most: int) -> bytes:
        """The last bytes of an object, ``most`` of them at most."""
        import obstore  # noqa: PLC0415

        with self._faults():
            size = obstore.head(self._store, self._above + path)["size"]
            whole = obstore.get(self._store, self._above + path, options={"range": (max(0, size - most), size)})
            return bytes(whole.bytes())

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Put an object where nothing is, whole or not at all; whether it was put.

        False may also mean that an earlier attempt succeeded whose answer was lost: look at what is there.
        """
        import obstore  # noqa: PLC0415
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

        with self._faults():
            try:
                # In one request: parts are put together without the condition.
                obstore.put(self._store, self._above + path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def remove(self, path: str) -> None:
        """Remove an object; one that is not there is none."""
        import obstore  # noqa: PLC0415

        with self._faults(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, self._above + path)

    @property
    def _above(self) -> str:
        """What goes before a path below the prefix; a folder's store starts there itself."""
        return "" if self.location.scheme == "file" or not self.location.prefix else f"{self.location.prefix}/"

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFault:
            raise
        except Exception as error:  # noqa: BLE001 - obstore raises its own, OSError and ValueError
            said = why(error, self.location.scheme, self._doing)
            raise EnvironmentFault(f"{self.location}: {said}") from None


def _open(location: Location, *, writing: bool) -> Any:
    try:
        from obstore import store  # noqa: PLC0415
    except ImportError:
        raise EnvironmentFault(f"{location} needs the package obstore: pip install obstore") from None
    for name in _ENDPOINTS.get(location.scheme, ()):  # obstore reads these, and breaks down over one without a scheme
        if name in os.environ and not re.match(r"https?://\w", os.environ[name]):
            raise EnvironmentFault(f"{name} is set, and does not start with https:// or http://: correct or unset it")
    client, retry = (_WRITING_CLIENT, _WRITING_RETRY) if writing else (_CLIENT, _RETRY)
    match location.scheme:
        case "s3":
            return store.S3Store(location.bucket, client_options=client, retry_config=retry)
        case "gs":
            return store.GCSStore(location.bucket, client_options=client, retry_config=retry)
        case "file":
            if not writing and not Path(location.prefix).is_dir():
                raise EnvironmentFault(f"{location}: there is no such folder")
            return store.LocalStore(location.prefix, mkdir=writing)
        case _:
            uri = f"{location.scheme}://{location.bucket}"
            return store.AzureStore.from_url(uri, client_options=client, retry_config=retry)


def _object(meta: Any, path: str) -> StoredObject:
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
    return StoredObject(path, meta["size"], tag, meta["last_modified"])
