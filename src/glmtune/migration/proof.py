"""Prove that a migrated adapter computes the same: compare logits on fixed ids, old against new."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Return the logits (T, V), fp32 on the CPU, on 24 ids spread over the vocabulary."""
    config = model.config
    # up to 0.8 of the vocabulary: above lie the control tokens and padding
    ids = torch.linspace(10, config.vocab_size * 0.8, 24).long().tolist()
    if hasattr(config, "mask_ids"):  # ChatGLM-6B derives its positions from these two
        ids[16:18] = [config.mask_ids[1], config.bos_token_id]
    return all_logits(model, ids)


def prove_same(theirs: Tensor, ours: Tensor, plain: Tensor, *, dtype: torch.dtype, what: Path) -> str:
    """Compare the source's logits with the migrated ones; returns the sentence for the report.

    `plain` are the base's. Raises CheckpointError if `theirs` and `ours` differ by more than rounding in
    `dtype`, or if `ours` equal the base's.
    """
    difference = compare_logits([ours], [theirs], SAME[dtype], largest_logit([theirs]))
    if not difference.is_allowed:
        raise CheckpointError(
            f"{what}: its logits differ by {difference.off:.2g} after the migration, so nothing was written",
            hint="is this the base it was trained on? Name it: base=FOLDER",
        )
    return f"logits equal the source's to {difference.off:.1e}; {require_effect(ours, plain, what=what)}"


def require_effect(ours: Tensor, plain: Tensor, *, what: Path) -> str:
    """Return how far the adapter moves the base's logits, as a sentence. Raises CheckpointError for 0."""
    return f"they differ from the base's by {measure_effect(what, plain, ours):.3g}"


@contextmanager
def as_trained(model: nn.Module, old: OldLora) -> Iterator[None]:
    """Make the base compute W x + scale B A x with the source's factors, without PEFT, while inside."""
    parts = dict(model.named_modules())
    hooks = []
    try:
        for name, factors in read_factors(old.tensors, old.config).items():
            if not isinstance(parts.get(name), nn.Module):
                raise CheckpointError(
                    f"{name}: this base has no such layer", hint="name its own base: base=FOLDER"
                )
            hooks.append(parts[name].register_forward_hook(_update_hook(factors)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _update_hook(factors: Factors) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make the forward hook that adds scale B A x to a linear layer's output."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # in fp32, rounded once at the end
        x = inputs[0].float()
        down, up = (factor.to(x.device) for factor in (factors.a, factors.b))
        return (output.float() + (x @ down.T) @ up.T * factors.scale / factors.divisor).to(output.dtype)

    return add
