"""What a training's settings come to, settled and checked before any weight is read."""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from glmtune.data.batches import Steps
from glmtune.errors import ConfigError
from glmtune.families import identify_family
from glmtune.load import choose_type, tokenizer_of
from glmtune.locations import Location, resolve
from glmtune.methods import steps_warning
from glmtune.models import resolve_device
from glmtune.models.dtype import Choice
from glmtune.possible import require_possible
from glmtune.processor import has_bf16
from glmtune.recipe import Method, Recipe, Train
from glmtune.recipe.settings import DEFAULT_EPOCHS
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.optim import find_optimizer
from glmtune.training.processes import Processes
from glmtune.workflows.early import require_startable, run_folder
from glmtune.workflows.events import Note
from glmtune.workflows.forgetting import chat_loss_warning
from glmtune.workflows.parent import is_pruned, text_warnings, with_parent
from glmtune.workflows.rates import rate_line, with_default_rate
from glmtune.workflows.resuming import as_begun, require_resumable
from glmtune.workflows.rows import EncodedRows, SplitRows, hash_rows, training_rows


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before anything of it is there: what is trained, on which rows, for how long, in what."""

    recipe: Recipe
    """Complete: with the rate, the type of the weights and, where an adapter is gone on from, its method."""
    folder: Path
    """Of the run."""
    location: Location
    """Of the model."""
    processes: Processes
    """With the precision of their passes."""
    held: Choice
    """The type that the frozen weights are held in."""
    tokenizer: Tokenizer
    rows: EncodedRows
    row_hashes: Mapping[str, str]
    """Of the files that the rows are from, as env.json and every card keep them."""
    steps: Steps
    num_steps: int
    notes: tuple[Note, ...]
    """What was found of rows and settings, as it was told while the plan was made."""

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        assert self.recipe.train.lr is not None
        return self.recipe.train.lr

    def summary(self) -> Iterator[Note]:
        """What the plan comes to, and what it puts at risk."""
        method, settings, processes = self.recipe.method, self.recipe.train, self.processes
        yield Note(plan_line(self.steps, self.num_steps, processes.device, processes.precision))
        yield Note(rate_line(method, self.lr))
        if fp16 := fp16_line(processes.precision, processes.device):
            yield Note(fp16)
        if wipes := plan_warning(method, self.lr, self.steps, self.num_steps):
            yield Note(wipes, is_warning=True)
        if settings.warmup_steps >= self.num_steps:
            text = (
                f"train.warmup_steps: {settings.warmup_steps} of {self.num_steps} steps, so the peak rate is "
                "never reached"
            )
            yield Note(text, is_warning=True)


def planning(
    recipe: Recipe, *, resume: bool = False, read: SplitRows | None = None
) -> Generator[Note, None, Plan]:
    """Settle and check all that needs no weights; say what was found on the way, before any refusal.

    With `resume`, of a run that has begun. `read`: the rows, where they have been read already. Raises
    `GlmtuneError`'s children; nothing is written.
    """
    if resume:
        recipe = as_begun(recipe, run_folder(recipe))
    recipe = with_default_rate(with_parent(recipe))
    folder = run_folder(recipe)
    (require_resumable if resume else require_startable)(recipe, folder)
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    require_able(location, recipe.method, recipe.quant)
    find_optimizer(recipe.train)  # so that a missing package is told before the model is loaded
    processes = start_processes(recipe.device)
    tokenizer = tokenizer_of(location, template=recipe.template)
    rows, row_hashes = training_rows(tokenizer, recipe.data, read), hash_rows(recipe.data)
    steps = share_rows(rows, recipe.train, processes)
    num_steps = count_steps(recipe.train, steps)
    notes: list[Note] = []
    for note in chain(rows.notes, _warnings(recipe, location, num_steps)):
        notes.append(note)
        yield note
    held = processes.firsts(choose_type(location, recipe.dtype, processes.device, recipe.quant))
    processes.precision = choose_precision(recipe.train.precision, held.dtype, processes.device)
    return Plan(
        recipe=recipe.model_copy(update={"dtype": held.name}),
        folder=folder,
        location=location,
        processes=processes,
        held=held,
        tokenizer=tokenizer,
        rows=rows,
        row_hashes=row_hashes,
        steps=steps,
        num_steps=num_steps,
        notes=tuple(notes),
    )


def _warnings(recipe: Recipe, location: Location, num_steps: int) -> Iterator[Note]:
    """Of other texts than the parent's, and of few steps; `ConfigError` where no schedule fits these."""
    yield from text_warnings(recipe.data, location)
    if not is_pruned(location) and (few := steps_warning(recipe.method, num_steps)):
        yield Note(few, is_warning=True)


def require_able(location: Location, method: Method, quant: str | None) -> None:
    """Raise `ConfigError` for a method or a quantisation that the base's family does not have."""
    family = identify_family(location.folder).family
    require_possible(family, f"method={method.name}", f"method.name: {method.name}")
    require_possible(family, f"quant={quant}", f"quant: {quant!r}")


def start_processes(device: str) -> Processes:
    """This process among those that `torchrun` started, and its device."""
    if resolve_device(device).index is not None:
        raise ConfigError(
            f"device: {device}: training takes auto, cpu or cuda",
            hint=f"choose the card outside: `CUDA_VISIBLE_DEVICES={device[5:]} glmtune train ...`",
        )
    return Processes(resolve_device(device))


def share_rows(rows: EncodedRows, settings: Train, processes: Processes) -> Steps:
    """The rows of each step, and this process's share of them."""
    return Steps(
        rows.train.rows,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
        rank=processes.rank,
        num_processes=processes.number,
    )


def count_steps(settings: Train, steps: Steps) -> int:
    """How many optimizer steps a run has."""
    return settings.steps or math.ceil((settings.epochs or DEFAULT_EPOCHS) * steps.per_epoch)


def choose_precision(wanted: str, base_dtype: torch.dtype, device: torch.device) -> str:
    """The arithmetic of the passes, by its name; `wanted` is `train.precision`."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
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
    processes = steps.num_processes
    return (
        f"plan: {num_steps} steps of up to {steps.batch_size} rows, {steps.num_samples(num_steps)} samples "
        f"in all, {num_steps / steps.per_epoch:.2f} epochs of {len(steps.rows)} examples; "
        f"{processes} process{'es' if processes > 1 else ''} on {device.type}, {precision}"
    )


def plan_warning(method: Method, lr: float, steps: Steps, num_steps: int) -> str | None:
    """What the plan puts at risk, if it does."""
    rows, epochs = len(steps.rows), num_steps / steps.per_epoch
    return chat_loss_warning(method, rows=rows, steps=num_steps, epochs=epochs, lr=lr)
