"""The base classes of all tokenizers: control tokens by name, text without control tokens, padding."""

import re
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from inspect import signature
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils import PaddingStrategy, get_json_schema

from glmtune.errors import ConfigError
from glmtune.families import VOCABULARY, context_of, require_template
from glmtune.templates import Message, Segment, Taught, Template, find_template, messages_from_dicts, render
from glmtune.tokenizers.files import reading_folder
from glmtune.tokenizers.rendering import PARTS, render_apart
from glmtune.tokenizers.stream import TextStream
from glmtune.values import text

_NAME_IN_TEMPLATE = re.compile("你是一个名为 (.{1,64}?) 的人工智能助手")
"""Bounded: a hostile template may repeat the phrase's beginning, which would take quadratic time."""
_BEFORE_MARKS = re.compile(" +[^ ]{0,3}\\Z")
"""Spaces at the end that transformers' clean-up removes if a punctuation mark or a shortened word follows."""


class Begun(dict[int, int]):
    """The number of characters that begin in a token, by its id: found out when it is first asked for."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self.token_bytes = token_bytes

    def __missing__(self, index: int) -> int:
        # all bytes of a character but its first are 10xxxxxx
        self[index] = sum(byte & 0xC0 != 0x80 for byte in self.token_bytes(index))
        return self[index]


class ChatTokenizer:
    """The chat side of every tokenizer: its format, its control tokens, encoding without control tokens."""

    padding_side = "left"
    template: str | None
    """The name of the chat format; None while a folder may be ChatGLM2's or ChatGLM3's."""
    vocab_file: str
    assistant_name: str = ""
    """The assistant's name in the folder's chat template where it lists tools; empty: the format's own."""
    taught: Taught = Taught()
    """The system text and source prefix that a run or adapter was trained with; empty if unknown."""
    prefix: tuple[str, ...] = ("[gMASK]", "sop")
    """The control tokens that every text begins with."""
    eos_token_id: Any
    """The id that ends a text, as transformers has it."""

    @cached_property
    def context(self) -> int | None:
        """Return the context length, in tokens, of the model in the same folder; None if it has no config."""
        return context_of(Path(self.vocab_file).parent)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], *args: object, **kwargs: object) -> Any:
        """Read a tokenizer as transformers does; raise CheckpointError for a local folder's damaged files."""
        transformers: Any = super()
        with reading_folder(Path(name)) if Path(name).is_dir() else nullcontext():
            return transformers.from_pretrained(name, *args, **kwargs)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        **kwargs: object,
    ) -> Any:
        """Apply the folder's Jinja template as transformers does, rendered in a process of its own.

        Raises ConfigError for a template that loops, grows without end or fails.
        """
        transformers: Any = super()
        if kwargs.get("sanitize_control_tokens"):
            raise ConfigError(
                "apply_chat_template: 'sanitize_control_tokens' is not supported here",
                hint="glmtune.encode_messages makes no control token of a content",
            )
        is_marked = bool(kwargs.get("return_assistant_tokens_mask"))
        if not conversation or (continue_final_message and (add_generation_prompt or is_marked)):
            return transformers.apply_chat_template(  # raises the error for these arguments
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=PARTS,
                **kwargs,
            )
        is_batched = isinstance(conversation[0], list | tuple)
        # arguments that transformers does not name are variables of the template
        variables = kwargs.keys() - signature(transformers.apply_chat_template).parameters
        rendered = render_apart(
            str(self.vocab_file),
            conversation if is_batched else [conversation],
            tools=tools and [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in tools],
            documents=documents,
            chat_template=transformers.get_chat_template(chat_template, tools),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            return_assistant_tokens_mask=is_marked,
            **{**transformers.special_tokens_map, **{name: kwargs.pop(name) for name in variables}},
        )
        parts = rendered if is_batched else rendered[0]
        # transformers goes on from the rendered text: it tokenizes, pads, marks the assistant's tokens
        return transformers.apply_chat_template(parts, chat_template=PARTS, **kwargs)

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """Encode a text without control tokens: one that the text spells stays text."""

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode texts as `encode_plain` does, each on its own."""
        return [np.array(self.encode_plain(text), np.int32) for text in texts]

    def token_ends(self, ids: Sequence[int]) -> list[int]:
        """Return the number of characters up to the end of each token of a text, a character begun counted.

        They are the characters that the vocabulary writes: some put a space in front of a text.
        """
        return list(accumulate(map(self.num_begun.__getitem__, ids)))

    @cached_property
    def num_begun(self) -> Begun:
        """Return the number of characters that begin in each token."""
        return Begun(self.token_bytes)

    @abstractmethod
    def token_bytes(self, index: int) -> bytes:
        """Return the text of a token in UTF-8; for a part of a character some of its bytes."""

    @abstractmethod
    def control_id(self, name: str) -> int:
        """Return the id of a control token by its official spelling. Raises ConfigError if unknown."""

    @property
    def chat_format(self) -> Template:
        """Return the chat format of `template`. Raises ConfigError while `template` is None."""
        return find_template(require_template(self.template, str(self.vocab_file)))

    @property
    def stop_ids(self) -> list[int]:
        """Return the ids that end an answer. Raises ConfigError while `template` is None."""
        return [self.control_id(name) for name in self.chat_format.stop_tokens]

    @property
    def end_id(self) -> int:
        """Return the id that ends a text for the model: an eos id of its config."""
        return int(self.eos_token_id)

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Encode segments: each text on its own, each control token by its id.

        Raises DataError for a text with half a character (a lone surrogate).
        """
        ids: list[int] = []
        for segment in segments:
            text(segment.text, "text")  # raises for half a character
            ids += [self.control_id(segment.text)] if segment.is_control else self.encode_plain(segment.text)
        return ids

    def segments(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, *, source_prefix: str = ""
    ) -> list[Segment]:
        """Render messages in this tokenizer's chat format, as chat sends them."""
        return render(
            require_template(self.template, str(self.vocab_file)),
            messages,
            add_generation_prompt,
            assistant_name=self.assistant_name,
            source_prefix=source_prefix,
        )

    def text_stream(self) -> TextStream:
        """Return a stream that decodes ids one by one."""
        decode: Any = self.decode  # type: ignore[attr-defined]  # transformers' own
        return TextStream(decode, self.count_open)

    def count_open(self, _text: str) -> int:
        """Count the last characters of a decoded text that further ids may change, half characters aside."""
        return 0

    def get_command(self, token: str) -> int:
        """Return the id of a control token, under this call's official name."""
        return self.control_id(token)

    def get_prefix_tokens(self) -> list[int]:
        """Return the ids that every text begins with."""
        return [self.control_id(name) for name in self.prefix]


