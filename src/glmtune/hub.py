"""Models named on a hub: downloaded once, then used from the hub's own cache.

`OWNER/NAME` and `hf:OWNER/NAME` are on the Hugging Face Hub, `modelscope:OWNER/NAME` on ModelScope. The
packages of the hubs download and cache, lock files between processes, and heed their usual environment
variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT, ...).
Downloaded code is never run.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from glmtune.errors import CheckpointError, ConfigError, GlmtuneError, first_line
from glmtune.extras import require
from glmtune.files import WEIGHT_SUFFIXES
from glmtune.log import tell

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""Files that a model needs besides its weights. Code is only read, for the chat format that it shows."""
OUR_FOLDERS = ("runs", "exports", "adapters", "recipes", "migrated")
"""Output folders in the documentation: `runs/mine` is a path, never a model of an owner `runs`."""
FORM = "OWNER/NAME, hf:OWNER/NAME or modelscope:OWNER/NAME"

_MODELSCOPE_MAIN = "master"
_NAME = re.compile(r"(?:(hf|modelscope):)?([A-Za-z0-9_-][\w.-]*/[\w.-]+)", re.ASCII)
_INNER_FOLDERS = "*/*"


@dataclass(frozen=True, slots=True)
class HubName:
    """The name of a model on a hub."""

    hub: str
    """`hf` or `modelscope`."""
    repository: str
    """OWNER/NAME."""

    def __str__(self) -> str:
        """Return the name with its hub in front, which no folder is mistaken for."""
        return f"{self.hub}:{self.repository}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a model, in the cache of its hub."""

    name: HubName
    folder: Path
    revision: str
    """The commit; on ModelScope the branch or tag that was asked for."""


def parse_name(path: str | Path) -> HubName | None:
    """Parse a path as a model's name on a hub; None if it looks like a folder.

    Raises `ConfigError` for a hub's prefix that no OWNER/NAME follows.
    """
    text = str(path)
    match = _NAME.fullmatch(text)
    if match and (match[1] or match[2].partition("/")[0] not in OUR_FOLDERS):
        return HubName(match[1] or "hf", match[2])
    if text.startswith(("hf:", "modelscope:")):
        raise ConfigError(f"{text}: not the name of a model on a hub", hint=f"names are {FORM}")
    return None


@cache
def fetch(name: HubName, revision: str | None = None) -> Snapshot:
    """Download the files of a model into the hub's cache, unless they are there; None: the main revision.

    Asks the hub once per process. Raises `CheckpointError` if the hub refuses or does not have the model, or
    cannot be reached and the cache has no whole copy; `MissingDependencyError` without the hub's package.
    """
    snapshot = _HUBS[name.hub](name, revision)
    tell(f"{name}: revision {snapshot.revision} in {snapshot.folder}")
    return snapshot


def _fetch_preferred(download: Callable[..., str], name: HubName, revision: str | None) -> Path:
    # many repositories hold the same weights as safetensors and as .bin; .bin only without the former
    folder = Path()
    for suffix in WEIGHT_SUFFIXES:
        kind = f"*{suffix}"
        patterns = [*SMALL_FILES, kind]
        folder = Path(
            download(
                name.repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=[_INNER_FOLDERS],
            )
        )
        if any(folder.glob(kind)):
            break
    return folder


def _from_hugging_face(name: HubName, revision: str | None) -> Snapshot:
    from huggingface_hub import snapshot_download

    with _explain_hugging_face(name, revision):
        folder = _fetch_preferred(snapshot_download, name, revision)
    return Snapshot(name, folder, folder.name)


