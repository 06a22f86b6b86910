"""memory.json: the memory that a training run takes, by part and by phase, beside what was predicted."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glmtune.files import read_json_if_there
from glmtune.models.quant import quantised_layers
from glmtune.processor import mapped_bytes
from glmtune.recipe import Method, TrainedPart
from glmtune.run_files import MEMORY_FILE
from glmtune.training.memory import Held
from glmtune.training.optim import state_bytes
from glmtune.workflows.assemble import Run

NAMES = {"cpu": ("resident", "anonymous"), "cuda": ("reserved", "allocated")}
"""Names of the two figures of a phase, by device."""


def weights_by_part(model: nn.Module, method: Method) -> dict[str, int]:
    """Return the bytes of a model's tensors: its weights, by kind if quantised, and what a method adds."""
    layers = quantised_layers(model).values()
    codes = [layer.weight for layer in layers]
    scales = [p for layer in layers for name, p in layer.named_parameters() if name not in ("weight", "bias")]
    known = {id(tensor) for tensor in (*codes, *scales)}
    others = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in known]
    is_added = method.kept in (TrainedPart.LAYERS, TrainedPart.PREFIX)
    adapter = [t for t in others if is_added and t.requires_grad]
    kept = [t for t in others if not (is_added and t.requires_grad)]
    parts = {"codes": codes, "scales": scales, "not quantised": kept} if layers else {"weights": kept}
    return {name: _bytes(tensors) for name, tensors in {**parts, "adapter": adapter}.items()}


def record_memory(run: Run) -> None:
    """Write what the run has taken so far to memory.json; all processes call it, the highest of each counts."""
    everyones = run.processes.gather((run.meter.process, run.meter.phases))
    if not run.is_main:
        return
    process = max(process for process, _ in everyones)
    phases = {name: Held.most(each[name] for _, each in everyones) for name in run.meter.phases}
    weights = weights_by_part(run.model, run.recipe.method)
    mapped = mapped_bytes((*run.model.parameters(), *run.model.buffers()))
    measured = {**weights, "process": process}
    if step := phases.get("step"):
        gradients = state_bytes(run.model, None, num_processes=run.processes.number)
        state = _bytes(
            value for values in run.optimizer.state.values() for value in values.values()
        )  # a step's number may be no tensor
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


def predicted_parts(run: Run) -> dict[str, int]:
    """Return the bytes by part that the run's steps were expected to take."""
    plan, memory = run.plan, run.memory
    settings = plan.recipe.train
    tokens = plan.steps.longest_micro_batch(plan.num_steps, settings.micro_batch_size)
    wanted, num_layers = settings.gradient_checkpointing, memory.need.num_layers
    recomputed = num_layers * wanted if isinstance(wanted, bool) else int(wanted)
    longest = min(tokens, memory.longest_row)
    gradients = state_bytes(run.model, None, num_processes=plan.processes.number)
    return {
        **weights_by_part(run.model, plan.recipe.method),
        "gradients": gradients,
        "optimizer": memory.state - gradients,
        "activations": memory.need.bytes_at(tokens, longest, recomputed=recomputed),
        "process": run.meter.process,
    }


def go_on_measuring(run: Run) -> None:
    """Let the phases of a resumed run be no lower than they were before, if that was on the same device."""
    earlier = read_json_if_there(run.writer.folder / MEMORY_FILE, is_ours=True)
    names = NAMES[run.processes.device.type]
    for phase, figures in earlier.get("phases", {}).items():
        if set(figures) == set(names):
            held = Held(*(figures[name] for name in names))
            run.meter.phases[phase] = Held.most((held, run.meter.phases.get(phase, held)))


def _bytes(values: Iterable[Tensor | float]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def _with_sum(parts: Mapping[str, int]) -> dict[str, int]:
    return {**{name: size for name, size in parts.items() if size}, "bytes": sum(parts.values())}
