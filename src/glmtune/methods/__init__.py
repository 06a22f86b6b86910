"""Fine-tuning methods: each turns a loaded model into one whose intended weights can be trained.

Importing this loads no torch; what a row needs is imported when it is called.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtune.log import without_false_alarms
from glmtune.recipe.method import AdaLora, Freeze, Full, Lora, Method, Ptuning

if TYPE_CHECKING:
    from torch import nn

    from glmtune.methods.adalora import Pruning
    from glmtune.models.protocol import CausalLM


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What a method does; what it trains is a fact of its settings (`recipe.method.TrainedPart`)."""

    apply: Callable[[Any, Any], Any]
    """Of a loaded model and its settings: the model of which just what it trains can be trained. The one that
    is given is changed in place."""
    choose: "Callable[[nn.Module, Any], list[str]] | None" = None
    """Names of the base's own weights that it trains, where it keeps just these (`Kept.WEIGHTS`)."""
    begin: "Callable[[Any, Any, int], Pruning] | None" = None
    """Of the tuned model, its settings and a run's number of steps: what it does within each step."""
    warn: Callable[[Any, int], str | None] | None = None
    """What so many steps put at risk, told before anything is loaded; `ConfigError` where they do not fit."""


def _full(model: "CausalLM", settings: Full) -> Any:
    from glmtune.methods.full import apply_full

    return apply_full(model, settings)


def _freeze(model: "CausalLM", settings: Freeze) -> Any:
    from glmtune.methods.freeze import apply_freeze

    return apply_freeze(model, settings)


def _frozen_but_for(model: "nn.Module", settings: Freeze) -> list[str]:
    from glmtune.methods.freeze import choose_weights

    return choose_weights(model, settings)


def _lora(model: "CausalLM", settings: Lora) -> Any:
    from glmtune.methods.lora import apply_lora

    return apply_lora(model, settings)


def _adalora(model: "CausalLM", settings: AdaLora) -> Any:
    from glmtune.methods.adalora import apply_adalora

    return apply_adalora(model, settings)


def _pruning(tuned: Any, settings: AdaLora, num_steps: int) -> "Pruning":
    from glmtune.methods.adalora import Pruning

    return Pruning(tuned, settings, num_steps)


def _few_steps(settings: AdaLora, num_steps: int) -> str | None:
    from glmtune.methods.ranks import few_steps_warning

    return few_steps_warning(settings, num_steps)


def _ptuning(model: "CausalLM", settings: Ptuning) -> Any:
    from glmtune.methods.ptuning import apply_ptuning

    return apply_ptuning(model, settings)


METHODS: MutableMapping[str, MethodRow] = {
    "full": MethodRow(_full),
    "freeze": MethodRow(_freeze, choose=_frozen_but_for),
    "lora": MethodRow(_lora),
    "adalora": MethodRow(_adalora, begin=_pruning, warn=_few_steps),
    "ptuning": MethodRow(_ptuning),
}
"""By the name in their settings."""


@without_false_alarms()
def apply_method(model: "CausalLM", settings: Method) -> Any:
    """Return the model with exactly the method's weights trainable, and those in fp32.

    The given model is changed in place (frozen, or adapters put in).
    """
    tuned = METHODS[settings.name].apply(model, settings)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def begin_pruning(tuned: Any, settings: Method, num_steps: int) -> "Pruning | None":
    """What the method does within each of a run's steps, as AdaLoRA prunes; None for most.

    Raises `ConfigError` if its schedule does not fit so many steps.
    """
    begin = METHODS[settings.name].begin
    return begin(tuned, settings, num_steps) if begin else None


def steps_warning(settings: Method, num_steps: int) -> str | None:
    """What so few steps make of the method; None where they are enough, or any number is.

    Raises as `begin_pruning`.
    """
    warn = METHODS[settings.name].warn
    return warn(settings, num_steps) if warn else None


def trainable_line(model: "nn.Module") -> str:
    """`trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312`, as PEFT prints it."""
    trained, total = count_parameters(model)
    return (
        f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}"
    )


def count_parameters(model: "nn.Module") -> tuple[int, int]:
    """How many weights are trained, and how many there are, as `count_weights` counts."""
    from glmtune.models.outline import count_weights

    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(count_weights(model).values())
