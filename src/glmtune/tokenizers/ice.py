"""The tokenizer of ChatGLM-6B: sentencepiece, with pieces for line breaks, tabs and runs of spaces.

Its three revisions (`early`, `mid`, `late`) differ in ids, in the special tokens around a text, and in the
masks and positions that padding makes. The vocabulary of the first two has no control tokens: icetk, which
they needed, appended them while loading. Facts from tokenization_chatglm.py in
https://huggingface.co/THUDM/chatglm-6b (revisions of 2023-03-20, 551a50e and 8b7d335) and
https://github.com/THUDM/icetk text_tokenizer.py.
"""

import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AddedToken
from transformers.utils import PaddingStrategy

from glmtune.errors import CheckpointError, ConfigError
from glmtune.families import ICE
from glmtune.files import read_json_if_there
from glmtune.signs import v1_revision
from glmtune.templates import chatglm_prompt
from glmtune.tokenizers.base import GlmTokenizer, count_pads
from glmtune.tokenizers.files import encode_batch, piece_bytes, read_ice

_LONGEST_BLANK = 80
_SHAPES = {
    "<n>": "\n",
    "<|tab|>": "\t",
    **{f"<|blank_{n}|>": " " * n for n in range(2, _LONGEST_BLANK + 1)},
}
"""The white space that pieces stand for; sentencepiece itself would normalise it away."""
_LONGEST_SHAPE = max(map(len, _SHAPES))
_SHAPE_PIECE = re.compile("|".join(map(re.escape, _SHAPES)))
_BLANKS = re.compile(f" {{2,{_LONGEST_BLANK}}}")
_IMAGE = re.compile(r"<image_([0-9]{1,5})>")


@dataclass(frozen=True, slots=True)
class _Revision:
    """The differences between the tokenizers of the revisions."""

    num_images: int
    """Number of image tokens, whose ids lie in front of the vocabulary's and are never used with text."""
    eos_token: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "position_ids")


_REVISIONS = {
    "early": _Revision(20_000, "</s>", ("input_ids",)),
    "mid": _Revision(20_000, "</s>"),
    "late": _Revision(0, "<eop>"),
}


