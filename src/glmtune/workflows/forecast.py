"""The memory and disk that a run would take on a machine, forecast before any weight is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import psutil
import torch

from glmtune.errors import ConfigError
from glmtune.families import identify_family
from glmtune.generate.kv_cache import BLOCK
from glmtune.generate.queue import MAX_PREFILL_TOKENS, ROW_TOKENS
from glmtune.models.dtype import main_dtype, num_bytes
from glmtune.models.frozen_linear import BLOCK_BYTES, FrozenLinear
from glmtune.models.shards import scan_tensors
from glmtune.models.wrapped import causal_of
from glmtune.objectives.sft import most_logits
from glmtune.possible import REFUSALS
from glmtune.processor import free_memory, has_bf16
from glmtune.recipe import Recipe, TrainedPart
from glmtune.training.allocations import has_tight_heap
from glmtune.training.memory import answering_bytes
from glmtune.training.optim import state_bytes, update_bytes
from glmtune.training.probe import Extent
from glmtune.workflows.beside import bytes_beside, codes_beside
from glmtune.workflows.fitting import Fitting, choose, extents, settled
from glmtune.workflows.imagining import (
    ImaginedRun,
    Types,
    imagine_run,
    once_trained,
    shared_run,
    types_on,
)
from glmtune.workflows.plan import Plan
from glmtune.workflows.remedies import Memory, find_remedy, find_settings
from glmtune.workflows.rows import longest_answer

CONTEXT = 500 * 2**20
"""Bytes of a card that CUDA takes and torch's allocator does not count: its context, about 400 MB with lazily
loaded kernels (github.com/pytorch/pytorch/issues/109888; 274 MiB as it begins, /pull/86509), and 100 MiB
assumed for kernels that are loaded later."""
CAPACITY = {6: 5.79, 8: 7.76, 11: 10.73, 16: 14.56, 24: 23.61, 40: 39.5, 80: 79.25}
"""GiB that a card of so many GB has for programs, of well-known cards the least, as torch's messages on cards
out of memory name them. In this order a 2060, a 3070, one of 11 GB, a T4, a 4090, an A100, an A100 in issues
on GitHub: facebookresearch/meshrcnn#92, sshan-zhao/GASDA#19, MIC-DKFZ/nnUNet#122,
AlphaGPU/leetgpu-challenges#52, pinokiofactory/flux-webui#11, TianheWu/CoSeR#10, levihsu/OOTDiffusion#235."""
GROWN = 10 * 2**20
"""Bytes that a process grows by beside tensors once it trains: Python's objects, and the heap around them.
By benchmarks/memory.py on a model of 170 M 0 to 17 MiB, few where layers keep what they compute."""
SMALL = 2**30
"""Bytes of weights up to which a model is small: its run keeps glibc's heap as it is, which is quicker."""
LOST_SHARE = 0.5
"""Holes in glibc's heap, as a share of a step's tensors, where it is not tightened."""
SHARD = 2 * 10**9
"""Bytes of a file of an export, which is in memory as a whole."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that a run is imagined on."""

    name: str
    device: str
    """`cpu` or `cuda`."""
    free: int
    """Bytes that a run may take there: of a card, its size less CUDA's context; on a CPU with its process."""
    has_bf16: bool

    def with_bf16(self, has_bf16: bool) -> "Machine":
        """Return the machine with or without bf16 arithmetic."""
        return replace(self, has_bf16=has_bf16)


CARDS: tuple[Machine, ...] = tuple(
    Machine(f"{size} GB card", "cuda", round(gib * 2**30) - CONTEXT, has_bf16=True)
    for size, gib in CAPACITY.items()
)
"""The cards that a run is imagined on."""


def this_machine() -> Machine:
    """Return the machine that this program runs on, with what is free on it now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_memory(device) + (_process_bytes() if device.type == "cpu" else 0)
    return Machine("this machine", device.type, free, has_bf16(device))


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run's life, and its memory at the highest point."""

    name: str
    """`training`, `evaluation`, `merge` or `export`; the last two take no memory of a card."""
    parts: Mapping[str, int]
    """Bytes by part, in the order in which they are shown."""
    mapped: int = 0
    """Bytes of these that are pages of the model's files, which the system may drop and read again."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Forecast:
    """The memory and disk of a run on a machine."""

    machine: Machine
    recipe: Recipe
    """The recipe as a run would settle it there: micro-batches, recomputation, types."""
    phases: tuple[Phase, ...]
    """Training first; none if the machine lacks the types that the recipe asks for."""
    tokens: int
    """Tokens of the longest micro-batch."""
    recomputed: int
    """Number of recomputed layers."""
    disk: int
    """Bytes of the run's folder, at most."""
    fits: bool
    override: str = ""
    """The fewest `KEY=VALUE` words that make it fit; empty if it fits, or if none do."""
    hint: str = ""
    """The way out in words, for a run that does not fit."""


