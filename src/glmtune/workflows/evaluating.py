"""Answer and score the rows of a file."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from glmtune.evaluation.metrics import SCORE_NAMES, with_scale
from glmtune.evaluation.predictions import PredictionFile, predict, score_all
from glmtune.files import WEIGHT_SUFFIXES
from glmtune.generate import choose_compute, pick_compute
from glmtune.load import choose_type, load_location, tokenizer_of
from glmtune.locations import Location, resolve
from glmtune.recipe import Recipe
from glmtune.run_files import SCORES_FILE, write_json
from glmtune.training.stopping import Interrupted
from glmtune.workflows.events import Answered, Event, Note, RunResult
from glmtune.workflows.rows import data_hash, full_path, longest_answer, test_questions

NO_ENCODING = {"train", "validation", "test", "max_validation_rows", "max_test_rows"}
"""Settings of the rows that change no answer."""
COMPUTED_WITH = "computed_with"
"""In an evaluation's settings: `exact` or `fast`, as its rows are answered; `auto` chooses once."""


def evaluating(recipe: Recipe) -> Generator[Event, None, RunResult]:
    """Evaluate; yield each answered row. Rows that the folder already holds are not answered again."""
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    tokenizer = tokenizer_of(location, template=recipe.template)
    settings, max_new_tokens = recipe.evaluate, longest_answer(tokenizer, recipe.data, recipe.evaluate)
    asked = test_questions(tokenizer, recipe.data, num_new=max_new_tokens)
    yield from asked.notes
    folder = recipe.output or _default_folder(recipe, location, asked.name)
    dtype = choose_type(location, recipe.dtype, recipe.device, recipe.quant)
    recipe = recipe.model_copy(update={"dtype": dtype.name})
    file = PredictionFile(folder, _facts(recipe, location, asked.paths, tokenizer.template, max_new_tokens))
    todo = [question for question in asked.questions if question.row not in file.done]
    total = len(asked.questions)
    if len(todo) < total:
        yield Note(f"{file.path}: {total - len(todo)} of {total} rows are already answered")
    if todo:
        model = load_location(
            location, template=recipe.template, dtype=dtype, device=recipe.device, quant=recipe.quant
        ).eval()
        if COMPUTED_WITH not in file.settings:
            rows = min(settings.batch_size, len(todo))
            file.record(COMPUTED_WITH, pick_compute(model, settings.compute, rows=rows))
        model = choose_compute(model, file.settings[COMPUTED_WITH])
        answers = predict(
            model, tokenizer, todo, max_new_tokens=max_new_tokens, batch_size=settings.batch_size
        )
        done = total - len(todo)
        try:
            for prediction in answers:
                file.add(prediction)
                done += 1
                yield Answered(done, total)
        except KeyboardInterrupt:
            kept = f"{done} of {total} answers are kept in {file.path}"
            raise Interrupted(f"interrupted; {kept}: run the same again to go on") from None
    wanted = {question.row for question in asked.questions}
    scores = score_all([p for p in file.finish() if p.row in wanted])
    scores["compute"] = file.settings.get(COMPUTED_WITH, settings.compute)
    write_json(folder / SCORES_FILE, scores)
    return RunResult(folder, {}, scores)


def _facts(
    recipe: Recipe, location: Location, paths: Sequence[Path], template: str, max_new_tokens: int
) -> dict[str, Any]:
    """All that an answer depends on: a second run with other facts is another evaluation."""
    folders = [folder for folder in (location.base, location.adapter) if folder]
    weights = sorted(
        file for folder in folders for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES
    )
    return {
        "model": str((location.adapter or location.base).resolve()),
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "template": template,
        "dtype": recipe.dtype,
        "quant": recipe.quant or location.quant,
        "data": ", ".join(str(full_path(path)) for path in paths),
        "data_sha256": " ".join(map(data_hash, paths)),
        "encoding": recipe.data.model_dump(mode="json", exclude=NO_ENCODING),
        "max_new_tokens": max_new_tokens,
        "compute": recipe.evaluate.compute,
    }


def _default_folder(recipe: Recipe, location: Location, name: str) -> Path:
    """`<run>/evaluations/<data>` for a run's checkpoint, else `runs/evaluate-<model>-<data>`."""
    if location.run:
        step = (location.adapter or location.base).name
        return location.run / "evaluations" / f"{step}-{name}"
    return Path("runs") / f"evaluate-{Path(recipe.model).resolve().name}-{name}"


def scores_table(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (score, thudm, chatglm3) for printing, each with its scale."""

    def cell(name: str, variant: str) -> str:
        return with_scale(scores[variant][name], name, variant, digits=4)

    return [(name, cell(name, "thudm"), cell(name, "chatglm3")) for name in SCORE_NAMES]
