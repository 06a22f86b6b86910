"""Several adapters on one base model in one process, with the base's weights in memory once.

One adapter is active at a time, or each request of an engine uses its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.proof import Check, proof_line
from glmtune.adapters.store import stored_tensors
from glmtune.errors import ConfigError
from glmtune.load import load_location, put_on_with_checks
from glmtune.locations import resolve
from glmtune.log import tell
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM


class Adapters:
    """A base model with any number of adapters: LoRA, rsLoRA, DoRA, AdaLoRA and P-Tuning prefixes.

    `model` is the base as `load_model` returns it; it answers with the active adapter. Switching adapters
    copies no weights. A KV cache belongs to the adapter that filled it, so a conversation keeps to one
    adapter. `generate.Engine` takes an `Adapters` in place of a model: then each request names its adapter.
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
        """Load the base with the arguments and errors of `load_model`."""
        location = resolve(path, revision=revision)
        if location.adapter:
            raise ConfigError(f"{path}: an adapter, not a base", hint=f"give its base: {location.base}")
        self._base = location.base
        self.model: CausalLM = load_location(
            location, template=template, dtype=dtype, device=device, quant=quant
        ).eval()
        # imports PEFT, which takes seconds: not at the head of this module, for those without adapters
        from glmtune.adapters.attached import AttachedAdapters

        self._attached = AttachedAdapters(self.model)
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were added."""
        return self._attached.names

    @property
    def active(self) -> str | None:
        """Name of the active adapter; None if the base is active alone."""
        return self._active

    def add(self, name: str, path: str | Path, *, verify: bool = True) -> None:
        """Load a run, checkpoint or adapter folder onto the base under a name; the active adapter stays.

        `verify` runs the checks of every load: hashes, base, recorded logits. Raises `CheckpointError` and
        `ConfigError`, and then leaves everything as it was.
        """
        if name in self.names:
            raise ConfigError(f"{name}: there is an adapter of this name already", hint="choose another name")
        location = resolve(path, base=self._base)
        if location.adapter is None:
            raise ConfigError(
                f"{path}: a whole model, not an adapter", hint="open it alone: load_model(path)"
            )
        checks: list[Check] = []
        # the checks compare the new adapter's logits with the base's: no other adapter may be active
        before, self._active = self._active, None
        self._attached.use(None)
        try:
            if verify:
                checks += put_on_with_checks(self.model, location, partial(self._attached.put_on, name))
            else:
                self._attached.put_on(name, location.adapter, stored_tensors(location.adapter))
        except BaseException:
            if name in self.names:  # loaded, but a check has failed
                self._attached.take_off(name)
            raise
        finally:
            self.use(before)
        result = proof_line(checks) if verify else "not verified (verify=False)"
        tell(f"{location.adapter}: adapter {name} loaded: {result}")

    def use(self, name: str | None) -> None:
        """Make an adapter active, or with None the base alone. Raises `ConfigError` for an unknown name."""
        self._require(name)
        self._attached.use(name)
        self._active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """Make an adapter active inside the `with` block, which gets the model; then restore the old one."""
        before = self._active
        self.use(name)
        try:
            yield self.model
        finally:
            self.use(before)

    def check_mixable(self, name: str | None) -> None:
        """Raise `ConfigError` for an unknown name, or an adapter that cannot share a batch with others."""
        self._require(name)
        if name is not None:
            self._attached.check_mixable(name)

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """Return the prefix in front of a prompt under this adapter, None if there is none."""
        return self._attached.prefix_of(name)

    @contextmanager
    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> Iterator[None]:
        """Apply each request's adapter to its own tokens in one forward pass inside the `with` block.

        `num_tokens` gives each request's number of tokens in the pass. Prefixes must be in the KV cache
        already. Afterwards the active adapter is as before.
        """
        base_alone = nullcontext() if self._active is None else self.using(None)
        with base_alone, self._attached.mixing(names, num_tokens):
            yield

    def _require(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            there = ", ".join(self.names) or "none so far: add(name, path)"
            raise ConfigError(f"{name}: no adapter of this name", hint=f"there are {there}")
