"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B: one architecture, three configs.

Parameter names are the published checkpoints' own. Two deviations from the official code, both for precision:
rotary angles are computed in fp32 in every version (ChatGLM2 multiplies positions in the model's type, fp16),
and the loss stays in fp32 (officially it is rounded to the hidden type).

Source: huggingface.co/THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b-chat, modeling_chatglm.py.
Shapes: B batch, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size, C hidden
size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.causal import CausalLanguageModel
from glmtune.models.chatglm2_layers import ChatGLMAttention, ChatGLMBlock, ChatGLMRMSNorm, ChatGLMRotary
from glmtune.models.config import ChatGLMConfig
from glmtune.models.config_checks import check_kind
from glmtune.models.packed import Keeping, Rows
from glmtune.models.prefix import Prefixable, build_prefix, see_prefix
from glmtune.models.quant import Quantizable, quantise_linears


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
    """The base class of the ChatGLM2 models: how transformers saves, loads, splits and checkpoints them."""

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

    def __init__(self, config: ChatGLMConfig, *args: object, **kwargs: object) -> None:
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


class ChatGLMModel(Keeping, ChatGLMPreTrainedModel):
    """The transformer: embedding, layers, final norm.

    `output_layer` lies here, as in the checkpoint, but the language model applies it. `hidden_states[i]` is
    the input of layer i and `hidden_states[-1]` the last layer's output *before* the final norm, as in the
    official code; `last_hidden_state` is after it.
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
        rows: Rows | None = None,
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states (B, T, C) of ids or embeddings.

        attention_mask: (B, S), 1 = a token. Missing positions are counted over pads too, as in the official
        code: with padding on the left pass them (`generate` does). While training no cache is built unless
        `use_cache` is True.

        rows: the packed rows that a batch of one consists of; they need positions, take no mask, and the
        attention must be by row (`packed`). keep: the positions (L,) of the result, if not all.
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
        prefix = self.make_prefix(hidden_states, past_key_values, rows)
        mask = None
        if rows is None:
            mask = self._build_mask(hidden_states, attention_mask, past_key_values, position_ids)
        hidden_states = self.run_layers(
            hidden_states,
            position_ids,
            mask,
            prefix,
            keep=keep,
            past_key_values=past_key_values,
            rows=rows,
            **kwargs,
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def run_layers(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        prefix: Sequence[Tensor | None],
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Run embeddings (B, T, C) through all layers and the final norm; `prefix` has an item per layer.

        keep: the positions (L,) of the result, (B, L, C), if not all.
        """
        rotary = self.rotary_pos_emb(position_ids, hidden_states.dtype)
        kwargs["position_ids"] = position_ids  # flash attention tells packed rows by it
        for i, (layer, layer_prefix) in enumerate(zip(self.encoder.layers, prefix, strict=True), start=1):
            if i == self.config.num_layers and keep is not None:
                kwargs["keep"] = keep
            # the prefix positionally: re-entrant checkpointing gives no gradients to keyword arguments
            hidden_states = layer(hidden_states, rotary, mask, layer_prefix, **kwargs)
        normed: Tensor = self.encoder.final_layernorm(hidden_states)
        return normed

    def _build_mask(
        self, new: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor
    ) -> Any:
        """Return the mask, in the attention function's form, of the new tokens with embeddings (B, T, C).

        None stands for the kernels' causal path: nothing is padded, and there is no prefix.
        """
        prefix, is_first = self.num_prefix_tokens, cache is None or not cache.get_seq_length()
        mask: Any = create_causal_mask(
            config=self.config,
            inputs_embeds=new,
            attention_mask=attention_mask if is_first else see_prefix(attention_mask, prefix),
            past_key_values=cache,
            position_ids=position_ids,
            # without a mask kernels align the causal triangle to the left, that is to the prefix
            allow_is_causal_skip=not prefix,
        )
        if not is_first:
            return mask  # the cache holds the prefix, so its columns are there already
        if prefix and mask is not None:
            width = (
                mask.shape[-1] + prefix
                if cache is None
                else cache.get_mask_sizes(new.shape[1] + prefix, 0)[0]
            )
            mask = see_prefix(mask, prefix)
            return mask[..., :width]  # a static cache has room for both
        if attention_mask is None or not isinstance(mask, Tensor) or mask.ndim != 4:
            return mask  # flex attention's block mask, flash attention's 2-D one
        if attention_mask.shape[1:] != mask.shape[2:3]:
            return mask
        # padded queries see everything, as officially; that shows only in the loss of a token after pads
        pads = attention_mask[:, None, :, None] == 0  # (B, 1, T, 1)
        return mask | pads if mask.dtype == torch.bool else mask.masked_fill(pads, 0)


class ChatGLMForConditionalGeneration(CausalLanguageModel, ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The language model, which `AutoModelForCausalLM` loads from an official folder."""

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
        **kwargs: object,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits (B, `num_labels`) in fp32, and with `labels` (B,) the loss."""
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
