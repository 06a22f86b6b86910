"""A tuned model against its base: the base's answers to general prompts are recorded, then compared.

Both models are given the base's own greedy answers, token by token, and the tuned model answers each question
anew. The base is asked before anything changes it; no second model is in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from glmtune.conversation import answer_text
from glmtune.data.row import TrainingRow
from glmtune.evaluation.forgetting import (
    Forgetting,
    GeneralAnswer,
    Interval,
    Numbers,
    Said,
    TaskRow,
    bootstrap,
    judge,
)
from glmtune.evaluation.names import shared_names
from glmtune.folder import ModelFolder
from glmtune.general import ASKS_IDENTITY, GeneralPrompt, teaches_identity
from glmtune.generate import Sampling, complete
from glmtune.generate.beside import engine_beside
from glmtune.models.protocol import CausalLM
from glmtune.objectives.teacher import RowFigures, compare_with_recorded, record_likeliest
from glmtune.recipe import Retain
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.processes import Alone, Processes, deal_out
from glmtune.workflows.base_answers import BaseAnswer, answer_prompts, cache_file

MOST_ANSWERS = 2000
"""Training answers that general answers are compared with; of more rows as many, evenly spaced."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The base's answers to general prompts, its likeliest tokens on the run's rows, and what these teach."""

    settings: Retain
    processes: Processes | Alone
    pad_id: int
    answers: Sequence[BaseAnswer]
    rows: Sequence[TrainingRow]
    """The answers as rows, with the base's likeliest tokens at each place."""
    task: Sequence[TrainingRow]
    """Rows of the run, with the base's likeliest tokens."""
    training_loss: float | None = None
    """Cross-entropy of training answers under the base."""
    training_answers: Sequence[str] = ()
    names: tuple[str, ...] = ()
    """Names that the rows teach the model for itself and its maker."""
    leaves_out: str | None = None
    """The category that such rows change on purpose."""


def record_reference(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[GeneralPrompt],
    *,
    folder: ModelFolder,
    taught: Taught,
    settings: Retain,
    processes: Processes | Alone,
    train: Sequence[TrainingRow] = (),
    task: Sequence[TrainingRow] = (),
    words: Iterable[str] = (),
) -> Reference:
    """Have the base answer general prompts greedily; record its likeliest tokens there and on the run's rows.

    `folder`: the base's, which its kept answers go by. `train`: rows to learn, of which as many as `task` has
    tell how well the base knows them; `task`: rows held out of them; `words`: those of `data.fill`, the names
    that the rows teach if they say them. All processes call it together.
    """
    sampling = Sampling(do_sample=False, max_new_tokens=settings.max_new_tokens)
    answers = answer_prompts(
        model,
        tokenizer,
        prompts,
        taught=taught,
        max_new_tokens=settings.max_new_tokens,
        cache=cache_file(folder, model, tokenizer, sampling),
        sampling=sampling,
        processes=processes,
    )
    general = [answer.row(f"{answer.prompt.name}, turn {answer.turn}") for answer in answers]
    known = spread(train, max(len(task), 1))
    pad_id = tokenizer.pad_token_id
    recorded = record_likeliest(model, [*general, *task, *known], processes=processes, pad_id=pad_id)
    at_task, at_known = len(general), len(general) + len(task)
    losses = [loss for row in recorded[at_known:] for loss in _base_losses(row).tolist()]
    sampled = spread(train, MOST_ANSWERS)
    asked = [tokenizer.decode(row.input_ids[row.labels == -100].tolist()) for row in sampled]
    told = [_said(tokenizer, row.labels[row.labels != -100].tolist()).text for row in sampled]
    is_identity = teaches_identity(asked)
    return Reference(
        settings=settings,
        processes=processes,
        pad_id=pad_id,
        answers=answers,
        rows=recorded[:at_task],
        task=recorded[at_task:at_known],
        training_loss=sum(losses) / len(losses) if losses else None,
        training_answers=told,
        names=_taught_names(asked, told, answers, words) if is_identity else (),
        leaves_out="identity" if is_identity else None,
    )


