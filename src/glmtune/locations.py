"""Resolve a path to a model, a run or an adapter, and to its base model. No weight is read.

Torch is loaded only to look into a folder that may hold an adapter, so a mistyped path is an error at once.
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
"""The folder of runs without an `output` setting."""
MOST_RUNS = 5
"""Number of runs that a hint names."""
BUNDLED = {"glm-tiny": Path(__file__).parent / "glm_tiny"}
"""Folders of the models in the package, by the names that `model=...` takes."""


@dataclass(frozen=True, slots=True)
class Location:
    """A path, resolved: the model folder, and the adapter, card and run that belong to it."""

    folder: ModelFolder
    """The folder of the model, for an adapter of its base."""
    adapter: Path | None = None
    """The folder of the adapter; None for a whole model."""
    card: Card | None = None
    """The card that glmtune wrote with the trained weights; None for any other model or adapter."""
    run: Path | None = None
    """The folder of the run that the path is, or is a checkpoint of."""
    snapshot: Snapshot | None = None
    """The model's revision in the cache of its hub; None for a local folder."""
    is_dense: bool = False
    """True to load the base without quantisation, even if the adapter was trained on a quantised base."""

    @property
    def base(self) -> Path:
        """The path of the model folder, for an adapter of its base."""
        return self.folder.path

    @property
    def trained(self) -> Path:
        """The folder of the trained weights: the adapter, or the whole model."""
        return self.adapter or self.base

    @property
    def under(self) -> "Location":
        """The location of the base alone, without the adapter; a whole model's own location."""
        return Location(self.folder, snapshot=self.snapshot) if self.adapter else self

    @property
    def name(self) -> str:
        """The name that finds the model from any folder: a hub's, a bundled model's, or its absolute path."""
        if self.snapshot:
            return str(self.snapshot.name)
        return _name_folder(self.base)

    @property
    def revision(self) -> str | None:
        """The model's revision on its hub; None for a local folder."""
        return self.snapshot.revision if self.snapshot else None

    @property
    def template(self) -> str | None:
        """The chat format that the card says it was trained with; None without a card."""
        return self.card.template if self.card else None

    @property
    def taught(self) -> Taught:
        """The system message and source prefix that it was trained with."""
        return Taught.of(self.card)

    @property
    def quant(self) -> str | None:
        """The quantisation to load the base with: that of the adapter's training; None without one."""
        return self.card.quant if self.card and not self.is_dense else None

    @property
    def other_base(self) -> str:
        """A warning that names both bases, if an adapter is put on another base than it records; else empty.

        Empty also for a card with a fingerprint of the base: loading then compares the weights themselves.
        """
        is_proven = self.card is not None and self.card.fingerprint is not None
        recorded = _recorded_base(self.adapter, self.card).base if self.adapter and not is_proven else None
        if not recorded:
            return ""
        try:
            if lasting_name(recorded) == self.name:
                return ""
        except ConfigError:  # recorded elsewhere: no path or name that is possible here
            recorded = shown(recorded)
        return f"trained on {recorded}, put on {self.name}: if that is another model, the answers are wrong"


