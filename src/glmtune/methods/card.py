"""The card beside trained weights, glmtune.json: what they are, what they belong to, what they must give."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError
from glmtune.files import read_json_if_there

CARD_FILE = "glmtune.json"

_NUMBERS = re.compile(r"\[\n[\s\d.,eE+-]*\]")  # lists of numbers go on one line
_ANOTHER = "copy it from the run it came from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a model answered to a fixed prompt when its checkpoint was saved, and its base before."""

    input_ids: list[int]
    """The prompt as this template and tokenizer encode it."""
    tokens: list[int]
    """Some of the vocabulary: the base's likeliest, and some from everywhere."""
    base: list[float]
    """The base's logits of these tokens, at the prompt's end."""
    tuned: list[float]
    """The tuned model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the weights in a folder are, and how the model was talked to while it learned them."""

    base: str
    """The model that was trained: its folder, or its name on a hub or in the package."""
    template: str
    method: dict[str, Any]
    system: str | None = None
    source_prefix: str = ""
    quant: str | None = None
    """How the base was quantised while it was loaded: int8, int4, nf4 or not at all."""
    glmtune_version: str = ""
    base_revision: str | None = None
    """The base's revision on its hub."""
    family: str = ""
    family_revision: str = ""
    fingerprint: dict[str, Any] | None = None
    """The base's, as `models.fingerprint` makes it: `config` and `weights`."""
    stop_ids: list[int] = field(default_factory=list)
    dtype: str = ""
    """Type of the weights while the probe was taken: float32, bfloat16, float16."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """Longest example, question and answer in tokens, as they were set."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the files of rows."""
    step: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that trained it."""
    norm: float | None = None
    """Length of the stored update (`proof.update_norm`); of a whole model it is not taken."""
    probe: Probe | None = None

    def save(self, folder: Path) -> None:
        """Write glmtune.json."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card in a folder, None if there is none. Raises `CheckpointError` if it is broken."""
    content = read_json_if_there(folder / CARD_FILE)
    if not content:
        return None
    try:
        probe = content.get("probe")
        return Card(**content | {"probe": Probe(**probe) if probe else None})
    except TypeError as err:
        raise CheckpointError(
            f"{folder / CARD_FILE}: not a card of this version: {err}", hint=_ANOTHER
        ) from err
