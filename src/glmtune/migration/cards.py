"""The card of a migrated adapter: its base, and the logits of both on the probe."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.adapters.digest import hash_tokenizer, record_digests
from glmtune.adapters.probe import encode_probe, last_logits, take_probe
from glmtune.adapters.proof import name_computing, name_dtype
from glmtune.adapters.store import stored_tensors
from glmtune.errors import CheckpointError
from glmtune.locations import Location
from glmtune.models.fingerprint import fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.tokenizers import read_tokenizer


def start_card(location: Location, template: str, method: dict[str, Any], quant: str | None = None) -> Card:
    """Make the card's part that needs no forward pass."""
    here = fingerprint(location.folder)
    return Card(
        base=location.name,
        base_revision=location.revision,
        template=template,
        method=method,
        quant=quant,
        glmtune_version=version("glmtune"),
        family=here.family,
        family_revision=here.revision,
        fingerprint={"config": here.config, "weights": here.weights},
    )


@dataclass(frozen=True, slots=True)
class Untuned:
    """The base's logits on the probe, and the tokenizer that encoded it."""

    stop_ids: list[int]
    """Tokens that end an answer."""
    tokenizer_sha256: dict[str, str]
    ids: list[int]
    """The probe's tokens."""
    logits: Tensor
    """Logits after the last token of the probe, (V,)."""


def ask_untuned(model: CausalLM, location: Location, template: str) -> Untuned | str:
    """Run the base on the probe; returns a sentence instead if the base has no tokenizer."""
    try:
        tokenizer = read_tokenizer(location.folder, template)
    except CheckpointError as err:
        return f"no tokenizer is with the base ({err}), so no answer to the probe is recorded"
    ids = encode_probe(tokenizer)
    return Untuned(tokenizer.stop_ids, hash_tokenizer(tokenizer), ids, last_logits(model, ids))


def finish_card(card: Card, folder: Path, tuned: CausalLM, untuned: Untuned | str) -> None:
    """Complete the card with the digests of a folder's weights and the probe's logits, and write it there.

    `tuned` is the base with those weights.
    """
    card = record_digests(card, folder, stored_tensors(folder))
    card = replace(card, dtype=name_dtype(tuned), computing=name_computing(tuned))
    if isinstance(untuned, Untuned):
        probe = take_probe(untuned.ids, untuned.logits, last_logits(tuned, untuned.ids))
        card = replace(card, stop_ids=untuned.stop_ids, tokenizer_sha256=untuned.tokenizer_sha256)
        card = replace(card, probe=probe)
    card.save(folder)
