"""Nearness to the base, `retain.kl`: asked with the adapter switched off, or recorded before step 1."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from glmtune.adapters.off import without_adapter
from glmtune.data.row import TrainingRow
from glmtune.errors import ConfigError
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.objectives import ObjectiveModule, SftObjective
from glmtune.objectives.sft import Nearness
from glmtune.objectives.targets import LIKELIEST
from glmtune.objectives.teacher import record_likeliest
from glmtune.recipe import TrainedPart
from glmtune.workflows.events import Event, Note, Working
from glmtune.workflows.remedies import in_words

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

TOKEN_BYTES = LIKELIEST * (4 + 4)
"""Bytes of a learned token's recorded distribution: ids and log probabilities."""


def is_switched_off(plan: "Plan") -> bool:
    """Return True if the base lies untouched under what the run trains, which can be switched off."""
    kept = plan.recipe.method.kept
    # a new prefix takes the place of one that the base has
    is_replaced = kept is TrainedPart.PREFIX and bool(plan.location.under.folder.config.get("pre_seq_len"))
    return kept in (TrainedPart.LAYERS, TrainedPart.PREFIX) and not is_replaced


def cost_line(plan: "Plan") -> str:
    """Return a line on `retain.kl` and its cost; empty for a run without it."""
    if not plan.recipe.retain.kl:
        return ""
    start = f"retain.kl {plan.recipe.retain.kl:g}: KL(base || tuned) on the answers of the training rows"
    if is_switched_off(plan):
        return f"{start}; each step runs the base too: about half as much time again"
    num_tokens = sum(int((row.labels != -100).sum()) for row in drawn_rows(plan))
    memory = in_words(num_tokens * TOKEN_BYTES)
    recorded = f"{LIKELIEST} likeliest are recorded before step 1: {num_tokens:,} tokens, {memory}"
    return f"{start}; the base's {recorded}"


def drawn_rows(plan: "Plan") -> list[TrainingRow]:
    """Return the training rows that a run's steps draw, in their order; none of the replay."""
    num_sources, rows = len(plan.recipe.data.sources), plan.rows.train.rows
    drawn = set[int]()
    for step in range(1, plan.num_steps + 1):
        drawn.update(id(row) for row in plan.steps.rows_of(step) if row.source < num_sources)
        if len(drawn) == len(rows):
            break
    return [row for row in rows if id(row) in drawn]


def record_own_rows(plan: "Plan", base: CausalLM) -> Generator[Event, None, "Plan"]:
    """Return the plan with the base's distributions in its own rows, if the run needs them there.

    A run that is resumed records them again, of the same base.
    """
    if not plan.recipe.retain.kl or is_switched_off(plan):
        return plan
    yield Working("recording probabilities")
    drawn, pad_id = drawn_rows(plan), plan.tokenizer.pad_token_id
    recorded = record_likeliest(base, drawn, processes=plan.processes.sharing, pad_id=pad_id)
    by_row = {id(row): known for row, known in zip(drawn, recorded, strict=True)}
    rows = [by_row.get(id(row), row) for row in plan.rows.train.rows]
    steps = plan.steps.with_rows([*rows, *plan.steps.rows[len(rows) :]])
    train = replace(plan.rows.train, rows=rows)
    return replace(plan, rows=replace(plan.rows, train=train), steps=steps)


def keep_near_base(plan: "Plan", objective: ObjectiveModule) -> Iterator[Note]:
    """Add the term to the objective, if the run has it; yield a note where the base is held in codes.

    Raises `ConfigError` for an objective that has no such term, and for an adapter that changes the base.
    """
    weight = plan.recipe.retain.kl
    if not weight:
        return
    if not isinstance(objective, SftObjective) or type(objective).loss is not SftObjective.loss:
        raise ConfigError(
            f"retain.kl: {weight:g}, but objective.name: {plan.recipe.objective.name} has no such term",
            hint="retain.kl=0, or objective=sft",
        )
    base = partial(without_adapter, objective.model) if is_switched_off(plan) else None
    if base:
        with base():  # refuses now what it would refuse in step 1
            pass
    objective.nearness = Nearness(weight, len(plan.recipe.data.sources), base)
    if quant := held_quant(objective.model):
        yield Note(
            f"retain.kl: the base is as it is held, in {quant}, and that is where the model stays near"
        )
