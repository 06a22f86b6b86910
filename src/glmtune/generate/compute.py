"""With which products a model answers: exact ones, or W8A8 where that is asked for."""

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.generate.adapter_batch import AdapterBatch
from glmtune.generate.fast import FastExperts, FastLinear, pack_all
from glmtune.log import tell
from glmtune.models.protocol import CausalLM

AUTO_GAIN = 1.2
"""How many times as fast W8A8 must be before `auto` takes it: it changes answers."""

_OUTSIDE = ("lora_", "prefix_encoder")  # parts of an adapter
_ROUNDS = 5


def choose_compute(model: CausalLM, compute: str, *, rows: int = 1) -> Any:
    """The model itself (`exact`) or what answers in its place (`fast`: `speed_up`).

    `auto`: the faster of both for so many `rows` at once, measured here; which one is told. Raises
    ConfigError for another word.
    """
    return speed_up(model) if pick_compute(model, compute, rows=rows) == "fast" else model


def pick_compute(model: CausalLM, compute: str, *, rows: int = 1) -> str:
    """What `choose_compute` takes, `exact` or `fast`: to be recorded, and asked for again later."""
    if compute not in ("exact", "fast", "auto"):
        raise ConfigError(
            f"compute: {compute!r} is unknown", hint="compute=exact, compute=fast or compute=auto"
        )
    return _choose(model, rows) if compute == "auto" else compute


def speed_up(model: CausalLM) -> Any:
    """A copy of a model that answers in W8A8; other weights are shared with the model, which stays as it is.

    Every linear layer is replaced, the output layer too, and GLM-4.5's experts. Raises ConfigError where
    there are no kernels for it, and for DoRA.
    """
    if problem := _find_problem(model):
        raise ConfigError(f"compute: {problem[0]}", hint=problem[1])
    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    fast = deepcopy(model, shared).eval()
    inside = {name: part for name, part in fast.named_modules() if not _is_outside(name)}
    quick = pack_all(_as_fast, inside.values())
    for (name, part), made in zip(inside.items(), quick, strict=True):
        if made:
            fast.set_submodule(name, made)
        elif isinstance(part, nn.Embedding):
            part.register_forward_hook(_give_fp32)
        else:
            _hold_in_fp32(part)
    return fast


def _find_problem(model: CausalLM) -> tuple[str, str] | None:
    """Why a model cannot answer in W8A8, and what to do instead."""
    if isinstance(model, AdapterBatch):
        return (
            "fast cannot answer each request under its own adapter, as Engine(adapters) does",
            "set one to work, Adapters.use(name), and give its model: choose_compute(adapters.model, ...)",
        )
    if model.device.type != "cpu" or torch.backends.quantized.engine != "x86":
        return (
            f"fast is for x86 CPUs, and this is {model.device.type}, {torch.backends.quantized.engine}",
            "use compute=exact; quant=int8 or quant=int4 makes the weights smaller",
        )
    if any("lora_magnitude_vector" in name for name, _ in model.named_parameters()):
        return (
            "fast cannot answer with DoRA, which measures the base's own weights as it answers",
            "use compute=exact, or merge it: `glmtune export RUN --to merged`",
        )
    return None


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


def _choose(model: CausalLM, rows: int) -> str:
    if problem := _find_problem(model):
        tell(f"compute: auto is exact here: {problem[0]}")
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
def measure_gain(model: CausalLM, rows: int) -> float:
    """How many times as fast W8A8 is for so many rows: a block's linear layers, no routed experts."""
    linears = _linears_of_block(model)
    inputs = [torch.randn(rows, part.in_features, dtype=model.dtype) for part in linears]
    fast = pack_all(FastLinear, linears)
    widened = [x.float() for x in inputs]
    times = [(_time(linears, inputs), _time(fast, widened)) for _ in range(_ROUNDS)]
    slow, quick = (min(found) for found in zip(*times[1:], strict=True))  # the first round warms up
    return float(slow / quick)


def _linears_of_block(model: CausalLM) -> list[nn.Linear]:
    """Of the last block: the first ones of GLM-4.5 are not as the others."""
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList))
    block = next(part[-1] for part in lists if any(isinstance(inner, nn.Linear) for inner in part.modules()))
    return [
        part
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear) and not _is_outside(name) and ".experts." not in name
    ]


def _time(layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)
    return time.perf_counter() - start
