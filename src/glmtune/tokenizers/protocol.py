"""The type of a tokenizer in glmtune's code: a class of ours, or transformers' with a chat format of ours."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glmtune.templates import Message, Segment, Taught, Template
from glmtune.tokenizers.stream import TextStream


class Tokenizer(Protocol):
    """A tokenizer with its chat format; `ChatTokenizer` has the docstrings of its methods.

    What transformers adds (`decode`, padding ids) carries no types there, so it is declared here.
    """

    template: str | None
    taught: Taught
    assistant_name: str
    vocab_file: str
    padding_side: str
    pad_token_id: int
    eos_token_id: Any
    chat_template: str | None
    context: int | None
    vocab_size: int

    @property
    def chat_format(self) -> Template: ...  # noqa: D102
    @property
    def stop_ids(self) -> list[int]: ...  # noqa: D102
    @property
    def end_id(self) -> int: ...  # noqa: D102
    def encode_plain(self, text: str) -> list[int]: ...  # noqa: D102
    def token_bytes(self, index: int) -> bytes: ...  # noqa: D102
    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]: ...  # noqa: D102
    def token_ends(self, ids: Sequence[int]) -> list[int]: ...  # noqa: D102
    def encode_segments(self, segments: Sequence[Segment]) -> list[int]: ...  # noqa: D102
    def control_id(self, name: str) -> int: ...  # noqa: D102
    def get_prefix_tokens(self) -> list[int]: ...  # noqa: D102
    def segments(  # noqa: D102
        self, messages: Sequence[Message], add_generation_prompt: bool = True, *, source_prefix: str = ""
    ) -> list[Segment]: ...
    def text_stream(self) -> TextStream: ...  # noqa: D102
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...  # noqa: D102
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...  # noqa: D102
    def apply_chat_template(self, conversation: object, **settings: object) -> Any: ...  # noqa: D102
    def __len__(self) -> int: ...
