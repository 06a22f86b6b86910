"""Native models of the GLM family, loaded by `load_base` (our classes) and `load_in_transformers` (theirs).

Importing this package registers the models and their tokenizers with transformers, so that its Auto classes
load official folders without remote code.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from glmtune.models.chatglm import ChatGLM6BForConditionalGeneration
from glmtune.models.chatglm2 import ChatGLMForConditionalGeneration, ChatGLMForSequenceClassification
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.config import ChatGLMConfig
from glmtune.models.device import resolve_device
from glmtune.models.dtype import choose_dtype
from glmtune.models.own import load_base
from glmtune.models.upstream import load_in_transformers
from glmtune.tokenizers import register as register_tokenizers

register_tokenizers()
AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):  # the classes in the official auto_map
    auto.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    auto.register(ChatGLM6BConfig, ChatGLM6BForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification, exist_ok=True)

__all__ = [
    "ChatGLM6BConfig",
    "ChatGLM6BForConditionalGeneration",
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMForSequenceClassification",
    "choose_dtype",
    "load_base",
    "load_in_transformers",
    "resolve_device",
]
