"""Settle the size of micro-batches and the recomputed layers by the memory that is free, before step 1."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from glmtune.data.batches import collate, longest_micro_batch, most_rows
from glmtune.errors import ConfigError
from glmtune.models.recomputing import recompute
from glmtune.objectives import ObjectiveModule
from glmtune.processor import free_memory, mapped_bytes
from glmtune.recipe import Recipe
from glmtune.recipe.train import MicroBatchSize
from glmtune.training.optim import state_bytes, update_bytes
from glmtune.training.probe import Extent, has_room, longest_rows, measure_need, with_losses
from glmtune.workflows.beside import codes_beside
from glmtune.workflows.events import Note
from glmtune.workflows.remedies import SAFE_SHARE, Memory, find_remedy, in_words

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

MOST_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Largest size of micro-batches in tokens. On a CPU more are slower, for they leave its caches: LoRA on two
layers of 768 took 484, 486, 510 and 609 us a token with 1024, 2048, 4096 and 8192 of them."""
MOST_SHARE = 0.95
"""Share of the free memory above which a run is refused; between `SAFE_SHARE` and this it is warned."""
LEAST_TOKENS = 256
"""Smallest size of micro-batches in tokens, before single rows."""
FIXED = {"cpu": 48, "cuda": 256}
"""Time of a micro-batch that does not grow with it, in tokens: weights are read, kernels are started. On a
CPU 256 tokens took 11 % longer each in layers of 768, 29 % in layers of 1536."""
RECOMPUTING = 0.3
"""Time of recomputing all layers, as a share of a step's: one more forward pass."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A way to run the micro-batches, and what it takes."""

    size: MicroBatchSize
    recomputed: int
    """Number of recomputed layers."""
    extent: Extent
    """Size of the run's longest micro-batch."""
    num_bytes: int
    """Bytes that it needs, gradients and the optimizer's means included."""
    cost: float
    """Time of a token, relative to endless micro-batches without recomputation."""


def fit_into_memory(plan: "Plan", objective: ObjectiveModule) -> Generator[Note, None, tuple["Plan", Memory]]:
    """Settle the `auto` of a plan's micro-batches and recomputation; return the plan so, and the memory.

    The objective's model is set to recompute so. All processes decide alike. A run that is resumed keeps what
    it began with. Raises `ConfigError` if nothing fits, with settings that would.
    """
    settings = plan.recipe.train
    memory = _measure(plan, objective)
    choice = _choose(plan, objective, memory)
    recompute(objective.model, choice.recomputed)
    is_close = choice.num_bytes > SAFE_SHARE * memory.free
    is_settled = "auto" not in (settings.micro_batch_size, settings.gradient_checkpointing)
    if plan.is_resumed and is_settled and not is_close:  # said when it began
        return plan, memory
    number, num_layers = choice.recomputed, memory.need.num_layers
    part = "all layers" if number == num_layers else f"{number} of {num_layers} layers"
    yield Note(
        f"memory: longest micro-batch {choice.extent.tokens:,} tokens, about {in_words(choice.num_bytes)} of "
        f"{in_words(memory.free)} free: {f'{part} recomputed' if number else 'no recomputation'}"
    )
    if is_close:
        much = "more than" if choice.num_bytes > memory.free else "close to all that"
        text = f"memory: this is {much} is free: end other programs, or the system may end this one"
        yield Note(text, is_warning=True)
    recipe = settled(plan.recipe, choice, num_layers)
    return replace(plan, recipe=recipe, steps=plan.steps.in_size(choice.size)), memory


def settled(recipe: Recipe, choice: Fitting, num_layers: int) -> Recipe:
    """Return the recipe with the choice's micro-batches and, where they are left to it, recomputed layers."""
    changed: dict[str, object] = {"micro_batch_size": choice.size}
    if recipe.train.gradient_checkpointing == "auto":
        number = choice.recomputed
        changed["gradient_checkpointing"] = number if 0 < number < num_layers else number > 0
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changed)})


def _measure(plan: "Plan", objective: ObjectiveModule) -> Memory:
    """Return the least favourable process's memory and need."""
    rows, processes, pad_id = plan.steps.rows, plan.processes, plan.tokenizer.pad_token_id
    longest, validated = (
        max((len(row.input_ids) for row in part), default=0) for part in (rows, plan.rows.validation.rows)
    )
    mapped = mapped_bytes((*objective.parameters(), *objective.buffers()))
    row = max(rows, key=lambda row: len(row.input_ids))
    need = measure_need(objective, row, pad_id, processes)
    if processes.device.type == "cpu":
        free = free_memory(processes.device, mapped)
        need = with_losses(need, objective, row, pad_id, processes, free=free)
    free = free_memory(processes.device, mapped)
    shared_by = processes.state_shared_by
    state = state_bytes(objective, plan.recipe.train, num_processes=processes.number, shared_by=shared_by)
    update = update_bytes(objective, processes.device)
    answering = codes_beside(plan.recipe, objective, processes.device)
    device = processes.device.type
    everyones = processes.gather(
        Memory(need, free, state, longest, validated, update, answering=answering, device=device)
    )
    longest_row = Extent(longest, longest, 1)
    greatest = max(everyones, key=lambda each: each.need.bytes_at(longest_row, recomputed=0))
    return replace(greatest, free=min(each.free for each in everyones))


