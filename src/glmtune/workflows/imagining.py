"""A run's model without weights, on a machine that may be another one: what it holds, what its steps need.

The run's own code computes on imagined tensors (`training.imagined`), on a model of as few layers as show
what the others add.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from glmtune.families import identify
from glmtune.load import choose_type
from glmtune.methods import apply_method
from glmtune.methods.freeze import NUM_LAYERS
from glmtune.models.dtype import Choice, choose_precision, with_precision
from glmtune.models.loaders import outline_as_loaded
from glmtune.models.outline import stored_name
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import quantised_layers
from glmtune.models.recomputing import layers_of
from glmtune.models.shards import scan_tensors
from glmtune.objectives import build_objective
from glmtune.processor import imagining
from glmtune.recipe import Lora, TrainedPart
from glmtune.training.imagined import ImaginedProcess, imagine
from glmtune.training.memory import weights_by_part
from glmtune.training.probe import Need, Repeated, measure_need

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan


@dataclass(frozen=True, slots=True)
class Types:
    """The types of a run on a machine."""

    base: Choice
    precision: str

    def in_bf16(self) -> "Types":
        """Return the types with bf16 for fp16: either takes two bytes, and one run is imagined for both."""
        dtype, computing = (
            torch.bfloat16 if each == torch.float16 else each
            for each in (self.base.dtype, self.base.computing)
        )
        precision = "bf16" if self.precision == "fp16" else self.precision
        return Types(replace(self.base, dtype=dtype, computing=computing, why=""), precision)


@dataclass(frozen=True, slots=True)
class ImaginedRun:
    """A run's model on the meta device, and the need of its steps."""

    model: CausalLM
    need: Need
    held: Mapping[str, int]
    """Bytes by part: `weights`, or `codes`, `scales` and `not quantised`; `adapter` or `prefix`."""
    mapped: int
    """Bytes of those that stay in the model's files, mapped into memory, on a CPU."""
    expanded: int
    """Bytes of the largest quantised layer's weight in the type that is computed in."""


def shared_run(run: ImaginedRun, number: int) -> ImaginedRun:
    """Return the run as a process of so many holds it, which share the weights: none of them is mapped.

    `gathered` is what is whole at a time: what lies outside the layers, and two layers, the one that computes
    and the next, which is under way.
    """
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in layers_of(run.model)]
    outside = sum(p.nbytes for p in run.model.parameters()) - sum(layers)
    held = {name: size // number for name, size in run.held.items()}
    return replace(run, held=held | {"gathered": outside + 2 * max(layers)}, mapped=0)


def types_on(plan: "Plan", *, device: str, has_bf16: bool, free: int) -> Types:
    """Return the types that a run has on a machine. Raises `ConfigError` for those that it lacks."""
    asked, there = plan.asked, torch.device(device)
    with imagining(has_bf16=has_bf16, free=free):
        base = choose_type(plan.location, asked.dtype, there, asked.quant)
        precision = choose_precision(asked.train.precision, base, there)
        return Types(with_precision(base, precision, there), precision)


@lru_cache(maxsize=4)
def imagine_run(plan: "Plan", types: Types) -> ImaginedRun:
    """Return the run's model in these types; nothing is read but the headers of its files."""
    whole = _outline(plan, types)
    number = len(layers_of(whole))
    few, layer = _few_layers(plan, number)
    model = _outline(plan, types, few)
    imagine(model)
    objective = build_objective(model, plan.recipe.objective)
    row = max(plan.steps.rows, key=lambda row: len(row.input_ids))
    process, pad_id = ImaginedProcess(types.precision), plan.tokenizer.pad_token_id
    repeated = Repeated(layer, number - few)
    stored = scan_tensors(plan.location.folder)
    mapped = sum(
        weight.nbytes
        for name, weight in whole.named_parameters()
        if not weight.requires_grad and (file := stored.get(stored_name(name))) and file.dtype == weight.dtype
    )
    sizes = [part.in_features * part.out_features for part in quantised_layers(whole).values()]
    expanded = max(sizes, default=0) * types.base.computing.itemsize
    return ImaginedRun(
        whole,
        need=measure_need(objective, row, pad_id, process, repeated=repeated),
        held=weights_by_part(whole, plan.recipe.method.kept),
        mapped=mapped,
        expanded=expanded,
    )


@lru_cache(maxsize=4)
def once_trained(plan: "Plan") -> "Plan":
    """Return the plan for a model whose own weights are trained no more: they have no gradients."""
    if plan.recipe.method.kept is not TrainedPart.MODEL:
        return plan
    return replace(plan, recipe=plan.recipe.model_copy(update={"method": Lora()}))


def _few_layers(plan: "Plan", number: int) -> tuple[int, int]:
    """Return the layers that show what all do, and which of them the others are like."""
    method = plan.recipe.method
    dense = int(plan.location.folder.config.get("first_k_dense_replace", 0))  # GLM-4.5's first layers
    trained = 0
    if method.kept is TrainedPart.WEIGHTS:
        # patterns may name any layer
        has_patterns = getattr(method, "patterns", None) is not None
        trained = number if has_patterns else getattr(method, "num_layers", None) or NUM_LAYERS
    # the first layer of a kind is unlike the others in its input, the last computes for learned tokens alone
    return min(number, dense + max(3, trained + 2)), min(number - 1, dense + 1)


def _outline(plan: "Plan", types: Types, num_layers: int | None = None) -> Any:
    """Build the model that is trained, on the meta device."""
    method = plan.recipe.method
    is_whole = method.kept is TrainedPart.MODEL
    base = Choice(torch.float32, torch.float32) if is_whole else types.base
    folder = plan.location.folder
    known = identify(folder, plan.recipe.template or plan.location.template)
    model = outline_as_loaded(folder, known, base, quant=plan.recipe.quant, num_layers=num_layers)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return apply_method(model, method)