def forecast(plan: Plan, machine: Machine) -> Forecast:
    """Return what the plan's run would take on a machine; no weight is read.

    Several machines cost no more than one, if the run has the same types there.
    """
    try:
        types = types_on(plan, device=machine.device, has_bf16=machine.has_bf16, free=machine.free)
    except ConfigError as error:
        return Forecast(machine, plan.asked, (), 0, 0, 0, fits=False, hint=f"{error}; {error.hint}")
    run = _imagined(plan, types, machine)
    memory = _memory(plan, run, machine)
    choice, fits = choose(plan, memory, machine.device)
    phases = [_training(plan, run, memory, choice, machine), _evaluation(plan, run, types, machine)]
    if machine.device == "cpu" and plan.recipe.method.kept is not TrainedPart.PREFIX:
        phases.append(_exporting("merge", plan, run))
        if "--to int4" not in REFUSALS[identify_family(plan.location.folder).family]:
            phases.append(_exporting("export", plan, run, quant="int4"))
    words = [] if fits else find_settings(plan, run.model, memory) or []
    recipe = settled(plan.asked, choice, memory.need.num_layers)
    train = recipe.train.model_copy(update={"precision": types.precision})
    return Forecast(
        machine,
        recipe.model_copy(update={"dtype": types.base.name, "train": train}),
        tuple(phases),
        choice.extent.tokens,
        choice.recomputed,
        _disk(plan, run),
        fits,
        " ".join(words),
        "" if fits else find_remedy(plan, run.model, memory),
    )


def _imagined(plan: Plan, types: Types, machine: Machine) -> ImaginedRun:
    run = imagine_run(plan, types if machine.device == "cpu" else types.in_bf16())
    return run if plan.processes.shared_by == 1 else shared_run(run, plan.processes.shared_by)


def is_small(plan: Plan) -> bool:
    """Return True for a model whose files hold up to `SMALL` bytes of weights."""
    return _stored_bytes(plan) <= SMALL


def _stored_bytes(plan: Plan) -> int:
    stored = scan_tensors(plan.location.folder).values()
    return sum(prod(each.shape) * each.dtype.itemsize for each in stored)


def _memory(plan: Plan, run: ImaginedRun, machine: Machine) -> Memory:
    """Return what is free on the machine once the model is there, and what the steps need."""
    need, held = run.need, sum(run.held.values())
    if machine.device == "cuda":
        passing = replace(need.passing, fixed=need.passing.fixed + run.expanded)
        head = causal_of(run.model).get_output_embeddings()
        need = replace(need, passing=passing, most_logits=most_logits(head, torch.device("cuda")))
    else:
        held += _trained_process_bytes(run)
        is_tight = has_tight_heap() or not is_small(plan)
        need = replace(need, lost_share=0.0 if is_tight else LOST_SHARE)
    longest, validated = (
        max((len(row.input_ids) for row in part), default=0)
        for part in (plan.steps.rows, plan.rows.validation.rows)
    )
    processes = plan.processes
    number, shared_by = processes.number, max(processes.shared_by, processes.state_shared_by)
    state = state_bytes(run.model, plan.recipe.train, num_processes=number, shared_by=shared_by)
    device = torch.device(machine.device)
    update = update_bytes(run.model, device) // shared_by
    answering = codes_beside(plan.recipe, run.model, device)
    return Memory(
        need,
        machine.free - held,
        state,
        longest,
        validated,
        update,
        answering=answering,
        device=machine.device,
    )


def _training(plan: Plan, run: ImaginedRun, memory: Memory, choice: Fitting, machine: Machine) -> Phase:
    processes = plan.processes
    number, shared_by = processes.number, max(processes.shared_by, processes.state_shared_by)
    gradients = state_bytes(run.model, None, num_processes=number, shared_by=shared_by)
    step = memory.need.parts_at(choice.extent, recomputed=choice.recomputed)
    _, validated = extents(plan, memory, choice.size)
    highest = max(sum(step.values()), memory.need.evaluated_at(validated), memory.update)
    parts = dict(run.held) | {"gradients": gradients, "optimizer": memory.state - gradients}
    of_rows = 0
    if "prefix" in parts:
        of_rows = round(memory.need.before.per_row * choice.extent.rows)
        parts["prefix"] += of_rows
    # with what is lost around them, as the measured ones are
    parts |= {"activations": highest - step["logits"] - of_rows, "logits": step["logits"]}
    left = max(0, memory.free - memory.state)
    device = torch.device(machine.device)
    answers = bytes_beside(plan, run.model, memory.need, device=device, free=left)
    parts["answers"] = max(0, memory.answering - highest, min(left, answers) - highest)
    return _phase("training", parts, run, machine)


