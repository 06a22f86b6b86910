"""P-Tuning v2: learned keys and values (the prefix) in front of every layer's own, as in the official code.

The prefix is no text: its keys are not rotated, the tokens' positions start at 0 behind it, every token sees
it, and attention masks have no columns for it. Prefill puts it in front of the prompt and so into the cache.

Source: huggingface.co/THUDM/chatglm-6b and chatglm2-6b, modeling_chatglm.py: PrefixEncoder, get_prompt.
Shapes: B batch, P prefix tokens, T new tokens, S prefix + cached + new tokens, L layers, G key/value heads,
D head size, W = 2 L G D, the numbers of one prefix token.
"""

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache

from glmtune.errors import ConfigError
from glmtune.models.packed import Rows

if TYPE_CHECKING:
    from glmtune.models.chatglm_config import ChatGLM6BConfig
    from glmtune.models.config import ChatGLMConfig

    NativeConfig = ChatGLMConfig | ChatGLM6BConfig

DROPOUT = 0.1
"""The official dropout on the prefix while training."""

_MASKED_ATTENTION = ("sdpa", "eager")
"""The attention functions that take a mask with columns for the prefix."""


class PrefixEncoder(nn.Module):
    """The prefix's weights under their official names, in fp32 whatever the model's dtype is.

    New weights are drawn as torch draws embeddings, N(0, 1), and linear layers, as in the official code.
    """

    # the weights' state and their projection; a class default, as older pickles lack the attribute
    _projected: tuple[Any, Tensor] | None = None

    def __init__(
        self, config: "NativeConfig", *, dropout: float = DROPOUT, device: torch.device | None = None
    ) -> None:
        """Draw a prefix for a config with `pre_seq_len` and `prefix_projection` set."""
        super().__init__()
        assert config.pre_seq_len is not None
        self.sizes = (2 * config.num_layers, config.num_key_value_heads, config.head_dim)
        width, embedded = config.prefix_width, config.prefix_embedding_size
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.embedding = nn.Embedding(config.pre_seq_len, embedded, **options)
        self.trans: nn.Sequential | None = None
        if config.prefix_projection:
            self.trans = nn.Sequential(
                nn.Linear(embedded, config.hidden_size, **options),
                nn.Tanh(),
                nn.Linear(config.hidden_size, width, **options),
            )
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch_size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the keys and values of each layer, L times (2, B, G, P, D) in `dtype`.

        Dropout differs from row to row of the batch.
        """
        rows = self.project().to(dtype).expand(batch_size, -1, -1)  # (B, P, W)
        parts = self.dropout(rows).unflatten(-1, self.sizes).permute(2, 0, 3, 1, 4)  # (2 L, B, G, P, D)
        return tuple(parts.unflatten(0, (-1, 2)))

    @property
    def num_tokens(self) -> int:
        """Return the length P."""
        return self.embedding.num_embeddings

    def project(self) -> Tensor:
        """Return the whole prefix, (P, W) in fp32.

        In evaluation the projection is computed once and kept until a weight is replaced, moved or changed in
        place. A change through `.data` is not noticed, until `train()` drops the kept projection.
        """
        if self.trans is None:
            return self.embedding.weight
        if self.training or torch.is_grad_enabled() or any(p.is_inference() for p in self.parameters()):
            return self._compute(self.trans)
        mark = [(id(p), p.data_ptr(), p._version) for p in self.parameters()]  # no version in inference mode
        if self._projected is None or self._projected[0] != mark:
            # a kept inference tensor could not be used outside inference mode
            with torch.inference_mode(False), torch.no_grad():
                self._projected = (mark, self._compute(self.trans))
        return self._projected[1]

    def _compute(self, trans: nn.Sequential) -> Tensor:
        # autocast would round the projection to half precision
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            projected: Tensor = trans(self.embedding.weight)
        return projected

    def train(self, mode: bool = True) -> "PrefixEncoder":
        """Set the mode as torch does; training drops the kept projection."""
        self._projected = None if mode else self._projected
        return super().train(mode)

    def _apply(self, *args: object, **kwargs: object) -> Any:
        self._projected = None  # torch calls this for every move and cast
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle all but the kept projection, whose mark holds this object's memory addresses."""
        return {**self.__dict__, "_projected": None}


