"""The language-model head of every native family: logits, loss, masks for `generate`, official chat calls.

Shapes: B batch, T new tokens, C hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from glmtune.models.official_chat import OfficialChat
from glmtune.models.positions import Positions


class CausalLanguageModel(GenerationMixin, OfficialChat, Positions):  # type: ignore[misc]  # untyped base
    """Logits and loss on top of a `transformer`.

    Among the bases of a family's class this one comes before its PreTrainedModel, whose methods it overrides.
    """

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_last_logit: bool = False,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, kept, V), and with `labels` the loss in fp32.

        labels: (B, T), shifted by one inside; -100 is ignored. logits_to_keep: the number of last positions
        (0: all), or a 1-D tensor of positions; `return_last_logit` is the official name for 1. With
        `num_items_in_batch` the loss is a sum divided by that number. `output_hidden_states`,
        `output_attentions` and `return_dict` work as in transformers.
        """
        if use_cache is None and labels is not None:
            # packed rows (positions restarting at 0, no mask) attend across documents once there is a cache
            use_cache = False
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = 1 if return_last_logit else logits_to_keep
        positions = slice(-kept, None) if isinstance(kept, int) else kept  # -0 is 0: all positions
        logits = self.get_output_embeddings()(outputs.last_hidden_state[:, positions])  # (B, kept, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def mask_prompt(self, input_ids: Tensor, past: int) -> Tensor | None:
        """Return the mask (1, 1, T, past + T), true = may see, of a prompt (1, T) after `past` cached tokens.

        None stands for the kernels' causal path without a cache, and for no mask at all where T is 1.
        """
        new = input_ids.shape[1]
        if not past or new == 1:
            return None
        # with a cache the kernels' causal path would align its triangle to the left, at the cached tokens
        columns = torch.arange(past + new, device=input_ids.device)
        return (columns <= columns[past:, None])[None, None]

    def count_reusable(self, input_ids: Sequence[int], shared: int) -> int:
        """Return the length of the cached prompt that a new one may reuse.

        `shared`: first ids that both prompts have in common. Causal attention makes all of them reusable.
        """
        return shared

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: Tensor,
        *,
        past_key_values: Cache | None = None,
        next_sequence_length: int | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,  # Any: `generate` sends each family's own arguments
    ) -> dict[str, Any]:
        """Prepare the inputs as transformers does, without counting a cached prefix as tokens."""
        if is_first_iteration and next_sequence_length is not None and past_key_values is not None:
            # transformers subtracts the cache's length, which includes the prefix: add that back
            next_sequence_length += past_key_values.get_seq_length() - self.count_cached(past_key_values)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs

    def _prepare_cache_for_generation(
        self: Any,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: object,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        max_cache_length += self.num_prefix_tokens  # a static cache needs room for the prefix too
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    @staticmethod
    def create_masks_for_generate(
        attention_mask: Tensor | None, *, config: PreTrainedConfig, **kwargs: object
    ) -> Any:
        """Create the masks as transformers does; with a prefix keep the 2-D mask, which `forward` widens."""
        if config.pre_seq_len:
            return attention_mask
        return create_masks_for_generate(attention_mask=attention_mask, config=config, **kwargs)