def _choose(plan: "Plan", objective: ObjectiveModule, memory: Memory) -> Fitting:
    """Return the fastest choice that fits. Raises `ConfigError` if none does and the plan is not forced."""
    device = plan.processes.device.type
    choice, fits = choose(plan, memory, device, lambda choice: _proves_true(choice, plan, objective, memory))
    if fits or plan.is_forced:
        return choice
    hint = find_remedy(plan, objective.model, memory)
    if plan.is_resumed:
        hint = f"a run is resumed as it began: end other programs; for another one, {hint}"
    raise ConfigError(
        f"memory: the smallest step of these settings, {choice.extent.tokens:,} tokens at once, needs about "
        f"{in_words(choice.num_bytes)}, but {in_words(memory.free)} are free",
        hint=hint,
    )


def choose(
    plan: "Plan", memory: Memory, device: str, proves_true: Callable[[Fitting], bool] = lambda _: True
) -> tuple[Fitting, bool]:
    """Return the fastest choice that fits on `cpu` or `cuda`, else the leanest one; and True if it fits."""
    choices = list(_choices(plan, memory, device))
    for choice in sorted(choices, key=lambda choice: choice.cost):
        if choice.num_bytes <= SAFE_SHARE * memory.free and proves_true(choice):
            return choice, True
    leanest = min(choices, key=lambda choice: choice.num_bytes)
    return leanest, leanest.num_bytes <= MOST_SHARE * memory.free and proves_true(leanest)


def _choices(plan: "Plan", memory: Memory, device: str) -> Iterator[Fitting]:
    """Yield every choice that the settings leave."""
    num_layers = memory.need.num_layers
    sizes: list[MicroBatchSize] = [plan.recipe.train.micro_batch_size]
    if sizes == ["auto"]:  # halves down from the largest, then single rows
        halvings = range((MOST_TOKENS[device] // LEAST_TOKENS).bit_length())
        sizes = [*(f"{MOST_TOKENS[device] >> i} tokens" for i in halvings), 1]
    wanted = plan.recipe.train.gradient_checkpointing
    if isinstance(wanted, str):  # auto, in eighths
        numbers = sorted({round(num_layers * eighths / 8) for eighths in range(9)})
    else:
        numbers = [num_layers * wanted if isinstance(wanted, bool) else wanted]
    for size in sizes:
        trained, validated = extents(plan, memory, size)
        for recomputed in numbers:
            needed = memory.bytes_at(trained, validated, recomputed=recomputed)
            time = (1 + RECOMPUTING * recomputed / max(1, num_layers)) * (1 + FIXED[device] / trained.tokens)
            yield Fitting(size, recomputed, trained, needed, time)


def extents(plan: "Plan", memory: Memory, size: MicroBatchSize) -> tuple[Extent, Extent]:
    """Return the largest micro-batches of this size, of the run's steps and of its evaluations."""
    longest = (memory.longest_row, memory.longest_validated)
    trained, validated = (
        Extent(tokens, min(tokens, most), rows)
        for (tokens, rows), most in zip(_largest(plan, size), longest, strict=True)
    )
    return trained, validated


@lru_cache(maxsize=32)  # a forecast asks for each machine, and the rows may be a million
def _largest(plan: "Plan", size: MicroBatchSize) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the most tokens and the most rows of micro-batches of this size, in steps and in evaluations."""
    lengths = np.array([[len(row.input_ids) for row in plan.rows.validation.rows]], dtype=np.int64)
    steps, number = plan.num_steps, plan.processes.number
    return (
        (plan.steps.longest_micro_batch(steps, size), plan.steps.most_rows(steps, size)),
        (longest_micro_batch(lengths, size, number), most_rows(lengths, size, number)),
    )


def _proves_true(choice: Fitting, plan: "Plan", objective: ObjectiveModule, memory: Memory) -> bool:
    """Return False if the longest micro-batch does not pass through a GPU; on a CPU it is not tried."""
    processes = plan.processes
    if processes.device.type != "cuda":
        return True
    recompute(objective.model, choice.recomputed)
    batch = collate(longest_rows(plan.steps.rows, choice.extent.tokens), plan.tokenizer.pad_token_id)
    # the gradients are there while it is tried, the optimizer's means are not
    spare = memory.state - state_bytes(objective, None, num_processes=1)
    return not processes.is_any(not has_room(objective, batch, processes, spare=spare))
