"""What the language models of every family share: logits, loss, and the official chat calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from glmtune.models.official_chat import OfficialChat
from glmtune.models.positions import Positions


class CausalLanguageModel(GenerationMixin, OfficialChat, Positions):  # type: ignore[misc]  # untyped base
    """Logits and loss on top of a `transformer`; a family's class names this before its PreTrainedModel."""

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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, kept, V), and with `labels` the loss in fp32: labels are shifted here, -100 is ignored.

        logits_to_keep: so many last positions (0: all), or a 1-D tensor of positions; `return_last_logit` is
        the official word for 1. With `num_items_in_batch` the loss is a sum divided by it. With labels no
        cache is made unless asked for, so that packed rows (positions restarting at 0, no mask) stay apart in
        evaluation too. `output_hidden_states`, `output_attentions`, `return_dict`: as in transformers.
        """
        if use_cache is None and labels is not None:
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
        kept = _keep_positions(outputs.last_hidden_state, 1 if return_last_logit else logits_to_keep)
        logits = self.get_output_embeddings()(kept)
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
        """What a prompt's tokens (1, T) see on top of `past` cached ones: (1, 1, T, past + T), true = may.

        None: the causal triangle, and nothing is cached; or everything, for a single token.
        """
        new = input_ids.shape[1]
        if not past or new == 1:
            return None
        columns = torch.arange(past + new, device=input_ids.device)
        return (columns <= columns[past:, None])[None, None]

    def count_reusable(self, input_ids: Sequence[int], shared: int) -> int:
        """Of the first `shared` ids of a prompt, cached with another text after them, how many stay valid."""
        return shared

    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """As in transformers; the prefix in a cache that is gone on from is not taken for tokens."""
        cache, new = kwargs.get("past_key_values"), kwargs.get("next_sequence_length")
        if kwargs.get("is_first_iteration") and new is not None and cache is not None:
            kwargs["next_sequence_length"] = new + cache.get_seq_length() - self.count_cached(cache)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return inputs

    def _prepare_cache_for_generation(self: Any, *args: Any) -> Any:
        """A cache of fixed size has room for the prefix too; the size is the last argument."""
        *others, max_cache_length = args
        return super()._prepare_cache_for_generation(*others, max_cache_length + self.num_prefix_tokens)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs: Any) -> Any:
        """As in transformers; with a prefix the 2-D mask as it is, and `forward` makes the full one."""
        if kwargs["config"].pre_seq_len:
            return attention_mask
        return create_masks_for_generate(attention_mask=attention_mask, **kwargs)


def _keep_positions(hidden_states: Tensor, kept: int | Tensor) -> Tensor:
    """(B, T, C) cut to the last `kept` positions (0: all) or to the positions in a 1-D tensor."""
    return hidden_states[:, slice(-kept, None) if isinstance(kept, int) else kept]
