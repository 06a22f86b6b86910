"""Several adapters over one base in one process: memory is the base's once.

One is at work at a time, or each request of an engine has its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.proof import Check, proof_line
from glmtune.adapters.store import Tensors, stored_tensors
from glmtune.errors import ConfigError
from glmtune.load import load_location, put_on_proven
from glmtune.locations import Location, resolve
from glmtune.log import tell
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM


class Adapters:
    """A base and the adapters on it: LoRA, rsLoRA, DoRA, AdaLoRA and P-Tuning's prefixes, mixed at will.

    `model` is what `load_model` gives for the base; what it answers is the active adapter's answer. Switching
    copies nothing; within a conversation its cache is of the adapter that made it. `generate.Engine` takes
    the adapters in place of a model: then each request names its own.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        quant: str | None = None,
        template: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        revision: str | None = None,
    ) -> None:
        """Open the base as `load_model` does. Raises `CheckpointError` and `ConfigError` as that."""
        self._place = resolve(path, revision=revision)
        if self._place.adapter:
            raise ConfigError(f"{path}: an adapter, not a base", hint=f"give its base: {self._place.base}")
        self.model: CausalLM = load_location(
            self._place, template=template, dtype=dtype, device=device, quant=quant
        ).eval()
        from glmtune.adapters.attached import Beside  # which imports PEFT: seconds, for who has no adapter

        self._beside = Beside(self.model)
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names, in the order in which they were added."""
        return self._beside.names

    @property
    def active(self) -> str | None:
        """The one at work; None: the base alone."""
        return self._active

    def add(self, name: str, path: str | Path, *, verify: bool = True) -> None:
        """Put a run, checkpoint or adapter folder on the base under a name; which one is active stays.

        It is proven as at every load, unless `verify` is false. Raises `CheckpointError` and `ConfigError`,
        and then nothing has changed.
        """
        if name in self.names:
            raise ConfigError(f"{name}: there is an adapter of this name already", hint="choose another name")
        location = resolve(path, base=self._place.base)
        if location.adapter is None:
            raise ConfigError(
                f"{path}: a whole model, not an adapter", hint="open it alone: load_model(path)"
            )
        checks: list[Check] = []
        before, self._active = self._active, None
        self._beside.use(None)
        try:
            if verify:
                checks += self._prove(name, location)
            else:
                self._beside.put_on(name, location.adapter, stored_tensors(location.adapter))
        except BaseException:
            if name in self.names:
                self._beside.take_off(name)
            raise
        finally:
            self.use(before)
        said = proof_line(checks) if verify else "not verified (verify=False)"
        tell(f"{location.adapter}: adapter {name} loaded: {said}")

    def use(self, name: str | None) -> None:
        """Set an adapter to work, None the base alone. Raises `ConfigError` for a name that is not there."""
        self._require(name)
        self._beside.use(name)
        self._active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """Inside, an adapter is at work; then what was before. Gives the model."""
        before = self._active
        self.use(name)
        try:
            yield self.model
        finally:
            self.use(before)

    def check_mixable(self, name: str | None) -> None:
        """Raise `ConfigError` for a name that is not there, or whose requests must be answered alone."""
        self._require(name)
        if name is not None:
            self._beside.check_mixable(name)

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """What a text begins with that is answered under this adapter, if it is a prefix."""
        return self._beside.prefix_of(name)

    @contextmanager
    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> Iterator[None]:
        """Inside, the model computes one pass over so many tokens of each request, each under its adapter.

        The prefixes must be in the cache. Then the active adapter is at work as before.
        """
        base_alone = nullcontext() if self._active is None else self.using(None)
        with base_alone, self._beside.mixing(names, num_tokens):
            yield

    def _require(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            there = ", ".join(self.names) or "none so far: add(name, path)"
            raise ConfigError(f"{name}: no adapter of this name", hint=f"there are {there}")

    def _prove(self, name: str, location: Location) -> Iterator[Check]:
        def put_on(adapter: Path, tensors: Tensors) -> Any:
            self._beside.put_on(name, adapter, tensors)
            return self.model

        yield from put_on_proven(self.model, location, put_on)
