"""The plan of a training run: recipe, rows and steps, settled and checked before any weight is read."""

import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch

from glmtune.data.batches import Steps
from glmtune.data.mixture import count_draws
from glmtune.errors import ConfigError
from glmtune.extras import require_installed
from glmtune.families import identify_family
from glmtune.load import choose_type, tokenizer_of
from glmtune.locations import Location, resolve
from glmtune.methods import steps_warning
from glmtune.models import resolve_device
from glmtune.models.device import BALANCED
from glmtune.models.dtype import Choice, choose_precision, with_precision
from glmtune.models.loaders import suppose_weights
from glmtune.possible import require_possible
from glmtune.processor import has_bf16
from glmtune.recipe import Method, Recipe, Train
from glmtune.recipe.distributed import DeepSpeed, EngineSettings
from glmtune.recipe.train import DEFAULT_EPOCHS
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.optim import find_optimizer
from glmtune.training.processes import Processes
from glmtune.workflows.early import require_startable, run_folder
from glmtune.workflows.events import Note
from glmtune.workflows.forgetting import chat_loss_warning
from glmtune.workflows.nearness import cost_line
from glmtune.workflows.parent import is_pruned, text_warnings, with_parent
from glmtune.workflows.rates import rate_line, with_default_rate
from glmtune.workflows.replay import Replay, as_drawn, plan_replay, with_ratio
from glmtune.workflows.resuming import as_begun, require_resumable
from glmtune.workflows.rows import EncodedRows, SplitRows, hash_rows, read_and_split, training_rows

FEW_STEPS = 20
"""Fewer steps teach hardly anything: each moves a weight by no more than about the rate, 1e-4 for LoRA, and
AdamW's running means have not settled (about 10 steps at train.adam_beta1 0.9)."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A run before its model is loaded: model, rows, steps, precision."""

    recipe: Recipe
    """The recipe with rate, dtype and precision settled and, if an adapter is trained on, its method; once
    the model is there, with what its memory decides."""
    asked: Recipe
    """The recipe before this machine's processor decided on dtype and precision."""
    folder: Path
    """Folder of the run."""
    location: Location
    """Location of the model: its folder, and the adapter on it if training goes on from one."""
    processes: Processes
    """The processes that train together, with device and precision."""
    base_dtype: Choice
    """Types in which the base's frozen weights are held and computed."""
    tokenizer: Tokenizer
    rows: EncodedRows
    row_hashes: Mapping[str, str]
    """SHA-256 of each data file, as env.json and every card keep them."""
    steps: Steps
    replay: Replay | None
    """General prompts with the base's answers, among the rows of the steps; None without any."""
    num_steps: int
    notes: tuple[Note, ...]
    """The notes that `planning` has yielded."""
    is_resumed: bool = False
    """True if a run goes on that has begun before."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Settings of such a run that are others from here on, in words."""
    is_forced: bool = False
    """True if memory that does not suffice is a warning only."""

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        assert self.recipe.train.lr is not None
        return self.recipe.train.lr

    @property
    def eval_every(self) -> int:
        """The number of steps from one evaluation to the next."""
        return self.recipe.train.eval_every or math.ceil(self.num_steps / 10)

    def summary(self) -> Iterator[Note]:
        """Yield the plan in a few lines: steps, rate, precision; then warnings of what it puts at risk."""
        method, settings, processes = self.recipe.method, self.recipe.train, self.processes
        yield Note(plan_line(self.steps, self.num_steps, processes.device, processes.precision))
        yield Note(rate_line(method, self.lr))
        if fp16 := fp16_line(processes.precision, processes.device):
            yield Note(fp16)
        ratio = (self.recipe.retain.ratio or 0.0) if self.tokenizer.template else None
        if warning := plan_warning(method, self.lr, self.steps, self.num_steps, ratio):
            yield Note(warning, is_warning=True)
        if nearness := cost_line(self):
            yield Note(nearness)
        if settings.warmup_steps >= self.num_steps:
            text = (
                f"train.warmup_steps: {settings.warmup_steps} of {self.num_steps} steps, so the peak rate is "
                "never reached"
            )
            yield Note(text, is_warning=True)