def resolve(
    path: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    has_base: bool = False,
) -> Location:
    """Resolve a path, or a name on a hub, which is downloaded, to a model, run or adapter and its base.

    A run resolves to its best checkpoint by evaluation loss. `base` overrides the base that an adapter
    records. `revision` is that of a `path` on a hub. `has_base`: allow a `base` for a whole model, too, which
    the caller uses. Raises `CheckpointError` and `ConfigError`.
    """
    folder, snapshot = find_folder(path, revision)
    folder = _require_folder(follow(folder))
    # a checkpoint lies two levels below its run: RUN/checkpoints/step-000010
    run = folder if (folder / RECIPE_FILE).exists() else None
    if run:
        folder = _best_checkpoint(run)
    elif (folder.resolve().parent.parent / RECIPE_FILE).exists():
        run = folder.resolve().parent.parent
    card, model_folder = read_card(folder), ModelFolder(folder)
    is_adapter = (folder / ADAPTER_FILE).exists()
    if not is_adapter:
        from glmtune.adapters import store  # loads torch

        is_adapter = store.is_adapter(model_folder, has_base=base is not None)
    if is_adapter:
        its_base, snapshot = _base_of(folder, card, base)
        return Location(ModelFolder(its_base), folder, card, run, snapshot)
    if (folder / "config.json").exists():
        if base is not None and not has_base:
            raise ConfigError(f"{path}: not an adapter, so it goes on no base", hint="leave base out")
        return Location(model_folder, None, card, run, snapshot)
    if model_folder.has_weights:
        raise CheckpointError(
            f"{folder}: weights, but config.json is missing beside them",
            hint="copy config.json from the folder that the weights came from",
        )
    raise CheckpointError(
        f"{folder}: neither a model (config.json), a run ({RECIPE_FILE}) nor an adapter ({ADAPTER_FILE})",
        hint=newest_runs_hint(folder) or "check the path",
    )


def require_here(path: str | Path, revision: str | None = None) -> Path | None:
    """Return the folder of a path, without reading a file in it; None for a name on a hub.

    Raises `CheckpointError` for a path to nothing, `ConfigError` for a `revision` of a local folder.
    """
    if _hub_name(path):
        return None
    return _require_folder(follow(find_folder(path, revision)[0]))


def _require_folder(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder}: a file, not a folder", hint="give the folder it lies in")
    try:
        siblings = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
    except OSError:  # no such parent, or not readable: nothing to suggest
        siblings = []
    known = {name: str(folder.with_name(name)) for name in siblings} | {name: name for name in BUNDLED}
    if folder.name == str(folder):  # a name alone may be a run's
        known = {run.name: str(run) for run in _runs_in(RUNS)} | known
    if near := nearest(folder.name, known):
        hint = f"did you mean {known[near]}?"
    else:
        usual = "give the folder of a model, a run (runs/...) or an adapter, or a hub's name: OWNER/NAME"
        hint = windows_hint(folder) or "; ".join(filter(None, (usual, newest_runs_hint())))
    raise CheckpointError(f"{folder}: no such folder", hint=hint)


def runs_hint(path: Path) -> str:
    """Return a hint for a missing run: the run of nearly that name, or the newest runs; empty without any.

    Looks in the folder of the path, and for a bare name in `RUNS` too.
    """
    folders = [path.parent, RUNS] if path.name == str(path) else [path.parent]
    runs = {run.name: run for folder in reversed(folders) for run in _runs_in(folder)}
    if near := nearest(path.name, runs):
        return f"did you mean {runs[near]}?"
    return next(filter(None, map(newest_runs_hint, folders)), "")


def newest_runs_hint(folder: Path = RUNS) -> str:
    """Return a hint that names the newest runs in a folder; empty without any."""
    runs = _runs_in(folder)
    more = f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else ""
    return f"runs are: {', '.join(map(str, runs[:MOST_RUNS]))}{more}" if runs else ""


