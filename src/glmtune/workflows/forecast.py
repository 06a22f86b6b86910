"""The memory and disk that a run would take on a machine, forecast before any weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from glmtune.processor import free_memory, has_bf16
from glmtune.recipe import Recipe
from glmtune.workflows.plan import Plan

CONTEXT = 600 * 2**20
"""Bytes of a card that CUDA's context and libraries take before any tensor is there."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that a run is imagined on."""

    name: str
    device: str
    """`cpu` or `cuda`."""
    free: int
    """Bytes that a run may take there: of a card, its size less CUDA's context."""
    has_bf16: bool

    def with_bf16(self, has_bf16: bool) -> "Machine":
        """Return the machine with or without bf16 arithmetic."""
        return replace(self, has_bf16=has_bf16)


CARDS: tuple[Machine, ...] = tuple(
    Machine(f"{size} GB card", "cuda", size * 2**30 - CONTEXT, has_bf16=True)
    for size in (6, 8, 11, 16, 24, 40, 80)
)
"""The cards that a run is imagined on."""


def this_machine() -> Machine:
    """Return the machine that this program runs on, with what is free on it now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine("this machine", device.type, free_memory(device), has_bf16(device))


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run's life, and its memory at the highest point."""

    name: str
    """`training`, `evaluation`, `merge` or `export`."""
    parts: Mapping[str, int]
    """Bytes by part, in the order in which they are shown."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would take on a machine."""

    machine: Machine
    recipe: Recipe
    """The recipe as a run would settle it there: micro-batches, recomputation, types."""
    phases: tuple[Phase, ...]
    """Training first."""
    tokens: int
    """Tokens of the longest micro-batch."""
    recomputed: int
    """Number of recomputed layers."""
    disk: int
    """Bytes of the run's folder, at most."""
    fits: bool
    override: str = ""
    """The cheapest `KEY=VALUE` words that make it fit; empty if it fits."""
    hint: str = ""
    """What to do where no settings make it fit."""


def forecast(plan: Plan, machine: Machine) -> Forecast:
    """Return what the plan's run would take on a machine; no weight is read."""
    raise NotImplementedError
