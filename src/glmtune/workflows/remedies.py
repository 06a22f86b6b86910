"""Settings that would fit into the memory of this machine, for a run that does not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING

from torch import nn

from glmtune.errors import ConfigError, TrainingError, first_line
from glmtune.extras import is_installed
from glmtune.families import identify_family
from glmtune.models.products import decoding_bytes
from glmtune.models.protocol import CausalLM
from glmtune.models.recomputing import layers_of
from glmtune.possible import require_possible
from glmtune.recipe import TrainedPart
from glmtune.training.memory import is_out_of_memory
from glmtune.training.optim import state_bytes
from glmtune.training.probe import Extent, Need
from glmtune.workflows.forgetting import is_reported

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

SAFE_SHARE = 0.85
"""Share of the free memory that is planned with: other programs take some, and allocators lose some."""
WARY_SHARE = 0.75
"""The same for another method or quantisation that is proposed: its activations have not been measured."""
SMALL_MEANS = "train.optimizer=adamw_8bit"
LEAST_LENGTH = 16
"""Shortest limit of a row that is proposed, the least that `data.max_tokens` may be."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The free memory of a process and what its steps need of it."""

    need: Need
    free: int
    """Bytes that were free after loading."""
    state: int
    """Bytes of gradients and of the optimizer's means."""
    longest_row: int
    """Tokens of the longest row that is trained on."""
    longest_validated: int
    """Tokens of the longest row of the evaluations, which keep nothing for a backward pass."""
    update: int = 0
    """Bytes that the optimizer's step takes beside its means."""
    answering: int = 0
    """Bytes that answers need beside the model: of int4 on a CPU, its codes once more."""
    device: str = "cpu"
    """`cpu` or `cuda`."""

    def bytes_at(self, trained: Extent, validated: Extent, *, recomputed: int) -> int:
        """Return the bytes of a run whose steps and evaluations have micro-batches of these sizes."""
        step, evaluation = (
            self.need.bytes_at(trained, recomputed=recomputed),
            self.need.evaluated_at(validated),
        )
        return self.state + max(step, evaluation, self.update, self.answering)

    def leanest(self, limit: int) -> int:
        """Return the bytes of single rows, none longer than `limit`, with all layers recomputed."""
        lengths = (min(limit, longest) for longest in (self.longest_row, self.longest_validated))
        trained, validated = (Extent(length, length, 1) for length in lengths)
        return self.bytes_at(trained, validated, recomputed=self.need.num_layers)


