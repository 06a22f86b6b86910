"""Adapters beside one another on one base: LoRA's within its layers, prefixes in front.

PEFT's layers hold any number of adapters and take the one that is set; a prefix is one module that the model
holds or does not. So switching copies no weight, and the base's weights are there once. One or none is at
work, or, within `mixing`, each request's own.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.factors import START, is_adalora
from glmtune.adapters.mixed_batch import each_its_own
from glmtune.adapters.own_weights import load_prefix, require_same, shapes_of
from glmtune.adapters.peft_factors import fill_adapter, held_adapter
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.peft_settings import explain_peft
from glmtune.adapters.store import ADAPTER_FILE, own_method
from glmtune.adapters.to_lora import read_as_lora
from glmtune.errors import ConfigError
from glmtune.files import read_json_if_there
from glmtune.log import without_false_alarms
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import is_wrapped
from glmtune.recipe.method import TrainedPart

with without_false_alarms():  # bitsandbytes', which PEFT imports
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

_CHANGE_MORE = ("modules_to_save", "trainable_token_indices", "target_parameters")
"""Keys of PEFT's settings that put something else in the base than layers that can be switched off."""


@dataclass(frozen=True, slots=True)
class _LowRank:
    """An adapter of PEFT's."""

    inner: str
    """PEFT's name for it."""
    layers: tuple[Any, ...]
    """Those that have a part of it."""


class Beside:
    """The adapters on a base, by name."""

    def __init__(self, model: CausalLM) -> None:
        """`model`: the base, which is changed in place."""
        self._model = model
        self._own_prefix: PrefixEncoder | None = getattr(model.base_model, "prefix_encoder", None)
        self._held: dict[str, PrefixEncoder | _LowRank] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were put on."""
        return tuple(self._held)

    def put_on(self, name: str, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Put an adapter's folder on, and set it to work. Raises `CheckpointError` and `ConfigError`.

        `tensors`: its `stored_tensors`.
        """
        if (folder / ADAPTER_FILE).exists():
            inner = f"glm{len(self._held)}"  # PEFT takes no dots in names
            self._inject(folder, tensors, inner)
            self._held[name] = _LowRank(inner, tuple(self._layers_of(inner)))
        else:
            self._held[name] = self._open_prefix(folder, tensors)
        self.use(name)

    def take_off(self, name: str) -> None:
        """Forget an adapter; the base works alone then."""
        held = self._held.pop(name)
        self.use(None)
        if isinstance(held, _LowRank):
            self._remove(held.inner)

    def use(self, name: str | None) -> None:
        """Set one to work, or with None the base alone."""
        held = None if name is None else self._held[name]
        for layer in self._layers():
            layer.enable_adapters(isinstance(held, _LowRank))
            if isinstance(held, _LowRank):
                layer.set_adapter(held.inner, inference_mode=True)
        prefix = self.prefix_of(name)
        if self._own_prefix is not prefix or any(isinstance(h, PrefixEncoder) for h in self._held.values()):
            self._model.hold_prefix(prefix)

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """What goes in front of a text that is answered under an adapter: its prefix, else the base's own."""
        held = None if name is None else self._held[name]
        return held if isinstance(held, PrefixEncoder) else self._own_prefix

    def check_mixable(self, name: str) -> None:
        """Raise `ConfigError` for an adapter that `mixing` cannot apply to some of the tokens."""
        held = self._held[name]
        for layer in held.layers if isinstance(held, _LowRank) else ():
            if not isinstance(layer, Linear):
                raise ConfigError(
                    f"{name}: adapts a {type(layer.get_base_layer()).__name__}, and only adapters of linear "
                    "layers answer beside others",
                    hint="set it to work alone: Adapters.use(name), then Engine(adapters.model)",
                )

    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> AbstractContextManager[None]:
        """While the base is at work: a pass over so many tokens of each request, each under its adapter."""
        held = [None if name is None else self._held[name] for name in names]
        low_rank = [part for part in held if isinstance(part, _LowRank)]
        layers = dict.fromkeys(layer for part in low_rank for layer in part.layers)
        owners = [part.inner if isinstance(part, _LowRank) else None for part in held]
        return each_its_own(layers, owners, num_tokens, device=self._model.device)

    def _layers(self) -> Iterator[Any]:
        return (part for part in self._model.modules() if isinstance(part, BaseTunerLayer))

    def _layers_of(self, inner: str) -> Iterator[Any]:
        for layer in self._layers():
            if any(inner in getattr(layer, kind) for kind in layer.adapter_layer_names):
                yield layer

    def _inject(self, folder: Path, tensors: Mapping[str, Tensor], name: str) -> None:
        settings = read_adapter_config_if_there(folder)
        _require_layers_alone(folder, settings)
        if is_adalora(settings):
            config, tensors = read_as_lora(folder, tensors)
        else:
            with explain_peft(folder):
                config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
        stored = {n.removeprefix(START): t.float().to(self._model.device) for n, t in tensors.items()}
        try:
            with explain_peft(folder), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # there are to be several
                inject_adapter_in_model(config, self._model, name, low_cpu_mem_usage=True)
            require_same(folder, shapes_of(stored), shapes_of(held_adapter(self._model, name)))
            set_peft_model_state_dict(self._model, stored, name, low_cpu_mem_usage=True)
            fill_adapter(folder, self._model, stored, name)
        except BaseException:
            self._remove(name)
            raise
        self._model.requires_grad_(False).eval()  # PEFT's new dropout is in training mode

    def _remove(self, name: str) -> None:
        """Take all of an adapter of PEFT's away; a layer that holds no other is the base's own again."""
        for path, layer in [(p, m) for p, m in self._model.named_modules() if isinstance(m, BaseTunerLayer)]:
            layer.delete_adapter(name)
            if not any(len(getattr(layer, kind)) for kind in layer.adapter_layer_names):
                self._model.set_submodule(path, layer.get_base_layer())
        configs = getattr(self._model, "peft_config", {})
        configs.pop(name, None)
        if not configs and hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def _open_prefix(self, folder: Path, tensors: Mapping[str, Tensor]) -> PrefixEncoder:
        method = own_method(folder)
        if method and method.kept is TrainedPart.WEIGHTS:
            raise ConfigError(
                f"{folder}: {method.name} changes the base's own weights, so nothing else can stand beside "
                "it",
                hint="open it alone: load_model(path)",
            )
        return load_prefix(self._model, folder, method, tensors).requires_grad_(False)


