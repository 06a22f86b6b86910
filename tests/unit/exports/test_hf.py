"""ChatGLM2, ChatGLM3 and GLM-4 in transformers' own class: the same logits, whatever the config says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GlmConfig

from closeness import assert_close
from glmtune.exports.hf import hf_config, rename
from glmtune.exports.kinds import ExportSettings, find_kind
from glmtune.exports.source import find_source
from glmtune.models import ChatGLMConfig, load_base
from models import tiny_folder

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ChatGLM2": ("chatglm2", {}),
    "ChatGLM2-32k": ("chatglm2", {"rope_ratio": 16, "rope_scaling_by": "positions"}),
    "ChatGLM3-32k": ("chatglm3", {"rope_ratio": 50, "rope_scaling_by": "base"}),
    "GLM-4": ("glm4", {"rope_ratio": 500}),
    "GLM-4 base": ("glm4_base", {}),
    "no bias, heads of another size": ("chatglm3", {"add_qkv_bias": False, "kv_channels": 16}),
    "a group for each head": ("chatglm3", {"multi_query_group_num": 4}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_logits_are_the_same(case: str, tmp_path: Path) -> None:
    template, settings = SETTINGS[case]
    base = tiny_folder(tmp_path / "base", template, **settings)
    source = find_source(base)
    (out := tmp_path / "out").mkdir()
    find_kind("hf").draft(source, source.open(), ExportSettings(shard_bytes=10**5)).write(out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=False).eval()
    ids = torch.randint(3, 90, (2, 60), generator=torch.manual_seed(1))
    with torch.no_grad():
        ours = load_base(base, dtype="fp32", device="cpu")(ids).logits
        assert_close(theirs(ids).logits, ours)
    assert theirs.config.model_type == "glm"
    assert theirs.config.tie_word_embeddings is False


@pytest.mark.parametrize(("by", "rope"), [
    ("positions", {"rope_type": "linear", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "factor": 16.0}),
    ("base", {"rope_type": "default", "rope_theta": 16e4, "partial_rotary_factor": 0.5}),
])  # fmt: skip
def test_rope_ratio_is_said_as_transformers_says_it_and_as_it_did_before(
    by: Any, rope: dict[str, Any]
) -> None:
    config = ChatGLMConfig(rope_ratio=16, rope_scaling_by=by, multi_query_attention=True)
    content = hf_config(config, stop_ids=[2], pad_id=0, dtype=torch.float16)
    assert content["rope_parameters"] == rope
    assert content["rope_theta"] == rope["rope_theta"]
    assert content.get("rope_scaling", {}).get("factor") == rope.get("factor")
    assert GlmConfig(**content).rope_parameters == rope
    assert content["torch_dtype"] == content["dtype"] == "float16"


def test_names_are_transformers_own() -> None:
    assert (
        rename("transformer.encoder.layers.3.mlp.dense_h_to_4h.weight")
        == "model.layers.3.mlp.gate_up_proj.weight"
    )
    assert rename("transformer.output_layer.weight") == "lm_head.weight"
