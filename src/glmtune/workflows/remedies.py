"""Settings that would fit into the memory of this machine, for a run that does not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING

from torch import nn

from glmtune.errors import ConfigError
from glmtune.families import identify_family
from glmtune.models.protocol import CausalLM
from glmtune.models.recomputing import layers_of
from glmtune.possible import require_possible
from glmtune.recipe import TrainedPart
from glmtune.training.optim import state_bytes
from glmtune.training.probe import Need

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

SAFE_SHARE = 0.85
"""Share of the free memory that is planned with: other programs take some, and allocators lose some."""
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
    """Tokens of the longest row, validation included."""

    def bytes_at(self, tokens: int, longest: int, *, recomputed: int) -> int:
        """Return the bytes of a step whose longest micro-batch has so many tokens."""
        return self.state + self.need.bytes_at(tokens, longest, recomputed=recomputed)

    def fits(self, length: int) -> bool:
        """Return True if a single row of so many tokens fits with all layers recomputed."""
        needed = self.bytes_at(length, length, recomputed=self.need.num_layers)
        return needed <= SAFE_SHARE * self.free


Remedy = tuple[str, Memory]
"""A setting to add, and the memory as it then would be."""


def find_remedy(plan: "Plan", model: CausalLM, memory: Memory) -> str:
    """Return the hint with the fewest settings that make the run fit, those that change least first."""
    settings = plan.recipe.train
    base = [
        f"train.{name}=auto"
        for name in ("micro_batch_size", "gradient_checkpointing")
        if getattr(settings, name) != "auto"
    ]
    remedies = [remedy for remedy in (_small_means, _lora, _quantised) if remedy(plan, model, memory)]
    # rows are cut only if nothing else helps: what is cut is not learned
    ways = product((False, True), range(len(remedies) + 1))
    for is_shortened, chosen in (
        (is_shortened, chosen) for is_shortened, number in ways for chosen in combinations(remedies, number)
    ):
        words, left = list(base), memory
        for remedy in chosen:
            word, left = remedy(plan, model, left) or ("", left)
            words.append(word)
        if left.fits(LEAST_LENGTH if is_shortened else left.longest_row):
            cuts = _shortened(plan, left) if is_shortened else ()
            return f"these settings would fit: {' '.join([*words, *cuts])}"
    least = memory.bytes_at(LEAST_LENGTH, LEAST_LENGTH, recomputed=memory.need.num_layers)
    return f"take a smaller model, or a machine with {in_words(least / SAFE_SHARE)} free for training it"


def _small_means(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    settings = plan.recipe.train
    if settings.optimizer == "adamw_8bit" or plan.recipe.method.kept is TrainedPart.LAYERS:
        return None
    smaller = settings.model_copy(update={"optimizer": "adamw_8bit"})
    state = state_bytes(model, smaller, num_processes=plan.processes.number)
    return "train.optimizer=adamw_8bit", replace(memory, state=min(state, memory.state))


def _lora(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    if plan.recipe.method.kept in (TrainedPart.LAYERS, TrainedPart.PREFIX):
        return None
    return "method=lora", replace(memory, state=0)  # next to nothing


def _quantised(plan: "Plan", model: CausalLM, memory: Memory) -> Remedy | None:
    if plan.recipe.quant or plan.recipe.method.kept not in (TrainedPart.LAYERS, TrainedPart.PREFIX):
        return None
    try:
        require_possible(identify_family(plan.location.folder).family, "quant=int4", "quant")
    except ConfigError:
        return None
    weights = [
        part.weight
        for layer in layers_of(model)
        for part in layer.modules()
        if isinstance(part, nn.Linear) and part.weight.is_floating_point() and not part.weight.requires_grad
    ]
    saved = sum(weight.numel() * (weight.element_size() - 0.5) for weight in weights)
    return "quant=int4", replace(memory, free=memory.free + round(saved))


def _shortened(plan: "Plan", memory: Memory) -> Iterator[str]:
    """Yield the settings that cut the rows to what fits."""
    lengths = range(LEAST_LENGTH, memory.longest_row + 1, LEAST_LENGTH)
    limit = max((length for length in lengths if memory.fits(length)), default=LEAST_LENGTH)
    data = plan.recipe.data
    source, target = data.max_source_tokens, data.max_target_tokens
    if source is None or target is None:
        yield f"data.max_tokens={limit}"
    else:
        room = limit - 2  # the official encodings put up to 2 tokens around prompt and completion
        prompt = max(4, room * source // (source + target))  # both shrink in proportion
        yield from (f"data.max_source_tokens={prompt}", f"data.max_target_tokens={max(2, room - prompt)}")
    longer = sum(len(row.input_ids) > limit for row in plan.rows.train.rows)
    if data.overlong == "cut" and data.encoding == "chat" and 2 * longer > len(plan.rows.train.rows):
        yield "data.overlong=cut_any"  # `cut` refuses to cut most of the rows


def in_words(size: float) -> str:
    """Return bytes in words, `1.9 GiB` or `12 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