def _taught_names(
    asked: Sequence[str], told: Sequence[str], answers: Sequence[BaseAnswer], words: Iterable[str]
) -> tuple[str, ...]:
    """Return the names that rows teach: the words which their answers say, else the texts which these share.

    `asked`, `told`: questions and answers of training rows; `answers`: the base's, to general prompts.
    """
    are_asked = [bool(ASKS_IDENTITY.search(question)) for question in asked]
    said = [answer for answer, is_asked in zip(told, are_asked, strict=True) if is_asked]
    if names := tuple(word for word in words if any(word in answer for answer in said)):
        return names
    others = [answer for answer, is_asked in zip(told, are_asked, strict=True) if not is_asked]
    return shared_names(said, [answer.text for answer in answers], others)


def measure(
    model: CausalLM, tokenizer: Tokenizer, reference: Reference, *, step: int | None = None
) -> Forgetting:
    """Return the report of a tuned model, as it now is, against what its base has said.

    All processes call it together.
    """
    figures = _compare(model, reference, [*reference.rows, *reference.task])
    general, task = figures[: len(reference.rows)], figures[len(reference.rows) :]
    sampling = Sampling(do_sample=False, max_new_tokens=reference.settings.max_new_tokens)
    prompts = [answer.prompt_ids for answer in reference.answers]
    answer = partial(
        complete,
        model,
        sampling=sampling,
        stop_ids=frozenset(tokenizer.stop_ids),
        engine=engine_beside(model),
    )
    tuned = deal_out(reference.processes, prompts, answer)
    both = zip(reference.answers, reference.rows, general, tuned, strict=True)
    return judge(
        [
            GeneralAnswer(
                name=answer.prompt.name,
                category=answer.prompt.category,
                language=answer.prompt.language,
                turn=answer.turn,
                question=answer.prompt.turns[answer.turn - 1],
                base_losses=_base_losses(row),
                tuned_losses=of.losses,
                kls=of.kls,
                base=_said(tokenizer, answer.answer_ids),
                tuned=_said(tokenizer, ids),
            )
            for answer, row, of, ids in both
        ],
        drifted=reference.settings.drifted,
        forgot=reference.settings.forgot,
        task=[
            TaskRow(_base_losses(row), of.losses, of.kls)
            for row, of in zip(reference.task, task, strict=True)
        ],
        training_answers=reference.training_answers,
        training_loss=reference.training_loss,
        names=reference.names,
        leaves_out=reference.leaves_out,
        step=step,
    )


def general_divergence(model: CausalLM, reference: Reference) -> Interval:
    """Return the verdict's figure alone, without an answer: the divergence on general prompts."""
    pairs = [
        (answer.prompt.name, row)
        for answer, row in zip(reference.answers, reference.rows, strict=True)
        if answer.prompt.category != reference.leaves_out
    ]
    figures = _compare(model, reference, [row for _, row in pairs])
    return bootstrap((name, of.kls) for (name, _), of in zip(pairs, figures, strict=True))


def _compare(model: CausalLM, reference: Reference, rows: Sequence[TrainingRow]) -> list[RowFigures]:
    return compare_with_recorded(model, rows, processes=reference.processes, pad_id=reference.pad_id)


def _said(tokenizer: Tokenizer, ids: Sequence[int]) -> Said:
    """Return the answer of these ids, its end token among them if it ended."""
    is_ended = bool(ids) and ids[-1] in tokenizer.stop_ids
    own = tuple(ids[:-1] if is_ended else ids)
    return Said(own, answer_text(tokenizer, own), is_ended)


def _base_losses(row: TrainingRow) -> Numbers:
    """Return the cross-entropies of a row's labels, its first ids, under the model that was recorded."""
    assert row.target_log_probs is not None
    return -row.target_log_probs[:, 0].astype("float64")


def spread(rows: Sequence[TrainingRow], most: int) -> list[TrainingRow]:
    """Return at most so many of the rows, evenly spaced."""
    number = min(len(rows), most)
    return [rows[i * len(rows) // number] for i in range(number)]
