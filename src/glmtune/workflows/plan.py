"""What a training run's settings mean, settled and checked before anything is loaded."""

import torch

from glmtune.data.batches import Steps
from glmtune.errors import ConfigError
from glmtune.families import identify_family
from glmtune.models import resolve_device
from glmtune.places import Place
from glmtune.possible import require_possible
from glmtune.processor import has_bf16
from glmtune.recipe import Recipe
from glmtune.training.processes import Processes
from glmtune.workflows.forgetting import chat_loss_warning


def require_able(recipe: Recipe, place: Place) -> None:
    """Raise `ConfigError` for a method or a quantisation that the base's family does not have."""
    family = identify_family(place.folder).family
    require_possible(family, f"method={recipe.method.name}", f"method.name: {recipe.method.name}")
    require_possible(family, f"quant={recipe.quant}", f"quant: {recipe.quant!r}")


def model_facts(place: Place) -> dict[str, str | None]:
    """Which model it is and where it lay, as env.json keeps it."""
    return {"name": place.name, "revision": place.revision, "folder": str(place.base.resolve())}


def with_default_rate(recipe: Recipe) -> Recipe:
    """The recipe with its method's learning rate where it names none: what a run does and records."""
    if recipe.train.lr is not None:
        return recipe
    train = recipe.train.model_copy(update={"lr": recipe.method.default_lr})
    return recipe.model_copy(update={"train": train})


def rate_line(recipe: Recipe) -> str:
    """The learning rate, and its method's default with where that is from; what others take, help says."""
    method = recipe.method
    default = f"the default of {method.name} ({method.lr_source.partition(';')[0]})"
    if recipe.train.lr == method.default_lr:
        return f"learning rate: {recipe.train.lr:g}, {default}"
    return f"learning rate: {recipe.train.lr:g}; {method.default_lr:g} is {default}"


def is_rate_high(recipe: Recipe) -> bool:
    """Whether the learning rate is above the method's default."""
    return (recipe.train.lr or 0.0) > recipe.method.default_lr


def lower_rate(recipe: Recipe) -> float:
    """The rate to fall back to: the method's default, or a tenth of what is no higher than that."""
    return recipe.method.default_lr if is_rate_high(recipe) else (recipe.train.lr or 0.0) / 10


def start_processes(device: str) -> Processes:
    """This process among those that `torchrun` started, and its device."""
    if resolve_device(device).index is not None:
        raise ConfigError(
            f"device: {device}: training takes auto, cpu or cuda",
            hint=f"choose the card outside: `CUDA_VISIBLE_DEVICES={device[5:]} glmtune train ...`",
        )
    return Processes(resolve_device(device))


def choose_precision(recipe: Recipe, base_dtype: torch.dtype, device: torch.device) -> str:
    """The arithmetic of the forward pass, by its name."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    wanted = recipe.train.precision
    name = names[base_dtype] if wanted == "auto" else wanted
    if name == "fp32" and base_dtype != torch.float32:
        raise ConfigError(
            f"train.precision: fp32, but the weights are held in {str(base_dtype).removeprefix('torch.')}",
            hint="hold them in fp32 too: dtype=fp32",
        )
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU", hint="train.precision=auto dtype=auto")
    if name == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise ConfigError(
            "train.precision: bf16, but this card has no bf16",
            hint="train.precision=fp16 or train.precision=auto",
        )
    return name


def fp16_line(precision: str, device: torch.device) -> str | None:
    """How it is kept safe that a card without bf16 trains in fp16; None where there is bf16, or no fp16."""
    if precision != "fp16" or has_bf16(device):
        return None
    return (
        "this card has no bf16: fp16 with loss scaling; what is trained, its gradients and Adam's means are "
        "fp32, in which Adam's epsilon holds"
    )


def plan_line(steps: Steps, num_steps: int, device: torch.device, precision: str) -> str:
    """What the settings mean, before the start."""
    passes, rest = divmod(num_steps, steps.per_epoch)
    samples = passes * len(steps.rows) + min(rest * steps.batch_size, len(steps.rows))
    processes = steps.num_processes
    return (
        f"plan: {num_steps} steps of up to {steps.batch_size} rows, {samples} samples in all, "
        f"{num_steps / steps.per_epoch:.2f} epochs of {len(steps.rows)} examples; "
        f"{processes} process{'es' if processes > 1 else ''} on {device.type}, {precision}"
    )


def plan_warning(recipe: Recipe, steps: Steps, num_steps: int) -> str | None:
    """What the plan puts at risk, if it does."""
    rows, epochs = len(steps.rows), num_steps / steps.per_epoch
    lr = recipe.train.lr or 0.0
    return chat_loss_warning(recipe.method, rows=rows, steps=num_steps, epochs=epochs, lr=lr)
