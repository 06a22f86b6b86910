"""The device that a model is loaded on."""

import torch

from glmtune.errors import ConfigError

BALANCED = "balanced"
"""The setting that spreads a model over all cards, to answer."""


def resolve_device(requested: str | torch.device) -> torch.device:
    """Return the requested device; "auto" is CUDA if there is a card, else the CPU; "balanced" is CUDA.

    Raises ConfigError for an unknown device, or one that this machine lacks.
    """
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if requested == BALANCED and not torch.cuda.is_available():
        raise ConfigError(
            "device: balanced spreads a model over several cards, and torch sees none", hint="device=cpu"
        )
    try:
        device = torch.device("cuda" if requested == BALANCED else requested)
    except RuntimeError:
        raise ConfigError(
            f"device: {requested!r} is unknown",
            hint="device=auto, device=cpu, device=cuda or device=cuda:1; device=balanced: all cards",
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {requested} is not there: torch sees no CUDA device", hint="device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device: {requested} is not there: torch sees {count} devices",
            hint=f"device=cuda:0 to device=cuda:{count - 1}",
        )
    return device
