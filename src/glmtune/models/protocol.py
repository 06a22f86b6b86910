"""The types of a causal language model, and of a tokenizer for the official calls, whoever built them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    import torch

    from glmtune.templates import Message, Segment

    class CausalLM(nn.Module):
        """A causal language model: a class of ours or of transformers, bare or inside PEFT's wrapper.

        Each is an `nn.Module` with these attributes. The base class is for the type checker alone:
        transformers and peft carry no types, and a `Protocol` is no module for torch.
        """

        config: Any
        generation_config: Any
        device: torch.device
        dtype: torch.dtype
        name_or_path: str
        all_tied_weights_keys: dict[str, str]
        base_model: Any
        """The layers without the output layer; of a `PeftModel` the tuner around the whole model."""
        get_input_embeddings: Callable[[], nn.Embedding]
        get_output_embeddings: Callable[[], nn.Linear]
        generate: Callable[..., Tensor]
        save_pretrained: Callable[..., None]
        gradient_checkpointing_enable: Callable[..., None]

        # in PEFT's wrapper alone
        get_base_model: Callable[[], "CausalLM"]
        disable_adapter: Callable[[], AbstractContextManager[None]]

        # in our own classes alone
        attach_prefix: Callable[..., None]
        hold_prefix: Callable[[nn.Module | None], None]
        quantize: Callable[[int], nn.Module]
        scale_dtype: torch.dtype | None
        count_reusable: Callable[[Any, int], int]
        count_cached: Callable[[Any], int]
        mask_prompt: Callable[[Tensor, int], Tensor | None]

else:
    CausalLM = nn.Module


class OfficialTokenizer(Protocol):
    """The part of a tokenizer that `model.chat` uses: models take one as an argument and import none."""

    template: Any
    """The name of its chat format."""
    pad_token_id: int

    @property
    def stop_ids(self) -> list[int]:
        """Return the ids that end an answer. Raises ConfigError while the chat format is unknown."""

    def segments(self, messages: Sequence["Message"]) -> list["Segment"]:
        """Return the segments that chat sends for these messages."""

    def encode_segments(self, segments: Sequence["Segment"]) -> list[int]:
        """Return the ids of segments."""

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text, without control tokens."""

    def get_prefix_tokens(self) -> list[int]:
        """Return the ids that every text begins with."""

    def decode(self, token_ids: list[int]) -> Any:
        """Return the text of ids."""

    def text_stream(self) -> Any:
        """Return a stream that decodes ids one by one: `add`, `text`."""
