"""Several adapters attached to one base model: LoRA inside its layers, P-Tuning prefixes before the prompt.

A PEFT layer stores any number of adapters and applies the active one; a prefix is one module that the model
holds or does not. So switching adapters copies no weight, and the base's weights are in memory once. At any
time one adapter is active, or none, or, inside `mixing`, each request of a batch uses its own.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.factors import START, is_adalora
from glmtune.adapters.mixed_batch import adapting_each_request
from glmtune.adapters.off import changes_of, without_adapter
from glmtune.adapters.own_weights import load_prefix, require_same, shapes_of
from glmtune.adapters.peft_factors import adapter_weights, fill_adapter
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

with without_false_alarms():  # PEFT imports bitsandbytes, which gives a warning of no use here
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer


@dataclass(frozen=True, slots=True)
class _LowRank:
    """A LoRA or AdaLoRA adapter inside the base's layers."""

    peft_name: str
    """The adapter's name within PEFT's layers."""
    layers: tuple[Any, ...]
    """PEFT's layers that hold weights of this adapter."""


class AttachedAdapters:
    """The adapters attached to one base model, by name."""

    def __init__(self, model: CausalLM) -> None:
        """Take the base `model`, which later calls change in place."""
        self._model = model
        self._own_prefix: PrefixEncoder | None = getattr(model.base_model, "prefix_encoder", None)
        self._adapters: dict[str, PrefixEncoder | _LowRank] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were attached."""
        return tuple(self._adapters)

    def put_on(self, name: str, folder: Path, tensors: Mapping[str, Tensor]) -> CausalLM:
        """Attach the adapter in a folder, make it active, and return the model.

        `tensors` is what `stored_tensors(folder)` gives. Raises `CheckpointError` and `ConfigError`.
        """
        if (folder / ADAPTER_FILE).exists():
            # PEFT takes no dots in names. A count is unique as long as only the last adapter is taken off.
            peft_name = f"glm{len(self._adapters)}"
            self._inject(folder, tensors, peft_name)
            layers = (
                layer
                for layer in self._layers()
                if any(peft_name in getattr(layer, kind) for kind in layer.adapter_layer_names)
            )
            self._adapters[name] = _LowRank(peft_name, tuple(layers))
        else:
            method = own_method(folder)
            if method and method.kept is TrainedPart.WEIGHTS:
                raise ConfigError(
                    f"{folder}: {method.name} changes the base's own weights, so nothing else can stand "
                    "beside it",
                    hint="open it alone: load_model(path)",
                )
            prefix = load_prefix(self._model, folder, method, tensors)
            self._adapters[name] = prefix.requires_grad_(False)
        self.use(name)
        return self._model

    def take_off(self, name: str) -> None:
        """Detach an adapter; afterwards the base is active alone."""
        adapter = self._adapters.pop(name)
        self.use(None)
        if isinstance(adapter, _LowRank):
            self._remove(adapter.peft_name)

    def use(self, name: str | None) -> None:
        """Make one adapter active, or with None the base alone."""
        adapter = None if name is None else self._adapters[name]
        for layer in self._layers():
            layer.enable_adapters(isinstance(adapter, _LowRank))
            if isinstance(adapter, _LowRank):
                layer.set_adapter(adapter.peft_name, inference_mode=True)
        prefix = self.prefix_of(name)
        # Models of transformers' classes have no `hold_prefix`: it is called only where a prefix is involved.
        has_prefix = any(isinstance(other, PrefixEncoder) for other in self._adapters.values())
        if self._own_prefix is not prefix or has_prefix:
            self._model.hold_prefix(prefix)

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """Return the prefix that goes in front of a prompt under an adapter: its own, else the base's."""
        adapter = None if name is None else self._adapters[name]
        return adapter if isinstance(adapter, PrefixEncoder) else self._own_prefix

    def check_mixable(self, name: str) -> None:
        """Raise `ConfigError` for an adapter that `mixing` cannot apply to only some tokens of a batch."""
        adapter = self._adapters[name]
        for layer in adapter.layers if isinstance(adapter, _LowRank) else ():
            if not isinstance(layer, Linear):
                raise ConfigError(
                    f"{name}: adapts a {type(layer.get_base_layer()).__name__}, and only adapters of linear "
                    "layers answer beside others",
                    hint="set it to work alone: Adapters.use(name), then Engine(adapters.model)",
                )

    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context in which one forward pass applies each request's adapter to that request's tokens.

        `names` and `num_tokens` give each request's adapter and its number of tokens in the pass. The base
        must be active alone.
        """
        adapters = [None if name is None else self._adapters[name] for name in names]
        low_rank = [adapter for adapter in adapters if isinstance(adapter, _LowRank)]
        layers = dict.fromkeys(layer for adapter in low_rank for layer in adapter.layers)
        owners = [adapter.peft_name if isinstance(adapter, _LowRank) else None for adapter in adapters]
        return adapting_each_request(layers, owners, num_tokens, device=self._model.device)

    def _layers(self) -> Iterator[Any]:
        return (part for part in self._model.modules() if isinstance(part, BaseTunerLayer))

    def _inject(self, folder: Path, tensors: Mapping[str, Tensor], name: str) -> None:
        """Add PEFT's layers for a LoRA or AdaLoRA folder and fill them; on an error remove them again."""
        settings = read_adapter_config_if_there(folder)
        if changes := changes_of(settings):
            raise ConfigError(
                f"{folder / ADAPTER_FILE}: {changes[0]} is set: it would change the base for the others too",
                hint="open it alone: load_model(path)",
            )
        if is_adalora(settings):
            # AdaLoRA's layers cannot be mixed within a batch; plain LoRA with the same update can
            config, tensors = read_as_lora(folder, tensors)
        else:
            with explain_peft(folder):
                config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
        stored = {n.removeprefix(START): t.float().to(self._model.device) for n, t in tensors.items()}
        try:
            with explain_peft(folder), warnings.catch_warnings():
                # PEFT warns of a second adapter, which is the purpose here
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                inject_adapter_in_model(config, self._model, name, low_cpu_mem_usage=True)
            require_same(folder, shapes_of(stored), shapes_of(adapter_weights(self._model, name)))
            set_peft_model_state_dict(self._model, stored, name, low_cpu_mem_usage=True)
            fill_adapter(folder, self._model, stored, name)
        except BaseException:  # Ctrl-C too: a layer left half filled would answer for every later adapter
            self._remove(name)
            raise
        self._model.requires_grad_(False).eval()  # PEFT's new dropout is in training mode

    def _remove(self, name: str) -> None:
        """Delete an adapter from PEFT's layers; a layer without any other becomes the base's own again."""
        # a list, since `set_submodule` changes what `named_modules` walks over
        for path, layer in [(p, m) for p, m in self._model.named_modules() if isinstance(m, BaseTunerLayer)]:
            layer.delete_adapter(name)
            if not any(len(getattr(layer, kind)) for kind in layer.adapter_layer_names):
                self._model.set_submodule(path, layer.get_base_layer())
        configs = getattr(self._model, "peft_config", {})
        configs.pop(name, None)
        if not configs and hasattr(self._model, "peft_config"):
            del self._model.peft_config


def setting_aside(
    model: CausalLM, folder: Path, base: Path
) -> Callable[[], AbstractContextManager[Any]] | None:
    """Return a context manager factory under which the base answers without the adapter loaded on it.

    `folder` is the loaded adapter's, `base` its base's. None if the base cannot be recovered: the adapter
    changed its own weights, or replaced its prefix.
    """
    if is_wrapped(model):
        is_lost = bool(changes_of(read_adapter_config_if_there(folder)))
    else:
        method = own_method(folder)
        replaces_own = method is not None and method.kept is TrainedPart.WEIGHTS
        is_lost = replaces_own or bool(read_json_if_there(base / "config.json").get("pre_seq_len"))
    return None if is_lost else partial(without_adapter, model)
