"""Room for a run, looked for before its weights are read: the forecast in two lines, and a refusal."""

from collections.abc import Generator, Iterator
from typing import Any

from glmtune.errors import ConfigError
from glmtune.training.allocations import tighten_heap
from glmtune.workflows.events import Note
from glmtune.workflows.forecast import Forecast, forecast, is_small, this_machine
from glmtune.workflows.plan import Plan
from glmtune.workflows.remedies import in_words


def require_fitting(plan: Plan) -> Generator[Note, None, Forecast | None]:
    """Say in two lines what a run takes here, before its weights are read; all processes decide alike.

    Returns None for a small model. Raises `ConfigError` if the run does not fit; a plan that is forced is
    warned of it.
    """
    if is_small(plan):  # loaded and measured: that takes less time than a forecast
        return None
    if plan.processes.device.type == "cpu":
        tighten_heap()
    everyones = plan.processes.gather(forecast(plan, this_machine()))
    figures = max(everyones, key=lambda each: each.phases[0].num_bytes / max(1, each.machine.free))
    yield from map(Note, forecast_lines(figures))
    if refusal := find_refusal(figures, is_resumed=plan.is_resumed):
        if not plan.is_forced:
            raise refusal
        yield Note(str(refusal), is_warning=True)
    return figures


def find_refusal(figures: Forecast, *, is_resumed: bool = False) -> ConfigError | None:
    """Return the error of a run that does not fit, with settings that would; None if it fits."""
    if figures.fits:
        return None
    needed, free = figures.phases[0].num_bytes, figures.machine.free
    there = f"but {in_words(free)} are free" if needed > free else f"too close to the {in_words(free)} free"
    other = "a run is resumed as it began: end other programs; for another one, " if is_resumed else ""
    return ConfigError(
        f"memory: this run would need about {in_words(needed)}, {there}", hint=f"{other}{figures.hint}"
    )


def forecast_lines(figures: Forecast) -> Iterator[str]:
    """Yield a forecast in two lines: the training's memory by part; the evaluation's, and disk."""
    training, *others = figures.phases
    parts = sorted(training.parts.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {in_words(size)}" for name, size in parts if size >= 0.01 * training.num_bytes)
    yield (
        f"forecast: about {in_words(training.num_bytes)} of {in_words(figures.machine.free)} free, "
        f"{figures.tokens:,} tokens at once: {shown}"
    )
    evaluation = "".join(f"{phase.name} {in_words(phase.num_bytes)}; " for phase in others[:1])
    yield f"forecast: {evaluation}disk {in_words(figures.disk)} at most"


def forecast_facts(figures: Forecast) -> dict[str, Any]:
    """Return a forecast as an object of JSON, sizes in bytes; env.json keeps it as `memory`."""
    train, machine = figures.recipe.train, figures.machine
    return {
        "machine": {name: getattr(machine, name) for name in machine.__slots__},
        "phases": {
            phase.name: {"bytes": phase.num_bytes, "parts": dict(phase.parts)} for phase in figures.phases
        },
        "micro_batch_size": train.micro_batch_size,
        "longest_micro_batch_tokens": figures.tokens,
        "recomputed_layers": figures.recomputed,
        "precision": train.precision,
        "disk_bytes": figures.disk,
        "fits": figures.fits,
        "override": figures.override,
        "hint": figures.hint,
    }
