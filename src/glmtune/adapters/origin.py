"""Proof that what was trained lies on what it came from: its files, its base, its tokenizer, its settings.

Every check gives its figures, or raises a `CheckpointError` of one sentence and a hint.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from glmtune.adapters.card import Card
from glmtune.adapters.digest import ADAPTER_FILE, deciding_settings
from glmtune.adapters.proof import ANEW, OTHER_FILES, Check
from glmtune.errors import CheckpointError
from glmtune.files import hash_file
from glmtune.folder import ModelFolder
from glmtune.log import tell
from glmtune.models.fingerprint import Fingerprint, fingerprint
from glmtune.run_files import train_on_hint

_WHOLE_FOLDER = "take the whole folder from a copy, or train anew"
_ITS_BASE = "name the base it was trained on: base=FOLDER, or in Python load_model(base, adapter=...)"
_ITS_TOKENIZER = "take the tokenizer's files from the base it was trained on"


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
            f"{folder / name}: {problem}", hint=train_on_hint(folder) if is_state else _WHOLE_FOLDER
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
        raise CheckpointError(f"{folder}: nothing was learned: its weights are its base's", hint=ANEW)
    return Check(
        "update", f"fingerprint {here.weights[:12]}, its base's is {card.fingerprint['weights'][:12]}"
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
                f"{folder / ADAPTER_FILE}: {key} is {found}, recorded is {before}", hint=OTHER_FILES
            )
