"""The `compute` setting: exact products, or W8A8 (int8 weights and activations)."""

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.generate.adapter_set import AdapterSet
from glmtune.generate.fast import FastExperts, FastLinear, pack_all
from glmtune.log import tell
from glmtune.models.computing import computes_in, holds_experts
from glmtune.models.protocol import CausalLM

AUTO_GAIN = 1.2
"""Speed-up that `auto` demands before it takes W8A8, which changes answers."""

_ADAPTER_PARTS = ("lora_", "prefix_encoder")  # their own products stay exact
_ROUNDS = 5


def choose_compute(model: CausalLM, compute: str, *, rows: int = 1) -> Any:
    """Return the model that answers with `compute`: `exact`, the model itself; `fast`, `speed_up` of it.

    `auto`: the faster of both for a batch of `rows`, measured here and logged. Raises `ConfigError` for
    another word.
    """
    return speed_up(model) if pick_compute(model, compute, rows=rows) == "fast" else model


def pick_compute(model: CausalLM, compute: str, *, rows: int = 1) -> str:
    """Return what `choose_compute` takes, `exact` or `fast`; a run records it and takes it again later."""
    if compute not in ("exact", "fast", "auto"):
        raise ConfigError(
            f"compute: {compute!r} is unknown", hint="compute=exact, compute=fast or compute=auto"
        )
    if compute != "auto":
        return compute
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


def speed_up(model: CausalLM) -> Any:
    """Return a copy of a model that answers in W8A8. The model itself stays unchanged.

    Replaces every linear layer, the output layer included, and GLM-4.5's experts; all other weights are
    shared with the model. Raises `ConfigError` for other processors than x86, several adapters at once, and
    DoRA.
    """
    if problem := _find_problem(model):
        raise ConfigError(f"compute: {problem[0]}", hint=problem[1])
    # deepcopy takes what its memo holds for copied already: weights are shared, only the modules are new
    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    fast = deepcopy(model, shared).eval()
    modules = {name: part for name, part in fast.named_modules() if not _is_adapter_part(name)}
    packed = pack_all(_as_fast, modules.values())
    for (name, part), replacement in zip(modules.items(), packed, strict=True):
        if replacement:
            fast.set_submodule(name, replacement)
        elif isinstance(part, nn.Embedding):
            part.register_forward_hook(_give_fp32)  # from here on hidden states are fp32
        else:  # norms and the like, in fp32 as the hidden states; the table of an embedding stays as it is
            for weight_name, weight in list(part.named_parameters(recurse=False)):
                if weight.is_floating_point() and weight.dtype != torch.float32:
                    widened = nn.Parameter(weight.detach().float(), requires_grad=False)
                    part.register_parameter(weight_name, widened)
    return fast


def _find_problem(model: CausalLM) -> tuple[str, str] | None:
    """Return why a model cannot answer in W8A8, and what to do instead; None if it can."""
    if isinstance(model, AdapterSet):
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
    return FastExperts(part) if holds_experts(part) else None


def _is_adapter_part(name: str) -> bool:
    return any(part in name for part in _ADAPTER_PARTS)


def _give_fp32(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return output.float()


@torch.inference_mode()
def measure_gain(model: CausalLM, rows: int) -> float:
    """Measure how many times as fast W8A8 is for a batch of `rows`.

    Times one block's linear layers, without routed experts.
    """
    # the last block: the first ones of GLM-4.5 are dense
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList))
    block = next(part[-1] for part in lists if any(isinstance(inner, nn.Linear) for inner in part.modules()))
    linears = [
        part
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear) and not _is_adapter_part(name) and ".experts." not in name
    ]
    inputs = [torch.randn(rows, part.in_features, dtype=computes_in(model)) for part in linears]
    fast = pack_all(FastLinear, linears)
    widened = [x.float() for x in inputs]
    times = [(_time(linears, inputs), _time(fast, widened)) for _ in range(_ROUNDS)]
    slow, quick = (min(found) for found in zip(*times[1:], strict=True))  # the first round warms up
    return float(slow / quick)


def _time(layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)
    return time.perf_counter() - start