@contextmanager
def _explain_hugging_face(name: HubName, revision: str | None) -> Iterator[None]:
    from huggingface_hub import constants, errors

    address = f"{constants.ENDPOINT}/{name.repository}"
    # the order matters: GatedRepoError is a RepositoryNotFoundError, and all of these are HfHubHTTPErrors
    try:
        yield
    except errors.RevisionNotFoundError:
        raise _unknown_revision(name, revision, address) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: its owner has not let you in yet", hint=f"ask at {address}, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise _no_repository(name, constants.ENDPOINT, "HF_TOKEN") from None
    except errors.LocalEntryNotFoundError as err:
        raise _unreachable(name, err, errors, constants) from None
    except errors.HFValidationError as err:
        raise ConfigError(f"{name}: {first_line(err)}", hint=f"names are {FORM}") from None
    except errors.HfHubHTTPError as err:
        raise _answered(name, err, constants.ENDPOINT) from None
    except (OSError, errors.HTTPError) as err:  # type: ignore[attr-defined]  # of the httpx that it uses
        raise _broken_off(name, err) from err


def _unreachable(name: HubName, err: Exception, errors: ModuleType, constants: ModuleType) -> GlmtuneError:
    # LocalEntryNotFoundError: neither the hub nor the cache gave a whole snapshot
    if isinstance(err.__cause__, errors.HfHubHTTPError):
        return _answered(name, err.__cause__, constants.ENDPOINT)
    part = "only in part" if isinstance(err, errors.IncompleteSnapshotError) else "not"
    if constants.HF_HUB_OFFLINE:
        why, hint = "HF_HUB_OFFLINE is set", "fetch it once without HF_HUB_OFFLINE"
    else:
        why, hint = f"{constants.ENDPOINT} cannot be reached", "check the network, or HF_ENDPOINT"
    return CheckpointError(
        f"{name}: {part} in the cache {constants.HF_HUB_CACHE}, and {why}",
        hint=f"{hint}; or give a local folder",
    )


def _answered(name: HubName, err: "HfHubHTTPError", endpoint: str) -> CheckpointError:
    status = err.response.status_code
    hint = "check HF_TOKEN" if status in (401, 403) else "try again later, or another HF_ENDPOINT"
    return CheckpointError(f"{name}: {endpoint} answers with status {status}", hint=hint)


def _from_modelscope(name: HubName, revision: str | None) -> Snapshot:
    download = require("modelscope", extra="modelscope").snapshot_download
    with _explain_modelscope(name, revision):
        try:
            folder = _fetch_preferred(download, name, revision)
        except ConnectionError:  # its package does not look into the cache by itself without a network
            folder = Path(download(name.repository, revision=revision, local_files_only=True))
    return Snapshot(name, folder, revision or _MODELSCOPE_MAIN)


@contextmanager
def _explain_modelscope(name: HubName, revision: str | None) -> Iterator[None]:
    errors = require("modelscope.hub.errors", extra="modelscope")
    try:
        yield
    except errors.CacheNotFound:
        raise CheckpointError(
            f"{name}: not in the cache, and ModelScope cannot be reached",
            hint="check the network, MODELSCOPE_ENDPOINT and MODELSCOPE_CACHE; or give a local folder",
        ) from None
    except (errors.HubError, OSError, ValueError) as err:
        status = getattr(err.__cause__ or err, "status_code", None)
        # an unknown revision and an unknown repository are both 404
        if status == 404 and revision is not None:
            raise _unknown_revision(name, revision, "a repository on ModelScope") from err
        if status in (401, 403, 404):
            raise _no_repository(name, "ModelScope", "MODELSCOPE_API_TOKEN") from err
        raise _broken_off(name, err) from err


_HUBS: dict[str, Callable[[HubName, str | None], Snapshot]] = {
    "hf": _from_hugging_face,
    "modelscope": _from_modelscope,
}


def _unknown_revision(name: HubName, revision: str | None, address: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: unknown revision {revision!r}",
        hint=f"leave revision out for the main one, or give a branch, tag or commit that {address} has",
    )


def _no_repository(name: HubName, hub: str, token: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: no such repository on {hub}, and no such folder here",
        hint=f"check the name; a private repository needs {token}",
    )


def _broken_off(name: HubName, err: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name}: could not be fetched: {first_line(err)}",
        hint="run the same again: what is already here is kept; check the network and the disk",
    )
