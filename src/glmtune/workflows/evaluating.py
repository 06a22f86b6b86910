"""Generate an answer to each test row and score it against its reference."""

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from glmtune.evaluation.against import compare_scores, read_predictions
from glmtune.evaluation.metrics import SCORE_NAMES, with_scale
from glmtune.evaluation.predictions import (
    PREDICTIONS_FILE,
    Prediction,
    PredictionFile,
    PredictionPart,
    predict,
    score_all,
    score_turns,
)
from glmtune.files import WEIGHT_SUFFIXES
from glmtune.generate import choose_compute, pick_compute
from glmtune.load import choose_type, load_location, tokenizer_of
from glmtune.locations import Location, find_base, resolve
from glmtune.models.device import resolve_device
from glmtune.models.dtype import Choice
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Recipe
from glmtune.run_files import SCORES_FILE, write_json
from glmtune.training.memory import MemoryMeter
from glmtune.training.processes import Processes
from glmtune.training.stopping import Interrupted
from glmtune.workflows.events import Answered, Event, Note, RunResult, Working
from glmtune.workflows.reporting import renew_report
from glmtune.workflows.rows import data_hash, encode_test_rows, full_path, longest_answer

NO_ENCODING = {"train", "validation", "test", "max_validation_rows", "max_test_rows"}
"""Settings under `data` that choose rows but change no answer."""
COMPUTED_WITH = "computed_with"
"""Key in settings.json: `exact` or `fast`. `auto` chooses once; a continued evaluation keeps the choice."""
PEAK = "peak_memory_gib"
"""Key in settings.json and scores.json: the highest memory of the process, of all parts of an evaluation."""
AGAINST = "against"
"""Key in scores.json: how the scores differ from those of another evaluation of the same rows."""
TURNS = "turns"
"""Key in scores.json: the scores of each turn, if the rows are of several."""


def evaluating(recipe: Recipe, *, against: Path | None = None) -> Generator[Event, None, RunResult]:
    """Answer and score the test rows; yield an event per answered row, return the scores.

    Rows already answered in the folder, with the same settings, are not answered again. `against`: the folder
    of another evaluation of the same rows, whose scores these are compared with.
    """
    if against:
        read_predictions(against)  # a folder without any is an error now, not after minutes of answering
    is_mixed = recipe.evaluate.strength != 1  # with its base, which may be named then
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision, has_base=is_mixed)
    tokenizer = tokenizer_of(location, template=recipe.template)
    settings, max_new_tokens = recipe.evaluate, longest_answer(tokenizer, recipe.data, recipe.evaluate)
    test_rows = encode_test_rows(tokenizer, recipe.data, num_new=max_new_tokens)
    yield from test_rows.notes
    folder = evaluation_folder(recipe, location, test_rows.name)
    dtype = choose_type(location, recipe.dtype, recipe.device, recipe.quant)
    facts = _answer_facts(recipe, location, test_rows.paths, tokenizer.template, dtype) | {
        "max_new_tokens": max_new_tokens
    }
    team = Processes(resolve_device(recipe.device), engine=recipe.distributed)
    # the first process alone opens the folder; the others learn from it what is answered already
    whole = PredictionFile(folder, facts) if team.is_main else None
    asked, known = team.firsts((whole.settings, set(whole.done)) if whole else ({}, set()))
    file = whole or PredictionPart(folder, team.rank, asked)
    todo = [row for row in test_rows.rows if row.index not in known]
    total = len(test_rows.rows)
    if len(todo) < total:
        yield Note(f"{folder / PREDICTIONS_FILE}: {total - len(todo)} of {total} rows are already answered")
    if todo:
        meter = MemoryMeter(resolve_device(recipe.device))
        model = load_answering(recipe, location, dtype, device=team.own_card)
        if COMPUTED_WITH not in file.settings:
            rows = min(settings.batch_size, len(todo))
            # the first process's choice: all answer alike
            file.record(COMPUTED_WITH, team.firsts(pick_compute(model, settings.compute, rows=rows)))
        model = choose_compute(model, file.settings[COMPUTED_WITH])
        # dealt out by length, so that all have about as much to do
        own = sorted(todo, key=lambda row: len(row.prompt_ids))[team.rank :: team.number]
        answers = predict(
            model, tokenizer, own, max_new_tokens=max_new_tokens, batch_size=settings.batch_size
        )
        yield from _keep(answers, file, done=total - len(todo), total=total)
        team.wait()  # until all answers are there
        file.record(PEAK, max(meter.gib_of("evaluation")[0], file.settings.get(PEAK, 0.0)))
    if isinstance(file, PredictionPart):
        return RunResult(folder, {}, {})
    file.take_parts()
    # the file may hold more rows, of an earlier evaluation with a higher max_test_rows
    turns = {row.index: row.turn for row in test_rows.rows}
    wanted = [p for p in file.finish() if p.row in turns]
    compute = file.settings.get(COMPUTED_WITH, settings.compute)
    told = {TURNS: score_turns(wanted, turns), PEAK: file.settings.get(PEAK), "compute": compute}
    scores = score_all(wanted) | told
    if against:
        scores[AGAINST] = {"folder": str(against), "differences": compare_scores(wanted, against, turns)}
    write_json(folder / SCORES_FILE, scores)
    if recipe.output is None and location.run:
        yield renew_report(location.run)  # which shows the scores of the run's own folder
    return RunResult(folder, {}, scores)


