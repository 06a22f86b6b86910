"""The card next to trained weights, glmtune.json: their base, method, hashes and recorded logits."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)

from glmtune.errors import CheckpointError
from glmtune.files import hash_file, is_there, parse_json_object, read_text
from glmtune.quants import QUANTS
from glmtune.recipe.method import METHOD_SETTINGS, TrainedPart

CARD_FILE = "glmtune.json"
ADAPTER_FILE = "adapter_config.json"
"""PEFT's file of settings, in the same folder as the card."""

_NUMBERS = re.compile(r"\[\n[\s\d.,eE+-]*\]")  # lists of numbers go on one line
_PROOFS = ("fingerprint", "probe")  # written or left out, never null: a null would pass for a proof
_ANOTHER = "copy it from the run it came from"
_END = "\n}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The logits of a fixed prompt at the time a checkpoint was saved, from the tuned model and its base."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    input_ids: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Token ids of the prompt, as the run's tokenizer and template encode it."""
    tokens: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Token ids whose logits are recorded: the base's likeliest, and some from all over the vocabulary."""
    base: list[FiniteFloat]
    """The base's logits of `tokens` at the last position of the prompt."""
    tuned: list[FiniteFloat]
    """The tuned model's logits of the same tokens."""

    def __post_init__(self) -> None:
        """Raise ValueError unless each token has a logit of both models."""
        if not len(self.tokens) == len(self.base) == len(self.tuned):
            raise ValueError(
                f"{len(self.tokens)} tokens, but {len(self.base)} logits of the base and "
                f"{len(self.tuned)} of the tuned model"
            )


def _one_of(*allowed: str | None) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(filter(None, allowed))}")
        return value

    return AfterValidator(check)


def _require_fingerprint(value: dict[str, Any]) -> dict[str, Any]:
    if not (isinstance(value.get("config"), dict) and isinstance(value.get("weights"), str)):
        raise ValueError("has no config and weights")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The contents of glmtune.json: the weights in its folder, and the chat format they were trained with."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    base: str
    """The model that was trained: its folder, or its name on a hub or in the package."""
    template: str
    method: dict[str, Any]
    system: str | None = None
    source_prefix: str = ""
    quant: Annotated[str | None, _one_of(None, *QUANTS)] = None
    """Quantisation of the base while training: int8, int4, nf4, or None."""
    glmtune_version: str = ""
    base_revision: str | None = None
    """Revision of the base on its hub."""
    family: str = ""
    family_revision: str = ""
    fingerprint: Annotated[dict[str, Any], AfterValidator(_require_fingerprint)] | None = None
    """The base's fingerprint from `models.fingerprint`: its keys are `config` and `weights`."""
    stop_ids: list[int] = field(default_factory=list)
    tokenizer_sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the tokenizer's files, by their names in the base's folder."""
    dtype: Annotated[str, _one_of("float32", "bfloat16", "float16", "")] = ""
    """Type that the weights were held in when the probe was recorded: float32, bfloat16 or float16."""
    computing: Annotated[str, _one_of("float32", "bfloat16", "float16", "")] = ""
    """Type that the probe was computed in; empty in cards of earlier versions: the type of the weights."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """Maximum tokens of an example, of a prompt and of a completion, as set in the recipe."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the data files."""
    step: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that trained the weights."""
    norm: FiniteFloat | None = None
    """Length of the stored update (`digest.update_norm`); None for a whole model."""
    weights_sha256: str = ""
    """Hash of the trained weights, to the last bit (`digest.hash_weights`), compared at each load and resume.
    For a whole model only earlier versions recorded it, and only resuming compares it."""
    tensors_sha256: str = ""
    """Hash of a whole model's stored tensors (`models.reading.hash_whole`), compared at each load and resume.
    """
    adapter_config: Mapping[str, Any] = field(default_factory=dict)
    """The settings in adapter_config.json that decide what the weights compute (`digest.deciding_settings`).
    """
    probe: Probe | None = None
    parent: Mapping[str, str] = field(default_factory=dict)
    """The checkpoint the run started from, as `path` and `weights_sha256`; empty for an untrained model."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the other files in the folder, by name, taken by `save`."""

    @property
    def kind(self) -> str:
        """The base's family and revision, such as `ChatGLM-6B late`."""
        return f"{self.family} {self.family_revision}".strip()

    @property
    def kept(self) -> TrainedPart | None:
        """The part of the model that its method trains; None for a method this version does not know."""
        settings = METHOD_SETTINGS.get(str(self.method.get("name")))
        return settings.kept if settings else None

    def save(self, folder: Path) -> None:
        """Write glmtune.json, which holds the hashes of all other files and of itself; so write it last."""
        # an empty proof or parent is left out; other empty keys stay, so that a reader sees every key
        recorded = {k: v for k, v in asdict(self).items() if v or k not in (*_PROOFS, "parent")}
        recorded["files"] = {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name != CARD_FILE
        }
        text = json.dumps(recorded, ensure_ascii=False, indent=2) + "\n"
        text = _NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text)
        (folder / CARD_FILE).write_text(_append_hash(text), encoding="utf-8", newline="\n")


def _append_hash(text: str) -> str:
    """Return the JSON text with its own SHA-256 as a last key."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text.removesuffix(_END)},\n  "sha256": "{digest}"{_END}'


def read_card(folder: Path) -> Card | None:
    """Read a folder's glmtune.json; None if there is none.

    Raises `CheckpointError` if it has unknown or invalid keys, or was edited after it was written.
    """
    path = folder / CARD_FILE
    text = read_text(path) if is_there(path) else "{}"
    content = parse_json_object(text, path, is_ours=True)
    if not content:
        return None
    has_hash = content.pop("sha256", None) is not None  # cards of the first versions have none
    empty = next((key for key in _PROOFS if key in content and content[key] is None), None)
    if empty:
        raise CheckpointError(f"{folder / CARD_FILE}: {empty}: null, so it proves nothing", hint=_ANOTHER)
    try:
        card = _CARD.validate_python(content)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(map(str, first["loc"]))
        value = "" if first["type"].startswith("missing") else f", got {shorten(repr(first['input']), 60)}"
        problem = f"{first['msg'].removeprefix('Value error, ')}{value}"
        if first["type"] == "unexpected_keyword_argument":
            problem = "no key of a card that this version knows"
        raise CheckpointError(f"{path}: {key}: {problem}", hint=_ANOTHER) from None
    if has_hash:
        text = text.replace("\r\n", "\n")  # git and mail programs on Windows rewrite line ends
        plain, comma, _ = text.rpartition(',\n  "sha256": ')
        if not comma or _append_hash(plain + _END) != text:
            raise CheckpointError(
                f"{path}: not as it was written: its hash is another than the sha256 at its end",
                hint=f"{_ANOTHER}; if you have changed it yourself, take `sha256` out of it",
            )
    return card


_CARD = TypeAdapter(Card)
