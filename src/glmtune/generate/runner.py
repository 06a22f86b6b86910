"""Forward passes for the engine: our own families layer by layer, other models through their `forward`."""

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
from glmtune.models.frozen_linear import FrozenLinear, HeldLinear, decoding_step
from glmtune.models.positions import positions_of
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import QuantizedLinear
from glmtune.models.wrapped import causal_of

_MASKED_ATTENTION = ("sdpa", "eager")
_NOT_COMPILED = (FastLinear, FrozenLinear)  # torch.compile breaks the graph at each: half as fast


@dataclass(slots=True)
class PrefillPrompt:
    """A row's prompt, of which the first `cached` ids are in the KV cache already."""

    row: int
    ids: Sequence[int]
    cached: int
    adapter: str | None = None
    """Name of the row's adapter, if the engine has several."""


def build_runner(model: CausalLM, *, compile_step: bool = False) -> "LayerRunner | ModelRunner":
    """Return the fastest runner whose results are the model's own. PEFT's LoRA layers stay in place.

    Raises `ConfigError` if a step cannot be compiled, or for an attention function that takes no mask.
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
    """True if one forward pass prefills several prompts."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        with torch.inference_mode():  # the embeddings' output type: a hook of `compute=fast` makes it fp32
            embedded: Tensor = model.get_input_embeddings()(
                torch.zeros(1, dtype=torch.long, device=self.device)
            )
        self.dtype = embedded.dtype
        """Type of the hidden states."""
        self.are_own_quicker = are_own_quicker(embedded.dtype, self.device, embedded.shape[-1])

    @property
    def device(self) -> torch.device:
        """Device that input ids must be on."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def prefix(self) -> PrefixEncoder | None:
        """The P-Tuning prefix that the model has now; None without one."""
        return None

    def write_front(self, cache: KvCache, row: int, prefix: PrefixEncoder) -> None:
        """Write a prefix's keys and values into an empty row."""
        parts = prefix(1, self.dtype)  # L times (2, 1, G, P, D)
        cache.write(row, 0, [(part[0, 0], part[1, 0]) for part in parts])

    def count_positions(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the positions of a prompt (1, ..., T) and of the token after it, as `Positions` does.

        Raises `DataError` for a prompt without positions: one of ChatGLM-6B without `<sop>`.
        """
        return positions_of(self.model).count_positions(torch.tensor([ids], device=self.device))

    def advance_positions(self, positions: Tensor) -> Tensor:
        """Return the positions of the next tokens, given those of the last ones."""
        return positions_of(self.model).advance_positions(positions)


class LayerRunner(_Runner):
    """Runs the layers of our own models, without the masks and checks that decoding does not need.

    Several prompts are packed into one row of a prefill: only the attention is computed prompt by prompt.
    """

    is_packing = True

    def __init__(self, model: CausalLM, *, compile_step: bool = False) -> None:
        """`model`: one of our own classes, taken out of PEFT's wrapper."""
        super().__init__(model)
        self.lean: LeanLayers | None = None
        self.angles: RotaryAngles | None = None
        self.compiled = self._compile() if compile_step else None
        self.layers = (None,) * model.config.num_layers

    @property
    def prefix(self) -> PrefixEncoder | None:
        """The P-Tuning prefix that the model has now; None without one."""
        prefix: PrefixEncoder | None = self.model.base_model.prefix_encoder
        return prefix

    def count_reusable(self, ids: Sequence[int], shared: int) -> int:
        """Return how many of the first `shared` ids, cached with another continuation, need no prefill."""
        count: int = self.model.count_reusable(ids, shared)
        return count

    def prefill(self, cache: KvCache, prompts: Sequence[PrefillPrompt]) -> tuple[Tensor, Tensor]:
        """Return logits (B, V) after each prompt, and positions (B, ..., 1) of the tokens that follow."""
        # the layers as they are now: since the last prefill an adapter may have come or gone
        if isinstance(self.compiled, StepGraphs):
            self.compiled.renew(mark_model(self.model))
        transformer = self.model.base_model
        self.lean = LeanLayers(transformer, self.dtype) if has_plain_layers(transformer) else None
        if self.lean and self.angles is None:
            self.angles = RotaryAngles(transformer.rotary_pos_emb, self.dtype, self.device)

        spans, ids, positions, following = [], [], [], []
        for prompt in prompts:
            new = torch.tensor([prompt.ids[prompt.cached :]], device=self.device)  # (1, T)
            prompt_positions, next_position = self.count_positions(prompt.ids)
            past = cache.lengths[prompt.row]  # of a prefix and cached ids
            spans.append(RowSpan(prompt.row, past, new.shape[1], self.model.mask_prompt(new, past)))
            ids.append(new)
            positions.append(prompt_positions[..., prompt.cached :])
            following.append(next_position)
        packed = PromptPass(cache, spans)
        hidden_states = self._run(torch.cat(ids, dim=1), torch.cat(positions, dim=-1), packed)
        packed.finish()
        # only the last token of each prompt goes through the output layer: V is large
        ends = [end - 1 for end in accumulate(span.new for span in spans)]
        logits = self.model.get_output_embeddings()(hidden_states[0, ends])
        return logits, torch.cat(following)

    def step(self, cache: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """Decode one more token (B, 1) in each row; return logits (B, V)."""
        with decoding_step(), own_products(self.are_own_quicker and len(tokens) == 1):
            if self.compiled:
                return self._step_compiled(cache, tokens, positions)
            step = StepPass(cache, dtype=self.dtype, device=self.device)
            logits: Tensor = self.model.get_output_embeddings()(self._run(tokens, positions, step))
        step.finish()
        return logits[:, 0]

    def _compile(self) -> Step:
        if self.device.type == "cuda":
            return StepGraphs(self._step_whole, capture_on(self.device))
        if find_compiler() is None:
            raise ConfigError("compile_step: needs a C++ compiler, and there is none", hint="install g++")
        if packed := next((part for part in self.model.modules() if isinstance(part, _NOT_COMPILED)), None):
            if isinstance(packed, HeldLinear):
                raise ConfigError(
                    "compile_step: these weights are held in another type than is computed in",
                    hint="open the model in one type: dtype=fp32",
                )
            setting = packed.quant if isinstance(packed, QuantizedLinear) else "compute=fast"
            raise ConfigError(
                f"compile_step: a step with the products of {setting} is slower compiled on a CPU",
                hint="leave it off; it pays for small models in bf16 or fp32, computed exactly",
            )
        compiled: Step = torch.compile(self._step_whole)
        return compiled

    def _step_compiled(self, cache: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """`step` with rows and columns padded to powers of two, so that few shapes are compiled."""
        assert self.compiled
        num_rows = len(cache.lengths)
        padded = _power_of_two(num_rows)
        cache.make_room(_power_of_two(max(cache.lengths) + 1), rows=padded)
        layers = [tuple(part[:padded] for part in layer) for layer in cache.layers]
        columns = torch.tensor(cache.lengths + [0] * (padded - num_rows), device=self.device)
        logits = self.compiled(_pad_rows(tokens, padded), _pad_rows(positions, padded), layers, columns)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits[:num_rows]

    def _step_whole(
        self, tokens: Tensor, positions: Tensor, layers: Sequence[Layer], columns: Tensor
    ) -> Tensor:
        """The function that is compiled or captured, as `graphs.Step`."""
        step = WholeStep(layers, columns, dtype=self.dtype)
        embedded = self.model.get_input_embeddings()(tokens)
        logits: Tensor = self.model.get_output_embeddings()(self._run_modules(embedded, positions, step))
        return logits[:, 0]

    def _run(self, input_ids: Tensor, positions: Tensor, kv_pass: PromptPass | StepPass) -> Tensor:
        embedded = self.model.get_input_embeddings()(input_ids)
        if self.lean and self.angles:
            return self.lean.run(embedded, self.angles.at(positions, kv_pass.width), kv_pass)
        return self._run_modules(embedded, positions, kv_pass)

    def _run_modules(self, embedded: Tensor, positions: Tensor, kv_pass: PromptPass | StepPass) -> Tensor:
        hidden_states: Tensor = self.model.base_model.run_layers(
            embedded, positions, None, self.layers, past_key_values=kv_pass, attend=kv_pass.attend
        )
        return hidden_states


def find_compiler() -> str | None:
    """Return the path of the C++ compiler that `torch.compile` takes on a CPU; None if there is none."""
    return next(filter(None, map(which, (os.environ.get("CXX", "g++"), "clang++", "cl"))), None)


def _power_of_two(count: int) -> int:
    """Round up to a power of two."""
    return 1 << (count - 1).bit_length()


def _pad_rows(part: Tensor, count: int) -> Tensor:
    """Append rows of zeros, (B, ...) to (count, ...)."""
    if count == len(part):
        return part
    return torch.cat((part, part.new_zeros(count - len(part), *part.shape[1:])))


class ModelRunner(_Runner):
    """Runs a model of transformers' own classes through its `forward`, prompts one by one."""

    is_packing = False

    def __init__(self, model: CausalLM) -> None:
        """Raise `ConfigError` for an attention function without a mask: rows of unequal lengths need one."""
        if model.config._attn_implementation not in _MASKED_ATTENTION:
            raise ConfigError(
                f"attn_implementation: {model.config._attn_implementation} cannot be used to answer",
                hint=f"one of {', '.join(_MASKED_ATTENTION)}",
            )
        super().__init__(model)

    def count_reusable(self, _: Sequence[int], shared: int) -> int:
        """Return `shared`: a causal model's keys and values do not depend on later tokens."""
        return shared

    def prefill(self, cache: KvCache, prompts: Sequence[PrefillPrompt]) -> tuple[Tensor, Tensor]:
        """Prefill prompts one by one; results as of `LayerRunner.prefill`."""
        logits, following = [], []
        for prompt in prompts:
            new = torch.tensor([prompt.ids[prompt.cached :]], device=self.device)
            positions, next_position = self.count_positions(prompt.ids)
            span = RowSpan(prompt.row, cache.lengths[prompt.row], new.shape[1], None)
            logits.append(self._run(new, positions[:, prompt.cached :], PromptPass(cache, [span]), None))
            following.append(next_position)
        return torch.cat(logits), torch.cat(following)

    def step(self, cache: KvCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """Decode one more token in each row; result as of `LayerRunner.step`."""
        step = StepPass(cache, dtype=self.dtype, device=self.device)
        with decoding_step(), own_products(self.are_own_quicker and len(tokens) == 1):
            return self._run(tokens, positions, step, step.mask)

    def _run(
        self, input_ids: Tensor, positions: Tensor, kv_pass: PromptPass | StepPass, mask: Tensor | None
    ) -> Tensor:
        out = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=kv_pass,
            use_cache=True,
            logits_to_keep=1,
        )
        kv_pass.finish()
        logits: Tensor = out.logits[:, -1]
        return logits
