"""Our model against what the official code made of the same tiny checkpoints, in float32."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from glmtune.models import ChatGLMForConditionalGeneration, ChatGLMForSequenceClassification, load_base

GOLDENS = Path(__file__).parents[1] / "goldens"
FAMILIES = ("v2", "v3", "glm4")
TOLERANCE = 1e-5


@dataclass
class Golden:
    family: str
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    model: ChatGLMForConditionalGeneration

    def inputs(self, case: str, *names: str) -> dict[str, Tensor]:
        """The named inputs that the case has."""
        return {name: self.tensors[f"{case}.{name}"] for name in names if f"{case}.{name}" in self.tensors}

    def run(self, case: str, **kwargs: Any) -> Any:
        inputs = self.inputs(case, "input_ids", "attention_mask", "position_ids", "labels")
        return self.model(**inputs, **kwargs)

    def real(self, case: str) -> Tensor:
        """Where the case has tokens, not pads."""
        mask = self.inputs(case, "attention_mask").get("attention_mask")
        return torch.ones_like(self.tensors[f"{case}.input_ids"]).bool() if mask is None else mask.bool()


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = GOLDENS / request.param
    values = json.loads((folder / "oracle.json").read_text())
    model = load_base(folder / "ckpt", dtype="fp32", device="cpu")
    return Golden(request.param, load_file(folder / "oracle.safetensors"), values, model)


def assert_close(ours: Tensor, official: Tensor) -> None:
    assert ours.shape == official.shape
    allowed = TOLERANCE * max(1.0, official.abs().max().item())
    assert (ours - official).abs().max().item() <= allowed


def assert_norms_close(model: torch.nn.Module, official: dict[str, float]) -> None:
    ours = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == official.keys()
    for name, norm in official.items():
        assert abs(ours[name] - norm) <= TOLERANCE * max(1.0, norm), name


@pytest.mark.parametrize(
    "case", ["single", "full", "train_batch", "left_pad", "left_pad_no_positions", "right_pad"]
)
@torch.no_grad()
def test_logits_are_the_official_ones(golden: Golden, case: str) -> None:
    real = golden.real(case)
    assert_close(golden.run(case).logits[real], golden.tensors[f"{case}.logits"][real])


@pytest.mark.parametrize("case", ["single", "full"])
@torch.no_grad()
def test_hidden_states_are_the_official_ones_the_last_before_the_final_norm(
    golden: Golden, case: str
) -> None:
    ours = golden.run(case, output_hidden_states=True).hidden_states
    assert len(ours) == golden.model.config.num_layers + 1
    for i, hidden_states in enumerate(ours):
        assert_close(hidden_states, golden.tensors[f"{case}.hidden_states.{i}"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["full", "train_batch", "left_pad"])
def test_losses_and_gradients_are_the_official_ones(golden: Golden, case: str, attention: str) -> None:
    golden.model.zero_grad()
    golden.model.set_attn_implementation(attention)
    try:
        loss = golden.run(case).loss
    finally:
        golden.model.set_attn_implementation("sdpa")
    loss.backward()
    official = golden.values[f"{case}.loss"]
    assert abs(loss.item() - official) <= TOLERANCE * official
    assert_norms_close(golden.model, golden.values[f"{case}.grad_norms"])
    for name, parameter in golden.model.named_parameters():
        if f"{case}.grad.{name}" in golden.tensors:
            assert_close(parameter.grad, golden.tensors[f"{case}.grad.{name}"])


@torch.no_grad()
def test_a_chunk_on_top_of_a_cache_gives_the_official_logits(golden: Golden) -> None:
    first = golden.model(golden.tensors["chunk.first_input_ids"], use_cache=True)
    second = golden.run("chunk", past_key_values=first.past_key_values)
    assert_close(second.logits, golden.tensors["chunk.logits"])


@pytest.mark.parametrize("case", ["kv", "kv_batch"])
@torch.no_grad()
def test_cached_steps_give_the_official_logits_and_cache(golden: Golden, case: str) -> None:
    official = golden.tensors[f"{case}.logits"]
    cache = None
    for step in range(official.shape[1]):
        outputs = golden.run(f"{case}.step{step}", past_key_values=cache, return_last_logit=True)
        cache = outputs.past_key_values
        assert_close(outputs.logits[:, 0], official[:, step])
    assert_cache_close(golden, case, cache)


def assert_cache_close(golden: Golden, case: str, cache: Any) -> None:
    last = golden.model.config.num_layers - 1
    real = golden.inputs(f"{case}.step{golden.tensors[f'{case}.logits'].shape[1] - 1}", "attention_mask")
    for layer in (0, last):
        for part, ours in (("key", cache.layers[layer].keys), ("value", cache.layers[layer].values)):
            official = golden.tensors[f"{case}.past.{layer}.{part}"]
            if golden.family != "glm4":
                official = official.permute(1, 2, 0, 3)  # v2 and v3 keep (S, B, G, D)
            mask = real.get("attention_mask", torch.ones(ours.shape[0], ours.shape[2])).bool()
            assert_close(ours.transpose(1, 2)[mask], official.transpose(1, 2)[mask])


@pytest.mark.parametrize("case", ["full", "left_pad"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(golden: Golden, case: str) -> None:
    inputs = golden.inputs(case, "input_ids", "attention_mask", "position_ids")
    full, cache, real = golden.model(**inputs).logits, None, golden.real(case)
    for end in range(1, full.shape[1] + 1):
        step = {name: x if name == "attention_mask" else x[:, end - 1 : end] for name, x in inputs.items()}
        step |= {"attention_mask": inputs["attention_mask"][:, :end]} if "attention_mask" in inputs else {}
        outputs = golden.model(**step, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        seen = real[:, end - 1, None]  # outputs at pads mean nothing
        assert_close(outputs.logits[:, 0] * seen, full[:, end - 1] * seen)


GREEDY = ("single", "batch", "row0", "row1", "row2")


@pytest.mark.parametrize("case", [f"greedy_{name}" for name in (*GREEDY, "single_eos", "batch_eos")])
def test_greedy_ids_are_the_official_ones(golden: Golden, case: str) -> None:
    eos = golden.values.get(f"{case}.eos_token_id", -1)  # -1: the official run had eos switched off
    ids = generate(golden, case, eos_token_id=eos, max_new_tokens=64)
    assert torch.equal(ids, golden.tensors[f"{case}.sequences"])


@pytest.mark.parametrize("case", ["beam3_single", "beam3_batch"])
def test_beam_search_ids_are_the_official_ones(golden: Golden, case: str) -> None:
    official = golden.tensors[f"{case}.sequences"]
    new = official.shape[1] - golden.tensors[f"{case}.input_ids"].shape[1]
    ids = generate(golden, case, eos_token_id=-1, max_new_tokens=new, num_beams=3)
    assert torch.equal(ids, official)


def generate(golden: Golden, case: str, **settings: Any) -> Tensor:
    """Without positions: `generate` derives them from the mask."""
    pad = golden.model.config.pad_token_id
    inputs = {"attention_mask": torch.ones_like(golden.tensors[f"{case}.input_ids"])}
    inputs |= golden.inputs(case, "input_ids", "attention_mask")
    return golden.model.generate(**inputs, do_sample=False, pad_token_id=pad, **settings)


def test_an_official_lora_adapter_gives_the_official_logits_and_gradients(golden: Golden) -> None:
    base = load_base(GOLDENS / golden.family / "ckpt", dtype="fp32", device="cpu")
    model = peft.PeftModel.from_pretrained(base, GOLDENS / golden.family / "lora", is_trainable=True).eval()
    assert_close(model(golden.tensors["full.input_ids"]).logits, golden.tensors["lora.full.logits"])
    assert model.get_nb_trainable_parameters() == (
        golden.values["lora.trainable_params"],
        golden.values["lora.all_params"],
    )
    loss = model(**golden.inputs("train_batch", "input_ids", "labels")).loss
    loss.backward()
    official = golden.values["lora.train_batch.loss"]
    assert abs(loss.item() - official) <= TOLERANCE * official
    assert_norms_close(model, golden.values["lora.train_batch.grad_norms"])


@torch.no_grad()
def test_the_classifier_gives_the_official_logits_and_loss(golden: Golden) -> None:
    classifier = ChatGLMForSequenceClassification.from_pretrained(
        GOLDENS / golden.family / "ckpt", dtype=torch.float32, num_labels=3
    )
    head = {name: golden.tensors[f"cls.head.{name}"] for name in ("weight", "bias")}
    classifier.classifier_head.load_state_dict(head)
    outputs = classifier(**golden.inputs("cls", "input_ids", "attention_mask", "position_ids", "labels"))
    assert_close(outputs.logits, golden.tensors["cls.logits"])
    assert abs(outputs.loss.item() - golden.values["cls.loss"]) <= TOLERANCE * golden.values["cls.loss"]


def test_rotary_angles_are_the_official_fp32_ones(golden: Golden) -> None:
    official = golden.tensors["rotary.cache_fp32"]
    positions = torch.arange(official.shape[0])[None]
    ours = torch.stack(golden.model.transformer.rotary_pos_emb(positions, torch.float32), dim=-1)
    assert_close(ours[0], official)


def test_parameter_names_and_shapes_are_the_official_ones(golden: Golden) -> None:
    official = {
        name: tuple(shape)
        for name, (shape, _) in golden.values["state_dict_keys_shapes"].items()
        if not name.endswith("inv_freq")
    }
    assert {name: tuple(x.shape) for name, x in golden.model.state_dict().items()} == official
    assert golden.model.num_parameters() == golden.values["num_parameters"]


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
GLM4_9B = CHATGLM3_6B | {
    "num_layers": 40,
    "padded_vocab_size": 151552,
    "eos_token_id": [151329, 151336, 151338],
}


@pytest.mark.parametrize(
    ("config", "count", "lora_count", "line"),
    [
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
    ids=["chatglm3-6b", "glm-4-9b"],
)
def test_full_sizes_have_the_published_parameter_counts(
    config: dict[str, Any], count: int, lora_count: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count_parameters(config) == count
    model = wrap_meta(config, r=8)
    assert model.get_nb_trainable_parameters() == (lora_count, count + lora_count)
    model.print_trainable_parameters()
    assert capsys.readouterr().out == line


def build_meta(config: dict[str, Any]) -> ChatGLMForConditionalGeneration:
    keys = {
        name: value for name, value in config.items() if name not in ("model_type", "attn_implementation")
    }
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("chatglm", **keys))


def wrap_meta(config: dict[str, Any], r: int) -> peft.PeftModel:
    settings = peft.LoraConfig(r=r, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    return peft.get_peft_model(build_meta(config), settings, low_cpu_mem_usage=True)


def count_parameters(config: dict[str, Any]) -> int:
    return build_meta(config).num_parameters()


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_real_configs_have_the_recorded_parameter_counts(family: str, shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "param_counts" / f"{family}.json").read_text())
    assert count_parameters(recorded["config"]) == recorded["num_parameters"]
    for r in (8, 16):
        counts = wrap_meta(recorded["config"], r).get_nb_trainable_parameters()
        expected = (recorded[f"lora_r{r}_query_key_value_trainable"], recorded[f"lora_r{r}_all_params"])
        assert counts == expected


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_the_committed_goldens_are_the_reference_ones(family: str, shared: Path) -> None:
    whole = load_file(shared / "goldens" / family / "oracle.safetensors")
    for name, tensor in load_file(GOLDENS / family / "oracle.safetensors").items():
        assert torch.equal(tensor, whole[name]), name
    values = json.loads((shared / "goldens" / family / "oracle.json").read_text())
    committed = json.loads((GOLDENS / family / "oracle.json").read_text())
    assert committed == {name: values[name] for name in committed}


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_bin_file_of_a_reference_folder_gives_the_same_logits(
    family: str, shared: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).symlink_to(shared / "goldens" / family / "ckpt" / name)
    oracle = load_file(shared / "goldens" / family / "oracle.safetensors")
    model = load_base(tmp_path, dtype="fp32", device="cpu")
    assert_close(model(oracle["full.input_ids"]).logits, oracle["full.logits"])
    last = model.transformer(
        oracle["left_pad.input_ids"], oracle["left_pad.attention_mask"], oracle["left_pad.position_ids"]
    )
    real = oracle["left_pad.attention_mask"].bool()
    assert_close(last.last_hidden_state[real], oracle["left_pad.last_hidden_state"][real])
