"""Models of the published sizes, without memory: their numbers of parameters are the published ones."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from glmtune.methods import apply_method, trainable_line
from glmtune.models import ChatGLMConfig
from glmtune.recipe import Ptuning

CHATGLM3_6B = {
    "model_type": "chatglm",
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "seq_length": 8192,
}
CHATGLM_6B = {
    "model_type": "chatglm",
    "num_layers": 28,
    "vocab_size": 130528,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_attention_heads": 32,
    "max_sequence_length": 2048,
    "position_encoding_2d": True,
    "bos_token_id": 130004,
    "eos_token_id": 130005,
}
GLM4_9B = CHATGLM3_6B | {
    "num_layers": 40,
    "padded_vocab_size": 151552,
    "eos_token_id": [151329, 151336, 151338],
}


@pytest.mark.parametrize(
    ("config", "count", "lora_count", "line"),
    [
        (
            CHATGLM_6B,
            6_173_286_400,
            3_670_016,
            "trainable params: 3,670,016 || all params: 6,176,956,416 || trainable%: 0.0594\n",
        ),
        (
            CHATGLM3_6B,
            6_243_584_000,
            1_949_696,
            "trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312\n",
        ),
        (
            GLM4_9B,
            9_399_951_360,
            2_785_280,
            "trainable params: 2,785,280 || all params: 9,402,736,640 || trainable%: 0.0296\n",
        ),
    ],
    ids=["chatglm-6b", "chatglm3-6b", "glm-4-9b"],
)
def test_full_sizes_have_the_published_parameter_counts(
    config: dict[str, Any], count: int, lora_count: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count_parameters(config) == count
    model = wrap_meta(config, r=8)
    assert model.get_nb_trainable_parameters() == (lora_count, count + lora_count)
    model.print_trainable_parameters()
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("config", "projection", "count"),
    [
        (CHATGLM_6B, False, 29_360_128),
        (CHATGLM_6B, True, 957_059_072),
        (CHATGLM3_6B, False, 1_835_008),
        (CHATGLM3_6B, True, 119_293_952),
        # computed as ChatGLM3's: 128 x W, and W x C + C + C x W + W more; W = 2 x 40 layers x 2 groups x 128
        (GLM4_9B, False, 128 * 20_480),
        (GLM4_9B, True, 128 * 20_480 + 2 * 20_480 * 4096 + 4096 + 20_480),
    ],
    ids=[
        "chatglm-6b",
        "chatglm-6b projected",
        "chatglm3-6b",
        "chatglm3-6b projected",
        "glm-4-9b",
        "glm-4-9b projected",
    ],
)
def test_a_prefix_of_128_tokens_has_the_published_parameter_count(
    config: dict[str, Any], projection: bool, count: int
) -> None:
    model = apply_method(build_meta(config), Ptuning(num_prefix_tokens=128, projection=projection))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert trainable_line(model).startswith(f"trainable params: {count:,} || ")


def build_meta(config: dict[str, Any]) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(ChatGLMConfig.from_dict(dict(config)))


def wrap_meta(config: dict[str, Any], r: int) -> peft.PeftModel:
    settings = peft.LoraConfig(r=r, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    return peft.get_peft_model(build_meta(config), settings, low_cpu_mem_usage=True)


def count_parameters(config: dict[str, Any]) -> int:
    return build_meta(config).num_parameters()


@pytest.mark.shared
@pytest.mark.parametrize("family", ["v1_late", "v2", "v3", "glm4"])
def test_real_configs_have_the_recorded_parameter_counts(family: str, shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "param_counts" / f"{family}.json").read_text())
    assert count_parameters(recorded["config"]) == recorded["num_parameters"]
    for r in (8, 16):
        counts = wrap_meta(recorded["config"], r).get_nb_trainable_parameters()
        expected = (recorded[f"lora_r{r}_query_key_value_trainable"], recorded[f"lora_r{r}_all_params"])
        assert counts == expected
