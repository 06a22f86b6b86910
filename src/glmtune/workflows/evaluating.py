"""Answer and score the rows of a file."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from glmtune.evaluation.predictions import PredictionFile, predict, score_all
from glmtune.load import RECIPE_FILE, Place, open_place, open_tokenizer, resolve
from glmtune.recipe import Recipe, load_recipe
from glmtune.recipe.parse import Source
from glmtune.runs import write_json
from glmtune.workflows.events import Answered, Event, Note, RunResult
from glmtune.workflows.rows import file_hash, test_questions
from glmtune.workflows.training import drain

DEFAULT_NEW_TOKENS = 512


def evaluate(source: Source) -> RunResult:
    """Answer and score the test rows of a recipe whose `model` is a model, run or adapter folder."""
    return drain(evaluating(load_recipe(source)))


def evaluating(recipe: Recipe) -> Generator[Event, None, RunResult]:
    """Evaluate; yield each answered row. Rows that the folder already holds are not answered again."""
    place = resolve(recipe.model)
    tokenizer = open_tokenizer(place, template=recipe.template)
    data, settings = recipe.data, recipe.evaluate
    path, questions = test_questions(tokenizer, data, max_rows=settings.max_rows)
    max_new_tokens = settings.max_new_tokens or data.max_target_tokens or DEFAULT_NEW_TOKENS
    folder = recipe.output or _default_folder(recipe, place, path)
    facts = {
        "model": str((place.adapter or place.base).resolve()),
        "data": str(path.resolve()),
        "data_sha256": file_hash(path),
        "encoding": data.model_dump(mode="json", exclude={"train", "validation", "test"}),
        "max_new_tokens": max_new_tokens,
    }
    file = PredictionFile(folder, facts)
    todo = [question for question in questions if question.row not in file.done]
    if len(todo) < len(questions):
        yield Note(f"{file.path}: {len(questions) - len(todo)} of {len(questions)} rows are already answered")
    if todo:
        model = open_place(place, template=recipe.template, dtype=recipe.dtype, device=recipe.device).eval()
        answers = predict(
            model, tokenizer, todo, max_new_tokens=max_new_tokens, batch_size=settings.batch_size
        )
        for prediction in answers:
            file.add(prediction)
            yield Answered(len(file.done), len(questions))
    wanted = {question.row for question in questions}
    scores = score_all([p for p in file.finish() if p.row in wanted])
    write_json(folder / "scores.json", scores)
    return RunResult(folder, {}, scores)


def recipe_for(path: Path, words: Sequence[str]) -> Recipe:
    """Recipe of an evaluation of `path`: a run's own settings or the defaults, `key=value` words on top."""
    place = resolve(path)
    values: dict[str, Any] = {}
    if place.run:
        known = load_recipe(place.run / RECIPE_FILE).model_dump(mode="json")
        values = {key: known[key] for key in ("template", "dtype", "data", "evaluate")}
    elif place.card:
        values["data"] = {"system": place.card.system, "source_prefix": place.card.source_prefix}
    return load_recipe({**values, "model": str(path)}, words)


def _default_folder(recipe: Recipe, place: Place, path: Path) -> Path:
    """`<run>/evaluations/<data>` for a run's checkpoint, else `runs/evaluate-<model>-<data>`."""
    if place.run:
        step = (place.adapter or place.base).name
        return place.run / "evaluations" / f"{step}-{path.stem}"
    return Path("runs") / f"evaluate-{Path(recipe.model).resolve().name}-{path.stem}"


def scores_table(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of (score, thudm, chatglm3) for printing."""
    names = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
    return [(name, f"{scores['thudm'][name]:.4f}", f"{scores['chatglm3'][name]:.4f}") for name in names]
