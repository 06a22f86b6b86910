"""Models by their names on a hub: told from folders, fetched once, used from the cache after that.

`OWNER/NAME` and `hf:OWNER/NAME` lie on the Hugging Face Hub, `modelscope:OWNER/NAME` on ModelScope. The
hubs' own packages fetch and cache, and let only one process at a time fetch a file; their environment
variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT, ...) mean
what they always mean. Nothing that is fetched is ever run.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError, ConfigError, GlmtuneError, first_line
from glmtune.extras import require
from glmtune.files import WEIGHT_SUFFIXES
from glmtune.log import tell

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""What a model needs beside its weights. Code is only read: it can tell which chat format a folder speaks."""
OUR_FOLDERS = ("runs", "exports", "adapters", "recipes", "migrated")
"""Folders that the documentation has one write to: a path in them is nobody's name."""
FORM = "OWNER/NAME, hf:OWNER/NAME or modelscope:OWNER/NAME"

_MODELSCOPE_MAIN = "master"
_NAME = re.compile(r"(?:(hf|modelscope):)?([A-Za-z0-9_-][\w.-]*/[\w.-]+)", re.ASCII)
_INNER_FOLDERS = "*/*"


@dataclass(frozen=True, slots=True)
class HubName:
    """A model's name on a hub."""

    hub: str
    """`hf` or `modelscope`."""
    repository: str
    """OWNER/NAME."""

    def __str__(self) -> str:
        """The name that no folder can be mistaken for."""
        return f"{self.hub}:{self.repository}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a model in the cache of its hub."""

    name: HubName
    folder: Path
    revision: str
    """Its commit; of ModelScope the branch or tag that was asked for."""


def parse_name(path: str | Path) -> HubName | None:
    """The hub's name that a path is, if it looks like one and not like a folder.

    Raises `ConfigError` for a hub's prefix with something else behind it.
    """
    text = str(path)
    found = _NAME.fullmatch(text)
    if found and (found[1] or found[2].partition("/")[0] not in OUR_FOLDERS):
        return HubName(found[1] or "hf", found[2])
    if text.startswith(("hf:", "modelscope:")):
        raise ConfigError(f"{text}: not the name of a model on a hub", hint=f"names are {FORM}")
    return None


@cache
def fetch(name: HubName, revision: str | None = None) -> Snapshot:
    """The files of a model that are needed to use it, in the hub's cache; without `revision` its main one.

    Asks the hub once in a program's life. Raises `CheckpointError` for what the hub refuses or does not have,
    and where neither it nor a cached copy can be had; `MissingDependencyError` without its package.
    """
    snapshot = _HUBS[name.hub](name, revision)
    tell(f"{name}: revision {snapshot.revision} in {snapshot.folder}")
    return snapshot


def _fetch_preferred(download: Callable[..., str], name: HubName, revision: str | None) -> Path:
    """Small files and safetensors, else the small files and .bin."""
    folder = Path()
    for suffix in WEIGHT_SUFFIXES:  # the second kind only where there is none of the first
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


def _unreachable(name: HubName, err: Exception, errors: Any, constants: Any) -> GlmtuneError:
    """Neither the hub nor the whole snapshot in the cache."""
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


def _answered(name: HubName, err: Any, endpoint: str) -> CheckpointError:
    status = err.response.status_code
    hint = "check HF_TOKEN" if status in (401, 403) else "try again later, or another HF_ENDPOINT"
    return CheckpointError(f"{name}: {endpoint} answers with status {status}", hint=hint)


def _from_modelscope(name: HubName, revision: str | None) -> Snapshot:
    """ModelScope's package does not look into its cache by itself when there is no network."""
    download = require("modelscope", extra="modelscope").snapshot_download
    with _explain_modelscope(name, revision):
        try:
            folder = _fetch_preferred(download, name, revision)
        except ConnectionError:
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
        raise _refused_by_modelscope(name, revision, err) from err


def _refused_by_modelscope(name: HubName, revision: str | None, err: Exception) -> CheckpointError:
    status = getattr(err.__cause__ or err, "status_code", None)
    if status == 404 and revision is not None:  # both are answered alike
        return _unknown_revision(name, revision, "a repository on ModelScope")
    if status in (401, 403, 404):
        return _no_repository(name, "ModelScope", "MODELSCOPE_API_TOKEN")
    return _broken_off(name, err)


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
