"""The type of a causal language model in glmtune's code, whichever library the model's class comes from."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    import torch

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
