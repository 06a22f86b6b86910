"""Proof that what was trained is what was saved, and does what it did then.

Every check gives its figures, or raises a `CheckpointError` of one sentence and a hint.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path

import torch
from torch import Tensor, nn

from glmtune.adapters.card import CARD_FILE, Card, Probe
from glmtune.adapters.digest import (
    hash_weights,
    norm_of,
    update_norm,
)
from glmtune.adapters.logit_tolerance import (
    OTHER_TYPE,
    REQUANTISED,
    SAME,
    Distance,
    compare_logits,
    largest_difference,
)
from glmtune.errors import CheckpointError
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading, require_finite
from glmtune.quants import name_bits
from glmtune.recipe.method import TrainedPart

SAME_NORM = 1e-5
"""Share by which the length of a stored update may differ, summed in another order."""

OTHER_FILES = "take the whole folder from the run it came from; see what is wrong: `glmtune verify FOLDER`"
ANEW = "train anew, with a higher rate (train.lr=...) or for more steps (train.steps=...)"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was proven, or, named `unproven`, all that could not be."""

    name: str
    found: str
    """What was found, with its figures."""
    proves_effect: bool = True
    """Whether an adapter without effect would have failed; not where more is allowed than it changes."""

    is_proven: bool = True
    """False where nothing was recorded that it could be compared with."""


def check_recorded(card: Card | None) -> Iterator[Check]:
    """What cannot be proven: PEFT and the official scripts record nothing, earlier versions not all of it."""
    is_whole = card is not None and card.kept is TrainedPart.MODEL
    has = {
        "its base": card and card.fingerprint,
        "its weights": card and (card.tensors_sha256 if is_whole else card.weights_sha256),
        "its answers": card and card.probe,
    }
    missing = [what for what, recorded in has.items() if not recorded]
    if missing:
        yield Check("unproven", ", ".join(missing), is_proven=False)


def proof_line(checks: Iterable[Check]) -> str:
    """What was proven of the effect and what was not at all, short enough for one line."""
    checks = list(checks)
    found = [check.found for check in checks if check.name in ("update", "logits")]
    unproven = [check.found for check in checks if not check.is_proven]
    return "; ".join(
        [*found, *(f"not proven, since nothing of it was recorded: {what}" for what in unproven)]
    )


# Its weights, and what they change


def check_tensors(folder: Path, card: Card, reading: Reading) -> Check:
    """Every tensor of a whole model that was read is the one that was saved. The card has their hash."""
    require_hash(folder, reading.digest(), card.tensors_sha256, hint=OTHER_FILES)
    return Check("weights", f"hash {card.tensors_sha256[:12]}, as recorded")


def require_hash(folder: Path, found: str, recorded: str, *, hint: str) -> None:
    """Raise `CheckpointError` unless weights have the recorded hash."""
    if found != recorded:
        raise CheckpointError(
            f"{folder}: not the weights that were saved: their hash is {found[:12]}, recorded is "
            f"{recorded[:12]}",
            hint=hint,
        )


def check_update(
    folder: Path, tensors: Mapping[str, Tensor], card: Card | None, replaced: Mapping[str, Tensor]
) -> Check:
    """The stored update is not zero, and is the recorded one to the last bit.

    `replaced`: of the base's own weights those that it stands for.
    """
    for name, tensor in tensors.items():
        require_finite(folder, name, tensor)
    norm = update_norm(tensors)
    length = norm_of(_moves(tensors, replaced)) if replaced else norm
    if not length:
        what = "its weights are its base's" if replaced else "its update is zero everywhere"
        raise CheckpointError(f"{folder}: changes nothing: {what}", hint=ANEW)
    other = _other_weights(tensors, card, norm) if card else ""
    if other:
        raise CheckpointError(
            f"{folder}: these are not the weights that were saved: {other}", hint=OTHER_FILES
        )
    said = ", as recorded" if card and card.weights_sha256 else ""
    return Check("update", f"{len(tensors)} tensors, {_count(tensors):,} numbers, length {length:.4g}{said}")


def _other_weights(tensors: Mapping[str, Tensor], card: Card, norm: float) -> str:
    if card.norm is not None and abs(norm - card.norm) > SAME_NORM * card.norm:
        return f"their length is {norm:.6g}, recorded is {card.norm:.6g}"
    found = hash_weights(tensors) if card.weights_sha256 else ""
    if found != card.weights_sha256:
        return f"their hash is {found[:12]}, recorded is {card.weights_sha256[:12]}"
    return ""


