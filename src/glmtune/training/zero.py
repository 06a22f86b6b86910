"""ZeRO: gradients, optimizer state and, at stage 3, weights shared over processes by DeepSpeed.

DeepSpeed steps our own AdamW, on the flat part of the weights that a process updates: its own optimizers are
built when they are first used, by a compiler. Source: deepspeed.readthedocs.io, `deepspeed.initialize`.
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from glmtune.extras import require
from glmtune.recipe.distributed import DeepSpeed

_OP_OF_ONE_MACHINE = "deepspeed_shm_comm"
"""DeepSpeed's sums for inference on a CPU, which it would compile for minutes before anything begins."""


class ZeroOptimizer:
    """The optimizer of weights whose gradients and means DeepSpeed shares; called as torch's are."""

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, settings: DeepSpeed, device: torch.device, max_norm: float
    ) -> None:
        """Share an optimizer's work; all processes must call it. It is changed, and the module's weights.

        `max_norm`: bound of the gradients' norm, 0 for none.
        """
        deepspeed = _begin(device)
        self._weights = [list(group["params"]) for group in optimizer.param_groups]
        self._own = optimizer
        self.engine: Any = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_config(settings, max_norm)
        )[0]
        """DeepSpeed's engine: the module to call."""
        self._zero = self.engine.optimizer

    def exchanging(self, *, is_last: bool) -> None:
        """Tell whether the next backward pass is the last one of a step."""
        self.engine.set_gradient_accumulation_boundary(is_last)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, averaged over all processes, each to its part."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def norm(self) -> float:
        """Return the norm of a step's gradients, before they are clipped; infinite if one is not finite."""
        norm = float(self._zero.scaled_global_norm())
        return norm if norm >= 0 else float("inf")  # DeepSpeed's sign for a norm that is not finite

    def step(self) -> None:
        """Clip the gradients, update the weights and drop the gradients."""
        self.engine.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        self._zero.zero_grad(set_to_none=set_to_none)

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]:
        """The means of this process's parts."""
        return self._own.state

    @property
    def _parts(self) -> list[Tensor]:
        """The flat parts of the weights that this process updates."""
        parts: list[Tensor] = self._zero.single_partition_of_fp32_groups
        return parts

    def whole_state(self, *, keeps: bool) -> dict[str, Any]:
        """Return the state as the optimizer's `state_dict` of whole weights has it; all processes must call it.

        Without `keeps` the tensors are dropped, one after the other.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        groups, means, number = list[dict[str, Any]](), dict[int, dict[str, Any]](), 0
        for group, weights in zip(self._own.param_groups, self._weights, strict=True):
            numbers = list(range(number, number + len(weights)))
            groups.append({**group, "params": numbers})
            number += len(weights)
        known = next((self.state[part] for part in self._parts if self.state.get(part)), {})
        for place, weight in enumerate(chain(*self._weights) if known else ()):
            values = {"step": known["step"]}
            for name in (name for name in known if name != "step"):
                whole = safe_get_full_optimizer_state(weight, name)
                values[name] = whole.cpu() if keeps else None
            means[place] = values
        return {"state": means, "param_groups": groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `whole_state`, and go on with the weights as they are now."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        for group, saved in zip(self._own.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        means = state["state"]
        if not means:
            return
        first = means[0]
        for part in self._parts:
            # made here as the first step would make them, for DeepSpeed to fill
            zeros = {name: torch.zeros_like(part) for name in first if name != "step"}
            self._own.state[part] = {"step": first["step"].clone(), **zeros}
        self._link()
        for place, weight in enumerate(chain(*self._weights)):
            for name in (name for name in first if name != "step"):
                safe_set_full_optimizer_state(weight, means[place][name].to(weight.device), name)

    def _link(self) -> None:
        self._zero._lazy_init_hp_params_optimizer_state()


def _begin(device: torch.device) -> Any:
    """Return DeepSpeed, working among the processes that there are, on their device."""
    deepspeed = require("deepspeed", extra="deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # else each process tells of each step
    if device.type == "cpu":  # a card may be there all the same
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())
    # read, and kept for changes: deepspeed/ops/__init__.py
    deepspeed.ops.__compatible_ops__[_OP_OF_ONE_MACHINE] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    return deepspeed


def _config(settings: DeepSpeed, max_norm: float) -> dict[str, Any]:
    """Return DeepSpeed's own settings."""
    main_memory = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # it counts samples with it, and we do not ask
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": settings.stage,
            "overlap_comm": False,
            **({"offload_optimizer": main_memory} if settings.offload_optimizer else {}),
            **({"offload_param": main_memory} if settings.offload_weights else {}),
        },
    }
