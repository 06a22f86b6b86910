"""What the configs of every family check alike."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glmtune.errors import ConfigError
from glmtune.models.quant import check_bits

PUBLISHED = "take config.json from the published folder again"
"""Hint for a config that no published folder has."""


def check_kind(config: Any, kind: type) -> None:
    """Raise ConfigError for another family's config: two families have the `model_type` chatglm."""
    if not isinstance(config, kind):
        raise ConfigError(
            f"config.json: a {type(config).__name__}, and this model's class takes a {kind.__name__}",
            hint="AutoModelForCausalLM and load_model choose the class by the folder",
        )


def check_sizes(config: Any, keys: Iterable[str], *, place: str = "config.json") -> None:
    """Raise ConfigError for the first of these keys that is no positive integer."""
    for key in keys:
        value = getattr(config, key)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{place}: {key} must be a positive integer, got {value!r}", hint=PUBLISHED)


def check_numbers(config: Any, numbers: Mapping[str, Callable[[float], bool]]) -> None:
    """Raise ConfigError for the first of these keys that is no number, or one that its rule refuses."""
    for key, is_valid in numbers.items():
        value = getattr(config, key)
        if type(value) not in (int, float) or not is_valid(value):
            raise ConfigError(f"config.json: {key} cannot be {value!r}", hint=PUBLISHED)


def check_options(config: Any) -> None:
    """Raise ConfigError for a quantisation or a prefix that cannot be."""
    if config.quantization_bit:
        check_bits(config.quantization_bit, "config.json: quantization_bit")
    if config.pre_seq_len:
        check_sizes(config, ("pre_seq_len",))
    if not isinstance(config.prefix_projection, bool):
        raise ConfigError(
            f"config.json: prefix_projection must be true or false, got {config.prefix_projection!r}",
            hint=PUBLISHED,
        )