def _runs_in(folder: Path) -> list[Path]:
    known = sorted(folder.glob(f"*/{RECIPE_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in known]


def find_folder(path: str | Path, revision: str | None = None) -> tuple[Path, Snapshot | None]:
    """Return the folder of a path, and its snapshot if the path is a name on a hub, which is downloaded.

    A local folder comes first, then the name of a bundled model, then a name on a hub. Raises `ConfigError`
    for a `revision` of a local folder.
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
    """Parse a path as a name on a hub; None if a local folder or bundled model has that name.

    Raises `CheckpointError` if runs lie in the folder of the path: then it is a misspelt run.
    """
    folder = given_path(path)
    name = None if folder.exists() or str(path) in BUNDLED else parse_name(path)
    if name and str(path) == name.repository and (runs := runs_hint(folder)):
        raise CheckpointError(f"{path}: no such run", hint=f"{runs} (on the hub it would be {name})")
    return name


def lasting_name(path: str | Path) -> str:
    """Return a name that means the same from any folder: a hub's, a bundled model's, or an absolute path."""
    folder = given_path(path)
    if folder.exists():
        return _name_folder(folder)
    return str(path if str(path) in BUNDLED else parse_name(path) or path)


def _name_folder(folder: Path) -> str:
    """Return the name of a bundled model, or the absolute path of any other folder."""
    whole = folder.resolve()
    return next((name for name, bundled in BUNDLED.items() if bundled.resolve() == whole), str(whole))


def _best_checkpoint(run: Path) -> Path:
    """Return the checkpoint that `best` leads to, else the last one. Raises `CheckpointError`."""
    best = find_checkpoint(run, "best")
    card = read_card(best) if best else None
    named = read_json_if_there(run / RESULT_FILE, is_ours=True).get("best_step")
    # a killed process may have written eval.json and not the link, or the other way round
    if named is not None and (best is None or (card and card.step not in (None, named))):
        state = f"leads to step {card.step}" if card else "is missing"
        raise CheckpointError(
            f"{run / 'best'}: {state}, but {RESULT_FILE} names step {named} as the best",
            hint=f"mend the links from the last checkpoint: `glmtune train {shlex.quote(str(run))} --resume`",
        )
    checkpoint = best or last_checkpoint(run)
    if checkpoint is None:
        again = f"glmtune train {shlex.quote(str(run / RECIPE_FILE))} output=NEW"
        raise CheckpointError(
            f"{run}: this run has no checkpoint yet", hint=f"begin it anew, by its own recipe: `{again}`"
        )
    return checkpoint


def find_base(location: Location, base: str | Path | None = None, *, wanted_by: str) -> Location:
    """Return the base that a model was trained from: `base` if it is named, else the recorded one.

    `wanted_by`: the setting that needs it. Raises `ConfigError` for a model without a recorded base, and
    `CheckpointError` for one that is not there.
    """
    if location.adapter:
        return location.under
    if base:
        return resolve(base)
    name_it = "name the base's folder: base=FOLDER"
    if location.card is None:
        raise ConfigError(f"{wanted_by}: {location.base} is a model, with no base recorded", hint=name_it)
    try:
        return resolve(location.card.base, revision=location.card.base_revision)
    except (CheckpointError, ConfigError) as err:
        raise CheckpointError(f"{wanted_by}: the base of {location.base}: {err}", hint=name_it) from None


def _base_of(adapter: Path, card: Card | None, base: str | Path | None) -> tuple[Path, Snapshot | None]:
    if base is not None:
        return find_folder(base)
    recorded = _recorded_base(adapter, card)
    if recorded.base:
        try:
            folder, snapshot = find_folder(recorded.base, recorded.revision)
        except ConfigError as err:
            raise CheckpointError(f"{recorded.where}: {err}", hint=_NAME_BASE) from None
        if (folder / "config.json").exists():
            return folder, snapshot
    raise CheckpointError(
        f"{adapter}: its base model is not at {recorded.base or '(no place recorded)'}", hint=_NAME_BASE
    )


_NAME_BASE = "name the base's folder: base=FOLDER, or in Python load_model(base, adapter=...)"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The base that an adapter's files name."""

    base: str | None
    """A path, or a name on a hub."""
    revision: str | None
    where: str
    """The file, and the key in it, for messages."""


def _recorded_base(adapter: Path, card: Card | None) -> _Recorded:
    if card:
        return _Recorded(card.base, card.base_revision, f"{adapter / CARD_FILE}: base")
    theirs, key = read_adapter_config_if_there(adapter), "base_model_name_or_path"
    return _Recorded(theirs.get(key), theirs.get("revision"), f"{adapter / ADAPTER_FILE}: {key}")
