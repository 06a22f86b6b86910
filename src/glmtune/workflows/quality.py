"""What quantising costs: perplexity, and scores if wanted, before and after, on rows not trained on."""

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
from glmtune.run_files import ENVIRONMENT_FILE, RECIPE_FILE
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.loop import mean_loss
from glmtune.training.processes import Processes
from glmtune.workflows.rows import data_hash, hashed_files, longest_answer, test_questions, training_rows


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows to measure on."""

    rows: list[TrainingRow]
    questions: list[EvaluationRow]
    max_new_tokens: int
    micro_batch_size: int
    where: str
    """Where they are from."""


def held_out_rows(
    run: Path | None,
    tokenizer: Tokenizer,
    *,
    data: Path | None,
    max_rows: int,
    score_rows: int,
    given: dict[str, Any],
) -> HeldOut | str:
    """The rows of a file, else the run's own held-out ones; or, in words, why there are none.

    `given`: how the rows are encoded where there is no run. At most `max_rows` rows; of the
    file's or the held-out ones the first `score_rows` are answered too. Raises `GlmtuneError` for a named
    file that cannot be read.
    """
    if run is None and data is None:
        return "this is no run, so nothing says which rows were held out"
    recipe = load_recipe(run / RECIPE_FILE) if run else None
    own = recipe.data if recipe else build_part(Data, given, "data")
    if run and not data and (changed := _changed_data(run, own)):
        return changed
    settings = own.model_copy(
        update={
            "test": None,
            "max_test_rows": score_rows or None,
            **({"train": None, "validation": data} if data else {}),
        }
    )
    new_tokens = longest_answer(tokenizer, own, recipe.evaluate if recipe else Evaluation())
    try:
        rows = _encoded(tokenizer, settings, data)[:max_rows]
        asked = test_questions(tokenizer, settings, num_new=new_tokens).questions if score_rows else []
    except GlmtuneError as error:
        if data:
            raise
        return f"the run's held-out rows cannot be read: {error}"
    if not rows:
        return "there are no held-out rows"
    where = str(data or settings.validation or f"{settings.train_name}, the rows held out")
    train = recipe.train if recipe else Train()
    return HeldOut(rows, asked, new_tokens, train.micro_batch_size, where)


def _changed_data(run: Path, data: Data) -> str:
    """In words, which file of rows is no longer what the run read; empty where none is.

    Rows held out of another file may be among those that were trained on.
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


def _encoded(tokenizer: Tokenizer, settings: Data, data: Path | None) -> list[TrainingRow]:
    if data:
        return encode_examples(tokenizer, read_dataset(data, settings).examples, settings).rows
    return training_rows(tokenizer, settings).validation.rows


def measure_quality(model: CausalLM, tokenizer: Tokenizer, held: HeldOut) -> dict[str, Any]:
    """Perplexity of the rows' answers, and the scores of the questions if there are any."""
    parts = divide(held.rows, held.micro_batch_size)
    batches = [collate(part, tokenizer.pad_token_id) for part in parts]
    loss = mean_loss(SftObjective(model), batches, Processes(model.device))
    found: dict[str, Any] = {"loss": loss, "perplexity": math.exp(loss)}
    if held.questions:
        answers = predict(
            model,
            tokenizer,
            held.questions,
            max_new_tokens=held.max_new_tokens,
            batch_size=held.micro_batch_size,
        )
        found["scores"] = score_all(list(answers))
    return found