def planning(
    recipe: Recipe, *, resume: bool = False, rows: SplitRows | None = None, begins: bool = True
) -> Generator[Note, None, Plan]:
    """Settle and check everything that needs no weights; yield notes on the way, return the plan.

    With `resume`, the plan is that of the run in the recipe's folder. `rows`: the rows, if they have been
    read already. `begins`: False if no run is to begin: its folder may be there, its model's weights need
    not. Raises `ConfigError`, `DataError` and `CheckpointError`; writes nothing.
    """
    # 1. the recipe: what a run that is resumed, or an adapter that is trained on, has settled already
    begun = as_begun(recipe, run_folder(recipe)) if resume else recipe
    recipe = with_default_rate(with_parent(begun))
    folder = run_folder(recipe)
    changed = require_resumable(recipe, folder) if resume else {}
    if begins and not resume:
        require_startable(recipe, folder)
    # 2. model and machine
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    require_able(location, recipe.method, recipe.quant)
    if not begins and not location.folder.has_weights:
        suppose_weights(location.folder)
    find_optimizer(recipe.train)  # a missing package is an error now, not after minutes of loading
    processes = start_processes(recipe.device, recipe.distributed, begins=begins)
    # 3. rows: encoded, hashed, dealt out to steps and processes
    tokenizer = tokenizer_of(location, template=recipe.template)
    recipe, split = with_ratio(recipe, tokenizer), rows or read_and_split(recipe.data)
    encoded, row_hashes = training_rows(tokenizer, recipe.data, split), hash_rows(recipe.data)
    replay = plan_replay(recipe, tokenizer, split, len(encoded.train.rows), folder if resume else None)
    steps = share_rows(encoded, recipe, processes, replay)
    num_steps = count_steps(recipe.train, steps)
    replay, steps = as_drawn(replay, steps, num_steps)
    mixed, texts = mixture_notes(recipe, steps, replay), text_warnings(recipe.data, location)
    # each note goes out before the next check runs: a check that raises takes none of them with it
    few, notes = few_steps_warning(recipe, location, steps, num_steps), list[Note]()
    for note in chain(encoded.notes, mixed, texts, rounds_note(encoded), few):
        notes.append(note)
        yield note
    # 4. types: all ranks take rank 0's choice, for another card might choose another type
    base_dtype = processes.firsts(choose_type(location, recipe.dtype, processes.device, recipe.quant))
    precision = choose_precision(recipe.train.precision, base_dtype, processes.device)
    processes.precision = precision
    base_dtype = with_precision(base_dtype, precision, processes.device)
    train = recipe.train.model_copy(update={"precision": precision})
    return Plan(
        recipe=recipe.model_copy(update={"dtype": base_dtype.name, "train": train}),
        asked=recipe,
        folder=folder,
        location=location,
        processes=processes,
        base_dtype=base_dtype,
        tokenizer=tokenizer,
        rows=encoded,
        row_hashes=row_hashes,
        steps=steps,
        replay=replay,
        num_steps=num_steps,
        notes=tuple(notes),
        is_resumed=resume,
        changed=changed,
    )


def require_able(location: Location, method: Method, quant: str | None) -> None:
    """Raise `ConfigError` for a method or a quantisation that the model's family cannot do."""
    family = identify_family(location.folder).family
    require_possible(family, f"method={method.name}", f"method.name: {method.name}")
    require_possible(family, f"quant={quant}", f"quant: {quant!r}")


def start_processes(device: str, engine: EngineSettings, *, begins: bool = True) -> Processes:
    """Return the processes that were started together, for an engine.

    Raises `ConfigError` for one fixed card (`cuda:1`), and for a run that begins in a single process whose
    engine shares weights or means; `MissingDependencyError` for DeepSpeed without its package.
    """
    if device == BALANCED:
        raise ConfigError(
            "device: balanced: one process answers on all cards with it; training takes auto, cpu or cuda",
            hint="several cards: `glmtune train ... --nproc 2 distributed=fsdp2`",
        )
    if resolve_device(device).index is not None:
        raise ConfigError(
            f"device: {device}: training takes auto, cpu or cuda",
            hint=f"choose the card outside: `CUDA_VISIBLE_DEVICES={device[5:]} glmtune train ...`",
        )
    processes = Processes(resolve_device(device), engine=engine)
    if begins and isinstance(engine, DeepSpeed):
        require_installed("deepspeed", extra="deepspeed")  # before anything is loaded
    if begins and processes.number == 1 and engine.shares_state:
        raise ConfigError(
            f"distributed.name: {engine.name}, but this is one process, with none to share weights with",
            hint="several: `glmtune train ... --nproc 2`; one: distributed=ddp",
        )
    return processes


