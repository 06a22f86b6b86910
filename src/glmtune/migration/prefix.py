"""An old P-Tuning checkpoint: a prefix alone, under either of its names, or with the whole model beside it.

ChatGLM-6B's and ChatGLM2's trainer.py saves what requires gradients, `transformer.prefix_encoder.*`; before
2023-04 it saved the whole model. ChatGLM3's finetune_hf.py with PREFIX_TUNING sets config.pre_seq_len and
saves the whole model; a `save_model` that it has commented out saves the prefix by its bare names.
Source: ptuning/trainer.py of github.com/THUDM/ChatGLM-6B, finetune_demo/finetune_hf.py of
github.com/THUDM/ChatGLM3.
"""

from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.own_weights import PREFIX
from glmtune.errors import CheckpointError
from glmtune.folder import ModelFolder
from glmtune.models.pickles import read_tensors
from glmtune.models.shards import Stored, read_stored, scan_tensors

BARE = {"embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"}
"""A prefix encoder's own names."""


def read_bare(folder: Path) -> dict[str, Tensor]:
    """A prefix that was saved by its bare names, under the official ones; empty where there is none."""
    path = folder / "pytorch_model.bin"
    if not path.exists():
        return {}
    names = scan_tensors(folder).keys()
    if "embedding.weight" not in names or not names <= BARE:
        return {}
    return {PREFIX + name: tensor.float() for name, tensor in read_tensors(path).items()}


def check_frozen(folder: Path, base: ModelFolder) -> str:
    """Say that all weights beside the prefix are the base's. Raises CheckpointError where one is not.

    Codes of a quantised base are passed over: they are rounded anew wherever it is quantised.
    """
    beside = {n: t for n, t in scan_tensors(folder).items() if not n.startswith(PREFIX)}
    stored = scan_tensors(base) if base.has_weights else {}
    shared = [n for n in beside if n in stored and _is_dense(beside[n]) and _is_dense(stored[n])]
    for name in shared:
        if beside[name].shape != stored[name].shape or not _is_same(beside[name], stored[name]):
            raise CheckpointError(
                f"{beside[name].file}: {name} differs from the base's, so more than the prefix was trained, "
                "or this is not its base",
                hint="name its base, base=FOLDER; if the whole model was trained, it opens as it is",
            )
    return f"{len(shared)} weights of the base beside it, every one equal to the base's: not copied"


def _is_dense(held: Stored) -> bool:
    return held.dtype.is_floating_point and not held.name.endswith(("inv_freq", "_scale"))


def _is_same(one: Stored, other: Stored) -> bool:
    """Equal in the coarser of both types."""
    first, second = read_stored(one), read_stored(other)
    coarse = min((first.dtype, second.dtype), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(first.to(coarse), second.to(coarse))
