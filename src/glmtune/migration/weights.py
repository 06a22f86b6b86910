"""Migrate adapters and prefixes to adapter folders, written only if the logits stay the same."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from glmtune.adapters.own_weights import TRAINED_FILE, find_trained, save_weights, tell_method
from glmtune.adapters.store import ADAPTER_FILE, CARD_FILE, Card, load_adapter
from glmtune.errors import CheckpointError, ConfigError
from glmtune.families import identify, require_template
from glmtune.files import COPY_AGAIN, is_there, read_json_if_there
from glmtune.folder import ModelFolder
from glmtune.load import load_location
from glmtune.locations import Location, resolve
from glmtune.log import quiet
from glmtune.migration.cards import Untuned, ask_untuned, finish_card, start_card
from glmtune.migration.lora import read_lora
from glmtune.migration.prefix import check_frozen, read_bare
from glmtune.migration.proof import as_trained, probe_logits, prove_same, require_effect
from glmtune.migration.report import Migration
from glmtune.models.computing import computes_in
from glmtune.models.protocol import CausalLM
from glmtune.quants import BITS, name_bits
from glmtune.run_files import make_folder, replacing, require_new
from glmtune.values import shown


def migrate_weights(
    folder: Path, output: Path | None, *, base: str | Path | None = None, template: str | None = None
) -> Migration:
    """Migrate a folder's PEFT adapter or P-Tuning prefix to the new adapter folder `output`.

    Raises CheckpointError for a folder with neither, for weights that do not fit the base, and for logits
    that change; ConfigError if the base or its chat format is unknown.
    """
    if output is None:
        raise ConfigError("output: missing", hint="say where the adapter goes: output=adapters/mine")
    require_new(output, hint="name another: output=FOLDER")
    here = shlex.quote(str(folder))
    if (folder / CARD_FILE).exists():
        raise CheckpointError(
            f"{folder}: an adapter of this program already",
            hint=f"`glmtune info {here}` shows it",
        )
    if (folder / ADAPTER_FILE).exists():
        return _migrate_lora(folder, output, base, template)
    if find_trained(folder) or read_bare(folder):
        return _migrate_prefix(folder, output, base, template)
    is_whole = (folder / "config.json").exists() and ModelFolder(folder).has_weights
    what = "a whole model, which needs no migration" if is_whole else "no script, adapter, prefix or model"
    raise CheckpointError(
        f"{folder}: {what}",
        hint=f"`glmtune chat {here}` talks to it"
        if is_whole
        else f"an adapter has {ADAPTER_FILE}, a P-Tuning checkpoint pytorch_model.bin",
    )


def _migrate_lora(folder: Path, output: Path, base: str | Path | None, template: str | None) -> Migration:
    old = read_lora(folder)
    recorded = old.config.get("base_model_name_or_path")
    location = _find_base(folder, base, recorded)
    card = start_card(location, _chat_format(location, template), old.method())
    mended = list(old.mended)
    if recorded and recorded != card.base:
        mended.append(f"base_model_name_or_path: {recorded} became {card.base}")
    model = load_location(location, template=card.template, dtype="auto", device="auto").eval()
    plain, untuned = probe_logits(model), ask_untuned(model, location, card.template)
    theirs = None
    if old.is_plain:
        # the oracle: the update as a forward hook, before PEFT wraps the model's layers
        with as_trained(model, old):
            theirs = probe_logits(model)
    with _writing(output) as partial:
        config = {
            **old.config,
            "base_model_name_or_path": card.base,
            "revision": None,
            "inference_mode": True,
        }
        text = json.dumps(dict(sorted(config.items())), ensure_ascii=False, indent=2) + "\n"
        (partial / ADAPTER_FILE).write_text(text, encoding="utf-8")
        save_file(old.tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        card.save(partial)
        tuned = load_adapter(model, partial)
        proof = _prove(tuned, folder, theirs, plain)
        finish_card(card, partial, tuned, untuned)
        del model, tuned  # before _require_opens loads another model as large
        _require_opens(partial, location)
    found = [*old.found, *_unrecorded(untuned)]
    return _report_adapter(folder, output, card, [*found, proof], mended, old.lost)


def _migrate_prefix(folder: Path, output: Path, base: str | Path | None, template: str | None) -> Migration:
    config = read_json_if_there(folder / "config.json")
    location = _find_base(folder, base, config.get("_name_or_path"))
    chat_format = _chat_format(location, template)
    found = [check_frozen(folder, location.folder)] if find_trained(folder) == "whole" else []
    # a base that was quantised while loading is quantised again, unless its files hold codes already
    is_base_quantised = bool(location.folder.config.get("quantization_bit"))
    quant = None if is_base_quantised else _quant_of(folder, config)
    found += [f"trained on a base quantised to {quant}, and opened so"] if quant else []
    model = load_location(location, template=chat_format, dtype="auto", device="auto", quant=quant).eval()
    plain, untuned = probe_logits(model), ask_untuned(model, location, chat_format)
    with _writing(output) as partial:
        bare, theirs = read_bare(folder), None
        if bare:
            save_file(bare, partial / TRAINED_FILE, metadata={"format": "pt"})
        else:
            # the base takes the official folder as it is: its logits are the oracle
            load_adapter(model, folder, is_trainable=True)
            save_weights(model, partial)
            theirs = probe_logits(model)
        method = tell_method(partial)
        card = start_card(location, chat_format, method.model_dump(mode="json"), quant)
        card.save(partial)
        tuned = load_adapter(model, partial)
        proof = _prove(tuned, folder, theirs, plain)
        finish_card(card, partial, tuned, untuned)
        del model, tuned  # before _require_opens loads another model as large
        _require_opens(partial, location)
    found += _unrecorded(untuned)
    projection = " with projection" if method.projection else ""
    what = f"P-Tuning v2, {method.num_prefix_tokens} prefix tokens{projection}"
    return _report_adapter(folder, output, card, [what, *found, proof], [], {})


def _quant_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the quantisation that a config.json records. Raises CheckpointError for bits but 4 and 8."""
    bits = config.get("quantization_bit")
    if bits in (None, 0):
        return None
    if bits not in BITS.values():
        raise CheckpointError(
            f"{folder / 'config.json'}: quantization_bit: {shown(bits)}, known are 4 and 8", hint=COPY_AGAIN
        )
    return name_bits(bits)


