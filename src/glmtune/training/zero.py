"""ZeRO: gradients, optimizer state and, at stage 3, weights shared over processes by DeepSpeed.

DeepSpeed steps our own AdamW, on the flat part of the weights that a process updates: its own optimizers are
built when they are first used, by a compiler. Source: deepspeed.readthedocs.io, `deepspeed.initialize`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from glmtune.extras import require
from glmtune.models.recomputing import layers_of
from glmtune.recipe.distributed import DeepSpeed

_OP_OF_ONE_MACHINE = "deepspeed_shm_comm"
"""DeepSpeed's sums for inference on a CPU, which it would compile for minutes before anything begins."""

Keep = Callable[[Tensor], Tensor]
"""Keeps a tensor that was put together, detached, where its process has room for all of them."""


class ZeroOptimizer:
    """The optimizer of weights whose gradients and means DeepSpeed shares; called as torch's are."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: DeepSpeed,
        device: torch.device,
        max_norm: float,
    ) -> None:
        """Share an optimizer's work; all processes must call it. It is changed, and the module's weights.

        `max_norm`: bound of the gradients' norm, 0 for none.
        """
        self._deepspeed = deepspeed = _begin(device)
        self._weights = [list(group["params"]) for group in optimizer.param_groups]
        self._own = optimizer
        config = _config(settings, max_norm)
        self.engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
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

    def whole_state(self, *, keep: Keep | None) -> dict[str, Any]:
        """Return the state as the optimizer's `state_dict` of whole weights has it; all must call it.

        Without `keep` the tensors are dropped, one after the other.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        groups, means, number = list[dict[str, Any]](), dict[int, dict[str, Any]](), 0
        for group, weights in zip(self._own.param_groups, self._weights, strict=True):
            numbers = list(range(number, number + len(weights)))
            groups.append({**group, "params": numbers})
            number += len(weights)
        known = next((self.state[part] for part in self._parts if self.state.get(part)), {})
        if known:
            self._link()
        for place, weight in enumerate(chain(*self._weights) if known else ()):
            values = {"step": known["step"]}
            for name in (name for name in known if name != "step"):
                whole = safe_get_full_optimizer_state(weight, name)
                values[name] = keep(whole) if keep else None
            means[place] = values
        return {"state": means, "param_groups": groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `whole_state`, and go on with the weights as they are now."""
        self._zero.refresh_fp32_params()
        for group, saved in zip(self._own.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        means = state["state"]
        if not means:
            return
        names = [name for name in means[0] if name != "step"]
        for part in self._parts:
            # made here as the first step would make them, for DeepSpeed to fill
            zeros = {name: torch.zeros_like(part) for name in names}
            self._own.state[part] = {"step": means[0]["step"].clone(), **zeros}
        self._link()
        for place, weight in enumerate(chain(*self._weights)):
            for name in names:
                self.fill(weight, name, means[place][name].to(weight.device))

    def _link(self) -> None:
        """Let DeepSpeed know the means that there are: it looks once, when it has updated the first group."""
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def fill(self, weight: nn.Parameter, name: str, whole: Tensor) -> None:
        """Set this process's part of a mean of a weight."""
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(weight, whole, name)


class ZeroWeights(ZeroOptimizer):
    """The same for stage 3: the weights are shared too, and a layer is whole only while it computes.

    Each layer's weights are put together as one group, those outside the layers as another: parts of a model
    also read weights of their children. They hang on their module as DeepSpeed's `external` ones.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: DeepSpeed,
        device: torch.device,
        max_norm: float,
    ) -> None:
        """Share the weights too, layer by layer; trained ones are made fp32 on the way."""
        zero, config = _begin(device).zero, _config(settings, max_norm)
        module.register_forward_pre_hook(self._forget_order)  # before DeepSpeed's own, so it runs first
        init, register = zero.Init, zero.register_external_parameter
        self._outer = dict[int, nn.Parameter]()
        for part in (*layers_of(module), module):
            weights = [weight for weight in part.parameters() if not is_in_parts(weight)]
            for weight in weights:
                # a copy: what is mapped from a file is not to be written to
                weight.data = weight.data.float() if weight.requires_grad else weight.data
                weight.data = weight.data.to(device, copy=True)
            init(module=part, config_dict_or_path=config)
            for weight in weights:
                register(part, weight)
            self._outer = {id(weight): weight for weight in weights}  # in the end those of the last part
        for part in module.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.to(device)
        super().__init__(module, optimizer, settings, device, max_norm)

    def norm(self) -> float:
        """Return the norm of a step's gradients, before they are clipped; infinite if one is not finite."""
        norms = torch.stack([torch.as_tensor(norm) for norm in self._zero._get_norm_groups()])
        return float("inf") if bool((norms < 0).any()) else float(norms.norm())

    @property
    def _parts(self) -> list[Tensor]:
        """The flat parts of the weights that this process updates."""
        parts: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        return parts

    def _link(self) -> None:
        """Do nothing: at stage 3 DeepSpeed looks each time."""

    def fill(self, weight: nn.Parameter, name: str, whole: Tensor) -> None:
        """Set this process's part of a mean of a weight."""
        from deepspeed.utils import safe_set_local_optimizer_state

        size, rank = part_of_weight(weight).numel(), torch.distributed.get_rank()
        lacking = size * torch.distributed.get_world_size() - whole.numel()
        filled = nn.functional.pad(whole.flatten(), (0, lacking))
        safe_set_local_optimizer_state(weight, filled[rank * size : (rank + 1) * size], name)

    def _forget_order(self, *_: object) -> None:
        """Forget the order of layers: the next pass may be another one, and would fetch by it."""
        coordinator = self._zero.parameter_offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def settle(self, _: nn.Module | None = None) -> None:
        """Give back what passes have left whole."""
        self._zero.empty_partition_cache()

    @contextmanager
    def outer_weights(self, _: nn.Module | None = None) -> Iterator[None]:
        """Inside, the weights outside the layers are whole: parts of the model can be called."""
        outer: list[Any] = list(self._outer.values())
        outer[0].all_gather(param_list=outer)
        for weight in outer:
            weight.ds_active_sub_modules.add(_OPEN)
        try:
            yield
        finally:
            for weight in outer:
                weight.ds_active_sub_modules.discard(_OPEN)
            self.settle()

    @contextmanager
    @torch.no_grad()
    def whole_trained(
        self, root: nn.Module, *, keep: Keep | None, is_changed: bool = False
    ) -> Iterator[None]:
        """Inside, the trained weights are whole in the first process; in others `keep` is None.

        All processes must call it. With `is_changed` all go on with what the first process then has in them.
        """
        self.settle()
        gathered = self._deepspeed.zero.GatheredParameters
        places = [
            (part, name, weight)
            for part in root.modules()
            for name, weight in part._parameters.items()
            if weight is not None and weight.requires_grad
        ]
        wholes = dict[int, nn.Parameter]()  # by weight: tied ones are one
        for part, name, weight in places:
            if id(weight) not in wholes:
                with gathered([weight]):  # by all, also where it is dropped
                    whole = keep(weight) if keep else torch.empty(0)
                wholes[id(weight)] = nn.Parameter(whole)
            if keep:
                part._parameters[name] = wholes[id(weight)]
        try:
            yield
        finally:
            for part, name, weight in places:
                part._parameters[name] = weight
        for weight in {id(weight): weight for *_, weight in places if is_changed}.values():
            with gathered([weight], modifier_rank=0):
                if keep:
                    weight.copy_(wholes[id(weight)])


_OPEN = -1
"""In place of a module's number: weights that are in use by it are not given back."""


def is_in_parts(weight: Tensor) -> bool:
    """Return True for a weight of which DeepSpeed holds a part here."""
    return "ds_tensor" in vars(weight)


@contextmanager
def keeping_gradients(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, DeepSpeed leaves the gradients of a backward pass where they are."""
    held: list[Any] = [weight for weight in weights if is_in_parts(weight)]
    for weight in held:
        weight.ds_grad_is_ready = False
    try:
        yield
    finally:
        for weight in held:
            weight.ds_grad_is_ready = True


def part_of_weight(weight: Tensor) -> Tensor:
    """Return that part, flat."""
    part: Tensor = vars(weight)["ds_tensor"]
    return part


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
            # else stage 2 sums each gradient in all processes, not only in the one that keeps it
            "use_multi_rank_bucket_allreduce": False,
            # else small weights stay whole, those of a pass in torch's inference mode too
            "stage3_param_persistence_threshold": 0,
            **({"offload_optimizer": main_memory} if settings.offload_optimizer else {}),
            **({"offload_param": main_memory} if settings.offload_weights else {}),
        },
    }
