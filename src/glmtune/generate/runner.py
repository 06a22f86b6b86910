"""How a model is run by the engine: the layers of our own families directly, other models as they are."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from shutil import which
from typing import ClassVar

import torch
from torch import Tensor

from glmtune.errors import ConfigError
from glmtune.generate.fast import FastLinear
from glmtune.generate.graphs import Step, StepGraphs, capture_on
from glmtune.generate.kv_cache import KvCache, Layer
from glmtune.generate.lean import LeanLayers, RotaryAngles, has_plain_layers
from glmtune.generate.passes import PromptPass, RowSpan, StepPass, WholeStep, are_own_quicker, own_products
from glmtune.generate.reuse import mark_model
from glmtune.models.causal import CausalLanguageModel
from glmtune.models.positions import positions_of
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import QuantizedLinear
from glmtune.models.wrapped import causal_of

_MASKED_ATTENTION = ("sdpa", "eager")
_NOT_COMPILED = (FastLinear, QuantizedLinear)  # torch's compiler stops at each: half as fast


@dataclass(slots=True)
class PrefillPrompt:
    """A row's prompt, of which the first `cached` ids are in the row already."""

    row: int
    ids: Sequence[int]
    cached: int
    adapter: str | None = None
    """Under which it is read, where there are several."""


def build_runner(model: CausalLM, *, compile_step: bool = False) -> "LayerRunner | ModelRunner":
    """The fastest way to run this model that gives its own results; PEFT's layers are run where they are.

    Raises ConfigError where a step cannot be compiled, or for an attention function that takes no mask.
    """
    base = causal_of(model)
    if isinstance(base, CausalLanguageModel):
        return LayerRunner(base, compile_step=compile_step)
    if compile_step:
        raise ConfigError(
            f"compile_step: {type(base).__name__} is transformers' own", hint="leave it off for this model"
        )
    return ModelRunner(base)


class _Runner:
    is_packing: ClassVar[bool]
    """Whether several prompts go through in one pass."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        with torch.inference_mode():
            embedded: Tensor = model.get_input_embeddings()(
                torch.zeros(1, dtype=torch.long, device=self.device)
            )
        self.dtype = embedded.dtype
        """In which the layers compute."""
        self.are_own_quicker = are_own_quicker(embedded.dtype, self.device, embedded.shape[-1])

    @property
    def device(self) -> torch.device:
        """Where ids are expected."""
        found: torch.device = self.model.get_input_embeddings().weight.device
        return found

    @property
    def prefix(self) -> PrefixEncoder | None:
        """What the model, as it is now, puts in front of every row."""
        return None

    def write_front(self, rows: KvCache, row: int, prefix: PrefixEncoder) -> None:
        """Begin a row with a prefix."""
        parts = prefix(1, self.dtype)  # L times (2, 1, G, P, D)
        rows.write(row, 0, [(part[0, 0], part[1, 0]) for part in parts])

    def count_positions(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `Positions` says, of one prompt. Raises `DataError` for one whose positions cannot be told."""
        return positions_of(self.model).count_positions(torch.tensor([ids], device=self.device))

    def advance_positions(self, positions: Tensor) -> Tensor:
        """Those of the tokens after these."""
        return positions_of(self.model).advance_positions(positions)


