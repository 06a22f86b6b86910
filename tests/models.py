"""Tiny random models and rows of random ids."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from glmtune.data.encode import Row
from glmtune.models import (
    ChatGLM6BConfig,
    ChatGLM6BForConditionalGeneration,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
)
from glmtune.tokenizers import load_tokenizer
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken

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


def lively_model(seed: int = 3, **settings: object) -> ChatGLMForConditionalGeneration:
    """`tiny_model` with larger weights, so that greedy answers do not repeat one token."""
    model = tiny_model(seed=seed, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


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


def tiny_v1_folder(folder: Path, revision: str = "late", **settings: object) -> Path:
    """A complete folder of a ChatGLM-6B revision: ice_text.model, config and random weights."""
    told = json.loads((tiny_ice(folder, revision) / "config.json").read_text(encoding="utf-8"))
    sizes = {"num_layers": 2, "hidden_size": 32, "inner_hidden_size": 64, "num_attention_heads": 4}
    config = ChatGLM6BConfig.from_dict({**told, **sizes, "max_sequence_length": 512, **settings})
    torch.manual_seed(0)
    model = ChatGLM6BForConditionalGeneration(config)
    _make_lively(model)
    model.save_pretrained(folder)
    return folder


def _make_lively(model: torch.nn.Module) -> None:
    """Larger weights, so that greedy answers do not repeat one token."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)


HF_FAMILIES = {
    "GLM-4-hf": ("glm", "glm4"),
    "GLM-4-0414": ("glm4", "glm4_0414"),
    "GLM-4.5": ("glm4_moe", "glm45"),
}
"""model_type and chat format of the families whose models are transformers' own."""

_EXPERTS = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "use_qk_norm": True, "norm_topk_prob": True, "num_mtp_layers": 0,
}  # fmt: skip


def tiny_hf_folder(
    folder: Path,
    family: str,
    template: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **settings: object,
) -> Path:
    """A complete folder of a family in transformers: tokenizer, chat template, config, random weights."""
    model_type, default = HF_FAMILIES[family]
    tokenizer = load_tokenizer_of(tiny_json(folder, template or default))
    size = len(tokenizer)
    stops = [
        tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")
    ]
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": size + 3, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
            "attention_bias": True, "eos_token_id": stops, "pad_token_id": stops[0],
            **(_EXPERTS if model_type == "glm4_moe" else {}),
            **settings,
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    _make_lively(model)
    model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    return folder


def load_tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """transformers' own tokenizer of a folder that has no config yet."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
