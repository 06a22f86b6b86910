"""Proof that an adapter is on its base and does what it did when it was saved.

Every check gives its figures, or raises a `CheckpointError` of one sentence and a hint.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.adapters.card import CARD_FILE, Card, Probe
from glmtune.adapters.digest import (
    ADAPTER_FILE,
    deciding_settings,
    hash_weights,
    norm_of,
    update_norm,
)
from glmtune.adapters.same import OTHER_TYPE, REQUANTISED, SAME, Distance, compare_logits, largest_difference
from glmtune.errors import CheckpointError
from glmtune.files import hash_file
from glmtune.folder import ModelFolder
from glmtune.log import tell
from glmtune.models.fingerprint import Fingerprint, fingerprint
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading, require_finite
from glmtune.quants import name_bits
from glmtune.recipe import Kept
from glmtune.runs import going_on

SAME_NORM = 1e-5
"""Share by which the length of a stored update may differ, summed in another order."""

_WHOLE_FOLDER = "take the whole folder from a copy, or train anew"
_ITS_BASE = "name the base it was trained on: base=FOLDER, or in Python load_model(base, adapter=...)"
_ITS_TOKENIZER = "take the tokenizer's files from the base it was trained on"
_OTHER_FILES = "take the whole folder from the run it came from; see what is wrong: `glmtune verify FOLDER`"
_ANEW = "train anew, with a higher rate (train.lr=...) or for more steps (train.steps=...)"


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
    is_whole = card is not None and card.kept is Kept.MODEL
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


# Which files


FOR_PEOPLE = "README.md"
"""PEFT writes it beside an adapter, and nobody but people reads it: they may change it."""


def find_changed(folder: Path, card: Card, *, unread: tuple[str, ...] = ()) -> list[str]:
    """Names of the files that are there and no longer as the card records them; not those that end so."""
    return [
        name
        for name, digest in card.files.items()
        if not name.endswith(unread) and (folder / name).is_file() and hash_file(folder / name) != digest
    ]


def tell_changed(folder: Path, changed: Sequence[str]) -> None:
    """Name files that are not as they were saved, and that nothing else refuses: they may be edited."""
    if changed:
        tell(f"{folder}: warning: changed since it was saved: {', '.join(changed)}")


def check_files(folder: Path, card: Card) -> Check:
    """Every file that is there is as it was saved; what is passed on needs not all of them."""
    _require_none(folder, find_changed(folder, card, unread=(FOR_PEOPLE,)))
    there = sum((folder / name).is_file() for name in card.files)
    return Check("files", f"{there} beside the card, as they were saved")


def require_files(folder: Path, card: Card) -> None:
    """Raise `CheckpointError` unless every file that a card records is there and as it was saved."""
    missing = [name for name in card.files if name != FOR_PEOPLE and not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: is missing", hint=_WHOLE_FOLDER)
    changed = find_changed(folder, card)
    _require_none(folder, [name for name in changed if name != FOR_PEOPLE])
    tell_changed(folder, changed)


def _require_none(folder: Path, changed: Sequence[str]) -> None:
    for name in changed:
        problem = "is not as it was saved: its hash is not the card's"
        is_state = all(other.endswith(".pt") for other in changed)
        raise CheckpointError(
            f"{folder / name}: {problem}", hint=going_on(folder) if is_state else _WHOLE_FOLDER
        )


# Which base


def check_base(folder: Path, card: Card, base: ModelFolder) -> Check:
    """The base is the one that was trained, wherever it lies now. The card has its fingerprint."""
    here = fingerprint(base)
    problem = _other_base(card, here, base)
    if problem:
        raise CheckpointError(f"{folder}: {problem}", hint=_ITS_BASE)
    return Check("base", f"{here.kind}, fingerprint {here.weights[:12]}, as recorded")


def _other_base(card: Card, here: Fingerprint, base: ModelFolder) -> str:
    if here.kind != card.kind:
        return f"trained on {card.kind}, but {base} is {here.kind}"
    assert card.fingerprint is not None
    config = card.fingerprint["config"]
    odd = here.find_odd_key(config)
    if odd:
        before, now = config.get(odd), here.config.get(odd)
        return f"trained on a base whose {odd} is {before}, but {base} has {now}"
    weights = card.fingerprint["weights"]
    if weights != here.weights:
        return (
            f"trained on other weights than those in {base}: fingerprint {weights[:12]}, "
            f"there it is {here.weights[:12]}"
        )
    return ""


def check_whole(folder: Path, card: Card, whole: ModelFolder) -> Check:
    """A whole model that was trained is no longer its base. The card has the base's fingerprint."""
    assert card.fingerprint is not None
    here = fingerprint(whole)
    if here.weights == card.fingerprint["weights"]:
        raise CheckpointError(f"{folder}: nothing was learned: its weights are its base's", hint=_ANEW)
    return Check(
        "update", f"fingerprint {here.weights[:12]}, its base's is {card.fingerprint['weights'][:12]}"
    )