@contextmanager
def refusing_out_of_memory(find_hint: Callable[[], str] | None = None) -> Iterator[None]:
    """Within, an allocation that fails is a `TrainingError`, with a hint where one is found."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        other = find_hint() if find_hint else "take quant=int4, or a smaller model"
        raise TrainingError(
            f"memory: there was none left ({first_line(error)})", hint=f"end other programs; or {other}"
        ) from error


def find_leaner(plan: "Plan", model: CausalLM, memory: Memory) -> str:
    """Return the hint for a run that went out of memory though it was expected to fit."""
    settings = plan.recipe.train
    if settings.micro_batch_size != 1 or settings.gradient_checkpointing is not True:
        return "take the leanest steps: train.micro_batch_size=1 train.gradient_checkpointing=true"
    needed = memory.leanest(max(memory.longest_row, memory.longest_validated))
    return find_remedy(plan, model, replace(memory, free=min(memory.free, needed)), base=())


Remedy = tuple[str, Memory]
"""A setting to add, and the memory as it then would be."""


def find_remedy(plan: "Plan", model: CausalLM, memory: Memory, base: Sequence[str] | None = None) -> str:
    """Return the hint with the settings of `find_settings`, or what to do where none would fit."""
    words = find_settings(plan, model, memory, base)
    if words is None:
        least = memory.leanest(LEAST_LENGTH) / SAFE_SHARE
        return f"take a smaller model, or a machine with {in_words(least)} free for training it"
    is_missing = SMALL_MEANS in words and not is_installed("bitsandbytes")
    extra = "; first `pip install 'glmtune[bitsandbytes]'`" if is_missing else ""
    return f"these settings would fit: {' '.join(words)}{extra}"


def find_settings(
    plan: "Plan", model: CausalLM, memory: Memory, base: Sequence[str] | None = None
) -> list[str] | None:
    """Return the fewest settings that make the run fit, those that change least first; None if none do.

    base: words that they begin with, by default those for steps of any size.
    """
    if base is None:
        names = ("micro_batch_size", "gradient_checkpointing")
        base = [f"train.{name}=auto" for name in names if getattr(plan.recipe.train, name) != "auto"]
    every = (_small_means, _lora, _quantised, _lora_on_codes, _without_samples)
    remedies = [remedy for remedy in every if remedy(plan, model, memory)]
    longest = max(memory.longest_row, memory.longest_validated)
    # rows are cut only if nothing else helps: what is cut is not learned
    ways = product((False, True), range(len(remedies) + 1))
    for is_shortened, chosen in (
        (is_shortened, chosen) for is_shortened, number in ways for chosen in combinations(remedies, number)
    ):
        words, left = list(base), memory
        for remedy in chosen:
            word, left = remedy(plan, model, left) or ("", left)
            words.append(word)
        share = SAFE_SHARE if set(chosen) <= {_small_means, _without_samples} else WARY_SHARE
        if left.leanest(LEAST_LENGTH if is_shortened else longest) <= share * left.free:
            return [*words, *(_shortened(plan, left, share) if is_shortened else ())]
    return None


def _small_means(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    settings = plan.recipe.train
    is_shared = plan.recipe.distributed.shares_weights
    if is_shared or settings.optimizer == "adamw_8bit" or plan.recipe.method.kept is TrainedPart.LAYERS:
        return None
    smaller = settings.model_copy(update={"optimizer": "adamw_8bit"})
    state = state_bytes(model, smaller, num_processes=plan.processes.number)
    return SMALL_MEANS, replace(memory, state=min(state, memory.state))


def _lora(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    if plan.recipe.method.kept in (TrainedPart.LAYERS, TrainedPart.PREFIX):
        return None
    return "method=lora", replace(memory, state=0, update=0)  # next to nothing


def _quantised(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    if plan.recipe.method.kept not in (TrainedPart.LAYERS, TrainedPart.PREFIX):
        return None
    held = _in_codes(plan, model, memory)
    return ("quant=int4", held) if held else None


def _lora_on_codes(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    if (lora := _lora(plan, model, memory)) is None or not (held := _in_codes(plan, model, lora[1])):
        return None
    return f"{lora[0]} quant=int4", held


def _without_samples(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    samples, report = plan.recipe.samples.prompts, is_reported(plan.recipe)
    words = ["samples.prompts=[]"] * bool(samples) + ["retain.report=off"] * report
    is_possible = memory.device == "cpu" and words
    return (" ".join(words), replace(memory, answering=0)) if is_possible else None


def _in_codes(plan: "Plan", model: CausalLM, memory: Memory) -> Memory | None:
    """Return the memory with the layers in int4, None if they cannot be quantised."""
    if plan.recipe.quant or plan.recipe.distributed.shares_weights:
        return None
    try:
        require_possible(identify_family(plan.location.folder).family, "quant=int4", "quant")
    except ConfigError:
        return None
    # where weights are added to the base, those that are trained are not the base's
    is_added = plan.recipe.method.kept in (TrainedPart.LAYERS, TrainedPart.PREFIX)
    weights = [
        part.weight
        for layer in layers_of(model)
        for part in layer.modules()
        if isinstance(part, nn.Linear) and part.weight.is_floating_point()
        if not (is_added and part.weight.requires_grad)
    ]
    if not weights or any(weight.shape[1] % 2 for weight in weights):  # 4-bit codes go in pairs
        return None
    saved = round(sum(weight.numel() * (weight.element_size() - 0.5) for weight in weights))
    is_decoding = memory.device == "cpu" and (is_reported(plan.recipe) or plan.recipe.samples.prompts)
    answering = decoding_bytes((*weight.shape, 4) for weight in weights) if is_decoding else 0
    return replace(memory, free=memory.free + saved, answering=answering)


def _shortened(plan: "Plan", memory: Memory, share: float) -> Iterator[str]:
    """Yield the settings that cut the rows to what fits."""
    lengths = range(LEAST_LENGTH, max(memory.longest_row, memory.longest_validated) + 1, LEAST_LENGTH)
    fitting = (length for length in lengths if memory.leanest(length) <= share * memory.free)
    limit = max(fitting, default=LEAST_LENGTH)
    data = plan.recipe.data
    source, target = data.max_source_tokens, data.max_target_tokens
    if source is None or target is None:
        yield f"data.max_tokens={limit}"
    else:
        room = limit - 2  # the official encodings put up to 2 tokens around prompt and completion
        prompt = max(4, room * source // (source + target))  # both shrink in proportion
        yield from (f"data.max_source_tokens={prompt}", f"data.max_target_tokens={max(2, room - prompt)}")
    longer = sum(len(row.input_ids) > limit for row in plan.rows.train.rows)
    # with `encoding: chat`, `cut` refuses to cut most of the rows; `drop` may leave none, `error` stops
    is_refused = data.encoding == "chat" and 2 * longer > len(plan.rows.train.rows)
    if data.overlong in ("drop", "error") or (data.overlong == "cut" and is_refused):
        yield "data.overlong=cut_any"


def in_words(size: float) -> str:
    """Return bytes in words, `1.9 GiB` or `12 MiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    mib = size / 2**20
    return f"{mib:.1f} MiB" if mib < 10 else f"{mib:.0f} MiB"  # else "about 3 MiB of 3 MiB free"
