"""Fine-tuning methods: each turns a loaded model into one whose intended weights can be trained.

Importing this loads no torch; what a row needs is imported when it is called.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glmtune.log import without_false_alarms
from glmtune.methods.ranks import few_steps_warning
from glmtune.recipe.method import Method

if TYPE_CHECKING:
    from torch import nn

    from glmtune.methods.adalora import Pruning


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What a method does; what it trains is a fact of its settings (`recipe.method.Kept`)."""

    apply: Callable[[Any, Any], Any]
    """Of a loaded model and its settings: the model of which just what it trains can be trained. The one that
    is given is changed in place."""
    choose: "Callable[[nn.Module, Any], list[str]] | None" = None
    """Names of the base's own weights that it trains, where it keeps just these (`Kept.WEIGHTS`)."""
    begin: "Callable[[Any, Any, int], Pruning] | None" = None
    """Of the tuned model, its settings and a run's number of steps: what it does within each step."""
    warn: Callable[[Any, int], str | None] | None = None
    """What so many steps put at risk, told before anything is loaded; `ConfigError` where they do not fit."""


def _of(module: str, name: str) -> Callable[..., Any]:
    """What a module of this package has by that name, loaded when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"{__name__}.{module}"), name)(*arguments)

    return call


METHODS: MutableMapping[str, MethodRow] = {
    "full": MethodRow(_of("full", "apply_full")),
    "freeze": MethodRow(_of("freeze", "apply_freeze"), choose=_of("freeze", "choose_weights")),
    "lora": MethodRow(_of("lora", "apply_lora")),
    "adalora": MethodRow(
        _of("adalora", "apply_adalora"), begin=_of("adalora", "Pruning"), warn=few_steps_warning
    ),
    "ptuning": MethodRow(_of("ptuning", "apply_ptuning")),
}
"""By the name in their settings."""


@without_false_alarms()
def apply_method(model: Any, settings: Method) -> Any:
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
