"""Checks made while a load reads a checkpoint's tensors: every number is finite, and as it was saved."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from glmtune.errors import CheckpointError
from glmtune.files import COPY_AGAIN
from glmtune.models.protocol import CausalLM
from glmtune.models.shards import Stored

HELD_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
"""Dtypes of weights, and of official codes; a tensor of any other would be cast to one of these silently."""


class Reading:
    """The checks of a single load: finite numbers, and on request a hash. `look` is thread-safe."""

    def __init__(self, *, is_hashed: bool = False) -> None:
        """Start the checks of a load; `is_hashed` makes `digest` available, for about 0.6 s per GB."""
        self._is_hashed = is_hashed
        self.dtype: torch.dtype | None = None
        """The dtype that weights are held in, set by the loader once it is chosen."""
        self._hashes: dict[str, str] = {}
        self._problems: dict[str, CheckpointError] = {}

    def look(self, name: str, file: Path, tensor: Tensor) -> None:
        """Check a tensor as it is stored, under its name in the model's files."""
        try:
            require_finite(file, name, tensor, held_in=self.dtype)
        except CheckpointError as problem:  # raised in `finish`: an error in a thread may get lost
            self._problems[name] = problem
        if self._is_hashed:
            self._hashes[name] = hash_tensor(name, tensor)

    def finish(self) -> None:
        """Raise CheckpointError for the first tensor, by name, whose numbers are not finite in `dtype`."""
        for name in sorted(self._problems):
            raise self._problems[name]

    def digest(self) -> str:
        """Return the combined hash of all tensors seen by `look`."""
        return combine_hashes(self._hashes)


def require_finite(path: Path, name: str, tensor: Tensor, *, held_in: torch.dtype | None = None) -> None:
    """Raise CheckpointError for a tensor with NaN or infinity in it, or too large for the dtype `held_in`."""
    if not (tensor.is_floating_point() and tensor.numel()):
        return
    extremes = torch.stack(torch.aminmax(tensor))  # NaN if any number is: a single pass is enough
    if extremes.to(held_in or tensor.dtype).isfinite().all():
        return
    if extremes.isfinite().all():
        kind = str(held_in).removeprefix("torch.")
        raise CheckpointError(
            f"{path}: tensor {name} holds {extremes.abs().max():.4g}, too large for {kind}",
            hint="open it in a wider type: dtype=fp32 or dtype=bf16",
        )
    odd = (~tensor.isfinite()).nonzero()
    first = tuple(odd[0].tolist())
    raise CheckpointError(
        f"{path}: tensor {name} holds {len(odd):,} numbers that are not finite, the first is "
        f"{tensor[first].item()} at {list(first)}",
        hint=f"{COPY_AGAIN}; if it was saved so, take an earlier checkpoint",
    )


def require_held_types(stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for the first tensor of a dtype that no model here is held in, such as float8."""
    for name, tensor in stored.items():
        if tensor.dtype not in HELD_TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is stored in {kind}; known are float32, bfloat16, float16 "
                "and, for official codes, int8",
                hint="take the original, unquantised folder of this model",
            )


def saved_tensors(model: CausalLM) -> dict[str, Tensor]:
    """Return a model's tensors as its files hold them: tied ones once, GLM-4.5's experts one by one."""
    state = {n: tensor for n, tensor in model.state_dict().items() if n not in model.all_tied_weights_keys}
    saved: dict[str, Tensor] = revert_weight_conversion(model, state)
    return saved


def hash_whole(model: CausalLM) -> str:
    """Hash a model in memory; equals `Reading.digest` of its files once they are written."""
    return combine_hashes({name: hash_tensor(name, tensor) for name, tensor in saved_tensors(model).items()})


def hash_tensor(name: str, tensor: Tensor) -> str:
    """Compute the SHA-256 of a tensor's name, dtype, shape and bytes."""
    held = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {held.dtype} {list(held.shape)}\n".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bf16
    return digest.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Combine the hashes of all tensors, by name, to a SHA-256 that does not depend on order or files."""
    return hashlib.sha256("\n".join(hashes[name] for name in sorted(hashes)).encode()).hexdigest()
