"""Fine-tuning methods: each turns a loaded model into one whose intended weights can be trained.

Importing this loads no torch: a card beside an adapter is read without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glmtune.log import without_false_alarms
from glmtune.recipe import AdaLora, Method

if TYPE_CHECKING:
    from torch import nn

    from glmtune.methods.adalora import Pruning


@without_false_alarms()
def apply_method(model: Any, settings: Method) -> Any:
    """Return the model with exactly the method's weights trainable, and those in fp32.

    The given model is changed in place (frozen, or adapters put in). The method NAME is `apply_NAME` of the
    module NAME; what it needs is imported when it is wanted.
    """
    module = import_module(f"glmtune.methods.{settings.name}")
    tuned = getattr(module, f"apply_{settings.name}")(model, settings)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def begin_pruning(tuned: Any, settings: Method, num_steps: int) -> "Pruning | None":
    """What AdaLoRA does within each of a run's steps; None for the other methods.

    Raises `ConfigError` if its schedule does not fit so many steps.
    """
    if not isinstance(settings, AdaLora):
        return None
    from glmtune.methods.adalora import Pruning

    return Pruning(tuned, settings, num_steps)


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
