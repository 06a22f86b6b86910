"""Quantise the linear layers of a model that transformers' class holds, each while its weight is read.

transformers is handed the folder as if it were stored quantised: its layers are replaced before anything
is read, and each tensor of theirs is made of the stored weight when transformers asks for it. So no more than
one weight exists in its stored type, and the codes are those of the stored values, whatever type is loaded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from glmtune.errors import ConfigError
from glmtune.models.nf4 import quantise_as
from glmtune.models.protocol import CausalLM
from glmtune.models.published_weights import set_scale_types
from glmtune.models.quant import QuantizedLinear, held_quant, quantised_layers
from glmtune.models.reading import Reading
from glmtune.models.shards import Stored, read_stored

_NAME = "glmtune"
"""The name under which transformers finds `_Replacing`."""


class _Replacement(QuantizationConfigMixin):  # type: ignore[misc]
    """Carries to `_Replacing`, through transformers, the function that replaces an empty model's layers."""

    def __init__(self, replace: Callable[[CausalLM], None]) -> None:
        self.quant_method = _NAME
        self.replace = replace


class _Replacing(HfQuantizer):  # type: ignore[misc]
    """Replaces layers before transformers reads weights, and refuses to save what no folder can hold."""

    quantization_config: _Replacement

    def preprocess_model(self, model: CausalLM, **_: object) -> None:
        """Replace the layers of an empty model, and call nothing of it quantised: PEFT asks by that word."""
        self.quantization_config.replace(model)

    def postprocess_model(self, model: CausalLM, **_: object) -> CausalLM:
        """Take the setting out of the config again: config.json has no word for it."""
        del model.config.quantization_config
        self._quant = held_quant(model)
        return model

    def is_serializable(self) -> NoReturn:
        """Refuse to save; asked by `save_pretrained`. Raises ConfigError."""
        raise ConfigError(
            f"save: the model is {self._quant}, and no folder of a model of transformers' class holds that",
            hint=f"save the adapter; quant={self._quant} makes the same codes of the original folder again",
        )

    @property
    def is_trainable(self) -> bool:
        """Adapters train on the codes."""
        return True


register_quantizer(_NAME)(_Replacing)


def quantising(quant: str, stored: Mapping[str, Stored]) -> _Replacement:
    """Return transformers' `quantization_config` for `quant`; the scales get the stored types."""

    def replace(model: CausalLM) -> None:
        quantise_as(model, quant)
        set_scale_types(model, stored)

    return _Replacement(replace)


def quantised_tensors(
    outline: CausalLM,
    quant: str,
    stored: Mapping[str, Stored],
    device: torch.device,
    reading: Reading,
) -> dict[str, Any]:  # Any: what stands for a tensor until it is subscripted
    """Return what stands for the tensors of each quantised layer of a model, by their names in that model.

    outline: the model on the meta device, dense; its layers are replaced. Raises ConfigError as
    `quantise_as`.
    """
    quantising(quant, stored).replace(outline)
    return {
        f"{path}.{name}": _FilledPart(made, name)
        for path, layer in quantised_layers(outline).items()
        for made in [_FilledLayer(layer, f"{path}.weight", stored[f"{path}.weight"], device, reading)]
        for name in made.names
    }


class _FilledLayer:
    """A layer that is filled from its stored weight when the first of its parts is asked for.

    It needs no lock: for a quantizer of a model that is stored dense transformers reads one tensor after the
    other, in the caller's thread, lest more than one be there in its stored type.
    Source: transformers 5.23, core_model_loading.py, has_on_the_fly_quantization.
    """

    def __init__(
        self, layer: QuantizedLinear, name: str, stored: Stored, device: torch.device, reading: Reading
    ) -> None:
        self._layer, self._name, self._stored = layer, name, stored
        self._device, self._reading = device, reading
        self._made: dict[str, nn.Parameter] = {}
        self.names = [name for name, _ in self._parts()]

    def _parts(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, part) for name, part in self._layer.named_parameters(recurse=False) if name != "bias"]

    def take(self, name: str) -> nn.Parameter:
        """Return one of `names`, once."""
        if not self._made:
            weight = read_stored(self._stored)  # in a mapping of its own, which ends with it
            self._reading.look(self._name, self._stored.file, weight)
            self._layer.fill(weight, self._device)
            self._made = dict(self._parts())
        return self._made.pop(name)


class _FilledPart:
    """A tensor of a `_FilledLayer`, as transformers reads it: by subscripting, once."""

    def __init__(self, layer: _FilledLayer, name: str) -> None:
        self._layer, self._name = layer, name

    def __getitem__(self, _: object) -> Tensor:
        return self._layer.take(self._name)