class GlmTokenizer(ChatTokenizer, PreTrainedTokenizer):  # type: ignore[misc]  # transformers has no types
    """A slow tokenizer with its chat format, the base of our own classes.

    `tokenizer(text)` encodes as the official tokenizer does; `encode_plain` never makes a control token.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012  # transformers' own class attribute
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the prefix in front of a text; for a pair append the second text and eos."""
        pair = [] if token_ids_1 is None else [*token_ids_1, self.eos_token_id]
        return [*self.get_prefix_tokens(), *token_ids_0, *pair]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *args: Any,  # Any: transformers' positional arguments
        **kwargs: Any,  # Any: transformers' keyword arguments
    ) -> Any:
        """Apply the folder's Jinja template as transformers does, or without one the family's own format.

        With a Jinja template the ids are the official ones, in which a control token spelled in content
        becomes that token. `encode_messages` has no such hole.
        """
        if args or self.chat_template or kwargs.get("chat_template"):
            return super().apply_chat_template(conversation, *args, **kwargs)
        return self._apply_own_template(conversation, **kwargs)

    def _apply_own_template(
        self,
        conversation: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **unknown: object,
    ) -> Any:
        """Render and encode by the family's own format, with transformers' arguments and results."""
        if tools or any(value for value in unknown.values()):
            named = "tools" if tools else next(key for key, value in unknown.items() if value)
            raise ConfigError(
                f"apply_chat_template: {named!r} is not supported here",
                hint="tools go into the system message" if tools else "leave it out",
            )
        is_batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        segments = [
            self.segments(messages_from_dicts(messages), add_generation_prompt)
            for messages in (conversation if is_batched else [conversation])
        ]
        if not tokenize:
            texts = ["".join(segment.text for segment in parts) for parts in segments]
            return texts if is_batched else texts[0]
        limit = max_length if truncation else None
        rows = [self.encode_segments(parts)[:limit] for parts in segments]
        batched = self.pad({"input_ids": rows}, padding=padding, max_length=max_length)
        # transformers gives a single conversation as a flat list, unless it is a tensor
        content = (
            dict(batched)
            if is_batched or return_tensors
            else {key: value[0] for key, value in batched.items()}
        )
        encoded = BatchEncoding(content, tensor_type=return_tensors)
        return encoded if return_dict else encoded["input_ids"]

    def count_open(self, text: str) -> int:
        """Count the last characters of a decoded text that transformers' clean-up of spaces may change."""
        found = _BEFORE_MARKS.search(text) if self.clean_up_tokenization_spaces else None
        return len(found[0]) if found else 0

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the vocabulary file into a folder and return its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        # the folder may be the tokenizer's own
        if not (target.exists() and target.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _pad(
        self,
        encoded_inputs: MutableMapping[str, Any],
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> MutableMapping[str, Any]:
        """Pad one row; positions count from the first real token, pads have position 0 and mask 0."""
        input_ids = list(encoded_inputs["input_ids"])
        length = len(input_ids)
        num_pads = count_pads(length, max_length, padding_strategy, pad_to_multiple_of)
        rows: dict[str, tuple[list[int], int]] = {"input_ids": (input_ids, self.pad_token_id)}
        if return_attention_mask is not False:
            rows["attention_mask"] = (list(encoded_inputs.get("attention_mask", [1] * length)), 0)
        rows["position_ids"] = (list(encoded_inputs.get("position_ids", range(length))), 0)
        for name, filler in (("token_type_ids", 0), ("special_tokens_mask", 1)):
            if name in encoded_inputs:
                rows[name] = (list(encoded_inputs[name]), filler)
        is_left = (padding_side or self.padding_side) == "left"
        for name, (values, filler) in rows.items():
            pads = [filler] * num_pads
            encoded_inputs[name] = pads + values if is_left else values + pads
        return encoded_inputs


def name_in_template(chat_template: object) -> str:
    """Return the assistant's name in a Jinja chat template that lists tools; empty if it has none."""
    found = _NAME_IN_TEMPLATE.search(chat_template) if isinstance(chat_template, str) else None
    return found.group(1) if found else ""


def count_pads(
    length: int, max_length: int | None, padding_strategy: PaddingStrategy, multiple_of: int | None
) -> int:
    """Count the pads that a row of `length` gets by transformers' padding settings."""
    if padding_strategy == PaddingStrategy.DO_NOT_PAD:
        return 0
    target = length if padding_strategy == PaddingStrategy.LONGEST or max_length is None else max_length
    if multiple_of:
        target = -(-target // multiple_of) * multiple_of
    return max(0, target - length)
