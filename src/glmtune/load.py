"""Open a place: a model, a run, an adapter on its base. What was trained is proven on the way."""

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.origin import check_settings, check_template, check_tokenizer, check_tokenizer_files
from glmtune.adapters.probe import encode_probe
from glmtune.adapters.proof import Check, check_tensors, proof_line
from glmtune.adapters.proving import PutOn, proving_files, proving_whole, putting_on
from glmtune.adapters.store import load_adapter
from glmtune.errors import ConfigError
from glmtune.families import identify, require_template
from glmtune.log import tell
from glmtune.models.device import resolve_device
from glmtune.models.dtype import Choice, choose_dtype
from glmtune.models.opening import OPENINGS, open_outline, opening_of
from glmtune.models.quant import held_quant
from glmtune.models.reading import Reading
from glmtune.models.shards import scan_tensors
from glmtune.places import Place, resolve
from glmtune.possible import require_possible
from glmtune.tokenizers import check_fits
from glmtune.tokenizers import load_tokenizer as load_folder_tokenizer


def load_model(
    path: str | Path,
    adapter: str | Path | None = None,
    quant: str | None = None,
    template: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    *,
    revision: str | None = None,
    verify: bool = True,
) -> Any:
    """Open a model, run or adapter, by its folder or its name on a hub, in evaluation mode.

    `adapter` puts an adapter folder on the model at `path`. dtype "auto" is what it was trained in; of a
    model the stored type on a GPU, and on a CPU bf16 for half precision if the processor has it, else fp32
    where memory allows that (`models.dtype.choose_dtype`): the line that tells what was opened says which.
    `quant`, int8, int4 or nf4, quantises the blocks' weights while loading; an adapter trained on such a base
    opens it so by itself. `template` says which chat format a ChatGLM2/3 folder has where its files do not.
    `revision` is that of a `path` on a hub; without it, the hub's main one. What was trained is proven to be
    on its base and to do what it did when it was saved, which costs two short passes; `verify=False` leaves
    that out. Raises `CheckpointError` or `ConfigError`.
    """
    place = resolve(path, revision=revision)
    if adapter is not None:
        if place.adapter:
            raise ConfigError(
                f"{path}: already an adapter; two cannot be combined", hint=f"give its base: {place.base}"
            )
        place = resolve(adapter, base=place.base)
    opened = open_place(place, template=template, dtype=dtype, device=device, quant=quant, verify=verify)
    return opened.eval()


def open_place(
    place: Place,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
    verify: bool = True,
) -> Any:
    """The model of a place, with its adapter on it; quantised as its card says, unless `quant` does.

    `dtype`: as settings have it, or what `choose_type` made of that. With `verify`, what `opening` proves is
    said in one line.
    """
    steps = opening(place, template=template, dtype=dtype, device=device, quant=quant, verify=verify)
    checks: list[Check] = []
    while True:
        try:
            checks.append(next(steps))
        except StopIteration as stop:
            _tell_proof(place, checks, verify=verify)
            return stop.value


def opening(
    place: Place,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None = None,
    verify: bool = True,
) -> Generator[Check, None, Any]:
    """Open a place, yield each thing that is proven, return the model.

    Raises `CheckpointError` for the first thing that is not so.
    """
    if place.card:
        check_template(place.trained, place.card, template)
    if verify:
        yield from _proving_files(place)
    is_sealed = verify and place.adapter is None and bool(place.card and place.card.tensors_sha256)
    reading = Reading(is_hashed=is_sealed)
    model = _open_base(place, reading, template=template, dtype=dtype, device=device, quant=quant)
    if place.card and is_sealed:
        yield check_tensors(place.trained, place.card, reading)
    _warn_of_other_base(place)
    if place.adapter and verify:
        return (yield from putting_on(model, place.adapter, place.card, partial(load_adapter, model)))
    if place.adapter:
        return load_adapter(model, place.adapter)
    if place.card and verify:
        yield from proving_whole(model, place.trained, place.card)
    return model


def proving(model: Any, place: Place, put_on: PutOn) -> Generator[Check, None, Any]:
    """Put a place's adapter on its base, opened as `model`, by `put_on`: as `opening`, which opens it too."""
    assert place.adapter is not None
    yield from _proving_files(place)
    _warn_of_other_base(place)
    return (yield from putting_on(model, place.adapter, place.card, put_on))


