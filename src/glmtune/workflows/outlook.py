"""A run before it begins: what it takes of memory, disk and time, here and on cards that others have."""

import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from glmtune.errors import CheckpointError
from glmtune.general import held_out_prompts
from glmtune.recipe import Recipe
from glmtune.reports.recorded_run import describe_method
from glmtune.training.loop import StepLog, mean_loss
from glmtune.workflows.assemble import assemble
from glmtune.workflows.events import Event, Stepped, Working
from glmtune.workflows.execute import make_steps
from glmtune.workflows.forecast import CARDS, Forecast, forecast, this_machine
from glmtune.workflows.forgetting import is_reported
from glmtune.workflows.nearness import cost_line
from glmtune.workflows.plan import Plan, planning
from glmtune.workflows.remedies import refusing_out_of_memory
from glmtune.workflows.replay import SHORT_S
from glmtune.workflows.report_forgetting import MOST_SHARE
from glmtune.workflows.room import forecast_facts
from glmtune.workflows.rows import SplitRows

PROBED_STEPS = 20
WARM_UP = 2
"""Steps of a probe that do not count: kernels are chosen and memory is taken in them."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a run on this machine, as its first steps and an evaluation showed it."""

    steps: int
    """The number of steps that were measured."""
    step_s: float
    """Median of a step's seconds."""
    slowest_s: float
    evaluation_s: float
    """Seconds of one evaluation loss over all validation rows."""
    total_s: float
    """Seconds of all steps and evaluations; without sample answers and checkpoints."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The needs of a recipe's run, by its forecasts."""

    model: str
    """The model's name on a hub, or its folder."""
    method: str
    steps: int
    batch_size: int
    """Rows of a step."""
    samples: int
    """Rows of all steps."""
    epochs: float
    rows: int
    replay: str
    """A line on the replay: its part of an epoch, and the prompts to answer for it; empty without any."""
    nearness: str
    """A line on `retain.kl` and its cost; empty without it."""
    report: str
    """A line on the report of forgetting and its cost; empty without it."""
    validation_rows: int
    longest_row: int
    """Tokens of the longest row, replay left out."""
    longest_replay: int
    """Tokens of the longest row of replay, every answer in it as long as it may become; 0 without any."""
    processes: int
    """The number of processes that share the rows; each takes the memory of the forecasts."""
    here: Forecast
    """The forecast for this machine."""
    cards: tuple[Forecast, ...]
    """A forecast for each card of `CARDS`; without bf16 a second one where that makes a difference."""
    speed: Speed | None = None
    """None unless it was asked for: the model is loaded for it."""

    @property
    def smallest_card(self) -> Forecast | None:
        """The forecast for the smallest card on which the run fits; None if it fits on none."""
        return next((card for card in self.cards if card.fits), None)

    def facts(self) -> dict[str, Any]:
        """Return the outlook as an object of JSON; `memory.here.predicted` is as a run records it."""
        return {
            "model": self.model,
            "method": self.method,
            "quant": self.here.recipe.quant,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "samples": self.samples,
            "epochs": self.epochs,
            "rows": self.rows,
            "replay": self.replay,
            "nearness": self.nearness,
            "report": self.report,
            "validation_rows": self.validation_rows,
            "longest_row_tokens": self.longest_row,
            "longest_replay_tokens": self.longest_replay,
            "processes": self.processes,
            "here": forecast_facts(self.here),
            "cards": [forecast_facts(card) for card in self.cards],
            "speed": asdict(self.speed) if self.speed else None,
        }


def looking_ahead(
    recipe: Recipe,
    *,
    resume: bool = False,
    rows: SplitRows | None = None,
    begins: bool = False,
    probe: bool = False,
) -> Generator[Event, None, Outlook]:
    """Forecast the run of a recipe; with `probe`, load its model and time its first steps. Writes nothing.

    The arguments are those of `planning`, whose notes are yielded, and the warnings of the plan's summary.
    """
    plan = yield from planning(recipe, resume=resume, rows=rows, begins=begins)
    yield from (note for note in plan.summary() if note.is_warning)
    plan = replace(plan, is_forced=True)
    yield Working("forecasting")
    outlook = look_at(plan)
    return replace(outlook, speed=(yield from measure_speed(plan))) if probe else outlook


def look_at(plan: Plan) -> Outlook:
    """Return the outlook of a plan; no weight is read."""
    rows, validated = plan.rows.train.rows, plan.rows.validation.rows
    cards = list[Forecast]()
    for card in CARDS:
        usual, without = (forecast(plan, card.with_bf16(has)) for has in (True, False))
        cards.append(usual)
        of_any = {"machine": None, "precision": None}  # differ in any case
        if forecast_facts(usual) | of_any != forecast_facts(without) | of_any:
            cards.append(without)
    return Outlook(
        model=plan.location.name,
        method=describe_method(plan.recipe.method),
        steps=plan.num_steps,
        batch_size=plan.steps.batch_size,
        samples=plan.steps.num_samples(plan.num_steps),
        epochs=plan.num_steps / plan.steps.per_epoch,
        rows=len(rows),
        nearness=cost_line(plan),
        report=report_line(plan.recipe),
        replay=plan.replay.note(plan.steps.epoch_rows, plan.recipe.retain.max_new_tokens)
        if plan.replay
        else "",
        validation_rows=len(validated),
        longest_row=max(len(row.input_ids) for row in rows),
        longest_replay=max((len(row.input_ids) for row in plan.replay.rows), default=0) if plan.replay else 0,
        processes=plan.processes.number,
        here=forecast(plan, this_machine()),
        cards=tuple(cards),
    )


def report_line(recipe: Recipe) -> str:
    """Return a line on the report of forgetting and its cost; empty for a run without it."""
    if not is_reported(recipe):
        return ""
    prompts = len(held_out_prompts()[: recipe.retain.report_prompts])
    often = ", the divergence at each evaluation too" if recipe.retain.report == "evaluations" else ""
    return (
        f"report of forgetting: base and tuned model answer {prompts} general prompts, at most "
        f"{recipe.retain.max_new_tokens:,} tokens a turn{often}; fewer where it would take more than "
        f"{SHORT_S:.0f} s and {MOST_SHARE:.0%} of the run (retain.report=off: no report)"
    )


def measure_speed(plan: Plan) -> Generator[Event, None, Speed]:
    """Load the model and time its first steps and an evaluation; what is learned is thrown away."""
    if not (folder := plan.location.folder).has_weights:
        raise CheckpointError(
            f"{folder}: no weights to time a step with", hint="download the weights, or leave probe out"
        )
    with refusing_out_of_memory():
        run = yield from assemble(plan)
        plan, number = run.plan, min(PROBED_STEPS, plan.num_steps)
        logs = list[StepLog]()
        for log in make_steps(run, range(1, number + 1)):
            logs.append(log)
            yield Stepped(log, number, None)
        yield Working("evaluating")
        begin = time.perf_counter()
        mean_loss(run.objective, run.validation, run.processes)
        evaluation_s = time.perf_counter() - begin
    counted = logs[WARM_UP:] or logs
    seconds = [log.step_s for log in counted]
    tokens_per_s = sum(log.tokens_per_s * log.step_s for log in counted) / sum(seconds)
    rows = plan.steps.rows
    tokens = sum(len(row.input_ids) for row in rows) / len(rows) * plan.steps.num_samples(plan.num_steps)
    evaluations = 1 + -(-plan.num_steps // plan.eval_every)  # the first one before step 1
    total_s = tokens / tokens_per_s + evaluations * evaluation_s
    return Speed(len(counted), median(seconds), max(seconds), evaluation_s, total_s)
