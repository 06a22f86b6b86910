"""ChatGLM-6B (v1): a prefix language model with two rows of positions (`chatglm_layout`).

Parameter names are the published checkpoints' own. Deviations from the official code: rotary angles are
computed in fp32 in every type, the loss stays in fp32, the scaling of scores by layer is left out (it
cancels), and early and mid choose the mask token by row where officially the whole batch decides.

Source: huggingface.co/THUDM/chatglm-6b, modeling_chatglm.py.
Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head size, C hidden size, R rows of
positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from glmtune.errors import ConfigError
from glmtune.models.attention import Attend, Rotary, eager_attention
from glmtune.models.causal import CausalLanguageModel
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.chatglm_layout import (
    build_mask,
    check_positions,
    count_positions,
    official_tokens,
    read_official_mask,
)
from glmtune.models.config_checks import check_kind
from glmtune.models.prefix import Prefixable, build_prefix, prepend, see_prefix
from glmtune.models.quant import Quantizable, quantise_linears
from glmtune.templates.tidy import process_chatglm

ALPHA = (2 * 28) ** 0.5
"""Weight of the residual. It does not depend on the depth: the official layer is never told it."""

_FALLBACK_IDS = {"early": 20005, "mid": 20005, "late": 5}
"""The official code's token when the scores are not finite, by revision."""


def rotate_halves(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate each of a head's R parts by its own row of positions, pairing i with i + D/2R in it.

    x: (B, H, T, D). rotary: (B, T, R, D/2R) each.
    """
    cos, sin = (part[:, None] for part in rotary)  # over all heads
    a, b = x.view(*x.shape[:-1], cos.shape[-2], 2, cos.shape[-1]).unbind(-2)  # (B, H, T, R, D/2R) each
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2).flatten(-3)


class ChatGLM6BRotary(nn.Module):
    """Rotary angles for R rows of positions. It has no buffer, so nothing to restore after a meta start."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__()
        self.dim = config.head_dim // (2 if config.position_encoding_2d else 1)

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """Cos and sin of positions (B, R, T), (B, T, R, D/2R) in `dtype`; the angles are computed in fp32.

        Frequencies are rounded to fp16, as the official code makes them in every type.
        """
        steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=position_ids.device)
        frequencies = (1.0 / 10000.0 ** (steps / self.dim)).half().float()
        angles = position_ids.transpose(1, 2)[..., None].float() * frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


class ChatGLM6BAttention(nn.Module):
    """Attention under a given mask; the projection makes query, key and value side by side for each head."""

    is_causal = False  # read by transformers' attention functions: without a mask everything is seen

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        attention_mask: Tensor | None,
        prefix: Tensor | None = None,
        past_key_values: Cache | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) to (B, T, C), and the weights if the attention function has them.

        `attend` takes the place of the configured attention function.
        """
        heads = self.query_key_value(hidden_states)
        heads = heads.view(*heads.shape[:2], -1, 3 * self.head_dim)  # (B, T, H, 3 D)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=-1)  # (B, H, T, D) each
        query, key = rotate_halves(query, rotary), rotate_halves(key, rotary)
        key, value = prepend(prefix, key, value)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, H, S, D)
        attend = attend or ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        context, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.dense(context.flatten(2)), weights


class ChatGLM6BMLP(nn.Module):
    """Two projections with the tanh form of GELU between them."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        projected: Tensor = self.dense_4h_to_h(
            functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh")
        )
        return projected


