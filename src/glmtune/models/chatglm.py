"""ChatGLM-6B (v1): a prefix language model with two rows of positions (`chatglm_layout`).

Parameter names are the published checkpoints' own; the layers are in `chatglm_layers`. Deviations from the
official code: rotary angles are computed in fp32 in every dtype, the loss stays in fp32, the scaling of
scores by layer is left out (it cancels), and early and mid choose the mask token by row, where officially the
whole batch decides.

Source: huggingface.co/THUDM/chatglm-6b, modeling_chatglm.py.
Shapes: B batch, T new tokens, S cached + new tokens, C hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.output_capturing import capture_outputs

from glmtune.errors import ConfigError
from glmtune.models.causal import CausalLanguageModel
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.chatglm_layers import ChatGLM6BAttention, ChatGLM6BBlock, ChatGLM6BRotary, build_norm
from glmtune.models.chatglm_layout import (
    build_mask,
    check_positions,
    count_contexts,
    count_positions,
    official_tokens,
    read_official_mask,
)
from glmtune.models.config_checks import check_kind
from glmtune.models.packed import Keeping, Rows
from glmtune.models.prefix import Prefixable, build_prefix, see_prefix
from glmtune.models.quant import Quantizable, quantise_linears
from glmtune.templates.tidy import process_chatglm

_FALLBACK_IDS = {"early": 20005, "mid": 20005, "late": 5}
"""The token that the official code emits when the scores are not finite, by revision."""


class ChatGLM6BPreTrainedModel(Quantizable, Prefixable, PreTrainedModel):  # type: ignore[misc]
    """The base class of ChatGLM-6B's models: how transformers saves, loads, splits and checkpoints them."""

    config_class = ChatGLM6BConfig
    config: ChatGLM6BConfig
    base_model_prefix = "transformer"
    scale_dtype = torch.float16  # of quantised weights: officially half whatever the model's type is
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ChatGLM6BBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]
    _supports_sdpa = True
    _can_record_outputs: ClassVar[dict[str, type[nn.Module]]] = {
        "hidden_states": ChatGLM6BBlock,
        "attentions": ChatGLM6BAttention,
    }

    def __init__(self, config: ChatGLM6BConfig, *args: object, **kwargs: object) -> None:
        check_kind(config, ChatGLM6BConfig)
        config.check_supported()
        super().__init__(config, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        embeddings: nn.Module = self.base_model.word_embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.base_model.word_embeddings = value


class ChatGLM6BModel(Keeping, ChatGLM6BPreTrainedModel):
    """The transformer: embedding, layers, final norm.

    `hidden_states[-1]` is the output of the final norm, as in the official code.
    """

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = ChatGLM6BRotary(config)
        self.layers = nn.ModuleList(ChatGLM6BBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = build_norm(config)
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
        rows: Rows | None = None,
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states (B, T, C) of ids or embeddings.

        attention_mask: (B, S), 1 = a token, or the official form (B or 1, 1, T, S), boolean, True = *not*
        seen. position_ids: (B, 2, T), or (B, T) with `position_encoding_2d` off. A missing mask or missing
        positions are made from each row's ids, which must hold bos; when decoding step by step pass positions
        (from `count_positions`, as `generate` does). Raises DataError for ids that tell no positions. While
        training no cache is built unless `use_cache` is True.

        rows: the packed rows that a batch of one consists of; they need ids and positions, take no mask, and
        the attention must be by row (`packed`). keep: the positions (L,) of the result, if not all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        prefix = self.make_prefix(hidden_states, past_key_values, rows)
        batch, new = hidden_states.shape[:2]
        mask = None
        if rows is None:
            mask = self._build_mask(input_ids, attention_mask, past_key_values, new)
        else:
            rows.contexts = count_contexts(self.config, _needed(input_ids)[0], rows.lengths)
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = official_tokens(attention_mask, new=new)
            real = None if attention_mask is None else attention_mask[:, -new:]  # cached tokens cut off
            position_ids, _ = count_positions(self.config, _needed(input_ids), real)
        check_positions(self.config, position_ids, batch=batch, new=new)
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
        rows = position_ids if self.config.position_encoding_2d else position_ids[:, None]  # (B, R, T)
        rotary = self.rotary_emb(rows, hidden_states.dtype)
        for i, (layer, layer_prefix) in enumerate(zip(self.layers, prefix, strict=True), start=1):
            if i == self.config.num_layers and keep is not None:
                kwargs["keep"] = keep
            # the prefix positionally: re-entrant checkpointing gives no gradients to keyword arguments
            hidden_states = layer(hidden_states, rotary, mask, layer_prefix, **kwargs)
        normed: Tensor = self.final_layernorm(hidden_states)
        return normed

    def _build_mask(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None, new: int
    ) -> Tensor | None:
        """Return the mask (B or 1, 1, T, S) of the new tokens, true = may see; None = see everything."""
        prefix = self.num_prefix_tokens
        past = prefix + self.count_cached(cache)
        width = past + new
        if cache is not None:  # a static cache attends over all its room, filled or not
            width = cache.get_mask_sizes(width - cache.get_seq_length(), 0)[0]
        if attention_mask is not None and attention_mask.ndim == 4:
            return read_official_mask(attention_mask, width, new=new, prefix=prefix)
        seen = see_prefix(attention_mask, prefix)
        return build_mask(self.config, _needed(input_ids), seen, past=past, width=width)


class ChatGLM6BForConditionalGeneration(CausalLanguageModel, ChatGLM6BPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """ChatGLM-6B's language model, which `AutoModelForCausalLM` loads from an official folder."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.fallback_id = _FALLBACK_IDS[config.revision]
        self.transformer = ChatGLM6BModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the projection to the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the projection to the vocabulary."""
        self.lm_head = value

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie `lm_head` to the embeddings, even where a checkpoint stores an `lm_head` of its own."""
        if missing_keys is not None and self.config.tie_word_embeddings:
            ((target, source),) = self._tied_weights_keys.items()
            if source not in missing_keys:
                missing_keys.add(target)  # transformers unties weights that a checkpoint stores separately
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def count_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return positions (B, 2, T) of prompts and (B, 2, 1) of the token after each (`chatglm_layout`)."""
        return count_positions(self.config, input_ids, attention_mask)

    def advance_positions(self, positions: Tensor, steps: int | Tensor = 1) -> Tensor:
        """Advance row 1 alone by `steps`; with `position_encoding_2d` off nothing moves."""
        if not self.config.position_encoding_2d:
            return positions + 0 * steps  # broadcast to the shape of `steps`
        is_block = torch.arange(2, device=positions.device)[:, None]  # 0 for row 0, 1 for row 1
        return positions + is_block * steps

    def mask_prompt(self, input_ids: Tensor, past: int) -> Tensor | None:
        """Return the mask (1, 1, T, past + T) of a prompt; every token sees the whole context before bos."""
        return build_mask(self.config, input_ids, None, past=past, width=past + input_ids.shape[1])

    def count_reusable(self, input_ids: Sequence[int], shared: int) -> int:
        """Return `shared` if it covers the whole context, else 0: another context changes every key."""
        return shared if self.config.bos_token_id in input_ids[:shared] else 0

    def generate(
        self,
        *args: object,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Generate as transformers does; accept the official tokenizer's mask and positions too.

        The early revision counts positions itself and ignores given ones, as its official code does.
        """
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = official_tokens(attention_mask, new=attention_mask.shape[-1])
        if position_ids is not None and self.config.revision != "early":
            kwargs["prompt_positions"] = position_ids
            kwargs["new_positions"] = self.advance_positions(position_ids[..., -1:])
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return super().generate(*args, **kwargs)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: object
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Prepare the config as transformers does; raise ConfigError for chunked prefill."""
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
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
        """Count positions once, from the prompts."""
        # under names of ours: transformers repeats any tensor for beams, but moves only `position_ids`
        if "prompt_positions" not in model_kwargs:
            counted = self.count_positions(inputs_tensor, model_kwargs.get("attention_mask"))
            model_kwargs["prompt_positions"], model_kwargs["new_positions"] = counted

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        prompt_positions: Tensor | None = None,
        new_positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,  # Any: as in the base class
    ) -> dict[str, Any]:
        """Return the arguments of the next forward pass; `input_ids` are prompt and answer so far, (B, S)."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs
        )
        if prompt_positions is None or new_positions is None:
            prompt_positions, new_positions = self.count_positions(input_ids, attention_mask)
        steps = torch.arange(input_ids.shape[1] - prompt_positions.shape[-1], device=input_ids.device)
        positions = torch.cat((prompt_positions, self.advance_positions(new_positions, steps)), dim=-1)
        inputs["position_ids"] = positions[..., -inputs["input_ids"].shape[1] :]  # of the uncached ids alone
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **_: object) -> Tensor | None:
        """Return the 2-D mask as it is: `forward` makes the full one, for a static cache too."""
        return attention_mask

    def process_response(self, output: str, history: object = None) -> str:
        """Tidy the text of an answer as the official code does."""
        return process_chatglm(output)


def _needed(input_ids: Tensor | None) -> Tensor:
    if input_ids is None:
        raise ValueError("with inputs_embeds pass position_ids, and attention_mask in its 4-D form")
    return input_ids
