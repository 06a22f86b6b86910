"""Measure the quality that quantising costs: perplexity and scores on held-out rows."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.data.batches import collate, divide
from glmtune.data.encode import encode_examples
from glmtune.data.reader import read_dataset
from glmtune.data.row import TrainingRow
from glmtune.data.tables import is_hub_name
from glmtune.errors import GlmtuneError
from glmtune.evaluation.predictions import EvaluationRow, predict, score_all
from glmtune.files import read_json_if_there
from glmtune.models.protocol import CausalLM
from glmtune.objectives import SftObjective
from glmtune.recipe import Data, Evaluation, Train, load_recipe
from glmtune.recipe.parse import build_part
from glmtune.recipe.train import MicroBatchSize
from glmtune.run_files import ENVIRONMENT_FILE, RECIPE_FILE
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.loop import mean_loss
from glmtune.training.processes import Processes
from glmtune.workflows.rows import (
    data_hash,
    encode_test_rows,
    hashed_files,
    longest_answer,
    training_rows,
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out rows to measure quality on, with the sizes of their run."""

    rows: list[TrainingRow]
    """Rows to take the perplexity of."""
    scored_rows: list[EvaluationRow]
    """Rows to answer and score."""
    max_new_tokens: int
    micro_batch_size: MicroBatchSize
    batch_size: int
    """Rows answered at once."""
    where: str
    """Name of the file, for messages."""


def held_out_rows(
    run: Path | None,
    tokenizer: Tokenizer,
    *,
    data: Path | None,
    max_rows: int,
    score_rows: int,
    data_settings: dict[str, Any],
) -> HeldOut | str:
    """Return the rows of the file `data`, else the run's held-out rows; or the reason there are none.

    `data_settings`: settings under `data` that encode the rows if there is no run. At most `max_rows` rows
    are measured, and the first `score_rows` are answered and scored. Raises `GlmtuneError` for a file that
    cannot be read, if `data` names it.
    """
    if run is None and data is None:
        return "this is no run, so nothing says which rows were held out"
    recipe = load_recipe(run / RECIPE_FILE) if run else None
    run_data = recipe.data if recipe else build_part(Data, data_settings, "data")
    if run and not data and (changed := _changed_data(run, run_data)):
        return changed
    # a named file is encoded as the run's rows were: with its limits, columns and texts
    settings = run_data.model_copy(
        update={
            "test": None,
            "max_test_rows": score_rows or None,
            **({"train": None, "validation": data} if data else {}),
        }
    )
    evaluation = recipe.evaluate if recipe else Evaluation()
    new_tokens = longest_answer(tokenizer, run_data, evaluation)
    scored_rows: list[EvaluationRow] = []
    try:
        if data:
            rows = encode_examples(tokenizer, read_dataset(data, settings).examples, settings).rows
        else:
            rows = training_rows(tokenizer, settings).validation.rows
        if score_rows:
            scored_rows = encode_test_rows(tokenizer, settings, num_new=new_tokens).rows
    except GlmtuneError as error:
        if data:
            raise
        return f"the run's held-out rows cannot be read: {error}"
    rows = rows[:max_rows]
    if not rows:
        return "there are no held-out rows"
    where = str(data or settings.validation or f"{settings.train_name}, the rows held out")
    train = recipe.train if recipe else Train()
    return HeldOut(rows, scored_rows, new_tokens, train.micro_batch_size, evaluation.batch_size, where)


def _changed_data(run: Path, data: Data) -> str:
    """Return a sentence naming a data file that has changed since the run read it; empty if none has.

    Another file is split differently, so its held-out rows may be among the rows that were trained on.
    """
    known = read_json_if_there(run / ENVIRONMENT_FILE, is_ours=True)
    for key, paths in hashed_files(data).items():
        for path, digest in zip(paths, (known.get(key) or "").split(" "), strict=False):
            if is_hub_name(path) or key not in known:
                continue
            if not path.exists():
                return f"{path}, which the run was trained on, is not there"
            if data_hash(path) != digest:
                return f"{path} is not the file any more that the run was trained on"
    return ""


def measure_quality(model: CausalLM, tokenizer: Tokenizer, held_out: HeldOut) -> dict[str, Any]:
    """Return loss and perplexity of the rows' completions, and the scores if there are rows to score."""
    parts = divide(held_out.rows, held_out.micro_batch_size)
    batches = [collate(part, tokenizer.pad_token_id) for part in parts]
    loss = mean_loss(SftObjective(model), batches, Processes(model.device))
    figures: dict[str, Any] = {"loss": loss, "perplexity": math.exp(loss)}
    if held_out.scored_rows:
        answers = predict(
            model,
            tokenizer,
            held_out.scored_rows,
            max_new_tokens=held_out.max_new_tokens,
            batch_size=held_out.batch_size,
        )
        figures["scores"] = score_all(list(answers))
    return figures
