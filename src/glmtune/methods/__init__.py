"""Fine-tuning methods: each makes exactly its own weights of a loaded model trainable.

Importing this module loads no torch: each row of the table imports its method when it is called.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtune.log import without_false_alarms
from glmtune.methods.ranks import few_steps_warning
from glmtune.recipe.method import AdaLora, Freeze, Full, Lora, Method, Ptuning

if TYPE_CHECKING:
    from torch import nn

    from glmtune.methods.adalora import Pruning
    from glmtune.models.protocol import CausalLM


@dataclass(frozen=True, slots=True)
class MethodRow:
    """Functions of one method; its settings say what it trains (`recipe.method.TrainedPart`)."""

    apply: Callable[[Any, Any], Any]
    """Return the model, changed in place, with only the method's weights trainable; of model and settings."""
    choose: "Callable[[nn.Module, Any], list[str]] | None" = None
    """Return names of the base's own weights to train; only for methods of `TrainedPart.WEIGHTS`."""
    begin: "Callable[[Any, Any, int], Pruning] | None" = None
    """Return the method's part of each training step; of the tuned model, settings and number of steps."""
    warn: Callable[[Any, int], str | None] | None = None
    """Return a warning, or None, about settings and number of steps, before anything is loaded.

    Raises `ConfigError` for a number of steps that does not fit."""


def _full(model: "CausalLM", settings: Full) -> Any:
    from glmtune.methods.full import apply_full

    return apply_full(model, settings)


def _freeze(model: "CausalLM", settings: Freeze) -> Any:
    from glmtune.methods.freeze import apply_freeze

    return apply_freeze(model, settings)


def _choose_unfrozen(model: "nn.Module", settings: Freeze) -> list[str]:
    from glmtune.methods.freeze import choose_weights

    return choose_weights(model, settings)


def _lora(model: "CausalLM", settings: Lora) -> Any:
    from glmtune.methods.lora import apply_lora

    return apply_lora(model, settings)


def _adalora(model: "CausalLM", settings: AdaLora) -> Any:
    from glmtune.methods.adalora import apply_adalora

    return apply_adalora(model, settings)


def _begin_pruning(tuned: "CausalLM", settings: AdaLora, num_steps: int) -> "Pruning":
    from glmtune.methods.adalora import Pruning

    return Pruning(tuned, settings, num_steps)


def _ptuning(model: "CausalLM", settings: Ptuning) -> Any:
    from glmtune.methods.ptuning import apply_ptuning

    return apply_ptuning(model, settings)


METHODS: MutableMapping[str, MethodRow] = {
    "full": MethodRow(_full),
    "freeze": MethodRow(_freeze, choose=_choose_unfrozen),
    "lora": MethodRow(_lora),
    "adalora": MethodRow(_adalora, begin=_begin_pruning, warn=few_steps_warning),
    "ptuning": MethodRow(_ptuning),
}
"""The methods, by the `name` in their settings."""


@without_false_alarms()
def apply_method(model: "CausalLM", settings: Method, *, is_widened: bool = True) -> Any:
    """Return the model with exactly the method's weights trainable, and those in fp32.

    The given model is changed in place: frozen, or given adapter layers. `is_widened`: False leaves the types
    to the caller, who makes them fp32 one layer after the other.
    """
    tuned = METHODS[settings.name].apply(model, settings)
    if not is_widened:
        return tuned
    # fp32 even on a bf16 base: at bf16's 8 bits, most optimizer steps would be rounded away
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def begin_pruning(tuned: "CausalLM", settings: Method, num_steps: int) -> "Pruning | None":
    """Return the method's part of each training step, as AdaLoRA's pruning; None for other methods.

    Raises `ConfigError` if its schedule does not fit the number of steps.
    """
    begin = METHODS[settings.name].begin
    return begin(tuned, settings, num_steps) if begin else None


def steps_warning(settings: Method, num_steps: int) -> str | None:
    """Return a warning if a run has too few steps for the method, else None. Raises as `begin_pruning`."""
    warn = METHODS[settings.name].warn
    return warn(settings, num_steps) if warn else None


def trainable_line(model: "nn.Module") -> str:
    """Return `trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312`, as PEFT."""
    trained, total = count_parameters(model)
    return (
        f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}"
    )


def count_parameters(model: "nn.Module") -> tuple[int, int]:
    """Return the numbers of trainable and of all weights, both as `count_weights` counts."""
    from glmtune.models.outline import count_weights

    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(count_weights(model).values())
