"""Inspect a model, run or adapter in seconds, from file names, headers and small files alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.store import load_adapter, own_method, stored_shapes
from glmtune.errors import GlmtuneError
from glmtune.families import FAMILIES, Identity, context_of, identify, identify_family
from glmtune.folder import ModelFolder
from glmtune.locations import Location, resolve
from glmtune.methods import apply_method, trainable_line
from glmtune.models.config_checks import refuse_quantised
from glmtune.models.dtype import main_dtype
from glmtune.models.loaders import FAMILY_LOADERS, outline_of_folder
from glmtune.models.outline import (
    Parameter,
    Part,
    count_parts,
    find_layers,
    list_parameters,
    list_stored,
    stored_name,
)
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import name_linears
from glmtune.models.shards import Stored, scan_tensors
from glmtune.quants import BITS
from glmtune.recipe import Method
from glmtune.tokenizers import check_fits, read_identified_tokenizer

PEFT_KEYS: tuple[str, ...] = ("peft_type", "r", "lora_alpha", "target_modules")
"""Keys of adapter_config.json shown for an adapter that glmtune did not write."""
CARD_RULE = "the format it was trained with, in its glmtune.json"
"""The `Info.template_rule` of an adapter or run with a card."""


@dataclass(frozen=True, slots=True)
class StopToken:
    """A token that ends an answer."""

    id: int
    text: str
    """Empty if there is no tokenizer or no chat format."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Facts about a folder's tokenizer."""

    kind: str
    """Name of its class."""
    vocab_size: int
    num_tokens: int
    """Number of tokens, control tokens included."""
    padding_side: str


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Facts about a run or adapter, from its card or adapter_config.json."""

    folder: Path
    base: str
    """The base model as recorded; empty if it is not recorded."""
    parent: str
    """Folder of the run or adapter that training went on from; empty if it began from a base model."""
    method: dict[str, Any]
    """The method's name and settings; PEFT's own keys for an adapter that glmtune did not write."""
    quant: str | None
    """Quantisation of the base when it is loaded: int8, int4, nf4 or None."""
    system: str | None
    source_prefix: str
    glmtune_version: str
    num_trained: int | None
    """Numbers in the adapter's file; None if the whole model was trained, or the file cannot be read."""
    layers: tuple[int, ...]
    """Indices of the layers with trained parameters."""
    ranks: tuple[int, ...]
    """Rank of each LoRA or AdaLoRA target; AdaLoRA's differ."""


@dataclass(frozen=True, slots=True)
class Info:
    """Facts about the model, run or adapter at a path."""

    path: str
    kind: str
    """`model`, `run` or `adapter`."""
    folder: Path
    """The model's folder; for an adapter, its base's."""
    name: str
    revision: str | None
    """Revision on the hub, if the model came from one."""
    family: str
    family_revision: str
    family_rule: str
    template: str | None
    template_rule: str
    context: int | None
    """Longest context in tokens."""
    context_key: str
    """The key of config.json that says so."""
    stop_tokens: tuple[StopToken, ...]
    tokenizer: TokenizerFacts | None
    tokenizer_problem: str
    """The reason why there is no tokenizer; empty if there is one."""
    num_rows: int | None
    """Rows of the embedding: the number of tokens that the model knows."""
    has_weights: bool
    weight_files: tuple[str, ...]
    """Names of the weight files that a load reads; empty if there are none or they cannot be read."""
    dtype: str
    """Type of most weights that are not quantised; config.json's if no weights can be read."""
    quant: str | None
    """Quantisation of the folder's weights: int8, int4, or another program's word such as fp8, or None."""
    parameters: tuple[Parameter, ...]
    parts: tuple[Part, ...]
    files: Mapping[str, int]
    """The folder's files and their sizes in bytes."""
    adapter: AdapterFacts | None
    method: str | None
    """Name of the method that `parameters` include."""
    trainable: str | None
    """A sentence on the number of trainable parameters with that method."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def num_parameters(self) -> int:
        """Number of all parameters, the method's own included."""
        return sum(part.count for part in self.parts)


