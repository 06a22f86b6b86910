"""What is proven while something trained is opened, in the order in which it is."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from glmtune.adapters.card import Card
from glmtune.adapters.origin import (
    check_base,
    check_settings,
    check_tokenizer_files,
    check_whole,
    find_changed,
    tell_changed,
)
from glmtune.adapters.probe import last_logits, plain_probe
from glmtune.adapters.proof import (
    Check,
    check_difference,
    check_logits,
    check_probe,
    check_recorded,
    check_update,
    own_weights,
)
from glmtune.adapters.store import Tensors, stored_tensors
from glmtune.folder import ModelFolder
from glmtune.models.protocol import CausalLM
from glmtune.recipe.method import TrainedPart

PutOn = Callable[[Path, Tensors], Any]
"""Puts an adapter's folder, with the tensors that its files hold, on a base; gives the tuned model."""


def proving_files(trained: Path, card: Card | None, base: ModelFolder, *, is_whole: bool) -> Iterator[Check]:
    """What is proven of the files before a model is opened; of a whole model `base` is its own folder."""
    yield from check_recorded(card)
    if card is None:
        return
    if card.fingerprint:
        check = check_whole if is_whole else check_base
        yield check(trained, card, base)
    check_tokenizer_files(trained, card, base)
    # what a run goes on with is not read here; of a whole model's weights each tensor is compared
    unread = (".pt", ".safetensors") if card.tensors_sha256 else (".pt",)
    tell_changed(trained, find_changed(trained, card, unread=unread))


def putting_on(base: Any, adapter: Path, card: Card | None, put_on: PutOn) -> Generator[Check, None, Any]:
    """Put an adapter on its base by `put_on`, yield each thing that is proven, return the tuned model."""
    if card:
        check_settings(adapter, card)
    tensors = stored_tensors(adapter)
    probe = card.probe if card else None
    if probe:
        check_probe(adapter, probe, base)
    ids = probe.input_ids if probe else plain_probe(base.config)
    replaced = own_weights(base, tensors) if card and card.kept is TrainedPart.WEIGHTS else {}
    before = last_logits(base, ids)
    tuned = put_on(adapter, tensors)
    yield check_update(adapter, tensors, card, replaced)
    after = last_logits(tuned, ids)
    if card and probe:
        yield check_logits(adapter, card, tuned, base=before, tuned=after)
    else:
        yield check_difference(adapter, before, after)
    return tuned


def proving_whole(model: CausalLM, folder: Path, card: Card) -> Iterator[Check]:
    """What is proven of a whole model that is open."""
    if card.probe:
        check_probe(folder, card.probe, model)
        answer = last_logits(model, card.probe.input_ids)
        yield check_logits(folder, card, model, base=None, tuned=answer)