class IceTokenizer(GlmTokenizer):
    """ChatGLM-6B's tokenizer, named after its vocabulary file ice_text.model.

    ice_revision: by default the revision of the config.json in the vocabulary's folder; without one `late` if
    the vocabulary has control tokens, else `mid` (whose ids are also those of `early`).
    """

    vocab_files_names = {"vocab_file": ICE}  # noqa: RUF012  # transformers' own class attribute
    prefix = ()

    def __init__(
        self,
        vocab_file: str | None,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
        template: str | None = None,
        ice_revision: str | None = None,
        **kwargs: Any,  # Any: the settings of tokenizer_config.json
    ) -> None:
        path = Path(vocab_file) if vocab_file else Path(kwargs.get("name_or_path", "")) / ICE
        self.sp_model, is_late = read_ice(path)
        self.vocab_file = str(path)
        self.template = template or "chatglm"
        self.ice_revision = _find_revision(path, is_late, ice_revision)
        self._facts = _REVISIONS[self.ice_revision]
        # the official classes fix these tokens, whatever a folder says
        kwargs.pop("model_specific_special_tokens", None)
        kwargs |= {"bos_token": "<sop>", "eos_token": self._facts.eos_token, "unk_token": "<unk>"}
        kwargs |= {"pad_token": "<pad>", "mask_token": "[MASK]"}
        added = {
            self._convert_token_to_id(name): AddedToken(
                name, lstrip=True, rstrip=True, normalized=False, special=True
            )
            for key, name in kwargs.items()
            if key in self.SPECIAL_TOKENS_ATTRIBUTES
        }
        kwargs["added_tokens_decoder"] = {**added, **(kwargs.get("added_tokens_decoder") or {})}
        super().__init__(
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            template=self.template,
            ice_revision=self.ice_revision,
            **{**kwargs, "model_input_names": list(self._facts.inputs)},
        )

    @property
    def gmask_token_id(self) -> int:
        """Return the id of `[gMASK]`, under its official name."""
        return self.control_id("[gMASK]")

    @property
    def eop_token_id(self) -> int:
        """Return the id of `<eop>`, under its official name; it ends an answer in every revision."""
        return self.control_id("<eop>")

    @property
    def end_id(self) -> int:
        """Return the id of `<eop>`, which ends an answer for the model."""
        return self.eop_token_id  # not `eos_token_id`: before `late` the tokenizer's eos is `</s>`

    @property
    def end_token_id(self) -> int:
        """Return the id of `</s>`, under its official name."""
        return self.control_id("</s>")

    @property
    def vocab_size(self) -> int:
        """Count image tokens, pieces and control tokens."""
        return self._facts.num_images + int(self.sp_model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Return every token and its id."""
        first, size = self._facts.num_images, self.sp_model.get_piece_size()
        images = {f"<image_{index}>": index for index in range(first)}
        names = self.sp_model.id_to_piece(list(range(size)))
        pieces = dict(zip(names, range(first, first + size), strict=True))
        return {**images, **pieces, **self.added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text without control tokens; only pieces for white space that it spells become those."""
        first = self._facts.num_images
        row: list[int] = self.sp_model.encode(_spell_white_space(text))
        return [first + index for index in row] if first else row

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode texts as `encode_plain` does, each on its own."""
        rows = encode_batch(self.sp_model, list(map(_spell_white_space, texts)))
        first = self._facts.num_images
        return [first + row for row in rows] if first else rows

    def token_bytes(self, index: int) -> bytes:
        """Return the text of a piece in UTF-8; for a part of a character some of its bytes."""
        piece = piece_bytes(self.sp_model, index - self._facts.num_images)
        return _SHAPES.get(piece.decode(errors="replace"), "").encode() or piece

    def control_id(self, name: str) -> int:
        """Return the id of a control token by its official spelling. Raises ConfigError if unknown."""
        model = self.sp_model
        index = int(model.piece_to_id(name))
        if not (model.is_control(index) or name == "<unk>"):
            control = (i for i in range(model.get_piece_size()) if model.is_control(i))
            known = ", ".join(["<unk>", *map(model.id_to_piece, control)])
            raise ConfigError(f"{name!r} is not a control token of {self.vocab_file}", hint=f"it has {known}")
        return self._facts.num_images + index

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """Build the prompt text: the bare query, or with a history rounds numbered from 0."""
        return chatglm_prompt(query, [(question, answer) for question, answer in history or ()])

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Append `[gMASK]` and `<sop>` to a text; for a pair also the second text and `<eop>`.

        Before `late`, a text with a mask token of its own gets no `[gMASK]`; if it does not end with that
        token, `</s>` follows. `early` only joins the texts of a pair.
        """
        text, answer = list(token_ids_0), None if token_ids_1 is None else list(token_ids_1)
        if self.ice_revision == "early":
            text, answer = [*text, *(answer or ())], None
        masks = {self.control_id("[MASK]"), self.control_id("[gMASK]")}
        if self.ice_revision == "late" or not masks.intersection(text):
            text.append(self.control_id("[gMASK]"))
        elif text[-1] not in masks:
            text.append(self.control_id("</s>"))
        text.append(self.control_id("<sop>"))
        if answer is None:
            return text
        is_ended = self.ice_revision == "mid" and answer[-1:] == [self.eop_token_id]
        return [*text, *answer, *([] if is_ended else [self.eop_token_id])]

    def _tokenize(self, text: str, **_kwargs: object) -> list[str]:
        return self.sp_model.encode_as_pieces(_spell_white_space(text))  # type: ignore[no-any-return]

    def _convert_token_to_id(self, token: str) -> int:
        image = _IMAGE.fullmatch(token)
        if image and int(image[1]) < self._facts.num_images:
            return int(image[1])
        return self._facts.num_images + int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if 0 <= index < self._facts.num_images:
            return f"<image_{index}>"
        piece = index - self._facts.num_images
        return str(self.sp_model.id_to_piece(piece)) if 0 <= piece < self.sp_model.get_piece_size() else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to their text; half a character at the end becomes U+FFFD."""
        text = str(self.sp_model.decode_pieces(tokens))
        return _SHAPE_PIECE.sub(lambda found: _SHAPES[found[0]], text)

    def count_open(self, text: str) -> int:
        """Count the last characters of a decoded text that may turn out to be white space."""
        # several other pieces may spell `<n>` or `<|blank_2|>`, which is white space once it is complete
        begun = text[text.rfind("<") :] if "<" in text[-_LONGEST_SHAPE + 1 :] else ""
        is_open = begun and any(shape.startswith(begun) for shape in _SHAPES)
        return max(len(begun) if is_open else 0, super().count_open(text))

    def _decode(
        self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **kwargs: object
    ) -> str:
        """Decode ids; images and pads have no text. Before `late` no other special token is skipped."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        shown = [index for index in ids if index >= self._facts.num_images and index != self.pad_token_id]
        skips = skip_special_tokens and self.ice_revision == "late"
        return str(super()._decode(shown, skip_special_tokens=skips, **kwargs))

    def _pad(
        self,
        encoded_inputs: MutableMapping[str, Any],
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> MutableMapping[str, Any]:
        """Pad a row, and add the mask and positions of its text if `max_length` is set or padding requested.

        The mask is (1, S, S), true where attention is not allowed, pads included; positions are (2, S): the
        index in the context, and the index in the answer. `early` adds the mask alone, if padding or the mask
        is requested.
        """
        input_ids = list(encoded_inputs["input_ids"])
        if padding_strategy == PaddingStrategy.LONGEST:
            max_length = len(input_ids)
        num_pads = count_pads(len(input_ids), max_length, padding_strategy, pad_to_multiple_of)
        pads = (num_pads, 0) if (padding_side or self.padding_side) == "left" else (0, num_pads)
        filled = {"input_ids": self.pad_token_id, "token_type_ids": 0, "special_tokens_mask": 1}
        is_early = self.ice_revision == "early"
        is_padded = padding_strategy != PaddingStrategy.DO_NOT_PAD or return_attention_mask
        if return_attention_mask is not False and (is_padded if is_early else max_length is not None):
            mask = np.triu(np.ones((1, len(input_ids), len(input_ids)), dtype=bool), k=1)  # causal
            mask[:, :, : self._context_length(input_ids)] = False  # but every token sees the context
            mask = encoded_inputs.get("attention_mask", mask)
            encoded_inputs["attention_mask"] = np.pad(
                np.asarray(mask, dtype=bool), [(0, 0), pads, pads], constant_values=True
            )
        if max_length is not None and not is_early:
            positions = np.asarray(encoded_inputs.get("position_ids", self._positions(input_ids)))
            encoded_inputs["position_ids"] = np.pad(positions, [(0, 0), pads])
        for name, filler in filled.items():
            if name in encoded_inputs:
                row = list(encoded_inputs[name])
                encoded_inputs[name] = [filler] * pads[0] + row + [filler] * pads[1]
        return encoded_inputs

    def _context_length(self, input_ids: Sequence[int]) -> int:
        """Count the tokens before `<sop>`; all tokens if there is none."""
        start = self.control_id("<sop>")
        return input_ids.index(start) if start in input_ids else len(input_ids)

    def _positions(self, input_ids: Sequence[int]) -> Any:
        """Return positions (2, S): from `<sop>` on row 0 stays at the mask token, row 1 counts from 1."""
        length, context = len(input_ids), self._context_length(input_ids)
        positions = np.arange(length)
        masks = [name for name in ("[MASK]", "[gMASK]") if self.control_id(name) in input_ids]
        if masks:
            positions[context:] = input_ids.index(self.control_id(masks[0]))
        return np.stack([positions, np.maximum(np.arange(length) - context + 1, 0)])


# official folders name their tokenizer's class so, and `save_pretrained` writes this name
IceTokenizer.__name__ = "ChatGLMTokenizer"


def _spell_white_space(text: str) -> str:
    """Replace line breaks, tabs and runs of spaces by the names of their pieces."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    if "  " not in text:  # as in most: told in a tenth of the time that the search takes
        return text
    return _BLANKS.sub(lambda found: f"<|blank_{len(found[0])}|>", text)


def _find_revision(path: Path, is_late: bool, requested: str | None) -> str:
    """Return the revision of a vocabulary: requested, by config.json, else by the file (`is_late`).

    Raises CheckpointError for the vocabulary file of another revision.
    """
    config = read_json_if_there(path.parent / "config.json")
    revision = requested or (v1_revision(config) if config else "")
    if not revision:
        return "late" if is_late else "mid"
    if revision not in _REVISIONS:
        raise CheckpointError(
            f"{path.parent}: ice_revision {revision!r} is none of ChatGLM-6B's", hint=", ".join(_REVISIONS)
        )
    if (revision == "late") == is_late:
        return revision
    fitting = "late" if is_late else "early and mid"
    raise CheckpointError(
        f"{path}: the vocabulary of ChatGLM-6B's {fitting} revision, but the model is of the {revision} one",
        hint="copy ice_text.model from the model's own source, of the same revision",
    )
