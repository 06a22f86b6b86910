"""Checks that loaded weights are the saved ones and give the recorded logits.

Each check returns its figures, or raises a `CheckpointError` of one sentence with a hint.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

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
from glmtune.models.computing import computes_in
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading, require_finite
from glmtune.quants import QUANTS, name_bits
from glmtune.recipe.method import TrainedPart

SAME_NORM = 1e-5
"""Relative difference allowed between two lengths of an update, which may be summed in another order."""

OTHER_FILES = "take the whole folder from the run it came from; see what is wrong: `glmtune verify FOLDER`"
ANEW = "train anew, with a higher rate (train.lr=...) or for more steps (train.steps=...)"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, or, named `unproven`, a list of facts that could not be checked."""

    name: str
    found: str
    """Result and figures, as messages show them."""
    proves_effect: bool = True
    """True if an adapter without effect would fail; False if the tolerance exceeds the adapter's effect."""

    is_proven: bool = True
    """False if nothing was recorded to compare with."""


def check_recorded(card: Card | None) -> Iterator[Check]:
    """Yield an `unproven` check if a proof is missing: PEFT and the official scripts record none."""
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
    """Summarise checks in one line: the proven effect of the weights, and the facts left unproven."""
    checks = list(checks)
    proven = [check.found for check in checks if check.name in ("update", "logits")]
    unproven = [check.found for check in checks if not check.is_proven]
    return "; ".join(
        [*proven, *(f"not proven, since nothing of it was recorded: {what}" for what in unproven)]
    )


# The weights, and their change of the base


def check_tensors(folder: Path, card: Card, reading: Reading) -> Check:
    """Check that the tensors read from a whole model have the hash on the card, which must have one."""
    require_hash(folder, reading.digest(), card.tensors_sha256, hint=OTHER_FILES)
    return Check("weights", f"hash {card.tensors_sha256[:12]}, as recorded")


def require_hash(folder: Path, digest: str, recorded: str, *, hint: str) -> None:
    """Raise `CheckpointError` unless weights have the recorded hash."""
    if digest != recorded:
        raise CheckpointError(
            f"{folder}: not the weights that were saved: their hash is {digest[:12]}, recorded is "
            f"{recorded[:12]}",
            hint=hint,
        )


def check_update(
    folder: Path, tensors: Mapping[str, Tensor], card: Card | None, replaced: Mapping[str, Tensor]
) -> Check:
    """Check that the stored update is finite, not zero, and equal to the recorded one to the last bit.

    `replaced` has the base's own weights that the update replaces, empty for an adapter.
    """
    for name, tensor in tensors.items():
        require_finite(folder, name, tensor)
    length = norm = update_norm(tensors)
    if replaced:
        # in the type the base computes in: training that only moves digits rounded away changes nothing
        pairs = ((tensors[name].to(old.device, old.dtype), old) for name, old in replaced.items())
        length = norm_of([new.float() - old.float() for new, old in pairs])
    if not length:
        what = "its weights are its base's" if replaced else "its update is zero everywhere"
        raise CheckpointError(f"{folder}: changes nothing: {what}", hint=ANEW)
    difference = ""
    if card and card.norm is not None and abs(norm - card.norm) > SAME_NORM * card.norm:
        difference = f"their length is {norm:.6g}, recorded is {card.norm:.6g}"
    elif card and card.weights_sha256 and (digest := hash_weights(tensors)) != card.weights_sha256:
        difference = f"their hash is {digest[:12]}, recorded is {card.weights_sha256[:12]}"
    if difference:
        raise CheckpointError(
            f"{folder}: these are not the weights that were saved: {difference}", hint=OTHER_FILES
        )
    note = ", as recorded" if card and card.weights_sha256 else ""
    count = sum(prod(tensor.shape) for tensor in tensors.values())
    number = f"{len(tensors)} tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"
    return Check("update", f"{number}, {count:,} numbers, length {length:.4g}{note}")


