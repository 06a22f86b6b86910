"""Tiny random models and rows of random ids."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from glmtune.data.batches import Batch, collate
from glmtune.data.row import TrainingRow
from glmtune.models import (
    ChatGLM6BConfig,
    ChatGLM6BForConditionalGeneration,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
)
from glmtune.tokenizers import read_tokenizer
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


def random_rows(count: int, seed: int = 1, longest: int = 24) -> list[TrainingRow]:
    """Rows of uneven length with uneven shares of learned tokens."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(draw.integers(6, longest))
        ids = draw.integers(3, VOCABULARY, length).astype(np.int32)
        labels = ids.copy()
        labels[: int(draw.integers(1, length - 2))] = -100
        rows.append(TrainingRow(ids, labels, f"rows:{i + 1}"))
    return rows


def as_batch(ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> Batch:
    """A batch of the rows of a padded one, (B, T) each."""
    rows = [
        TrainingRow(row[real].numpy().astype(np.int32), wanted[real].numpy().astype(np.int32), "")
        for row, wanted, real in zip(ids, labels, mask.bool(), strict=True)
    ]
    return collate(rows, 0)


def tiny_folder(
    folder: Path,
    template: str = "chatglm3",
    *,
    dtype: torch.dtype = torch.float32,
    lively: float = 1,
    **settings: object,
) -> Path:
    """A complete official-layout folder: tokenizer, config and random weights, `lively` times as large."""
    is_glm4 = template.startswith("glm4")
    (tiny_tiktoken if is_glm4 else tiny_sentencepiece)(folder, template)
    tokenizer = read_tokenizer(folder, template)
    if is_glm4:
        settings = {"eos_token_id": tokenizer.stop_ids, "layernorm_epsilon": 1.5625e-07, **settings}
        settings = {"pad_token_id": tokenizer.pad_token_id, **settings}
    model = tiny_model(padded_vocab_size=len(tokenizer) + 3, **settings)
    _make_lively(model, embeddings=lively, layers=lively)
    model.to(dtype).save_pretrained(folder)
    return folder


def huge_folder(folder: Path) -> Path:
    """The tiny model's folder with the shapes of ChatGLM3-6B: its 28 layers are 12 GB that take no room."""
    tiny_folder(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696, "kv_channels": 128,
               "num_attention_heads": 32, "torch_dtype": "bfloat16"}  # fmt: skip
    config.pop("num_hidden_layers", None)  # transformers' name of num_layers, with the tiny model's number
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig.from_pretrained(folder))
    header, end = {}, 0
    for name, weight in model.state_dict().items():
        start, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def tiny_v1_folder(
    folder: Path,
    revision: str = "late",
    *,
    dtype: torch.dtype = torch.float32,
    lively: tuple[float, float] = (1, 40),
    **settings: object,
) -> Path:
    """A complete folder of a ChatGLM-6B revision: ice_text.model, config and random weights.

    `lively` multiplies the embeddings' and the layers' weights: 12 and 12 let a few steps of training show.
    """
    told = json.loads((tiny_ice(folder, revision) / "config.json").read_text(encoding="utf-8"))
    sizes = {"num_layers": 2, "hidden_size": 32, "inner_hidden_size": 64, "num_attention_heads": 4}
    config = ChatGLM6BConfig.from_dict({**told, **sizes, "max_sequence_length": 512, **settings})
    torch.manual_seed(0)
    model = ChatGLM6BForConditionalGeneration(config)
    _make_lively(model, embeddings=lively[0], layers=lively[1])
    model.to(dtype).save_pretrained(folder)
    return folder


def _make_lively(model: torch.nn.Module, *, embeddings: float, layers: float) -> None:
    """Larger weights, so that greedy answers do not repeat one token: ChatGLM-6B's need larger layers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(embeddings if "embed" in name or "lm_head" in name else layers)


def letters_only(model: Any, tokenizer: Any) -> LogitsProcessorList:
    """A random model writes broken characters; this keeps it to ASCII letters."""
    size = model.config.vocab_size
    texts = enumerate(tokenizer.decode([i]) for i in range(size - 20))  # words such as sop are behind them
    letters = [i for i, text in texts if text.isascii() and text.isalpha()]
    mask = torch.full((size,), -1e9).index_fill(0, torch.tensor(letters), 0.0)
    return LogitsProcessorList([lambda _ids, scores: scores + mask])


def with_lora(model: Any, *targets: str) -> Any:
    """The model with a LoRA of random weights in its layers, on query_key_value unless others are named."""
    torch.manual_seed(1)
    names = list(targets or ("query_key_value",))
    return inject_adapter_in_model(
        LoraConfig(r=4, target_modules=names, init_lora_weights=False), model
    ).eval()


def with_prefix(model: Any, *, projection: bool = False) -> Any:
    """The model with a prefix of 5 random tokens."""
    torch.manual_seed(1)
    model.attach_prefix(5, projection=projection)
    return model.eval()


def prune(tuned: Any) -> None:
    """Leave an AdaLoRA with ranks 1, 2, 3, ..., target by target, as its schedule leaves it at the end."""
    pattern = {}
    for name, values in tuned.get_base_model().named_parameters():
        if ".lora_E." in name:
            kept = torch.arange(len(values)) <= len(pattern) % len(values)
            values.data[~kept] = 0
            pattern[name] = kept.tolist()
    tuned.peft_config["default"].rank_pattern = pattern


class Scripted(torch.nn.Module):
    """Says the given ids one after the other, whatever it is asked."""

    config = SimpleNamespace(_attn_implementation="sdpa")
    generation_config = GenerationConfig()
    dtype = torch.float32

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.eye(vocabulary)[list(ids)])
        self.said = 0
        self.prompt: list[int] = []

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """Asked for where they lie and what type they give."""
        return torch.nn.Embedding(self.scores.shape[1], 1)

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutputWithPast:
        """Logits (B, 1, V)."""
        if not self.said:
            self.prompt = input_ids[0].tolist()
        self.said += 1
        return CausalLMOutputWithPast(logits=self.scores[self.said - 1].expand(len(input_ids), 1, -1))


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


def hf_settings(model_type: str) -> dict[str, Any]:
    """The sizes of a tiny model of a class of transformers."""
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "attention_bias": True,
        **(_EXPERTS if model_type == "glm4_moe" else {}),
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
            "vocab_size": size + 3,
            "eos_token_id": stops,
            "pad_token_id": stops[0],
            **hf_settings(model_type),
            **settings,
        },
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    _make_lively(model, embeddings=12, layers=12)
    model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    return folder


def load_tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """transformers' own tokenizer of a folder that has no config yet."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
