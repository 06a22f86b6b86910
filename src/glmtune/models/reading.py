"""What is found of a checkpoint's tensors while a load reads each of them, once: is every number finite, and
is it the one that was saved.
"""

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
"""Of weights, and of official codes; any other would become one of these without a word."""


class Reading:
    """The tensors of one load. Several threads may look at once."""

    def __init__(self, *, is_hashed: bool = False) -> None:
        """`is_hashed`: `digest` is to be known; costs some 0.6 s for each GB."""
        self._is_hashed = is_hashed
        self.dtype: torch.dtype | None = None
        """The type that weights are held in, once it is chosen."""
        self._hashes: dict[str, str] = {}
        self._problems: dict[str, CheckpointError] = {}

    def look(self, name: str, file: Path, tensor: Tensor) -> None:
        """See a tensor as it is stored, by the name that the model has it under in its files."""
        try:
            require_finite(file, name, tensor, held_in=self.dtype)
        except CheckpointError as problem:  # raised in `finish`: not every thread's caller hears of it
            self._problems[name] = problem
        if self._is_hashed:
            self._hashes[name] = hash_tensor(name, tensor)

    def finish(self) -> None:
        """Raise CheckpointError for the first tensor with a number that is not finite, or not once held."""
        for name in sorted(self._problems):
            raise self._problems[name]

    def digest(self) -> str:
        """`combine_hashes` of all that was looked at."""
        return combine_hashes(self._hashes)


def require_finite(path: Path, name: str, tensor: Tensor, *, held_in: torch.dtype | None = None) -> None:
    """Raise CheckpointError for a tensor with NaN or infinity in it, or once it is held in a smaller type.

    One pass: the extremes tell of all.
    """
    if not (tensor.is_floating_point() and tensor.numel()):
        return
    extremes = torch.stack(torch.aminmax(tensor))
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
    """Raise CheckpointError for the first tensor of a type that no model here is held in, such as float8."""
    for name, tensor in stored.items():
        if tensor.dtype not in HELD_TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is stored in {kind}; known are float32, bfloat16, float16 "
                "and, for official codes, int8",
                hint="take the original, unquantised folder of this model",
            )


def saved_tensors(model: CausalLM) -> dict[str, Tensor]:
    """A model's tensors as its files hold them: tied ones once, GLM-4.5's experts one by one."""
    state = {n: tensor for n, tensor in model.state_dict().items() if n not in model.all_tied_weights_keys}
    saved: dict[str, Tensor] = revert_weight_conversion(model, state)
    return saved


def hash_whole(model: CausalLM) -> str:
    """What `Reading.digest` is to be when the model's files are read."""
    return combine_hashes({name: hash_tensor(name, tensor) for name, tensor in saved_tensors(model).items()})


def hash_tensor(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, type, shape and bytes."""
    held = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {held.dtype} {list(held.shape)}\n".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One SHA-256 of the `hash_tensor` of all, whichever file holds them, in whichever order."""
    return hashlib.sha256("\n".join(hashes[name] for name in sorted(hashes)).encode()).hexdigest()