def copy_own_weights(model: CausalLM, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the model's own weights of these names, in the type that it computes in.

    Names that it does not have are left out.
    """
    own, computing = dict(model.named_parameters()), computes_in(model)
    return {name: own[name].detach().to(computing, copy=True) for name in names if name in own}


# The logits


def allowed_share(card: Card, model: CausalLM) -> float:
    """Return the allowed difference of the probe's logits, as a share of the largest logit."""
    recorded = (card.dtype, card.computing or card.dtype)
    if (name_dtype(model), name_computing(model)) == recorded:
        rounding = SAME[computes_in(model)]
    else:
        rounding = max(OTHER_TYPE[computes_in(model)], OTHER_TYPE[getattr(torch, recorded[1])])
    before, now = _saved_quant(card), held_quant(model)
    return rounding if before == now else rounding + max(REQUANTISED[before], REQUANTISED[now])


def name_dtype(model: CausalLM) -> str:
    """Return torch's name of the type that the model's weights are held in, such as `bfloat16`."""
    return str(model.dtype).removeprefix("torch.")


def name_computing(model: CausalLM) -> str:
    """Return torch's name of the type that the model computes in."""
    return str(computes_in(model)).removeprefix("torch.")


def check_probe(folder: Path, probe: Probe, model: CausalLM) -> None:
    """Raise `CheckpointError` if a token of the probe is not in the model's vocabulary."""
    size = model.config.vocab_size
    for token in (*probe.input_ids, *probe.tokens):
        if token >= size:
            raise CheckpointError(
                f"{folder / CARD_FILE}: probe: token {token}, but this model has {size:,}", hint=OTHER_FILES
            )


def check_logits(folder: Path, card: Card, model: CausalLM, *, base: Tensor | None, tuned: Tensor) -> Check:
    """Check that the logits (V,) of the probe are the recorded ones, with the adapter and without it.

    `base` is None if the base is not at hand. The card must have a probe.
    """
    probe = card.probe
    assert probe is not None
    share, largest = allowed_share(card, model), max(map(abs, (*probe.base, *probe.tuned)))

    def measure(now: Tensor, recorded: Sequence[float], who: str) -> Distance:
        measured = compare_logits([now[probe.tokens]], [torch.tensor(recorded)], share, largest)
        if not measured.is_allowed:
            raise CheckpointError(
                f"{folder}: {who} answers the probe with logits off by {measured.off:.3g} from those "
                f"recorded in training, allowed is {measured.allowed:.2g}",
                hint=OTHER_FILES,
            )
        return measured

    # the base first: if it is off too, the base is at fault and not the adapter
    if base is not None:
        measure(base, probe.base, "its base, without it,")
    measured = measure(tuned, probe.tuned, "the tuned model")
    loaded_in = _name_types(held_quant(model) or name_dtype(model), name_computing(model))
    saved_in = _name_types(_saved_quant(card) or card.dtype, card.computing)
    effect = recorded_difference(probe)
    # within the tolerance, the base's own logits would pass for the tuned model's
    proves_effect = measured.allowed < effect
    note = "" if proves_effect else ", which this precision cannot tell from rounding"
    return Check(
        "logits",
        f"as recorded: off by {measured.off:.2g}, allowed {measured.allowed:.2g} ({loaded_in}, saved in "
        f"{saved_in}); different from the base's by {effect:.3g}{note}",
        proves_effect=proves_effect,
    )


def recorded_difference(probe: Probe) -> float:
    """Return the largest difference of the tuned model's recorded logits from its base's."""
    return max(abs(a - b) for a, b in zip(probe.base, probe.tuned, strict=True))


def check_difference(folder: Path, base: Tensor, tuned: Tensor) -> Check:
    """Check that an adapter without a card changes the base's logits (V,) of the probe."""
    effect = measure_effect(folder, base, tuned)
    return Check("logits", f"nothing recorded; different from the base's by {effect:.3g}")


def measure_effect(folder: Path, base: Tensor, tuned: Tensor) -> float:
    """Return the largest change of the base's logits by an adapter. Raises `CheckpointError` for 0 or nan."""
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


def _name_types(held: str, computing: str) -> str:
    """Return how a message names the types of a model: `bfloat16`, or `bfloat16 computed in float32`."""
    return held if computing in ("", held) or held in QUANTS else f"{held} computed in {computing}"


def _saved_quant(card: Card) -> str | None:
    """Return the quantisation of the layers when saved, chosen while loading or by the base's publisher."""
    bits = card.fingerprint["config"].get("quantization_bit") if card.fingerprint else None
    return card.quant or (name_bits(bits) if bits else None)