def setting_aside(
    model: CausalLM, folder: Path, base: Path
) -> Callable[[], AbstractContextManager[Any]] | None:
    """What sets the adapter of a folder, which lies on a model, aside for a while: the base works alone then.

    None where the base is not to be had so, because the adapter changes its own weights or replaces its
    prefix.
    """
    if is_wrapped(model):
        changes = _changes_of(read_adapter_config_if_there(folder))
        return None if changes else model.disable_adapter
    method = own_method(folder)
    replaces_own = method is not None and method.kept is TrainedPart.WEIGHTS
    is_lost = replaces_own or read_json_if_there(base / "config.json").get("pre_seq_len")
    return None if is_lost else partial(_without_prefix, model)


@contextmanager
def _without_prefix(model: CausalLM) -> Iterator[None]:
    held = model.base_model.prefix_encoder
    model.hold_prefix(None)
    try:
        yield
    finally:
        model.hold_prefix(held)


def _require_layers_alone(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an adapter that the base does not come out of as it was."""
    if changes := _changes_of(settings):
        raise ConfigError(
            f"{folder / ADAPTER_FILE}: {changes[0]} is set: it would change the base for the others too",
            hint="open it alone: load_model(path)",
        )


def _changes_of(settings: Mapping[str, Any]) -> list[str]:
    """The keys by which an adapter changes more than switching its layers off takes back."""
    changes = [key for key in _CHANGE_MORE if settings.get(key)]
    return [*changes, "bias"] if settings.get("bias", "none") != "none" else changes