class ChatGLM6BBlock(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers has no types
    """One layer: attention and MLP, each added to its *normalised* input, which weighs `ALPHA`."""

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = _build_norm(config)
        self.attention = ChatGLM6BAttention(config, layer_idx)
        self.post_attention_layernorm = _build_norm(config)
        self.mlp = ChatGLM6BMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        prefix: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, C) to (B, T, C); what follows `hidden_states` goes to the attention."""
        x = self.input_layernorm(hidden_states)
        attended, _ = self.attention(x, rotary, mask, prefix, **kwargs)
        x = self.post_attention_layernorm(x * ALPHA + attended)
        out: Tensor = x * ALPHA + self.mlp(x)
        return out


def _build_norm(config: ChatGLM6BConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)


class ChatGLM6BPreTrainedModel(Quantizable, Prefixable, PreTrainedModel):  # type: ignore[misc]
    """What the classes below share: how transformers saves, loads, splits and checkpoints them."""

    config_class = ChatGLM6BConfig
    config: ChatGLM6BConfig
    base_model_prefix = "transformer"
    scale_dtype = torch.float16
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ChatGLM6BBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]
    _supports_sdpa = True
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": ChatGLM6BBlock,
        "attentions": ChatGLM6BAttention,
    }

    def __init__(self, config: ChatGLM6BConfig, *args: Any, **kwargs: Any) -> None:
        check_kind(config, ChatGLM6BConfig)
        config.check_supported()
        super().__init__(config, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        embeddings: nn.Module = self.base_model.word_embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.base_model.word_embeddings = value


class ChatGLM6BModel(ChatGLM6BPreTrainedModel):
    """Embedding, layers, final norm; `hidden_states[-1]` is after that norm, as officially."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = ChatGLM6BRotary(config)
        self.layers = nn.ModuleList(ChatGLM6BBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = _build_norm(config)
        self.prefix_encoder = build_prefix(config)
        if config.quantization_bit:
            quantise_linears(self, config.quantization_bit, self.scale_dtype)
        self.post_init()

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, C) of ids or embeddings.

        attention_mask: (B, S), 1 = a token, or as officially (B or 1, 1, T, S), boolean, True = *not* seen.
        position_ids: (B, 2, T), or (B, T) where `position_encoding_2d` is off. What is missing follows from
        each row's ids, if they hold bos; who decodes step by step passes positions (`count_positions`,
        `generate` does). Raises DataError for ids that tell no positions. No cache is made while training
        unless asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        prefix = self.make_prefix(hidden_states, past_key_values)
        batch, new = hidden_states.shape[:2]
        mask = self._build_mask(input_ids, attention_mask, past_key_values, new)
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = official_tokens(attention_mask, new=new)
            real = None if attention_mask is None else attention_mask[:, -new:]
            position_ids, _ = count_positions(self.config, _needed(input_ids), real)
        check_positions(self.config, position_ids, batch=batch, new=new)
        hidden_states = self.run_layers(
            hidden_states, position_ids, mask, prefix, past_key_values=past_key_values, **kwargs
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def run_layers(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        prefix: Sequence[Tensor | None],
        **kwargs: Any,
    ) -> Tensor:
        """Embeddings (B, T, C) through all layers and the final norm; a prefix or None for each layer."""
        rows = position_ids if self.config.position_encoding_2d else position_ids[:, None]
        rotary = self.rotary_emb(rows, hidden_states.dtype)
        for layer, front in zip(self.layers, prefix, strict=True):
            # `front` by its place: re-entrant checkpointing takes gradients of those alone
            hidden_states = layer(hidden_states, rotary, mask, front, **kwargs)
        normed: Tensor = self.final_layernorm(hidden_states)
        return normed

    def _build_mask(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None, new: int
    ) -> Tensor | None:
        """What each new token may see, (B or 1, 1, T, S), true = may; None = everything."""
        prefix = self.num_prefix_tokens
        past = prefix + self.count_cached(cache)
        width = past + new
        if cache is not None:  # a static one: all its room
            width = cache.get_mask_sizes(width - cache.get_seq_length(), 0)[0]
        if attention_mask is not None and attention_mask.ndim == 4:
            return read_official_mask(attention_mask, width, new=new, prefix=prefix)
        seen = see_prefix(attention_mask, prefix)
        return build_mask(self.config, _needed(input_ids), seen, past=past, width=width)


class ChatGLM6BForConditionalGeneration(CausalLanguageModel, ChatGLM6BPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The language model: what `AutoModelForCausalLM` gives for a ChatGLM-6B folder."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.fallback_id = _FALLBACK_IDS[config.revision]
        self.transformer = ChatGLM6BModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the projection to the vocabulary."""
        self.lm_head = value

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie `lm_head` to the embeddings, whatever a checkpoint has for it, as officially."""
        if missing_keys is not None and self.config.tie_word_embeddings:
            ((target, source),) = self._tied_weights_keys.items()
            if source not in missing_keys:
                missing_keys.add(target)
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def count_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Positions` says, but (B, 2, T) and (B, 2, 1); a new token's come from the row's mask token."""
        return count_positions(self.config, input_ids, attention_mask)

    def advance_positions(self, positions: Tensor, steps: int | Tensor = 1) -> Tensor:
        """Row 0 stays, row 1 goes on; with `position_encoding_2d` off nothing moves."""
        if not self.config.position_encoding_2d:
            return positions + 0 * steps
        is_block = torch.arange(2, device=positions.device)[:, None]
        return positions + is_block * steps

    def mask_prompt(self, input_ids: Tensor, past: int) -> Tensor | None:
        """As `CausalLanguageModel` says; all before bos is seen by every token."""
        return build_mask(self.config, input_ids, None, past=past, width=past + input_ids.shape[1])

    def count_reusable(self, input_ids: Sequence[int], shared: int) -> int:
        """Nothing, unless the whole context is shared: another context changes every key."""
        return shared if self.config.bos_token_id in input_ids[:shared] else 0

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a mask and positions as the official tokenizer makes them are taken too.

        Early counts positions itself whatever is given, as officially.
        """
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            kwargs["attention_mask"] = official_tokens(mask, new=mask.shape[-1])
        given = kwargs.pop("position_ids", None)
        if given is not None and self.config.revision != "early":
            kwargs |= {"prompt_positions": given, "new_positions": self.advance_positions(given[..., -1:])}
        return super().generate(*args, **kwargs)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; refuses to read a prompt in parts, from whichever place that is asked for."""
        config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        if config.prefill_chunk_size is not None:
            raise ConfigError(
                f"generate: prefill_chunk_size={config.prefill_chunk_size}, but ChatGLM-6B's context is "
                "bidirectional: every token of a prompt sees all others, so it is read as a whole",
                hint="leave prefill_chunk_size out",
            )
        return config, model_kwargs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> None:
        """Count once, from the prompts; under names that transformers repeats for beams, but never moves."""
        if "prompt_positions" not in model_kwargs:
            counted = self.count_positions(inputs_tensor, model_kwargs.get("attention_mask"))
            model_kwargs["prompt_positions"], model_kwargs["new_positions"] = counted

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        prompt_positions: Tensor | None = None,
        new_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The next forward pass's arguments; `input_ids` are prompt and answer so far, (B, S)."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if prompt_positions is None or new_positions is None:
            prompt_positions, new_positions = self.count_positions(input_ids, kwargs.get("attention_mask"))
        steps = torch.arange(input_ids.shape[1] - prompt_positions.shape[-1], device=input_ids.device)
        positions = torch.cat((prompt_positions, self.advance_positions(new_positions, steps)), dim=-1)
        inputs["position_ids"] = positions[..., -inputs["input_ids"].shape[1] :]
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **_: Any) -> Tensor | None:
        """The 2-D mask as it is: `forward` makes the full one, for a static cache too."""
        return attention_mask

    def process_response(self, output: str, history: Any = None) -> str:
        """An answer's text, tidied as officially."""
        return process_chatglm(output)


def _needed(input_ids: Tensor | None) -> Tensor:
    if input_ids is None:
        raise ValueError("with inputs_embeds pass position_ids, and attention_mask in its 4-D form")
    return input_ids
