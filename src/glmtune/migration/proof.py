"""What was migrated computes what it computed before: logits on a few fixed ids, old against new."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.adapters.factors import Factors, read_factors
from glmtune.adapters.logit_tolerance import SAME, compare_logits, largest_logit
from glmtune.adapters.probe import all_logits
from glmtune.adapters.proof import measure_effect
from glmtune.errors import CheckpointError
from glmtune.migration.lora import OldLora
from glmtune.models.protocol import CausalLM


def probe_logits(model: CausalLM) -> Tensor:
    """(T, V) in fp32 on the CPU: on ids spread over the vocabulary, as a prompt of its family has them."""
    config = model.config
    ids = torch.linspace(10, config.vocab_size * 0.8, 24).long().tolist()
    if hasattr(config, "mask_ids"):  # ChatGLM-6B's positions are told from them
        ids[16:18] = [config.mask_ids[1], config.bos_token_id]
    return all_logits(model, ids)


def prove_same(theirs: Tensor, ours: Tensor, plain: Tensor, *, dtype: torch.dtype, what: Path) -> str:
    """One sentence of proof. Raises CheckpointError where old and new differ, or the base is not changed."""
    found = compare_logits([ours], [theirs], SAME[dtype], largest_logit([theirs]))
    if not found.is_allowed:
        raise CheckpointError(
            f"{what}: its logits differ by {found.off:.2g} after the migration, so nothing was written",
            hint="is this the base it was trained on? Name it: base=FOLDER",
        )
    return f"logits equal the source's to {found.off:.1e}; {require_effect(ours, plain, what=what)}"


def require_effect(ours: Tensor, plain: Tensor, *, what: Path) -> str:
    """Say how far the base is changed. Raises CheckpointError as `measure_effect`."""
    return f"they differ from the base's by {measure_effect(what, plain, ours):.3g}"


@contextmanager
def as_trained(model: nn.Module, old: OldLora) -> Iterator[None]:
    """Inside, the base computes W x + scale B A x with the source's factors, by definition, not by PEFT."""
    parts = dict(model.named_modules())
    hooks = []
    try:
        for name, factors in read_factors(old.tensors, old.config).items():
            if not isinstance(parts.get(name), nn.Module):
                raise CheckpointError(
                    f"{name}: this base has no such layer", hint="name its own base: base=FOLDER"
                )
            hooks.append(parts[name].register_forward_hook(_adds(factors)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adds(factors: Factors) -> Any:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].float()
        down, up = (factor.to(x.device) for factor in (factors.a, factors.b))
        return (output.float() + (x @ down.T) @ up.T * factors.scale / factors.divisor).to(output.dtype)

    return add