class Prefixable:
    """Adds a P-Tuning v2 prefix to a native model class; comes before PreTrainedModel among its bases."""

    config: Any
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["prefix_encoder"]

    @property
    def num_prefix_tokens(self: Any) -> int:
        """Return the length of the prefix, 0 without one."""
        encoder: PrefixEncoder | None = self.base_model.prefix_encoder
        return encoder.num_tokens if encoder else 0

    def attach_prefix(
        self: Any, num_tokens: int, *, projection: bool = False, dropout: float = DROPOUT
    ) -> None:
        """Replace the model's prefix by a newly drawn one, and set the config's keys for it."""
        device = self.get_input_embeddings().weight.device
        self.hold_prefix(new_prefix(self.config, num_tokens, projection, dropout=dropout, device=device))

    def hold_prefix(self: Any, encoder: PrefixEncoder | None) -> None:
        """Replace the model's prefix by `encoder`, or by none, and set the config's keys for it."""
        self.config.pre_seq_len = encoder.num_tokens if encoder else None
        self.config.prefix_projection = encoder is not None and encoder.trans is not None
        self.base_model.prefix_encoder = encoder.train(self.training) if encoder else None

    def count_cached(self, cache: Cache | None) -> int:
        """Count the tokens in a cache, without the prefix."""
        num_columns = 0 if cache is None else cache.get_seq_length()
        return num_columns - self.num_prefix_tokens if num_columns else 0

    def make_prefix(
        self: Any, hidden_states: Tensor, cache: Cache | None, rows: Rows | None = None
    ) -> tuple[Tensor | None, ...]:
        """Return each layer's prefix for `prepend`, or None for each where a cache already holds the prefix.

        hidden_states: (B, T, C), or (1, T, C) of packed `rows`, of which each gets a prefix. Raises
        ConfigError for an attention function that takes no mask.
        """
        nothing: tuple[Tensor | None, ...] = (None,) * self.config.num_layers
        if self.prefix_encoder is None:
            return nothing
        if rows is None and self.config._attn_implementation not in _MASKED_ATTENTION:
            raise ConfigError(
                f"attn_implementation: {self.config._attn_implementation} cannot be used with a prefix",
                hint=f"one of {', '.join(_MASKED_ATTENTION)}",
            )
        if cache is not None and cache.get_seq_length():
            return nothing
        number = hidden_states.shape[0] if rows is None else len(rows.lengths)
        prefix: tuple[Tensor, ...] = self.prefix_encoder(number, hidden_states.dtype)
        return prefix

    def _init_weights(self: Any, module: nn.Module) -> None:
        """Initialise a module that a checkpoint lacks, called by transformers: a prefix as torch does."""
        encoder = self.base_model.prefix_encoder
        if encoder is None or all(part is not module for part in encoder.modules()):
            super()._init_weights(module)  # type: ignore[misc]
        elif isinstance(module, nn.Embedding | nn.Linear):
            module.reset_parameters()


def build_prefix(config: "NativeConfig") -> PrefixEncoder | None:
    """Build the prefix that a config describes; None if `pre_seq_len` is not set."""
    return PrefixEncoder(config) if config.pre_seq_len else None


def new_prefix(
    config: "NativeConfig",
    num_tokens: int,
    projection: bool,
    *,
    dropout: float = DROPOUT,
    device: torch.device | None = None,
) -> PrefixEncoder:
    """Draw a prefix of `num_tokens` for a model with this config; the config is not changed."""
    with_prefix = copy(config)
    with_prefix.pre_seq_len, with_prefix.prefix_projection = num_tokens, projection
    return PrefixEncoder(with_prefix, dropout=dropout, device=device)


def prepend(prefix: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Put the prefix (2, B, G, P, D) in front of a layer's keys and values (B, G, T, D): (B, G, P + T, D)."""
    if prefix is None:
        return key, value
    return torch.cat((prefix[0].to(key.dtype), key), dim=-2), torch.cat(
        (prefix[1].to(value.dtype), value), dim=-2
    )


def see_prefix(mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """Put `num_tokens` visible columns in front of a mask (..., S)."""
    if mask is None or not num_tokens:
        return mask
    is_added = mask.ndim == 4 and mask.is_floating_point()  # added to the scores: 0 is visible there
    return functional.pad(mask, (num_tokens, 0), value=0 if is_added else 1)
