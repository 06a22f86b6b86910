"""Read official P-Tuning checkpoints: a prefix encoder alone, under two sets of names, or in a whole model.

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
"""Names of a prefix encoder's tensors without the prefix `transformer.prefix_encoder.`."""


def read_bare(folder: Path) -> dict[str, Tensor]:
    """Return a prefix saved under `BARE` names, renamed to the official names; empty if there is none."""
    path = folder / "pytorch_model.bin"
    if not path.exists():
        return {}
    # by names first: only a file that is a prefix and nothing else is unpickled
    names = scan_tensors(folder).keys()
    if "embedding.weight" not in names or not names <= BARE:
        return {}
    return {PREFIX + name: tensor.float() for name, tensor in read_tensors(path).items()}


def check_frozen(folder: Path, base: ModelFolder) -> str:
    """Check that all weights besides the prefix equal the base's; returns the sentence for the report.

    Integer codes of a quantised base are not compared: each quantisation rounds anew. Raises CheckpointError
    for a weight that differs.
    """
    others = {n: t for n, t in scan_tensors(folder).items() if not n.startswith(PREFIX)}
    stored = scan_tensors(base) if base.has_weights else {}
    shared = [n for n in others if n in stored and _is_dense(others[n]) and _is_dense(stored[n])]
    for name in shared:
        is_same = others[name].shape == stored[name].shape
        if is_same:
            # one of the two may have been saved in a coarser type: compare in that
            theirs, ours = read_stored(others[name]), read_stored(stored[name])
            coarse = min((theirs.dtype, ours.dtype), key=lambda dtype: torch.finfo(dtype).bits)
            is_same = torch.equal(theirs.to(coarse), ours.to(coarse))
        if not is_same:
            raise CheckpointError(
                f"{others[name].file}: {name} differs from the base's, so more than the prefix was trained, "
                "or this is not its base",
                hint="name its base, base=FOLDER; if the whole model was trained, it opens as it is",
            )
    return f"{len(shared)} weights of the base beside it, every one equal to the base's: not copied"


def _is_dense(tensor: Stored) -> bool:
    # inv_freq is computed, not trained; a _scale belongs to integer codes
    return tensor.dtype.is_floating_point and not tensor.name.endswith(("inv_freq", "_scale"))