def inspect(
    path: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    template: str | None = None,
    method: Method | None = None,
) -> Info:
    """Inspect a model, run or adapter; `method` shows the parameters that this method would train.

    Without `method`, an adapter or run is shown with its own. Anything odd or missing in a folder becomes a
    warning. Raises `CheckpointError` and `ConfigError` for a path that leads to no model.
    """
    location = resolve(path, base=base, revision=revision)
    warnings: list[str] = [location.other_base] if location.other_base else []
    known = _identify(location.folder, template or location.template, warnings)
    model, stored, parameters = _read_parameters(location, known, method, warnings)
    method = method or own_method(location.trained)
    num_rows = next((p.shape[0] for p in parameters if p.part == "embedding"), None)
    tokenizer, stop_tokens, problem = _read_tokenizer(location.folder, known, num_rows, warnings)
    config = location.folder.config
    bits, theirs = config.get("quantization_bit"), config.get("quantization_config")
    quant: str | None
    if theirs:
        quant = str(theirs.get("quant_method") if isinstance(theirs, dict) else theirs)
    else:
        quant = next((name for name, known_bits in BITS.items() if bits == known_bits), None)
    # the weights' own type counts: config.json's is often left as it was before a conversion
    dtype = main_dtype(stored) if stored else config.get("dtype") or config.get("torch_dtype") or "unknown"
    return Info(
        path=str(path),
        kind="adapter" if location.adapter and not location.run else "run" if location.run else "model",
        folder=location.base.resolve(),
        name=location.name,
        revision=location.revision,
        family=known.family,
        family_revision=known.revision,
        family_rule=known.family_rule,
        template=known.template,
        template_rule=CARD_RULE if location.template and not template else known.rule,
        context=context_of(location.folder),
        context_key=FAMILIES[known.family].context_key,
        stop_tokens=stop_tokens,
        tokenizer=tokenizer,
        tokenizer_problem=problem,
        num_rows=num_rows,
        has_weights=location.folder.has_weights,
        weight_files=tuple(sorted({tensor.file.name for tensor in stored.values()})),
        dtype=str(dtype).removeprefix("torch."),
        quant=quant,
        parameters=tuple(parameters),
        parts=tuple(count_parts(parameters)),
        files={file.name: file.stat().st_size for file in sorted(location.base.iterdir()) if file.is_file()},
        adapter=_adapter_facts(location, warnings),
        method=method.name if method and model is not None else None,
        trainable=trainable_line(model) if method and model is not None else None,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _read_parameters(
    location: Location, known: Identity, method: Method | None, warnings: list[str]
) -> tuple[CausalLM | None, Mapping[str, Stored], list[Parameter]]:
    """Return the model on the meta device, None if it cannot be built; the stored tensors; the parameters."""
    stored: Mapping[str, Stored] = {}
    if location.folder.has_weights:
        try:
            stored = scan_tensors(location.folder)
        except GlmtuneError as err:
            warnings.append(f"these weights cannot be read: {_within(location.folder, err)}")
    model = _outline(location.folder, known, stored, warnings)
    if model is None:
        return None, stored, list_stored(stored)
    stored = FAMILY_LOADERS[known.family].by_own_names(model, stored)
    # a run quantises the linear layers of its base while loading: they are shown with that type. Their names
    # are read here, before an adapter wraps the layers.
    quantised = {f"{name}.weight" for name in name_linears(model)} if location.quant else set()
    model = _add_method(model, location, method, warnings)
    parameters = list_stored(stored) if model is None else list_parameters(model, stored)
    return (
        model,
        stored,
        [
            replace(p, dtype=location.quant) if location.quant and stored_name(p.name) in quantised else p
            for p in parameters
        ],
    )


def _add_method(
    model: CausalLM, location: Location, method: Method | None, warnings: list[str]
) -> CausalLM | None:
    """Wrap the model in `method`, or else in the adapter or method at the location; None if that fails."""
    if method is None and location.adapter:
        try:
            wrapped: CausalLM = load_adapter(model, location.adapter, is_trainable=True)
        except GlmtuneError as err:
            warnings.append(f"this adapter cannot be loaded: {_within(location.adapter, err)}")
            return None
        return wrapped
    method = method or own_method(location.base)
    return apply_method(model, method) if method else model


def _identify(folder: ModelFolder, template: str | None, warnings: list[str]) -> Identity:
    """Identify the folder; an unknown chat format becomes a warning."""
    try:
        return identify(folder, template)
    except GlmtuneError as err:
        if template is not None:
            raise
        # raises again if it was the family that is unknown
        known = identify_family(folder)
        unless = " without template=..." if "template=" in str(err.hint) else ""
        warnings.append(f"no chat and no training{unless}: {_within(folder, err)}")
        return known


def _outline(
    folder: ModelFolder, known: Identity, stored: Mapping[str, Stored], warnings: list[str]
) -> CausalLM | None:
    """Build the model on the meta device; None if config.json describes none, or its weights do not fit."""
    if FAMILY_LOADERS[known.family].outlines_quantised:
        try:
            refuse_quantised(folder.config, folder.path / "config.json")
        except GlmtuneError as err:
            # such weights do not fit the outline, but config.json alone still tells the model
            warnings.append(f"this folder cannot be loaded: {_within(folder, err)}")
            stored = {}
    try:
        model: CausalLM = outline_of_folder(folder, known, stored)
    except GlmtuneError as err:
        warnings.append(f"this folder cannot be loaded: {_within(folder, err)}")
        return None
    return model.requires_grad_(False)


def _read_tokenizer(
    folder: ModelFolder, known: Identity, num_rows: int | None, warnings: list[str]
) -> tuple[TokenizerFacts | None, tuple[StopToken, ...], str]:
    """Return the tokenizer's facts, the tokens that end an answer, and the problem if it cannot be read."""
    stated = folder.config.get("eos_token_id")
    stated_ids = [i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int)]
    stops = tuple(StopToken(i, "") for i in stated_ids)
    try:
        tokenizer = read_identified_tokenizer(folder, known)
    except GlmtuneError as err:
        return None, stops, _within(folder, err)
    if num_rows is not None:
        try:
            check_fits(tokenizer, num_rows, stated_ids, where=folder.path.name)
        except GlmtuneError as err:
            warnings.append(f"the tokenizer is not this model's: {_within(folder.path, err)}")
    if tokenizer.template is not None:  # the chat format's stop tokens; config.json's eos is not all of them
        texts = tokenizer.chat_format.stop_tokens
        stops = tuple(StopToken(i, text) for i, text in zip(tokenizer.stop_ids, texts, strict=True))
    facts = TokenizerFacts(
        type(tokenizer).__name__, tokenizer.vocab_size, len(tokenizer), tokenizer.padding_side
    )
    return facts, stops, ""