def own_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of the model's own weights of these names, of those that it has."""
    own = dict(model.named_parameters())
    return {name: own[name].detach().clone() for name in names if name in own}


def _moves(tensors: Mapping[str, Tensor], replaced: Mapping[str, Tensor]) -> list[Tensor]:
    """How far each weight is from the base's, in the type that it is opened in."""
    pairs = ((tensors[name].to(old.device, old.dtype), old) for name, old in replaced.items())
    return [new.float() - old.float() for new, old in pairs]


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors.values())


# What comes out


def allowed_share(card: Card, model: CausalLM) -> float:
    """How far the probe's logits may be off, as a share of the largest."""
    rounding = SAME[model.dtype] if name_dtype(model) == card.dtype else OTHER_TYPE
    before, now = _saved_quant(card), held_quant(model)
    return rounding if before == now else rounding + max(REQUANTISED[before], REQUANTISED[now])


def name_dtype(model: CausalLM) -> str:
    """The type that the model computes in, by torch's name."""
    return str(model.dtype).removeprefix("torch.")


def check_probe(folder: Path, probe: Probe, model: CausalLM) -> None:
    """The probe's tokens are of the model's vocabulary."""
    size = model.config.vocab_size
    for token in (*probe.input_ids, *probe.tokens):
        if token >= size:
            raise CheckpointError(
                f"{folder / CARD_FILE}: probe: token {token}, but this model has {size:,}", hint=OTHER_FILES
            )


def check_logits(folder: Path, card: Card, model: CausalLM, *, base: Tensor | None, tuned: Tensor) -> Check:
    """The probe's logits (V,) are the recorded ones, without the adapter (where that can be) and with it.

    The card has a probe.
    """
    probe = card.probe
    assert probe is not None
    share, largest = allowed_share(card, model), max(map(abs, (*probe.base, *probe.tuned)))

    def measure(now: Tensor, recorded: Sequence[float], who: str) -> Distance:
        found = compare_logits([now[probe.tokens]], [torch.tensor(recorded)], share, largest)
        if not found.is_allowed:
            raise CheckpointError(
                f"{folder}: {who} answers the probe with logits off by {found.off:.3g} from those recorded "
                f"in training, allowed is {found.allowed:.2g}",
                hint=OTHER_FILES,
            )
        return found

    if base is not None:
        measure(base, probe.base, "its base, without it,")
    found = measure(tuned, probe.tuned, "the tuned model")
    held, saved = held_quant(model) or name_dtype(model), _saved_quant(card) or card.dtype
    difference = recorded_difference(probe)
    is_told = found.allowed < difference
    note = "" if is_told else ", which this precision cannot tell from rounding"
    return Check(
        "logits",
        f"as recorded: off by {found.off:.2g}, allowed {found.allowed:.2g} ({held}, saved in {saved}); "
        f"different from the base's by {difference:.3g}{note}",
        proves_effect=is_told,
    )


def recorded_difference(probe: Probe) -> float:
    """The largest difference of the tuned model's recorded logits from the base's."""
    return max(abs(a - b) for a, b in zip(probe.base, probe.tuned, strict=True))


def check_difference(folder: Path, base: Tensor, tuned: Tensor) -> Check:
    """An adapter that nothing was recorded of answers the probe in another way than its base (V,)."""
    effect = measure_effect(folder, base, tuned)
    return Check("logits", f"nothing recorded; different from the base's by {effect:.3g}")


def measure_effect(folder: Path, base: Tensor, tuned: Tensor) -> float:
    """How far an adapter changes its base's logits. Raises `CheckpointError` for nothing, or no number."""
    effect = largest_difference(tuned, base)
    if not isfinite(effect):
        who = "with it the logits" if base.isfinite().all() else "the base's own logits"
        raise CheckpointError(
            f"{folder}: {who} are not finite", hint="open it in a wider type: dtype=fp32; or it is damaged"
        )
    if not effect:
        raise CheckpointError(
            f"{folder}: changes nothing: the base's logits are the same without it", hint=ANEW
        )
    return effect


def _saved_quant(card: Card) -> str | None:
    """How the blocks were held, quantised while loading or by who published them."""
    bits = card.fingerprint["config"].get("quantization_bit") if card.fingerprint else None
    return card.quant or (name_bits(bits) if bits else None)
