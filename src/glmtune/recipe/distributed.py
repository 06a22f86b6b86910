"""The settings of the engines that share a training over processes. This module imports no torch."""

from collections.abc import MutableMapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from glmtune.recipe.base import MAX_RATE, OneOf, Settings, by_name


class EngineSettings(Settings):
    """Base of all engines: what they share."""

    name: str
    timeout_s: float = Field(1800, gt=0, le=MAX_RATE)
    """Seconds that processes wait for one another before the run ends and says who waited for whom. One that
    has stopped altogether ends the run after 40 seconds, whatever is set here."""

    @property
    def shares_weights(self) -> bool:
        """True if each process holds only a part of the model's weights."""
        return False

    @property
    def shares_state(self) -> bool:
        """True if each process holds only a part of gradients and optimizer state."""
        return self.shares_weights


class Ddp(EngineSettings):
    """Each process holds the whole model, and gradients are summed over all (PyTorch's
    DistributedDataParallel).
    """

    name: Literal["ddp"] = "ddp"


class Fsdp2(EngineSettings):
    """Each process holds a part of every layer's weights, gradients and optimizer state; a layer is put
    together while it computes (PyTorch's `fully_shard`; Zhao et al. 2023, arxiv.org/abs/2304.11277).
    """

    name: Literal["fsdp2"] = "fsdp2"

    @property
    def shares_weights(self) -> bool:
        """True."""
        return True


class DeepSpeed(EngineSettings):
    """Each process holds a part of gradients and optimizer state, and with `distributed.stage=3` of the
    weights too (ZeRO by DeepSpeed, an extra; Rajbhandari et al. 2020, arxiv.org/abs/1910.02054).
    """

    name: Literal["deepspeed"] = "deepspeed"
    stage: Literal[2, 3] = 2
    """Of ZeRO: 2 shares gradients and optimizer state, 3 the weights as well."""
    offload_optimizer: bool = False
    """Keep optimizer state and fp32 weights in main memory, and update there."""
    offload_weights: bool = False
    """Keep the parts of the weights in main memory too; needs `distributed.stage=3`."""

    @model_validator(mode="after")
    def _require_parts(self) -> Self:
        if self.offload_weights and self.stage != 3:
            raise ValueError("offload_weights: stage 2 computes with whole weights; set stage=3")
        return self

    @property
    def shares_weights(self) -> bool:
        """True for stage 3."""
        return self.stage == 3

    @property
    def shares_state(self) -> bool:
        """True."""
        return True


_Engine = Ddp | Fsdp2 | DeepSpeed
ENGINE_SETTINGS: MutableMapping[str, type[EngineSettings]] = by_name(_Engine)
"""The settings type of each engine, by its name."""
Engine = Annotated[_Engine, OneOf(ENGINE_SETTINGS)]