def _keep(
    answers: Iterable[Prediction], file: PredictionFile | PredictionPart, *, done: int, total: int
) -> Generator[Event, None, None]:
    """Write each answer as it finishes. Raises `Interrupted` with the number of those that are kept."""
    yield Working("answering")
    try:
        for prediction in answers:
            file.add(prediction)
            done += 1
            yield Answered(done + file.count_parts(), total)
    except KeyboardInterrupt:
        saved = f"{done + file.count_parts()} of {total} answers are kept in {file.path}"
        raise Interrupted(f"interrupted; {saved}: run the same again to go on") from None


def evaluation_folder(recipe: Recipe, location: Location, name: str) -> Path:
    """Return the folder of an evaluation's files: `output`, else one in the run's or in `runs`."""
    if recipe.output:
        return recipe.output
    at = "" if (strength := recipe.evaluate.strength) == 1 else f"-strength-{strength:g}"
    if location.run:
        return location.run / "evaluations" / f"{location.trained.name}-{name}{at}"
    return Path("runs") / f"evaluate-{Path(recipe.model).resolve().name}-{name}{at}"


def load_answering(
    recipe: Recipe, location: Location, dtype: Choice, *, device: str | None = None
) -> CausalLM:
    """Load the model that answers, at the recipe's strength; on its device, unless another is given."""
    strength = recipe.evaluate.strength
    return load_location(
        location,
        template=recipe.template,
        dtype=dtype,
        device=device or recipe.device,
        quant=recipe.quant,
        strength=strength,
        base=find_base(location, recipe.base, wanted_by="strength") if strength != 1 else None,
    ).eval()


def _answer_facts(
    recipe: Recipe, location: Location, paths: Sequence[Path], template: str | None, dtype: Choice
) -> dict[str, Any]:
    """Return everything that an answer depends on; with any of it changed, old answers are not reused."""
    folders = [folder for folder in (location.base, location.adapter) if folder]
    weights = sorted(
        file for folder in folders for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES
    )
    return {
        "model": str((location.adapter or location.base).resolve()),
        # size and time instead of a hash: hashing 12 GB would take longer than many an evaluation
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "template": template,
        # the types themselves: `auto` may mean others on the next machine
        "dtype": dtype.name
        if dtype.computing == dtype.dtype
        else f"{dtype.name} computed in {dtype.computing_name}",
        "quant": recipe.quant or location.quant,
        "data": ", ".join(str(full_path(path)) for path in paths),
        "data_sha256": " ".join(map(data_hash, paths)),
        "encoding": recipe.data.model_dump(mode="json", exclude=NO_ENCODING),
        "compute": recipe.evaluate.compute,
        # None for 1, so that evaluations of earlier versions, which had no strength, go on
        "strength": None if recipe.evaluate.strength == 1 else recipe.evaluate.strength,
    }


def scores_table(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return rows of (score name, thudm value, chatglm3 value) for printing, each value with its scale."""

    def cell(name: str, variant: str) -> str:
        return with_scale(scores[variant][name], name, variant, digits=4)

    return [(name, cell(name, "thudm"), cell(name, "chatglm3")) for name in SCORE_NAMES]


def turns_table(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a head and a row for each turn: turn, rows, thudm scores; empty if all rows are of one."""
    if not scores[TURNS]:
        return []
    lines = [
        (str(of["turn"]), str(of["num_rows"]), *(f"{of['thudm'][name]:.2f}" for name in SCORE_NAMES))
        for of in scores[TURNS]
    ]
    return [("turn", "rows", *SCORE_NAMES), *lines]


def differences_table(scores: dict[str, Any]) -> list[str]:
    """Return lines for printing: the differences from another evaluation's scores; empty without one."""
    if AGAINST not in scores:
        return []
    lines = [f"against {scores[AGAINST]['folder']}, row by row, with 95% intervals:"]
    for turn, rows, found in scores[AGAINST]["differences"]:
        lines.append(f"  {rows:,} rows" if turn is None else f"  turn {turn}, {rows:,} rows")
        for name, of in found.items():
            real = "" if of["is_real"] else ", no more than chance"
            lines.append(f"    {name:10} {of['mean']:+.2f} ({of['low']:+.2f} to {of['high']:+.2f}){real}")
    return lines