def _proving_files(place: Place) -> Iterator[Check]:
    """Nothing of a model that is only a base."""
    if place.adapter or place.card:
        yield from proving_files(place.trained, place.card, place.folder, is_whole=place.adapter is None)


def _warn_of_other_base(place: Place) -> None:
    if place.other_base:
        tell(f"{place.adapter}: warning: {place.other_base}")


def _tell_proof(place: Place, checks: Sequence[Check], *, verify: bool) -> None:
    """What was proven of what was trained, in one line."""
    if not (place.adapter or place.card):
        return
    what = "adapter loaded" if place.adapter else "trained weights loaded"
    said = proof_line(checks) if verify else "not verified (verify=False)"
    tell(f"{place.trained}: {what}: {said}")


def _open_base(
    place: Place,
    reading: Reading,
    *,
    template: str | None,
    dtype: str | torch.dtype | Choice,
    device: str,
    quant: str | None,
) -> Any:
    told_by = "the template setting" if template else "recorded with the adapter"
    known = identify(place.folder, template or place.template, told_by=told_by)
    quant = quant or place.quant
    if quant is not None:
        require_possible(known.family, f"quant={quant}", f"quant: {quant!r}")
    chosen = choose_type(place, dtype, device, quant)
    model: Any = OPENINGS[known.family].load(
        place.folder,
        dtype=chosen.dtype,
        device=device,
        template=known.template,
        quant=quant,
        reading=reading,
    )
    first = next(model.parameters())
    what = f"{known.template or known.family} ({known.rule})"
    held = held_quant(model)
    blocks = f"{held} and " if held else ""
    why = f" ({chosen.why})" if chosen.why else ""
    tell(f"{place.base}: {what}, {blocks}{str(first.dtype).removeprefix('torch.')} on {first.device}{why}")
    if place.snapshot and place.snapshot.name.hub == "hf":
        model.name_or_path = place.snapshot.name.repository  # PEFT writes it down as the adapter's base
    return model


def check_outline(place: Place) -> None:
    """Go the way of every load without a weight: config, names, shapes, an adapter's settings.

    Raises `CheckpointError` for the first thing that a load would refuse.
    """
    model = open_outline(place.folder, identify(place.folder, place.template), scan_tensors(place.folder))
    if place.adapter and place.card:
        check_settings(place.adapter, place.card)
    if place.adapter:
        with torch.random.fork_rng(devices=[]):  # PEFT draws an adapter before it reads it
            load_adapter(model, place.adapter)


def choose_type(
    place: Place, dtype: str | torch.dtype | Choice, device: str | torch.device, quant: str | None = None
) -> Choice:
    """In which type a place's weights are opened, and why: one rule for all who open it.

    Raises `ConfigError` for what cannot be.
    """
    if isinstance(dtype, Choice):
        return dtype
    stored = scan_tensors(place.folder)
    trained = place.card.dtype if place.card else ""
    return choose_dtype(dtype, stored, resolve_device(device), quant=quant or place.quant, trained=trained)


def load_tokenizer(path: str | Path, template: str | None = None, *, revision: str | None = None) -> Any:
    """The tokenizer of a model, run or adapter. Raises `CheckpointError` or `ConfigError`."""
    return _proven_tokenizer(resolve(path, revision=revision), template)


def _proven_tokenizer(place: Place, template: str | None) -> Any:
    """The tokenizer of a place, which encodes as it did in training."""
    if place.card:
        check_template(place.trained, place.card, template)
        check_tokenizer_files(place.trained, place.card, place.folder)
    tokenizer = load_folder_tokenizer(place.folder, template or place.template)
    if place.card and place.card.probe:
        check_tokenizer(place.trained, place.card, encode_probe(tokenizer), tokenizer.stop_ids)
    tokenizer.taught = place.taught
    return tokenizer


def open_tokenizer(place: Place, *, template: str | None) -> Any:
    """The tokenizer of a place, for encoding chats: its template is known, it fits the model, and it encodes
    as it did in training.
    """
    tokenizer = _proven_tokenizer(place, template)
    require_template(tokenizer.template, str(place.base))
    config = opening_of(place.folder).config(place.folder, tokenizer.template)
    check_fits(tokenizer, config.vocab_size, config.eos_token_id, place=str(place.base))
    return tokenizer