def _find_base(folder: Path, base: str | Path | None, recorded: object) -> Location:
    """Resolve the base: the one given, else the one that the folder records, if that is here."""
    theirs = Path(recorded) if isinstance(recorded, str) and recorded else folder
    if base is None and (theirs == folder or not is_there(theirs) or not theirs.is_dir()):
        raise ConfigError(
            f"{folder}: its base model is not at {recorded or '(no place recorded)'}",
            hint="name its folder, or its name on a hub: base=...",
        )
    location = resolve(base or str(recorded))
    if location.adapter:
        raise ConfigError(f"{base}: an adapter, not a base model", hint=f"its base: base={location.base}")
    return location


def _chat_format(location: Location, template: str | None) -> str:
    """Return the base's chat format. Raises ConfigError if its folder does not tell and none is given."""
    return require_template(identify(location.folder, template).template, location.name)


def _require_opens(folder: Path, location: Location) -> None:
    """Load the written adapter as every later load will. Raises CheckpointError if that is refused."""
    with quiet():
        load_location(resolve(folder, base=location.base), template=None, dtype="auto", device="auto")


@contextmanager
def _writing(output: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `output` once all in it is written and proven; removed on an error."""
    make_folder(output.parent)
    with replacing(output) as partial:
        partial.mkdir()
        yield partial


def _unrecorded(untuned: Untuned | str) -> list[str]:
    return [untuned] if isinstance(untuned, str) else []


def _prove(tuned: CausalLM, source: Path, theirs: Tensor | None, plain: Tensor) -> str:
    """Compare the written adapter's logits with `theirs`; without them, check that it changes the base."""
    ours = probe_logits(tuned)
    if theirs is None:
        return f"{require_effect(ours, plain, what=source)}; nothing here computes the source's to compare"
    return prove_same(theirs, ours, plain, dtype=computes_in(tuned), what=source)


def _report_adapter(
    source: Path, output: Path, card: Card, found: list[str], mended: list[str], lost: dict[str, str]
) -> Migration:
    # the HF Trainer's record lies beside the weights
    state = read_json_if_there(source / "trainer_state.json")
    losses = [line["loss"] for line in state.get("log_history") or [] if "loss" in line]
    loss = f", its last loss {losses[-1]}" if losses else ""
    step = state.get("global_step")
    training = [f"step {step} of its training{loss}"] if step is not None else []
    base = f"base {card.base}, chat format {card.template}"
    return Migration(
        source=str(source),
        found=[*found[:-1], *training, base, found[-1]],
        made=output,
        mended=mended,
        lost=lost,
        next=[f"glmtune chat {shlex.quote(str(output))}", f"glmtune info {shlex.quote(str(output))}"],
    )
