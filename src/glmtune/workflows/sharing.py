"""Runs whose weights or means are shared out over processes: what cannot be, and how the model is loaded."""

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

from glmtune.errors import ConfigError
from glmtune.load import load_location
from glmtune.methods import METHODS
from glmtune.models.dtype import Choice
from glmtune.models.protocol import CausalLM
from glmtune.models.shards import scan_tensors
from glmtune.recipe import TrainedPart
from glmtune.workflows.nearness import is_switched_off

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glmtune.workflows.plan import Plan


def require_shareable(plan: "Plan") -> None:
    """Raise `ConfigError` for the first setting that does not go together with what the engine shares."""
    if not plan.recipe.distributed.shares_state:
        return
    name = plan.recipe.distributed.name
    for setting, problem, hint in _obstacles(plan):
        raise ConfigError(f"distributed.name: {name}, but {setting}: {problem}", hint=hint)


def _obstacles(plan: "Plan") -> "Iterator[tuple[str, str, str]]":
    """Yield setting, problem and cure of each obstacle."""
    recipe, location = plan.recipe, plan.location
    method, train, whole = recipe.method, recipe.train, "or distributed=ddp: each process holds all of it"
    if METHODS[method.name].begin:
        problem = "its pruning ranks the factors of all layers together"
        yield f"method={method.name}", problem, f"method=lora; {whole}"
    if train.optimizer != type(train)().optimizer:
        problem = "its codes are of whole weights"
        yield f"train.optimizer={train.optimizer}", problem, f"train.optimizer=adamw; {whole}"
    if plan.processes.precision == "fp16":
        yield "train.precision=fp16", "loss scaling is per process", f"train.precision=bf16 or fp32; {whole}"
    if not recipe.distributed.shares_weights:
        return
    if quant := recipe.quant or location.quant:
        yield f"quant={quant}", "codes are not shared out", f"quant=null; {whole}"
    if method.model_dump().get("use_dora"):
        yield "method.use_dora=true", "its lengths are of whole rows", f"method.use_dora=false; {whole}"
    if method.kept is TrainedPart.WEIGHTS and location.adapter:
        yield "model", "its weights replace the base's, which must be asked first", f"name its base; {whole}"
    if method.kept is TrainedPart.PREFIX and not is_switched_off(plan):
        yield "model", "it has a prefix of its own, which the new one replaces", whole[3:]


def load_to_share(plan: "Plan") -> CausalLM:
    """Load the base on the CPU, mapped from its files wherever their type is the one that is held."""
    held = plan.base_dtype
    if plan.recipe.method.kept is TrainedPart.MODEL:
        # as stored, which takes no memory: made fp32 layer by layer, when it is shared
        sizes = Counter[object]()
        for tensor in scan_tensors(plan.location.folder).values():
            sizes[tensor.dtype] += prod(tensor.shape)
        stored = max(sizes, key=lambda kind: sizes[kind])
        held = Choice(stored, stored, held.why)  # type: ignore[arg-type]
    return load_location(
        plan.location.under,
        template=plan.recipe.template or plan.location.template,
        dtype=held,
        device="cpu",
        quant=plan.recipe.quant,
    )
