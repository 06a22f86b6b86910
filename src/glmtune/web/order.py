"""A run to be started: the words of its command, its first rows, its plan."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from threading import Lock

from glmtune.data.encode import encode_examples
from glmtune.data.official import IGNORED
from glmtune.data.reader import read_dataset
from glmtune.errors import ConfigError
from glmtune.files import read_bytes
from glmtune.load import tokenizer_of
from glmtune.locations import resolve
from glmtune.recipe.parse import read_values
from glmtune.reports.texts import in_bytes, in_time
from glmtune.run_files import make_folder, replacing
from glmtune.strict import dump_yaml
from glmtune.web.words import Words
from glmtune.workflows.early import run_folder, training_recipe
from glmtune.workflows.events import Event, Note
from glmtune.workflows.outlook import Outlook
from glmtune.workflows.public import plan
from glmtune.workflows.rows import show_ids

UPLOADS = "uploads"
"""Folder beside that of the runs that uploaded files are kept in: a run's recipe names its rows' file."""
SHOWN_ROWS = 3
_KEEPING = Lock()
"""Held from the choice of a file's name until the file is there: two visitors may upload the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The fields of the tab, as typed; an empty one leaves the setting's default."""

    model: str
    rows: str
    method: str
    epochs: str = ""
    lr: str = ""
    batch_size: str = ""
    max_tokens: str = ""
    quant: str = ""
    name: str = ""
    more: str = ""
    """Further words KEY=VALUE, one on a line."""


def words_of(form: Form, runs: Path) -> list[str]:
    """Return the words of the command `glmtune train` that the form stands for, output=FOLDER the last.

    Raises `ConfigError` for a form without rows and for values that no recipe can have.
    """
    if not form.rows.strip():
        raise ConfigError("data.train: no rows are named", hint="upload a file, or type its path")
    settings = {
        "model": form.model,
        "data.train": form.rows,
        "method": form.method,
        "train.epochs": form.epochs,
        "train.lr": form.lr,
        "train.batch_size": form.batch_size,
        "data.max_tokens": form.max_tokens,
        "quant": form.quant,
    }
    words = [f"{key}={value.strip()}" for key, value in settings.items() if value.strip()]
    words += [line.strip() for line in form.more.splitlines() if line.strip()]
    named = form.name.strip() or run_folder(training_recipe({}, words)).name
    if Path(named).name != named:
        raise ConfigError(f"output: {named!r} is no name of a folder", hint="leave out slashes: my-first-run")
    numbered = (named if number == 1 else f"{named}-{number}" for number in count(1))
    folder = next(runs / each for each in numbered if not (runs / each).exists())
    return [*words, f"output={folder}"]


def command_of(words: Sequence[str]) -> str:
    """Return the command to paste into a terminal."""
    return shlex.join(["glmtune", "train", *words])


def recipe_of(words: Sequence[str]) -> str:
    """Return the same as a recipe of YAML: the settings that the words set."""
    return dump_yaml(read_values({}, words))


def keep_upload(file: str | Path, runs: Path) -> Path:
    """Copy an uploaded file beside the runs; one of the same content that is there already is taken.

    Raises `OutputError` if it cannot be written.
    """
    upload, folder = Path(file), runs.parent / UPLOADS
    make_folder(folder)
    content = read_bytes(upload, limit=None)
    with _KEEPING:
        for number in count(1):
            name = upload.name if number == 1 else f"{upload.stem}-{number}{upload.suffix}"
            kept = folder / name
            # a second look at the same upload must not make a second file
            if kept.exists() and kept.read_bytes() == content:
                return kept
            if not kept.exists():
                with replacing(kept) as partial:
                    shutil.copyfile(upload, partial)
                return kept
    raise AssertionError  # count() does not end


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a file as the model will see them."""

    rows: list[list[tuple[str, bool]]]
    """Each row's text in pieces, with True for those that are learned."""
    num_rows: int
    format: str
    notes: tuple[str, ...]


def preview(words: Sequence[str]) -> Preview:
    """Read the rows of a command and encode the first ones. Raises `GlmtuneError`; no weight is read."""
    recipe = training_recipe({}, words)
    source = recipe.data.sources[0]
    settings = recipe.data.of_source(source)
    dataset = read_dataset(source.path, settings)
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    tokenizer = tokenizer_of(location, template=recipe.template)
    encoded = encode_examples(tokenizer, dataset.examples[:SHOWN_ROWS], settings)
    notes = (*dataset.notes(), *dataset.warnings())
    rows = []
    for row in encoded.rows[:SHOWN_ROWS]:
        pairs = zip(row.input_ids.tolist(), row.labels.tolist(), strict=True)
        parts = groupby(pairs, key=lambda pair: pair[1] != IGNORED)  # cut where learning begins and ends
        rows.append([(show_ids(tokenizer, [i for i, _ in part]), learned) for learned, part in parts])
    return Preview(rows, len(dataset.examples), dataset.format, notes)


def look_ahead(words: Sequence[str], *, is_timed: bool) -> tuple[Outlook, list[str]]:
    """Return the plan of a command, and the warnings that it gave. Raises `GlmtuneError`."""
    warned: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note) and event.is_warning:
            warned.append(event.text)

    outlook = plan(training_recipe({}, words), probe=is_timed, on_event=hear)
    return outlook, list(dict.fromkeys(warned))


def plan_lines(outlook: Outlook, words: Words) -> list[str]:
    """Return the plan in sentences: steps, epochs, longest row, memory, disk, and time if it was measured."""
    here = outlook.here
    free = in_bytes(here.machine.free)
    if here.fits:
        needed = in_bytes(max(phase.num_bytes for phase in here.phases))
        room = words(
            "fits", needed=needed, free=free, machine=words("this_machine"), disk=in_bytes(here.disk)
        )
    else:
        key = "fits_after" if here.override else "fits_not"
        room = words(key, free=free, machine=words("this_machine"), hint=here.override or here.hint)
    told = [
        room,
        words(
            "plan_steps",
            steps=f"{outlook.steps:,}",
            batch=outlook.batch_size,
            epochs=f"{outlook.epochs:.2f}",
            rows=f"{outlook.rows:,}",
            validation=f"{outlook.validation_rows:,}",
        ),
        words("plan_longest", tokens=f"{outlook.longest_row:,}"),
    ]
    if outlook.speed:
        seconds = outlook.speed
        told.append(words("plan_time", time=in_time(seconds.total_s), step=f"{seconds.step_s:.3g}"))
    return told
