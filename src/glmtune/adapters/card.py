"""The card beside trained weights, glmtune.json: what they are, what they belong to, what they must give."""

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
"""Of an adapter in PEFT's layout, beside the card."""

_NUMBERS = re.compile(r"\[\n[\s\d.,eE+-]*\]")  # lists of numbers go on one line
_PROOFS = ("fingerprint", "probe")  # are there, or left out: a null would look like a proof
_ANOTHER = "copy it from the run it came from"
_END = "\n}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a model answered to a fixed prompt when its checkpoint was saved, and its base before."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    input_ids: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """The prompt as this template and tokenizer encode it."""
    tokens: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Some of the vocabulary: the base's likeliest, and some from everywhere."""
    base: list[FiniteFloat]
    """The base's logits of these tokens, at the prompt's end."""
    tuned: list[FiniteFloat]
    """The tuned model's."""

    def __post_init__(self) -> None:
        """Each token has its logits."""
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
    """What the weights in a folder are, and how the model was talked to while it learned them."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    base: str
    """The model that was trained: its folder, or its name on a hub or in the package."""
    template: str
    method: dict[str, Any]
    system: str | None = None
    source_prefix: str = ""
    quant: Annotated[str | None, _one_of(None, *QUANTS)] = None
    """How the base was quantised while it was loaded: int8, int4, nf4 or not at all."""
    glmtune_version: str = ""
    base_revision: str | None = None
    """The base's revision on its hub."""
    family: str = ""
    family_revision: str = ""
    fingerprint: Annotated[dict[str, Any], AfterValidator(_require_fingerprint)] | None = None
    """The base's, as `models.fingerprint` makes it: `config` and `weights`."""
    stop_ids: list[int] = field(default_factory=list)
    tokenizer_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of the tokenizer's files, by their names in the base's folder."""
    dtype: Annotated[str, _one_of("float32", "bfloat16", "float16", "")] = ""
    """Type of the weights while the probe was taken: float32, bfloat16, float16."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """Longest example, question and answer in tokens, as they were set."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the files of rows."""
    step: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that trained it."""
    norm: FiniteFloat | None = None
    """Length of the stored update (`seal.update_norm`); of a whole model it is not taken."""
    weights_sha256: str = ""
    """Of what was trained, to the last bit (`seal.hash_weights`); resuming compares it, and each load. Of a
    whole model earlier versions took it, and resuming alone compares it."""
    tensors_sha256: str = ""
    """Of a whole model's stored tensors (`models.reading.hash_whole`); resuming and each load compare it."""
    adapter_config: Mapping[str, Any] = field(default_factory=dict)
    """What PEFT's file beside the weights says of them (`seal.deciding_settings`)."""
    probe: Probe | None = None
    parent: Mapping[str, str] = field(default_factory=dict)
    """What the run went on from: its folder as `path`, its `weights_sha256`; empty: an untrained model."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside the card, by name, as `save` found them."""

    @property
    def kind(self) -> str:
        """The base's family and revision: `ChatGLM-6B late`."""
        return f"{self.family} {self.family_revision}".strip()

    @property
    def kept(self) -> TrainedPart | None:
        """What its method trains; None for a method that this version does not know."""
        settings = METHOD_SETTINGS.get(str(self.method.get("name")))
        return settings.kept if settings else None

    def save(self, folder: Path) -> None:
        """Write glmtune.json, the last file of its folder: it holds the hashes of all others, and its own."""
        recorded = {k: v for k, v in asdict(self).items() if v or k not in (*_PROOFS, "parent")}
        recorded["files"] = {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name != CARD_FILE
        }
        text = json.dumps(recorded, ensure_ascii=False, indent=2) + "\n"
        text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
        (folder / CARD_FILE).write_text(_sealed(text), encoding="utf-8", newline="\n")


def _sealed(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text.removesuffix(_END)},\n  "sha256": "{digest}"{_END}'


def _require_sealed(path: Path, text: str) -> None:
    plain, comma, _ = text.rpartition(',\n  "sha256": ')
    if not comma or _sealed(plain + _END) != text:
        raise CheckpointError(
            f"{path}: not as it was written: its hash is another than the sha256 at its end",
            hint=f"{_ANOTHER}; if you have changed it yourself, take `sha256` out of it",
        )


def read_card(folder: Path) -> Card | None:
    """A folder's card, None if there is none. Raises `CheckpointError` unless it is as it was written."""
    path = folder / CARD_FILE
    text = read_text(path) if is_there(path) else "{}"
    content = parse_json_object(text, path, is_ours=True)
    if not content:
        return None
    is_sealed = content.pop("sha256", None) is not None  # cards of earlier versions have no seal
    empty = next((key for key in _PROOFS if key in content and content[key] is None), None)
    if empty:
        raise CheckpointError(f"{folder / CARD_FILE}: {empty}: null, so it proves nothing", hint=_ANOTHER)
    try:
        card = _CARD.validate_python(content)
    except ValidationError as err:
        raise CheckpointError(f"{path}: {_explain(err)}", hint=_ANOTHER) from None
    if is_sealed:
        _require_sealed(path, text.replace("\r\n", "\n"))
    return card


_CARD = TypeAdapter(Card)


def _explain(err: ValidationError) -> str:
    """The first thing that is wrong, by its place in the file."""
    first = err.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: no key of a card that this version knows"
    found = "" if first["type"].startswith("missing") else f", got {shorten(repr(first['input']), 60)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{found}"