def _evaluation(plan: Plan, run: ImaginedRun, types: Types, machine: Machine) -> Phase:
    """Return the memory of answering the rows that are held out, in the recipe's batches."""
    settings = plan.recipe.evaluate
    # a model that was trained whole is opened from its own files, in fp32, and stays in them
    is_whole = machine.device == "cpu" and plan.recipe.method.kept is TrainedPart.MODEL
    if is_whole:
        types = replace(types, base=replace(types.base, dtype=torch.float32, computing=torch.float32))
    need = _imagined(once_trained(plan), types, machine).need
    new = longest_answer(plan.tokenizer, plan.recipe.data, settings)
    # the tokens before the first learned one
    prompts = [int((row.labels != -100).argmax()) or 1 for row in plan.rows.validation.rows] or [1]
    columns = -(-(max(prompts) + new) // BLOCK) * BLOCK + getattr(run.model, "num_prefix_tokens", 0)
    rows = min(settings.batch_size, len(prompts), max(1, ROW_TOKENS * settings.batch_size // columns))
    size = Extent(min(MAX_PREFILL_TOKENS, sum(prompts)), max(prompts), rows)
    config, width = run.model.config, types.base.computing.itemsize
    per_column = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    parts = dict(run.held) | {
        "decoding": answering_bytes(run.model, torch.device(machine.device)),
        "activations": need.evaluated_at(size) - need.logits_at(size),
        "logits": 2 * rows * need.vocab_size * 4,
        "KV cache": rows * columns * per_column,
    }
    phase = _phase("evaluation", parts, run, machine)
    return replace(phase, mapped=parts["weights"]) if is_whole else phase


def _exporting(name: str, plan: Plan, run: ImaginedRun, quant: str | None = None) -> Phase:
    """Return the memory of writing base + adapter, tensor by tensor and file by file, and of its proof."""
    stored = scan_tensors(plan.location.folder)
    size, dtype = _stored_bytes(plan), main_dtype(stored)
    written = num_bytes(stored, quant, dtype) if quant else size
    sizes = [prod(each.shape) for each in stored.values()]
    # a whole model's weight is cast; the update of a layer's is added to it in fp32
    parts_of_model: Iterable[Any] = run.model.modules()  # PEFT's layers are of many classes
    adapted = [part.in_features * part.out_features for part in parts_of_model if hasattr(part, "lora_A")]
    is_whole = plan.recipe.method.kept is TrainedPart.MODEL
    at_once = dtype.itemsize * max(sizes) if is_whole else 12 * max(adapted, default=0)
    proving = (4 + dtype.itemsize) * max(sizes)  # a weight as it was written, and in fp32
    shard = round(min(SHARD, written))
    parts = {
        "weights": size,
        "adapter": run.held.get("adapter", 0),
        "shard": shard,
        "activations": max(at_once, proving - shard),
        "process": _process_bytes(),
    }
    return Phase(name, {key: size for key, size in parts.items() if size}, mapped=size)


def _phase(name: str, parts: dict[str, int], run: ImaginedRun, machine: Machine) -> Phase:
    is_cpu = machine.device == "cpu"
    if is_cpu:
        parts["process"] = _trained_process_bytes(run)
    return Phase(name, {key: size for key, size in parts.items() if size}, run.mapped if is_cpu else 0)


def _process_bytes() -> int:
    """Return the bytes of this process, which has imported what a run imports."""
    return int(psutil.Process().memory_info().rss)


def _trained_process_bytes(run: ImaginedRun) -> int:
    """Return the same once it trains, with the buffer for blocks of weights in another type."""
    parts = (part for part in run.model.modules() if isinstance(part, FrozenLinear))
    largest = max((part.in_features * part.out_features for part in parts), default=0)
    return _process_bytes() + GROWN + min(BLOCK_BYTES, 4 * largest)


def _disk(plan: Plan, run: ImaginedRun) -> int:
    """Return the bytes of the checkpoints that a run has at most: the newest, the best, one being written.

    Of what an engine shares out, that one is in files once more while it is put together.
    """
    trained = [p.numel() for p in run.model.parameters() if p.requires_grad]
    means = state_bytes(run.model, plan.recipe.train, num_processes=1) - 4 * sum(trained)
    is_whole = plan.recipe.method.kept is TrainedPart.MODEL
    of_weights = sum(run.held.values()) if is_whole else 4 * sum(trained)
    number = min(plan.num_steps, plan.recipe.train.keep_checkpoints + 2)
    return (of_weights + means) * (number + plan.recipe.distributed.shares_state)
