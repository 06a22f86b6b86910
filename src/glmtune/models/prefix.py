"""P-Tuning v2: learned keys and values in front of every layer's own, as the official PrefixEncoder's.

The prefix is no text: its keys are not rotated, the tokens' positions do not move over it, every token sees
it and masks do not speak of it. The first forward pass puts it in front of the tokens and so into the cache.

Source: huggingface.co/THUDM/chatglm-6b and chatglm2-6b, modeling_chatglm.py: PrefixEncoder, get_prompt.
Shapes: B batch, P prefix tokens, T new tokens, S all that is seen, L layers, G key/value heads, D head size,
W = 2 L G D, all that one prefix token says.
"""

from copy import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache

from glmtune.errors import ConfigError

DROPOUT = 0.1
"""The official dropout on the prefix while training."""

_MASKED_ATTENTION = ("sdpa", "eager")


class PrefixEncoder(nn.Module):
    """The prefix's weights under their official names, in fp32 whatever the model's type is.

    New ones are drawn as torch draws an embedding, N(0, 1), and linear layers: officially they are left so.
    """

    def __init__(self, config: Any, *, dropout: float = DROPOUT, device: torch.device | None = None) -> None:
        """`config`: a model's, with `pre_seq_len` and `prefix_projection` set."""
        super().__init__()
        self.sizes = (2 * config.num_layers, config.num_key_value_heads, config.head_dim)
        width, embedded = config.prefix_width, config.prefix_embedding_size
        made: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.embedding = nn.Embedding(config.pre_seq_len, embedded, **made)
        self.trans: nn.Sequential | None = None
        if config.prefix_projection:
            self.trans = nn.Sequential(
                nn.Linear(embedded, config.hidden_size, **made),
                nn.Tanh(),
                nn.Linear(config.hidden_size, width, **made),
            )
        self.dropout = nn.Dropout(dropout)
        self._kept: tuple[Any, Tensor] | None = None

    def forward(self, batch_size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Keys and values of each layer, L times (2, B, G, P, D) in `dtype`; each row has its own dropout."""
        rows = self.project().to(dtype).expand(batch_size, -1, -1)  # (B, P, W)
        parts = self.dropout(rows).unflatten(-1, self.sizes).permute(2, 0, 3, 1, 4)  # (2 L, B, G, P, D)
        return tuple(parts.unflatten(0, (-1, 2)))

    @property
    def num_tokens(self) -> int:
        """Its length P."""
        return self.embedding.num_embeddings

    def project(self) -> Tensor:
        """The whole prefix, (P, W) in fp32.

        In evaluation the projection is computed once and kept until a weight is replaced, moved or changed in
        place. Only a change through `.data` goes unseen: `train()` forgets what is kept.
        """
        if self.trans is None:
            return self.embedding.weight
        if self.training or torch.is_grad_enabled() or any(p.is_inference() for p in self.parameters()):
            return self._compute(self.trans)
        mark = [(id(p), p.data_ptr(), p._version) for p in self.parameters()]
        if self._kept is None or self._kept[0] != mark:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (mark, self._compute(self.trans))
        return self._kept[1]

    def _compute(self, trans: nn.Sequential) -> Tensor:
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            projected: Tensor = trans(self.embedding.weight)
        return projected

    def train(self, mode: bool = True) -> "PrefixEncoder":
        """As in torch; training forgets the kept prefix."""
        self._kept = None if mode else self._kept
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None  # moved or cast
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the kept prefix, whose mark names this object's weights."""
        return {**self.__dict__, "_kept": None}


class Prefixable:
    """What a native model class needs to hold a prefix; comes before PreTrainedModel among its bases."""

    config: Any
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["prefix_encoder"]

    @property
    def num_prefix_tokens(self: Any) -> int:
        """Length of the prefix, 0 without one."""
        encoder: PrefixEncoder | None = self.base_model.prefix_encoder
        return encoder.num_tokens if encoder else 0

    def attach_prefix(
        self: Any, num_tokens: int, *, projection: bool = False, dropout: float = DROPOUT
    ) -> None:
        """Give the model a newly drawn prefix, in place of the one it has; its config then says so."""
        device = self.get_input_embeddings().weight.device
        self.hold_prefix(new_prefix(self.config, num_tokens, projection, dropout=dropout, device=device))

    def hold_prefix(self: Any, encoder: PrefixEncoder | None) -> None:
        """Take over a prefix that was made for this config, or have none; the config then says so."""
        self.config.pre_seq_len = encoder.num_tokens if encoder else None
        self.config.prefix_projection = encoder is not None and encoder.trans is not None
        self.base_model.prefix_encoder = encoder.train(self.training) if encoder else None

    def count_cached(self, cache: Cache | None) -> int:
        """How many tokens a cache holds; the prefix is none."""
        held = 0 if cache is None else cache.get_seq_length()
        return held - self.num_prefix_tokens if held else 0

    def make_prefix(self: Any, hidden_states: Tensor, cache: Cache | None) -> tuple[Tensor | None, ...]:
        """What goes in front of each layer's keys and values (`prepend`); None where a cache has it already.

        hidden_states: (B, T, C). Raises ConfigError for an attention function that takes no such mask.
        """
        nothing: tuple[Tensor | None, ...] = (None,) * self.config.num_layers
        if self.prefix_encoder is None:
            return nothing
        if self.config._attn_implementation not in _MASKED_ATTENTION:
            raise ConfigError(
                f"attn_implementation: {self.config._attn_implementation} cannot be used with a prefix",
                hint=f"one of {', '.join(_MASKED_ATTENTION)}",
            )
        if cache is not None and cache.get_seq_length():
            return nothing
        made: tuple[Tensor, ...] = self.prefix_encoder(hidden_states.shape[0], hidden_states.dtype)
        return made

    def _init_weights(self: Any, module: nn.Module) -> None:
        """Called by transformers for what a checkpoint lacks: the prefix keeps torch's own distributions."""
        encoder = self.base_model.prefix_encoder
        if encoder is None or all(part is not module for part in encoder.modules()):
            super()._init_weights(module)  # type: ignore[misc]
        elif isinstance(module, nn.Embedding | nn.Linear):
            module.reset_parameters()


def build_prefix(config: Any) -> PrefixEncoder | None:
    """The prefix that a config names, if it names one."""
    return PrefixEncoder(config) if config.pre_seq_len else None


def new_prefix(
    config: Any,
    num_tokens: int,
    projection: bool,
    *,
    dropout: float = DROPOUT,
    device: torch.device | None = None,
) -> PrefixEncoder:
    """A prefix of this length for a model with this config, which stays as it is."""
    named = copy(config)
    named.pre_seq_len, named.prefix_projection = num_tokens, projection
    return PrefixEncoder(named, dropout=dropout, device=device)


def prepend(prefix: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's keys and values (B, G, T, D) with the prefix (2, B, G, P, D) in front, (B, G, P + T, D)."""
    if prefix is None:
        return key, value
    return torch.cat((prefix[0].to(key.dtype), key), dim=-2), torch.cat(
        (prefix[1].to(value.dtype), value), dim=-2
    )


def see_prefix(mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """A mask (..., S) with so many visible columns in front: true, 1, or 0 where it is added to scores."""
    if mask is None or not num_tokens:
        return mask
    is_added = mask.ndim == 4 and mask.is_floating_point()
    return functional.pad(mask, (num_tokens, 0), value=0 if is_added else 1)
