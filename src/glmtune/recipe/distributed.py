"""The settings of the engines that share a training over processes. This module imports no torch."""

from collections.abc import MutableMapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from glmtune.recipe.base import MAX_RATE, OneOf, Settings, by_name


class EngineSettings(Settings):
    """Base of all engines: what they share."""

    shares_weights: ClassVar[bool] = False
    """True if each process holds only a part of the model's weights."""
    name: str
    timeout_s: float = Field(1800, gt=0, le=MAX_RATE)
    """Seconds that processes wait for one another before the run ends and says who waited for whom. One that
    has stopped altogether ends the run after 40 seconds, whatever is set here."""


class Ddp(EngineSettings):
    """Each process holds the whole model, and gradients are summed over all (PyTorch's
    DistributedDataParallel).
    """

    name: Literal["ddp"] = "ddp"


class Fsdp2(EngineSettings):
    """Each process holds a part of every layer's weights, gradients and optimizer state; a layer is put
    together while it computes (PyTorch's `fully_shard`; Zhao et al. 2023, arxiv.org/abs/2304.11277).
    """

    shares_weights: ClassVar[bool] = True
    name: Literal["fsdp2"] = "fsdp2"


_Engine = Ddp | Fsdp2
ENGINE_SETTINGS: MutableMapping[str, type[EngineSettings]] = by_name(_Engine)
"""The settings type of each engine, by its name."""
Engine = Annotated[_Engine, OneOf(ENGINE_SETTINGS)]