def check_tensors(folder: Path, card: Card, reading: Reading) -> Check:
    """Every tensor of a whole model that was read is the one that was saved. The card has their hash."""
    require_hash(folder, reading.digest(), card.tensors_sha256, hint=_OTHER_FILES)
    return Check("weights", f"hash {card.tensors_sha256[:12]}, as recorded")


def require_hash(folder: Path, found: str, recorded: str, *, hint: str) -> None:
    """Raise `CheckpointError` unless weights have the recorded hash."""
    if found != recorded:
        raise CheckpointError(
            f"{folder}: not the weights that were saved: their hash is {found[:12]}, recorded is "
            f"{recorded[:12]}",
            hint=hint,
        )


# Which tokenizer and template


def check_template(folder: Path, card: Card, template: str | None) -> None:
    """Nothing else than the chat format it was trained with is asked for."""
    if template is not None and template != card.template:
        raise CheckpointError(
            f"{folder}: trained with the chat format {card.template}, not with {template}",
            hint="leave template out",
        )


def check_tokenizer(folder: Path, card: Card, input_ids: list[int], stop_ids: list[int]) -> Check:
    """Tokenizer and template give the probe's ids and the stop ids that they gave in training.

    The card has a probe.
    """
    assert card.probe is not None
    for what, before, now in (
        ("encodes the probe", list(card.probe.input_ids), input_ids),
        ("stops", list(card.stop_ids), stop_ids),
    ):
        if before != now:
            raise CheckpointError(
                f"{folder}: trained with another tokenizer or template: this one {what} with "
                f"{_first_odd(before, now)}",
                hint=_ITS_TOKENIZER,
            )
    return Check("tokenizer", f"the probe's {len(input_ids)} ids and stop ids {stop_ids}, as recorded")


def check_tokenizer_files(folder: Path, card: Card, base: ModelFolder) -> None:
    """The tokenizer's files beside the base, where it has them, are those of training, to the last byte."""
    for name, before in card.tokenizer_sha256.items():
        now = base.hash(name) or before
        if now != before:
            raise CheckpointError(
                f"{base.path / name}: not the tokenizer's file of training: its hash is {now[:12]}, in "
                f"{folder} it is {before[:12]}",
                hint=_ITS_TOKENIZER,
            )


def _first_odd(before: list[int], now: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
    if at is None:
        return f"{len(now)} ids, recorded are {len(before)}"
    return f"id {now[at]} at place {at + 1}, recorded is {before[at]}"


# Its files


def check_settings(folder: Path, card: Card) -> None:
    """PEFT's file beside the weights has the settings that it was saved with, where they were recorded."""
    recorded, now = card.adapter_config, deciding_settings(folder)
    for key in sorted(recorded.keys() | now.keys()) if recorded else ():
        if recorded.get(key) != now.get(key):
            before, found = (json.dumps(settings.get(key)) for settings in (recorded, now))
            raise CheckpointError(
                f"{folder / ADAPTER_FILE}: {key} is {found}, recorded is {before}", hint=_OTHER_FILES
            )


# What they change


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
        raise CheckpointError(f"{folder}: changes nothing: {what}", hint=_ANEW)
    other = _other_weights(tensors, card, norm) if card else ""
    if other:
        raise CheckpointError(
            f"{folder}: these are not the weights that were saved: {other}", hint=_OTHER_FILES
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


def allowed_share(card: Card, model: Any) -> float:
    """How far the probe's logits may be off, as a share of the largest."""
    rounding = SAME[model.dtype] if name_dtype(model) == card.dtype else OTHER_TYPE
    before, now = _saved_quant(card), held_quant(model)
    return rounding if before == now else rounding + max(REQUANTISED[before], REQUANTISED[now])


def name_dtype(model: Any) -> str:
    """The type that the model computes in, by torch's name."""
    return str(model.dtype).removeprefix("torch.")


def check_probe(folder: Path, probe: Probe, model: Any) -> None:
    """The probe's tokens are of the model's vocabulary."""
    size = model.config.vocab_size
    for token in (*probe.input_ids, *probe.tokens):
        if token >= size:
            raise CheckpointError(
                f"{folder / CARD_FILE}: probe: token {token}, but this model has {size:,}", hint=_OTHER_FILES
            )


def check_logits(folder: Path, card: Card, model: Any, *, base: Tensor | None, tuned: Tensor) -> Check:
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
                hint=_OTHER_FILES,
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
            f"{folder}: changes nothing: the base's logits are the same without it", hint=_ANEW
        )
    return effect


def _saved_quant(card: Card) -> str | None:
    """How the blocks were held, quantised while loading or by who published them."""
    bits = card.fingerprint["config"].get("quantization_bit") if card.fingerprint else None
    return card.quant or (name_bits(bits) if bits else None)
