"""Tiny random models and rows of random ids."""

from pathlib import Path

import numpy as np
import torch

from glmtune.data.encode import Row
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.tokenizers import load_tokenizer
from tiny import tiny_sentencepiece, tiny_tiktoken

VOCABULARY = 97


def tiny_model(seed: int = 0, **settings: object) -> ChatGLMForConditionalGeneration:
    """A ChatGLM3-architecture model of some 20,000 weights, fp32, in evaluation mode."""
    torch.manual_seed(seed)
    config = ChatGLMConfig(
        **{
            "num_layers": 2,
            "padded_vocab_size": VOCABULARY,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "kv_channels": 8,
            "num_attention_heads": 4,
            "seq_length": 128,
            "add_qkv_bias": True,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **settings,
        }
    )
    return ChatGLMForConditionalGeneration(config).eval()


def random_rows(count: int, seed: int = 1, longest: int = 24) -> list[Row]:
    """Rows of uneven length with uneven shares of learned tokens."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(draw.integers(6, longest))
        ids = draw.integers(3, VOCABULARY, length).astype(np.int32)
        labels = ids.copy()
        labels[: int(draw.integers(1, length - 2))] = -100
        rows.append(Row(ids, labels, f"rows:{i + 1}"))
    return rows


def tiny_folder(
    folder: Path, template: str = "chatglm3", *, dtype: torch.dtype = torch.float32, **settings: object
) -> Path:
    """A complete official-layout folder: tokenizer, config and random weights."""
    is_glm4 = template.startswith("glm4")
    (tiny_tiktoken if is_glm4 else tiny_sentencepiece)(folder, template)
    tokenizer = load_tokenizer(folder, template)
    if is_glm4:
        settings = {"eos_token_id": tokenizer.stop_ids, "layernorm_epsilon": 1.5625e-07, **settings}
        settings = {"pad_token_id": tokenizer.pad_token_id, **settings}
    model = tiny_model(padded_vocab_size=len(tokenizer) + 3, **settings)
    model.to(dtype).save_pretrained(folder)
    return folder
