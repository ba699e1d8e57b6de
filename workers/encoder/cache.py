"""A model out of an object store, once per machine: a folder of the user's cache, which is there whole or not at all.

Comes in: a location. Goes out: a folder. Never here: a file that is not asked for, or an older version instead of the
store's own: where the store cannot be asked which is current, nothing is handed out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from workers import log
from workers.cache_folder import cache_folder
from workers.errors import EnvironmentFault
from workers.object_store import Location, ObjectStore, StoredObject

_logger = log.get(__name__)

# A model has some tens of objects; a listing that does not end is somebody's data lake.
_MOST_OBJECTS = 10_000
# Eight parts of 8 MiB under way fill a fast line, and are the most that is in memory.
_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 8
_LOOK_S = 0.1


def fetch(location: Location, wanted: Sequence[str]) -> Path:
    """The folder with the objects under ``location`` whose names match ``wanted`` (``*.json`` …), downloaded if need be.

    1. List the objects: their paths, sizes and ETags name the folder, so that a changed model has another.
    2. A whole folder of that name is the answer.
    3. Else take its lock, and look again: of many processes one downloads, the others wait here.
    4. Remove what killed downloads left.
    5. Download into a folder beside, every size checked, and on to the disk.
    6. Rename it.

    Raises:
        EnvironmentFault: the store or the cache folder cannot be used, or there is no model under the location.
    """
    store = ObjectStore(location)
    objects = _model(location, store.listing(_MOST_OBJECTS), wanted)
    folder = _cache() / _folder_name(location, objects)
    try:
        if not _whole(folder, objects):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder):
                if not _whole(folder, objects):
                    _sweep(folder.parent)
                    _download(store, objects, folder)
    except OSError as error:
        raise EnvironmentFault(_why(error, folder.parent)) from None
    return folder


# ------------------------------------------------------------------ what to download


def _model(location: Location, listed: Sequence[StoredObject], wanted: Sequence[str]) -> list[StoredObject]:
    """The objects that a model needs, or EnvironmentFault where they are none."""
    if not listed:
        raise EnvironmentFault(f"{location}: nothing lies under it; is the prefix right?")
    objects = [each for each in listed if any(fnmatchcase(PurePosixPath(each.path).name, name) for name in wanted)]
    for each in objects:
        parts = each.path.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or re.search(r"[\x00-\x1f\x7f\\]", each.path):
            raise EnvironmentFault(f"{location}: the path of an object there leads out of the folder; it is refused")
    paths = {each.path for each in objects}
    if not paths & {"modules.json", "config.json"}:
        below = next((path for path in sorted(paths) if path.endswith("/modules.json")), None)
        hint = f"; did you mean {location}/{below.removesuffix('/modules.json')}?" if below is not None else ""
        raise EnvironmentFault(f"{location} is no model: it has neither modules.json nor config.json{hint}")
    if not any(path.endswith(".safetensors") for path in paths):
        raise EnvironmentFault(
            f"{location} has no *.safetensors; pickled weights can run code and are not taken: convert them"
        )
    return objects


def _cache() -> Path:
    # Read here, as the hub's own library does: an encoder on another machine has that machine's environment.
    try:
        return cache_folder(os.environ)
    except RuntimeError:
        raise EnvironmentFault("this user has no home folder: set XDG_CACHE_HOME to a folder for the cache") from None


def _folder_name(location: Location, objects: Sequence[StoredObject]) -> str:
    """``models/`` and a name: the model's, for people, and a digest of all that the store says."""
    listing = [[each.path, each.size, each.version] for each in objects]
    digest = hashlib.sha256(json.dumps([str(location), listing]).encode()).hexdigest()[:20]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", location.name)[:60].strip(".-") or "model"
    return f"models/{name}-{digest}"


# ------------------------------------------------------------------ the folder


def _whole(folder: Path, objects: Sequence[StoredObject]) -> bool:
    """Whether every file is there, of its size: also when somebody tidied up, or a disk lost what was not yet on it."""
    try:
        return all((folder / each.path).stat().st_size == each.size for each in objects)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back from whoever dies."""
    with _beside(folder, "lock").open("ab") as file:
        waited = False
        while not _taken(file.fileno()):
            if not waited:
                _logger.info("waiting for another process's download %s", log.fields(folder=folder))
            waited = True
            time.sleep(_LOOK_S)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(models: Path) -> None:
    """Remove the parts of other models whose download was killed: those whose lock nobody holds."""
    for left in models.glob("*.partial"):
        with _beside(left.with_name(left.name.removesuffix(".partial")), "lock").open("ab") as file:
            if _taken(file.fileno()):
                shutil.rmtree(left, ignore_errors=True)


def _download(store: ObjectStore, objects: Sequence[StoredObject], folder: Path) -> None:
    """Fill a folder beside, and rename it; whatever goes wrong, nothing stays. The lock is held."""
    started, total = time.monotonic(), sum(each.size for each in objects)
    partial = _beside(folder, "partial")
    for left in (partial, folder):  # the second only where somebody removed files of it
        if left.exists():
            shutil.rmtree(left)
    if (free := shutil.disk_usage(folder.parent).free) < total:
        raise EnvironmentFault(
            f"{store.location} takes {total:,} bytes and {folder.parent} has {free:,} free: make room, or set "
            "XDG_CACHE_HOME to a folder elsewhere"
        )
    _logger.info("downloading model %s", log.fields(uri=store.location, files=len(objects), bytes=total))
    try:
        for each in objects:
            path = partial / each.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _fill(store, objects, partial)
        for path in sorted(partial.rglob("*")):
            _sync(path)
        if not _whole(partial, objects):
            raise EnvironmentFault(f"{store.location}: what was downloaded is not what the store lists; try again")
        _sync(partial)
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - started
    _logger.info("model downloaded %s", log.fields(uri=store.location, bytes=total, seconds=seconds, folder=folder))


def _fill(store: ObjectStore, objects: Sequence[StoredObject], folder: Path) -> None:
    """Read all objects in parts, several at once, each to its place in its file."""

    def copy(each: StoredObject, start: int) -> None:
        data = store.read(each, start, min(each.size, start + _PART_BYTES))
        with (folder / each.path).open("r+b") as file:
            file.seek(start)
            file.write(data)

    pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="download")
    try:
        parts = [(each, start) for each in objects for start in range(0, each.size, _PART_BYTES)]
        for done in as_completed([pool.submit(copy, *part) for part in parts]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _sync(path: Path) -> None:
    """Put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: OSError, models: Path) -> str:
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{models} is full ({reason}): make room, or set XDG_CACHE_HOME to a folder elsewhere"
    return f"models are downloaded to {models}, which cannot be used ({reason}): set XDG_CACHE_HOME to another folder"