def share_rows(
    rows: EncodedRows, recipe: Recipe, processes: Processes, replay: Replay | None = None
) -> Steps:
    """Return the rows of each step, and this process's share of them.

    Raises `ConfigError` for a source with a share of each epoch and no row.
    """
    sources, settings = recipe.data.sources, recipe.train
    counts = Counter(row.source for row in rows.train.rows)
    draws = count_draws(sources, [counts[i] for i in range(len(sources))])
    for i, source in enumerate(sources):
        if draws and draws[i] and not counts[i]:
            raise ConfigError(
                f"data.train.{i}: {source.path}: has a share of each epoch, and no row to train on",
                hint="leave it out of data.train, or keep rows of it: data.holdout_rows and limits of rows "
                "and of their lengths take some",
            )
    batch_size = settings.batch_size
    if replay:
        draws = (*(draws or (counts[i] for i in range(len(sources)))), replay.per_epoch)
        batch_size = replay.batch_size(len(rows.train.rows), batch_size)
    return Steps(
        [*rows.train.rows, *(replay.rows if replay else ())],
        batch_size=batch_size,
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
        rank=processes.rank,
        num_processes=processes.number,
        draws=draws,
    )


def mixture_notes(recipe: Recipe, steps: Steps, replay: Replay | None) -> Iterator[Note]:
    """Yield a line for each source of a mixture, and for the replay: the rows that an epoch draws from it."""
    counts, sources = Counter(row.source for row in steps.rows), recipe.data.sources
    is_mixed = any(source.weight or source.ratio for source in sources)
    draws = steps.draws if is_mixed and steps.draws else ()
    for i, (source, count) in enumerate(zip(sources, draws, strict=False)):
        times = f"each {count / counts[i]:.3g} times" if counts[i] else "it has none"
        text = f"{source.path}: {count:,} of the {steps.epoch_rows:,} rows of an epoch, {times}"
        yield Note(f"{text} ({count / steps.epoch_rows:.1%})", is_warning=not count)
    if replay:
        yield Note(replay.note(steps.epoch_rows, recipe.retain.max_new_tokens))


def count_steps(settings: Train, steps: Steps) -> int:
    """Return the number of optimizer steps: `train.steps`, else the epochs in steps, rounded up."""
    return settings.steps or math.ceil((settings.epochs or DEFAULT_EPOCHS) * steps.per_epoch)


def few_steps_warning(recipe: Recipe, location: Location, steps: Steps, num_steps: int) -> Iterator[Note]:
    """Yield a warning if the steps are too few for the method, or for anything to be learned."""
    few_for_method = None if is_pruned(location) else steps_warning(recipe.method, num_steps)
    if few_steps := few_for_method or short_warning(recipe.train, steps, num_steps):
        yield Note(few_steps, is_warning=True)


def rounds_note(rows: EncodedRows) -> Iterator[Note]:
    """Yield a line for rows of one round each: they train no answer that follows another."""
    if not rows.num_several:
        yield Note(
            "all rows have one round: answers to a second question are not trained, and may get worse "
            "(docs/forgetting.md)"
        )


def short_warning(settings: Train, steps: Steps, num_steps: int) -> str | None:
    """Return a warning, with the cure, if few rows make few steps; None if the steps were asked for."""
    if settings.steps is not None or num_steps >= FEW_STEPS:
        return None
    plural = "s" if num_steps > 1 else ""
    return (
        f"train.epochs: {settings.epochs or DEFAULT_EPOCHS:g} of {steps.epoch_rows} rows, {steps.batch_size} "
        f"a step, make only {num_steps} step{plural}: hardly anything will be learned; set "
        f"train.epochs={math.ceil(FEW_STEPS / steps.per_epoch)} or more"
    )


def fp16_line(precision: str, device: torch.device) -> str | None:
    """Return a line on fp16 with loss scaling for a card without bf16; None for any other card."""
    if precision != "fp16" or has_bf16(device):
        return None
    return (
        "this card has no bf16: fp16 with loss scaling; what is trained, its gradients and Adam's means are "
        "fp32, in which Adam's epsilon holds"
    )


def plan_line(steps: Steps, num_steps: int, device: torch.device, precision: str) -> str:
    """Return one line: steps, rows, epochs, processes, device and precision."""
    processes, rows = steps.num_processes, "row" if steps.batch_size == 1 else "rows"
    return (
        f"plan: {num_steps} steps of up to {steps.batch_size} {rows}, "
        f"{steps.num_samples(num_steps)} samples in all, "
        f"{num_steps / steps.per_epoch:.2f} epochs of {steps.epoch_rows} examples; "
        f"{processes} process{'es' if processes > 1 else ''} on {device.type}, {precision}"
    )


def plan_warning(
    method: Method, lr: float, steps: Steps, num_steps: int, ratio: float | None = 0.0
) -> str | None:
    """Return a warning if runs like this one have lost ordinary chat; `ratio` as of `chat_loss_warning`."""
    rows, epochs = steps.epoch_rows, num_steps / steps.per_epoch
    return chat_loss_warning(method, rows=rows, steps=num_steps, epochs=epochs, lr=lr, ratio=ratio)
