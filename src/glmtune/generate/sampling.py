"""How the next token is drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glmtune.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of one answer; the defaults are those of the official `chat`."""

    max_new_tokens: int = 512
    """Longest answer in tokens."""
    do_sample: bool = True
    """False: always the most likely token."""
    temperature: float = 0.8
    """Divides the logits; below 1 sharpens. 0 means no sampling."""
    top_p: float = 0.8
    """Draw only from the most likely tokens that together have this probability."""
    top_k: int = 0
    """Draw only from so many most likely tokens; 0: no limit."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and the answer so far less likely (Keskar et al. 2019)."""
    seed: int | None = None
    """Makes the draw repeatable."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that no distribution comes from."""
        for name, is_valid, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not is_valid:
                raise ConfigError(
                    f"{name}: must be {allowed}, got {getattr(self, name)}", hint="see Sampling"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is always the most likely one."""
        return not self.do_sample or self.temperature == 0


def next_tokens(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """Draw one token a row. logits: (B, V); seen: (B, S) ids of prompt and answer. Returns (B,)."""
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        known = scores.gather(1, seen)
        known = torch.where(
            known < 0, known * sampling.repetition_penalty, known / sampling.repetition_penalty
        )
        scores = scores.scatter(1, seen, known)
    if sampling.is_greedy:
        return scores.argmax(dim=-1)
    scores = scores / sampling.temperature
    if sampling.top_k:
        limit = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < limit, -torch.inf)
    if sampling.top_p < 1.0:
        scores = _keep_top_p(scores, sampling.top_p)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2019)."""
    ordered, order = scores.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    is_out = before >= top_p
    is_out[:, 0] = False  # the most likely token always stays
    ordered = ordered.masked_fill(is_out, -torch.inf)
    return ordered.gather(1, order.argsort(dim=-1))
