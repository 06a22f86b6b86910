"""What a path means: a model folder, a run, an adapter, and which base these lie on. No weight is read.

Torch is loaded where a folder has to be looked into, so that a path to nothing is told at once.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from glmtune.adapters.card import ADAPTER_FILE, CARD_FILE, Card, read_card
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import given_path, read_json_if_there, windows_hint
from glmtune.folder import ModelFolder
from glmtune.hub import HubName, Snapshot, fetch, parse_name
from glmtune.near import nearest
from glmtune.run_files import RECIPE_FILE, RESULT_FILE, find_checkpoint, follow, last_checkpoint
from glmtune.templates import Taught
from glmtune.values import shown

RUNS = Path("runs")
"""The folder that runs go to where none is named."""
MOST_RUNS = 5
"""Runs that a hint names."""
BUNDLED = {"glm-tiny": Path(__file__).parent / "glm_tiny"}
"""Models that come with the package, by the name that stands for their folder."""


@dataclass(frozen=True, slots=True)
class Location:
    """What a path means."""

    folder: ModelFolder
    """Of the model."""
    adapter: Path | None = None
    card: Card | None = None
    run: Path | None = None
    """The run the path is, or lies in."""
    snapshot: Snapshot | None = None
    """Where the model came from, if that is a hub."""
    is_dense: bool = False
    """Whether the base is opened un-quantised, however it was held in training."""

    @property
    def base(self) -> Path:
        """The path of the model's folder."""
        return self.folder.path

    @property
    def trained(self) -> Path:
        """The folder of what was trained: the adapter, or the whole model."""
        return self.adapter or self.base

    @property
    def under(self) -> "Location":
        """The same without an adapter that lies on it."""
        return Location(self.folder, snapshot=self.snapshot) if self.adapter else self

    @property
    def name(self) -> str:
        """What finds the model again from anywhere: its name, on a hub or of a bundled one; its full path."""
        if self.snapshot:
            return str(self.snapshot.name)
        return _name_folder(self.base)

    @property
    def revision(self) -> str | None:
        """The model's revision on its hub."""
        return self.snapshot.revision if self.snapshot else None

    @property
    def template(self) -> str | None:
        """The chat format it was trained with, if that is known."""
        return self.card.template if self.card else None

    @property
    def taught(self) -> Taught:
        """The system text and source prefix it was trained with."""
        return Taught.of(self.card)

    @property
    def quant(self) -> str | None:
        """How the base was quantised while its adapter was trained, None if it was not."""
        return self.card.quant if self.card and not self.is_dense else None

    @property
    def other_base(self) -> str:
        """Names both bases where an adapter is put on another than it knows, by name alone; else empty."""
        is_proven = self.card is not None and self.card.fingerprint is not None
        recorded = _recorded_base(self.adapter, self.card).base if self.adapter and not is_proven else None
        if not recorded:
            return ""
        try:
            if lasting_name(recorded) == self.name:
                return ""
        except ConfigError:  # a name of nothing, which the base that was given stands for
            recorded = shown(recorded)
        return f"trained on {recorded}, put on {self.name}: if that is another model, the answers are wrong"


def resolve(
    path: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    has_base: bool = False,
) -> Location:
    """Tell a model, run or adapter and find the base of the last two; what a hub's name means is fetched.

    A run means its best checkpoint by evaluation loss. `base` overrides the recorded place of the base.
    `revision` is that of a `path` on a hub. With `has_base` a whole model may be given a `base`, for the
    caller's use. Raises `CheckpointError` and `ConfigError`.
    """
    folder, snapshot = find_folder(path, revision)
    folder = _require_folder(follow(folder))
    run = folder if (folder / RECIPE_FILE).exists() else None
    if run:
        folder = _best_checkpoint(run)
    elif (folder.resolve().parent.parent / RECIPE_FILE).exists():
        run = folder.resolve().parent.parent
    card, found = read_card(folder), ModelFolder(folder)
    if _is_adapter(found, has_base=base is not None):
        its_base, snapshot = _base_of(folder, card, base)
        return Location(ModelFolder(its_base), folder, card, run, snapshot)
    if (folder / "config.json").exists():
        if base is not None and not has_base:
            raise ConfigError(f"{path}: not an adapter, so it goes on no base", hint="leave base out")
        return Location(found, None, card, run, snapshot)
    if found.has_weights:
        raise CheckpointError(
            f"{folder}: weights, but config.json is missing beside them",
            hint="copy config.json from the folder that the weights came from",
        )
    raise CheckpointError(
        f"{folder}: neither a model (config.json), a run ({RECIPE_FILE}) nor an adapter ({ADAPTER_FILE})",
        hint=newest_runs(folder) or "check the path",
    )


def _is_adapter(folder: ModelFolder, *, has_base: bool) -> bool:
    if (folder.path / ADAPTER_FILE).exists():
        return True
    from glmtune.adapters.store import is_adapter

    return is_adapter(folder, has_base=has_base)


def require_here(path: str | Path, revision: str | None = None) -> Path | None:
    """The folder that a path means, of which nothing is read; None where a hub has to be asked.

    Raises `CheckpointError` for a path to nothing, `ConfigError` for a `revision` of what is on no hub.
    """
    if _hub_name(path):
        return None
    return _require_folder(follow(find_folder(path, revision)[0]))


def _require_folder(folder: Path) -> Path:
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such folder", hint=_near(folder))
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: a file, not a folder", hint="give the folder it lies in")
    return folder