class LayerRunner(_Runner):
    """Runs the layers of our own models, without masks and checks that a step does not need.

    Several prompts go through in one packed pass: only the attention is computed prompt by prompt.
    """

    is_packing = True

    def __init__(self, model: CausalLM, *, compile_step: bool = False) -> None:
        """`model`: one of our own, as it is inside PEFT's wrapper."""
        super().__init__(model)
        self.lean: LeanLayers | None = None
        self.turns: RotaryAngles | None = None
        self.compiled = self._compile() if compile_step else None
        self.layers = (None,) * model.config.num_layers

    @property
    def prefix(self) -> PrefixEncoder | None:
        """As `_Runner` says."""
        held: PrefixEncoder | None = self.model.base_model.prefix_encoder
        return held

    def count_reusable(self, ids: Sequence[int], shared: int) -> int:
        """Of the first `shared` ids that a cached row and a prompt have in common, how many are of use."""
        count: int = self.model.count_reusable(ids, shared)
        return count

    def prefill(self, rows: KvCache, prompts: Sequence[PrefillPrompt]) -> tuple[Tensor, Tensor]:
        """Logits (B, V) after each prompt, and the positions of the tokens that follow, (B, ..., 1)."""
        self._take_layers()
        segments, ids, positions, following = [], [], [], []
        for prompt in prompts:
            new = torch.tensor([prompt.ids[prompt.cached :]], device=self.device)
            places, after = self.count_positions(prompt.ids)
            past = rows.lengths[prompt.row]
            segments.append(RowSpan(prompt.row, past, new.shape[1], self.model.mask_prompt(new, past)))
            ids.append(new)
            positions.append(places[..., prompt.cached :])
            following.append(after)
        packed = PromptPass(rows, segments)
        hidden_states = self._run(torch.cat(ids, dim=1), torch.cat(positions, dim=-1), packed)
        packed.finish()
        ends = [end - 1 for end in accumulate(part.new for part in segments)]
        logits = self.model.get_output_embeddings()(hidden_states[0, ends])
        return logits, torch.cat(following)

    def step(self, rows: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B, 1) in each row."""
        with own_products(self.are_own_quicker and len(tokens) == 1):
            if self.compiled:
                return self._step_compiled(rows, tokens, positions)
            step = StepPass(rows, dtype=self.dtype, device=self.device)
            logits: Tensor = self.model.get_output_embeddings()(self._run(tokens, positions, step))
        step.finish()
        return logits[:, 0]

    def _compile(self) -> Step:
        if self.device.type == "cuda":
            return StepGraphs(self._step_whole, capture_on(self.device))
        if not any(map(which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
            raise ConfigError("compile_step: needs a C++ compiler, and there is none", hint="install g++")
        if packed := next((part for part in self.model.modules() if isinstance(part, _NOT_COMPILED)), None):
            held = packed.quant if isinstance(packed, QuantizedLinear) else "compute=fast"
            raise ConfigError(
                f"compile_step: a step with the products of {held} is slower compiled on a CPU",
                hint="leave it off; it pays for small models in bf16 or fp32, computed exactly",
            )
        compiled: Step = torch.compile(self._step_whole)
        return compiled

    def _take_layers(self) -> None:
        """The layers as they are now: an adapter may have come or gone."""
        if isinstance(self.compiled, StepGraphs):
            self.compiled.renew(mark_model(self.model))
        transformer = self.model.base_model
        self.lean = LeanLayers(transformer, self.dtype) if has_plain_layers(transformer) else None
        if self.lean and self.turns is None:
            self.turns = RotaryAngles(transformer.rotary_pos_emb, self.dtype, self.device)

    def _step_compiled(self, rows: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """A step whose shapes are powers of two, so that they seldom change; what is more is given no row."""
        assert self.compiled
        held = len(rows.lengths)
        count = _power_of_two(held)
        rows.make_room(_power_of_two(max(rows.lengths) + 1), rows=count)
        layers = [tuple(part[:count] for part in layer) for layer in rows.layers]
        columns = torch.tensor(rows.lengths + [0] * (count - held), device=self.device)
        logits = self.compiled(_more(tokens, count), _more(positions, count), layers, columns)
        rows.lengths = [length + 1 for length in rows.lengths]
        return logits[:held]

    def _step_whole(
        self, tokens: Tensor, positions: Tensor, layers: Sequence[Layer], columns: Tensor
    ) -> Tensor:
        step = WholeStep(layers, columns, dtype=self.dtype)
        embedded = self.model.get_input_embeddings()(tokens)
        logits: Tensor = self.model.get_output_embeddings()(self._run_modules(embedded, positions, step))
        return logits[:, 0]

    def _run(self, input_ids: Tensor, positions: Tensor, this: PromptPass | StepPass) -> Tensor:
        embedded = self.model.get_input_embeddings()(input_ids)
        if self.lean and self.turns:
            return self.lean.run(embedded, self.turns.at(positions, this.width), this)
        return self._run_modules(embedded, positions, this)

    def _run_modules(self, embedded: Tensor, positions: Tensor, this: PromptPass | StepPass) -> Tensor:
        hidden_states: Tensor = self.model.base_model.run_layers(
            embedded, positions, None, self.layers, past_key_values=this, attend=this.attend
        )
        return hidden_states


def _power_of_two(count: int) -> int:
    """The least that is no smaller."""
    return 1 << (count - 1).bit_length()


def _more(part: Tensor, count: int) -> Tensor:
    """(B, ...) with zeros behind, (count, ...)."""
    if count == len(part):
        return part
    return torch.cat((part, part.new_zeros(count - len(part), *part.shape[1:])))


class ModelRunner(_Runner):
    """Runs a model of transformers' own classes through its forward pass, prompts one by one."""

    is_packing = False

    def __init__(self, model: CausalLM) -> None:
        """Raise `ConfigError` for an attention function that takes no mask for rows of unequal lengths."""
        if model.config._attn_implementation not in _MASKED_ATTENTION:
            raise ConfigError(
                f"attn_implementation: {model.config._attn_implementation} cannot be used to answer",
                hint=f"one of {', '.join(_MASKED_ATTENTION)}",
            )
        super().__init__(model)

    def count_reusable(self, _: Sequence[int], shared: int) -> int:
        """All of them: these models are causal."""
        return shared

    def prefill(self, rows: KvCache, prompts: Sequence[PrefillPrompt]) -> tuple[Tensor, Tensor]:
        """As `LayerRunner.prefill`."""
        logits, following = [], []
        for prompt in prompts:
            new = torch.tensor([prompt.ids[prompt.cached :]], device=self.device)
            places, after = self.count_positions(prompt.ids)
            part = RowSpan(prompt.row, rows.lengths[prompt.row], new.shape[1], None)
            logits.append(self._run(new, places[:, prompt.cached :], PromptPass(rows, [part]), None))
            following.append(after)
        return torch.cat(logits), torch.cat(following)

    def step(self, rows: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """As `LayerRunner.step`."""
        step = StepPass(rows, dtype=self.dtype, device=self.device)
        with own_products(self.are_own_quicker and len(tokens) == 1):
            return self._run(tokens, positions, step, step.mask)

    def _run(
        self, input_ids: Tensor, positions: Tensor, this: PromptPass | StepPass, mask: Tensor | None
    ) -> Tensor:
        out = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=this,
            use_cache=True,
            logits_to_keep=1,
        )
        this.finish()
        logits: Tensor = out.logits[:, -1]
        return logits
