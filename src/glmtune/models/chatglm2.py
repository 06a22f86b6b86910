"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B: one architecture, three configs.

Parameter names are the published checkpoints' own. Two deviations from the official code, both for precision:
rotary angles are computed in fp32 in every version (ChatGLM2 multiplies positions in the model's type, fp16),
and the loss stays in fp32 (officially it is rounded to the hidden type).

Source: huggingface.co/THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b-chat, modeling_chatglm.py.
Shapes: B batch, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size, C hidden
size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.causal import CausalLanguageModel
from glmtune.models.config import ChatGLMConfig
from glmtune.models.config_checks import check_kind
from glmtune.models.prefix import Prefixable, build_prefix, prepend, see_prefix
from glmtune.models.quant import Quantizable, quantise_linears

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (B, 1, T, D) here, 1 and 0 where a head is not rotated; the 1 is over all heads."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function in transformers' form, as `eager_attention` is."""


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate each head in adjacent pairs; the angles of its second half are 0.

    Pairs are (0, 1), (2, 3), ... where Llama pairs (0, D/2), ...  x: (B, heads, T, D).
    """
    cos, sin = rotary
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)  # 1, 0, 3, 2, ...
    return x * cos + swapped * sin  # sin is negative for the first of a pair


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the only one that returns its weights.

    query: (B, H, T, D). key, value: (B, G, S, D). attention_mask: (B or 1, 1, T, S), boolean (true: may see)
    or additive. Returns context (B, T, H, D) and weights (B, H, T, S).
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class ChatGLMRMSNorm(nn.Module):
    """RMSNorm in fp32, the weight multiplied before the cast back."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.epsilon = config.layernorm_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension; shape and type stay."""
        if hidden_states.dtype == self.weight.dtype == torch.float32:  # the same to the last bit, in one call
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.epsilon)
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * x).to(hidden_states.dtype)


class ChatGLMRotary(nn.Module):
    """Rotary angles of half of each head. It has no buffer: nothing to restore after a meta-device start."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dim = config.head_dim // 2
        self.base = 10000.0 * (config.rope_ratio if config.rope_scaling_by == "base" else 1)
        self.divisor = config.rope_ratio if config.rope_scaling_by == "positions" else 1

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """Cos and sin of every position, (B, 1, T, D) in `dtype`; the angles are computed in fp32.

        The sine of the first of each pair is negative.
        """
        steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=position_ids.device)
        frequencies = 1.0 / self.base ** (steps / self.dim)
        angles = (position_ids[:, None, :, None].float() / self.divisor) * frequencies
        angles = functional.pad(angles, (0, self.dim // 2))  # the second half is not rotated
        sin = angles.sin()
        cos, sin = torch.stack((angles.cos(),) * 2, dim=-1), torch.stack((-sin, sin), dim=-1)
        return cos.flatten(-2).to(dtype), sin.flatten(-2).to(dtype)


class ChatGLMAttention(nn.Module):
    """Causal attention with G key/value heads shared by H query heads."""

    is_causal = True  # read by transformers' attention functions

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        queries, keys = self.num_heads = (config.num_attention_heads, config.num_key_value_heads)
        width = (queries + 2 * keys) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.add_qkv_bias)
        self.dense = nn.Linear(queries * self.head_dim, config.hidden_size, bias=False)

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
        heads = heads.view(*heads.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H + 2 G, T, D)
        queries, keys = self.num_heads
        turned = rotate(heads[:, : queries + keys], rotary)
        query, key, value = turned[:, :queries], turned[:, queries:], heads[:, queries + keys :]
        key, value = prepend(prefix, key, value)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, D)
        attend = attend or ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        context, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.dense(context.flatten(2)), weights


class ChatGLMMLP(nn.Module):
    """SwiGLU; the first projection makes gate and up side by side."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        gate, up = self.dense_h_to_4h(hidden_states).chunk(2, dim=-1)
        projected: Tensor = self.dense_4h_to_h(functional.silu(gate) * up)
        return projected


class ChatGLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """One layer: attention and MLP, each normalised before and added to the residual."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.input_layernorm = ChatGLMRMSNorm(config)
        self.self_attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = ChatGLMRMSNorm(config)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        prefix: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, C) to (B, T, C); what follows `hidden_states` goes to the attention."""
        attended, _ = self.self_attention(self.input_layernorm(hidden_states), rotary, mask, prefix, **kwargs)
        hidden_states = hidden_states + self._drop(attended)
        return hidden_states + self._drop(self.mlp(self.post_attention_layernorm(hidden_states)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.hidden_dropout) if self.training else x


class ChatGLMEmbedding(nn.Module):
    """Holds the word embeddings under their official name."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)


class ChatGLMEncoder(nn.Module):
    """Holds the layers and the final norm under their official names."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = ChatGLMRMSNorm(config)


class ChatGLMPreTrainedModel(Quantizable, Prefixable, PreTrainedModel):  # type: ignore[misc]
    """What the classes below share: how transformers saves, loads, splits and checkpoints them."""

    config_class = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ChatGLMBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_pos_emb\.inv_freq$"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": ChatGLMBlock,
        "attentions": ChatGLMAttention,
    }

    def __init__(self, config: ChatGLMConfig, *args: Any, **kwargs: Any) -> None:
        check_kind(config, ChatGLMConfig)
        config.check_supported()
        super().__init__(config, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        embeddings: nn.Module = self.base_model.embedding.word_embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.base_model.embedding.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        projection: nn.Module = self.base_model.output_layer
        return projection

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the projection to the vocabulary."""
        self.base_model.output_layer = value


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, layers, final norm; `output_layer` lies here, as in the checkpoint, but is applied outside.

    `hidden_states[i]` is the input of layer i and `hidden_states[-1]` the last layer's output *before* the
    final norm, as officially; `last_hidden_state` is after it.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.embedding = ChatGLMEmbedding(config)
        self.rotary_pos_emb = ChatGLMRotary(config)
        self.encoder = ChatGLMEncoder(config)
        self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.prefix_encoder = build_prefix(config)
        if config.quantization_bit:
            quantise_linears(self, config.quantization_bit, self.scale_dtype)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
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

        attention_mask: (B, S), 1 = a token. Missing positions are counted over pads too, as officially: who
        pads on the left passes them (`generate` does). No cache is made while training unless asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        hidden_states = self.embedding.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            new = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
            position_ids = new + self.count_cached(past_key_values)
        prefix = self.make_prefix(hidden_states, past_key_values)
        mask = self._build_mask(hidden_states, attention_mask, past_key_values, position_ids)
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
        rotary = self.rotary_pos_emb(position_ids, hidden_states.dtype)
        kwargs["position_ids"] = position_ids  # flash attention tells packed rows by it
        for layer, front in zip(self.encoder.layers, prefix, strict=True):
            # `front` by its place: re-entrant checkpointing takes gradients of those alone
            hidden_states = layer(hidden_states, rotary, mask, front, **kwargs)
        normed: Tensor = self.encoder.final_layernorm(hidden_states)
        return normed

    def _build_mask(
        self, new: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor
    ) -> Any:
        """What each of the new tokens (B, T, C) may see; None if nothing is padded: the kernels' causal path.

        A mask is always made where the prefix comes first: kernels align the causal triangle to the left.
        """
        prefix, is_first = self.num_prefix_tokens, cache is None or not cache.get_seq_length()
        mask: Any = create_causal_mask(
            config=self.config,
            inputs_embeds=new,
            attention_mask=attention_mask if is_first else see_prefix(attention_mask, prefix),
            past_key_values=cache,
            position_ids=position_ids,
            allow_is_causal_skip=not prefix,
        )
        if not is_first:
            return mask
        if prefix and mask is not None:
            width = (
                mask.shape[-1] + prefix
                if cache is None
                else cache.get_mask_sizes(new.shape[1] + prefix, 0)[0]
            )
            mask = see_prefix(mask, prefix)
            return mask[..., :width]  # a static cache has room for both
        return mask if attention_mask is None else _unmask_pads(mask, attention_mask)


class ChatGLMForConditionalGeneration(CausalLanguageModel, ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The language model: what `AutoModelForCausalLM` gives for an official folder."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()


class ChatGLMForSequenceClassification(ChatGLMPreTrainedModel):
    """A classifier on the last position's hidden state: pad on the left."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLMModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.classifier_head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, labels) in fp32, and with `labels` (B,) the loss."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.classifier_head(self.dropout(outputs.last_hidden_state[:, -1])).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _unmask_pads(mask: Tensor | None, attention_mask: Tensor) -> Tensor | None:
    """Let padded queries see everything, as officially; it shows only in the loss of a token after pads.

    mask: (B, 1, T, S), boolean (true: may see) or additive. attention_mask: (B, T).
    """
    if not isinstance(mask, Tensor) or mask.ndim != 4 or attention_mask.shape[1:] != mask.shape[2:3]:
        return mask
    pads = attention_mask[:, None, :, None] == 0
    return mask | pads if mask.dtype == torch.bool else mask.masked_fill(pads, 0)
