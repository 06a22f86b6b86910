"""memory.json: the memory that a training run takes, by part and by phase, beside what was predicted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from glmtune.files import read_json_if_there
from glmtune.processor import mapped_bytes
from glmtune.run_files import MEMORY_FILE
from glmtune.training.memory import Held, weights_by_part
from glmtune.training.optim import state_bytes
from glmtune.training.sharding import own_bytes
from glmtune.workflows.fitting import extents

if TYPE_CHECKING:
    from glmtune.workflows.assemble import Run

NAMES = {"cpu": ("resident", "anonymous"), "cuda": ("reserved", "allocated")}
"""Names of the two figures of a phase, by device."""


def record_memory(run: "Run") -> None:
    """Write what the run has taken so far to memory.json; all processes call it, the highest counts."""
    everyones = run.processes.gather((run.meter.process, run.meter.phases))
    if not run.is_main:
        return
    process = max(process for process, _ in everyones)
    phases = {name: Held.most(each[name] for _, each in everyones) for name in run.meter.phases}
    weights = weights_by_part(run.model, run.recipe.method.kept)
    mapped = mapped_bytes((*run.model.parameters(), *run.model.buffers()))
    measured = {**weights, "process": process}
    if step := phases.get("step"):
        gradients = _gradients(run)
        states = (value for values in run.optimizer.state.values() for value in values.values())
        state = sum(own_bytes(value) for value in states if isinstance(value, Tensor))  # not a step's number
        held = {**weights, "gradients": gradients, "optimizer": state}
        # the rest of the highest point; weights that lie in mapped files are no memory of the process's own
        activations = max(0, step.own - (sum(held.values()) - mapped))
        measured = {**held, "activations": activations, "process": process}
    run.writer.write_memory(
        {
            "device": run.processes.device.type,
            "limit": run.limit,
            "predicted": _with_sum(predicted_parts(run)),
            "measured": _with_sum(measured),
            "phases": {
                name: dict(zip(NAMES[run.processes.device.type], (held.whole, held.own), strict=True))
                for name, held in phases.items()
            },
        }
    )


def predicted_parts(run: "Run") -> dict[str, int]:
    """Return the bytes by part that the run's steps were expected to take."""
    if run.forecast:  # made before the weights were read
        return dict(run.forecast.phases[0].parts)
    plan, memory = run.plan, run.memory
    settings = plan.recipe.train
    trained, _ = extents(plan, memory, settings.micro_batch_size)
    wanted, num_layers = settings.gradient_checkpointing, memory.need.num_layers
    recomputed = num_layers * wanted if isinstance(wanted, bool) else int(wanted)
    gradients = _gradients(run)
    return {
        **weights_by_part(run.model, plan.recipe.method.kept),
        "gradients": gradients,
        "optimizer": memory.state - gradients,
        "activations": memory.need.bytes_at(trained, recomputed=recomputed),
        "process": run.meter.process,
    }


def _gradients(run: "Run") -> int:
    number, shared_by = run.processes.number, run.processes.state_shared_by
    return state_bytes(run.model, None, num_processes=number, shared_by=shared_by)


def go_on_measuring(run: "Run") -> None:
    """Let the phases of a resumed run be no lower than they were before, if that was on the same device."""
    earlier = read_json_if_there(run.writer.folder / MEMORY_FILE, is_ours=True)
    names = NAMES[run.processes.device.type]
    for phase, figures in earlier.get("phases", {}).items():
        if set(figures) == set(names):
            held = Held(*(figures[name] for name in names))
            run.meter.phases[phase] = Held.most((held, run.meter.phases.get(phase, held)))


def _with_sum(parts: Mapping[str, int]) -> dict[str, int]:
    return {**{name: size for name, size in parts.items() if size}, "bytes": sum(parts.values())}
