"""Export of ChatGLM2, ChatGLM3 and GLM-4 in the layout of transformers' own `glm` class.

Source: github.com/huggingface/transformers v5, src/transformers/models/glm (GlmForCausalLM): the same numbers
under other names, with separate weights for queries, keys and values.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GlmConfig

from glmtune.exports.folder import write_pretty
from glmtune.exports.source import ExportSource
from glmtune.exports.tensors import Group, Merged
from glmtune.models.config import ChatGLMConfig, read_config
from glmtune.models.published_weights import stored_dtype
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.convert import chat_template_of, convert_tokenizer

_RENAMED = (
    (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
    (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
    (r"^transformer\.output_layer\.", "lm_head."),
    (r"^transformer\.encoder\.layers\.", "model.layers."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
)
_SPLIT = ".self_attention.query_key_value."
_DROPPED = "rotary_pos_emb.inv_freq"


def hf_groups(source: ExportSource, merged: Merged) -> list[Group]:
    """Return the merged tensors under the names of transformers' class."""
    config = read_config(source.folder, template=source.identity.template)
    assert isinstance(config, ChatGLMConfig)
    # transformers computes the rotary frequencies itself
    return [_group(merged, name, config) for name in merged.stored if not name.endswith(_DROPPED)]


def rename(name: str) -> str:
    """Return the name in transformers' class of an official tensor that is not split."""
    for pattern, text in _RENAMED:
        name = re.sub(pattern, text, name)
    return name


def _group(merged: Merged, name: str, config: ChatGLMConfig) -> Group:
    """Return a tensor under its new name, or split into queries, keys and values."""
    if _SPLIT not in name:
        new = rename(name)
        shape = (merged.stored[name].shape, merged.dtype_of(name))
        return Group({new: shape}, lambda: {new: merged.read(name)})
    # officially, the rows of queries, keys and values lie in this order in one weight
    groups = config.multi_query_group_num if config.multi_query_attention else config.num_attention_heads
    sizes = [config.num_attention_heads * config.kv_channels, *[groups * config.kv_channels] * 2]
    before, _, leaf = rename(name).partition(_SPLIT)
    names = [f"{before}.self_attn.{part}_proj.{leaf}" for part in "qkv"]
    width = merged.stored[name].shape[1:]
    shapes = {new: ((size, *width), merged.dtype_of(name)) for new, size in zip(names, sizes, strict=True)}

    def read() -> dict[str, Tensor]:
        return dict(zip(names, torch.split(merged.read(name), sizes), strict=True))

    return Group(shapes, read)


def hf_config(
    config: ChatGLMConfig, *, stop_ids: list[int], pad_id: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the config.json of transformers' class.

    Rotary embeddings cover half of each head. ChatGLM3 and GLM-4 multiply the base by `rope_ratio`; ChatGLM2
    divides the positions, which is transformers' "linear" scaling.
    """
    ratio = config.rope_ratio
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if config.rope_scaling_by == "positions" and ratio != 1:
        rope |= {"rope_type": "linear", "factor": float(ratio)}
    elif ratio != 1:
        rope["rope_theta"] *= ratio
    rope["partial_rotary_factor"] = 0.5
    hf = GlmConfig(
        architectures=["GlmForCausalLM"],
        attention_bias=config.add_qkv_bias,
        attention_dropout=config.attention_dropout,
        dtype=str(dtype).removeprefix("torch."),
        eos_token_id=stop_ids,
        head_dim=config.kv_channels,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        max_position_embeddings=config.seq_length,
        num_attention_heads=config.num_attention_heads,
        num_hidden_layers=config.num_layers,
        num_key_value_heads=config.num_key_value_heads,
        pad_token_id=pad_id,
        rms_norm_eps=config.layernorm_epsilon,
        rope_parameters=rope,
        tie_word_embeddings=False,
        vocab_size=config.padded_vocab_size,
    )
    content: dict[str, Any] = hf.to_dict()
    # the same settings under the keys that transformers before 5, and servers built on it, read
    older = {"rope_theta": rope["rope_theta"], "partial_rotary_factor": 0.5, "torch_dtype": content["dtype"]}
    if rope["rope_type"] == "linear":
        older["rope_scaling"] = {"rope_type": "linear", "factor": float(ratio)}
    return content | older


def write_hf_files(source: ExportSource, folder: Path, dtype: torch.dtype | None) -> None:
    """Write config, generation config, tokenizer and chat template of an export."""
    tokenizer = read_tokenizer(source.folder, source.identity.template)
    config = read_config(source.folder, template=source.identity.template)
    assert isinstance(config, ChatGLMConfig)
    stop_ids, pad_id = tokenizer.stop_ids, int(tokenizer.pad_token_id)
    dtype = dtype or stored_dtype(source.folder)
    write_pretty(folder / "config.json", hf_config(config, stop_ids=stop_ids, pad_id=pad_id, dtype=dtype))
    # the base's own generation settings, without the keys that describe the file itself
    generation = {
        key: value
        for key, value in source.folder.json("generation_config.json").items()
        if key not in ("_from_model_config", "transformers_version")
    }
    ends = {"eos_token_id": stop_ids, "pad_token_id": pad_id}
    write_pretty(folder / "generation_config.json", {**generation, **ends})
    # the files that transformers' own fast tokenizer reads, without this program
    converted = convert_tokenizer(tokenizer)
    assert converted is not None
    (folder / "tokenizer.json").write_text(converted.to_str(pretty=True), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template_of(tokenizer), encoding="utf-8")
    names: Mapping[int, str] = {i: name for name, i in converted.get_vocab(with_added_tokens=True).items()}
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[int(tokenizer.eos_token_id)],
        "pad_token": names[pad_id],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_pretty(folder / "tokenizer_config.json", content)