def _near(folder: Path) -> str:
    """The hint of a folder that is not there: one of almost its name, or what can be given."""
    places = {name: str(folder.with_name(name)) for name in _folders_in(folder.parent)}
    places |= {name: name for name in BUNDLED}
    if folder.name == str(folder):
        places = {run.name: str(run) for run in _runs_in(RUNS)} | places
    if near := nearest(folder.name, places):
        return f"did you mean {places[near]}?"
    usual = "give the folder of a model, a run (runs/...) or an adapter, or a hub's name: OWNER/NAME"
    return windows_hint(folder) or "; ".join(filter(None, (usual, newest_runs())))


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:  # there is none, or it cannot be read: nothing to suggest
        return []


def name_runs(path: Path) -> str:
    """A hint that names the runs beside a path where none is, the nearest by name or the newest; or empty.

    For a name alone those of the usual folder count too.
    """
    folders = [path.parent, RUNS] if path.name == str(path) else [path.parent]
    runs = {run.name: run for folder in reversed(folders) for run in _runs_in(folder)}
    if near := nearest(path.name, runs):
        return f"did you mean {runs[near]}?"
    return next(filter(None, map(newest_runs, folders)), "")


def newest_runs(folder: Path = RUNS) -> str:
    """A hint that names the newest runs in a folder; empty where none are."""
    runs = _runs_in(folder)
    more = f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else ""
    return f"runs are: {', '.join(map(str, runs[:MOST_RUNS]))}{more}" if runs else ""


def _runs_in(folder: Path) -> list[Path]:
    known = sorted(folder.glob(f"*/{RECIPE_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in known]


def find_folder(path: str | Path, revision: str | None = None) -> tuple[Path, Snapshot | None]:
    """The folder that a path means, and the snapshot of a hub that it is.

    A folder that is here comes first, then the name of a bundled model, then a hub's. Raises `ConfigError`
    for a `revision` of what is on no hub.
    """
    folder = given_path(path)
    if name := _hub_name(path):
        snapshot = fetch(name, revision)
        return snapshot.folder, snapshot
    if revision is not None:
        raise ConfigError(
            f"revision: {path} is not a hub's name, so it has no revisions", hint="leave revision out"
        )
    return (folder if folder.exists() else BUNDLED.get(str(path), folder)), None


def _hub_name(path: str | Path) -> HubName | None:
    """The hub's name that a path is, where nothing of that name is here.

    Raises `CheckpointError` where runs lie beside it: then it is a run's name misspelt.
    """
    folder = given_path(path)
    name = None if folder.exists() or str(path) in BUNDLED else parse_name(path)
    if name and str(path) == name.repository and (runs := name_runs(folder)):
        raise CheckpointError(f"{path}: no such run", hint=f"{runs} (on the hub it would be {name})")
    return name


def lasting_name(path: str | Path) -> str:
    """What a path means, said so that it means the same from anywhere."""
    folder = given_path(path)
    if folder.exists():
        return _name_folder(folder)
    return str(path if str(path) in BUNDLED else parse_name(path) or path)


def _name_folder(folder: Path) -> str:
    """The name of a bundled model, or the full path."""
    whole = folder.resolve()
    return next((name for name, its in BUNDLED.items() if its.resolve() == whole), str(whole))


def _best_checkpoint(run: Path) -> Path:
    """The checkpoint that `best` leads to; before a run has one, the last. Raises `CheckpointError`."""
    best = find_checkpoint(run, "best")
    card = read_card(best) if best else None
    named = read_json_if_there(run / RESULT_FILE, is_ours=True).get("best_step")
    if named is not None and (best is None or (card and card.step not in (None, named))):
        found = f"leads to step {card.step}" if card else "is missing"
        raise CheckpointError(
            f"{run / 'best'}: {found}, but {RESULT_FILE} names step {named} as the best",
            hint=f"mend the links from the last checkpoint: `glmtune train {shlex.quote(str(run))} --resume`",
        )
    checkpoint = best or last_checkpoint(run)
    if checkpoint is None:
        again = f"glmtune train {shlex.quote(str(run / RECIPE_FILE))} output=NEW"
        raise CheckpointError(
            f"{run}: this run has no checkpoint yet", hint=f"begin it anew, by its own recipe: `{again}`"
        )
    return checkpoint


def _base_of(adapter: Path, card: Card | None, base: str | Path | None) -> tuple[Path, Snapshot | None]:
    if base is not None:
        return find_folder(base)
    recorded = _recorded_base(adapter, card)
    if recorded.base:
        try:
            found = find_folder(recorded.base, recorded.revision)
        except ConfigError as err:
            raise CheckpointError(f"{recorded.where}: {err}", hint=_NAME_BASE) from None
        if (found[0] / "config.json").exists():
            return found
    raise CheckpointError(
        f"{adapter}: its base model is not at {recorded.base or '(no where recorded)'}", hint=_NAME_BASE
    )


_NAME_BASE = "name the base's folder: base=FOLDER, or in Python load_model(base, adapter=...)"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The base that an adapter was trained on, as it was written down."""

    base: str | None
    revision: str | None
    where: str
    """The file and its key."""


def _recorded_base(adapter: Path, card: Card | None) -> _Recorded:
    if card:
        return _Recorded(card.base, card.base_revision, f"{adapter / CARD_FILE}: base")
    theirs, key = read_adapter_config_if_there(adapter), "base_model_name_or_path"
    return _Recorded(theirs.get(key), theirs.get("revision"), f"{adapter / ADAPTER_FILE}: {key}")
