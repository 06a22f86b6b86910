"""Position ids of prompts and of the tokens decoded after them: one interface for every family."""

import torch
from torch import Tensor

from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of


class Positions:
    """Positions that count the tokens, 0, 1, 2, ...: ChatGLM2, ChatGLM3, GLM-4 and most other models.

    A model with other rules inherits and overrides both methods.
    """

    def count_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of a batch of prompts, and of the new token that follows each prompt.

        input_ids and attention_mask (1 = a token; None = all are): (B, T), padded on the left. Results:
        (B, ..., T) and (B, ..., 1); pads are at 0.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (real.long().cumsum(dim=-1) - 1).clamp(min=0)
        return positions, positions[:, -1:] + 1

    def advance_positions(self, positions: Tensor, steps: int | Tensor = 1) -> Tensor:
        """Return the positions of the token `steps` after the token at `positions`, (B, ..., 1)."""
        return positions + steps


def positions_of(model: CausalLM) -> Positions:
    """Return the position rules of a model, inside PEFT's wrapper too; by default one after the other."""
    causal = causal_of(model)
    return causal if isinstance(causal, Positions) else Positions()