def _within(folder: Path | ModelFolder, err: GlmtuneError) -> str:
    """Return the error's text without the folder's path, which the report names already."""
    return str(err).replace(f"{folder}/", "").replace(f"{folder}: ", "")


def _adapter_facts(location: Location, warnings: list[str]) -> AdapterFacts | None:
    card, folder = location.card, location.adapter or location.base
    if card is None and location.adapter is None:
        return None
    # without a card, PEFT's adapter_config.json tells the method, or else the names of the weights do
    peft = read_adapter_config_if_there(folder)
    settings = {key: peft[key] for key in PEFT_KEYS if key in peft}
    if card is None and not peft and (method := own_method(folder)):
        settings = method.model_dump(mode="json")
    shapes: dict[str, tuple[int, ...]] = {}
    if location.adapter:
        try:
            shapes = stored_shapes(location.adapter)
        except GlmtuneError as err:
            warnings.append(f"this adapter cannot be loaded: {_within(location.adapter, err)}")
    return AdapterFacts(
        folder=folder,
        base=str(card.base if card else peft.get("base_model_name_or_path") or ""),
        parent=card.parent.get("path", "") if card else "",
        method=card.method if card else settings,
        quant=location.quant,
        system=card.system if card else None,
        source_prefix=card.source_prefix if card else "",
        glmtune_version=card.glmtune_version if card else "",
        num_trained=sum(map(prod, shapes.values())) if shapes else None,
        layers=find_layers(shapes),
        # a factor A is (rank, inputs)
        ranks=tuple(shape[0] for name, shape in shapes.items() if ".lora_A" in name),
    )
