"""With which products a model answers: exact ones, or W8A8 where that is asked for."""

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.generate.fast import FastExperts, FastLinear
from glmtune.log import tell

AUTO_GAIN = 1.2
"""How many times as fast W8A8 must be before `auto` takes it: it changes answers."""

_OUTSIDE = ("lora_", "prefix_encoder")  # parts of an adapter
_MEASURED_LAYERS = 4  # those of a block
_ROUNDS = 5


def choose_compute(model: Any, compute: str, *, rows: int = 1) -> Any:
    """The model itself (`exact`) or what answers in its place (`fast`: `speed_up`).

    `auto`: the faster of both for so many `rows` at once, measured here; which one is told.
    """
    if compute == "auto":
        compute = _choose(model, rows)
    return speed_up(model) if compute == "fast" else model


def speed_up(model: Any) -> Any:
    """A copy of a model that answers in W8A8; other weights are shared with the model, which stays as it is.

    Every linear layer is replaced, the output layer too, and GLM-4.5's experts. Raises ConfigError where
    there are no kernels for it.
    """
    if not _has_fast(model):
        raise ConfigError(
            f"compute: fast is for x86 CPUs, and this is {model.device.type}, "
            f"{torch.backends.quantized.engine}",
            hint="use compute=exact; quant=int8 or int4 makes the weights smaller",
        )
    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    fast = deepcopy(model, shared).eval()
    for name, part in list(fast.named_modules()):
        quick = None if _is_outside(name) else _as_fast(part)
        if quick:
            fast.set_submodule(name, quick)
        elif isinstance(part, nn.Embedding):
            part.register_forward_hook(_give_fp32)
        elif not _is_outside(name):
            _hold_in_fp32(part)
    return fast


def _has_fast(model: Any) -> bool:
    return bool(model.device.type == "cpu" and torch.backends.quantized.engine == "x86")


def _as_fast(part: nn.Module) -> nn.Module | None:
    if isinstance(part, nn.Linear):
        return FastLinear(part)
    is_experts = hasattr(part, "gate_up_proj") and hasattr(part, "num_experts")
    return FastExperts(part) if is_experts else None


def _is_outside(name: str) -> bool:
    return any(part in name for part in _OUTSIDE)


def _give_fp32(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output.float()


def _hold_in_fp32(part: nn.Module) -> None:
    for name, held in list(part.named_parameters(recurse=False)):
        if held.is_floating_point() and held.dtype != torch.float32:
            part.register_parameter(name, nn.Parameter(held.detach().float(), requires_grad=False))


def _choose(model: Any, rows: int) -> str:
    if not _has_fast(model):
        tell(f"compute: auto is exact here: fast is for x86 CPUs, and this is {model.device.type}")
        return "exact"
    gain = measure_gain(model, rows)
    if gain < AUTO_GAIN:
        tell(f"compute: auto takes exact: fast would be {gain:.1f} times as fast for {rows} rows")
        return "exact"
    tell(
        f"compute: auto takes fast (int8 weights and activations), {gain:.1f} times as fast for {rows} rows; "
        "answers may differ from those of compute=exact"
    )
    return "fast"


@torch.inference_mode()
def measure_gain(model: Any, rows: int) -> float:
    """How many times as fast W8A8 is for a block's linear layers and so many rows."""
    linears = [
        part for name, part in model.named_modules() if isinstance(part, nn.Linear) and not _is_outside(name)
    ][:_MEASURED_LAYERS]
    inputs = [torch.randn(rows, part.in_features, dtype=model.dtype) for part in linears]
    fast = [FastLinear(part) for part in linears]
    widened = [x.float() for x in inputs]
    times = [(_time(linears, inputs), _time(fast, widened)) for _ in range(_ROUNDS)]
    slow, quick = (min(found) for found in zip(*times[1:], strict=True))  # the first round warms up
    return float(slow / quick)


def _time(layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)
    return time.perf_counter() - start
