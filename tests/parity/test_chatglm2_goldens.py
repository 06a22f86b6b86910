"""Our model against what the official code made of the same tiny checkpoints, in float32."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from closeness import assert_close
from glmtune.models import ChatGLMForSequenceClassification, load_base
from golden import GOLDENS, Golden, assert_committed_equals_reference, read_golden

FAMILIES = ("v2", "v3", "glm4")


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


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
    golden.assert_loss_close(loss, golden.values[f"{case}.loss"])
    golden.assert_gradients_close(case)


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
    golden.assert_cache_close(case, cache)


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
    ids = golden.generate(case, eos_token_id=eos, max_new_tokens=64)
    assert torch.equal(ids, golden.tensors[f"{case}.sequences"])


@pytest.mark.parametrize("case", ["beam3_single", "beam3_batch"])
def test_beam_search_ids_are_the_official_ones(golden: Golden, case: str) -> None:
    official = golden.tensors[f"{case}.sequences"]
    new = official.shape[1] - golden.tensors[f"{case}.input_ids"].shape[1]
    ids = golden.generate(case, eos_token_id=-1, max_new_tokens=new, num_beams=3)
    assert torch.equal(ids, official)


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
    golden.assert_loss_close(loss, golden.values["lora.train_batch.loss"])
    golden.assert_norms_close(model, golden.values["lora.train_batch.grad_norms"])


@torch.no_grad()
def test_the_classifier_gives_the_official_logits_and_loss(golden: Golden) -> None:
    classifier = ChatGLMForSequenceClassification.from_pretrained(
        GOLDENS / golden.family / "ckpt", dtype=torch.float32, num_labels=3
    )
    head = {name: golden.tensors[f"cls.head.{name}"] for name in ("weight", "bias")}
    classifier.classifier_head.load_state_dict(head)
    outputs = classifier(**golden.inputs("cls", "input_ids", "attention_mask", "position_ids", "labels"))
    assert_close(outputs.logits, golden.tensors["cls.logits"])
    golden.assert_loss_close(outputs.loss, golden.values["cls.loss"])


def test_rotary_angles_are_the_official_fp32_ones(golden: Golden) -> None:
    official = golden.tensors["rotary.cache_fp32"]
    positions = torch.arange(official.shape[0])[None]
    cos, sin = golden.model.transformer.rotary_pos_emb(positions, torch.float32)  # (1, 1, S, D) each
    half = 2 * official.shape[1]
    assert_close(torch.stack((cos, sin), dim=-1)[0, 0, :, 1:half:2], official)
    assert torch.equal(sin[..., :half:2], -sin[..., 1:half:2])
    assert torch.equal(cos[..., :half:2], cos[..., 1:half:2])
    assert bool((cos[..., half:] == 1).all() and (sin[..., half:] == 0).all())


def test_parameter_names_and_shapes_are_the_official_ones(golden: Golden) -> None:
    official = {
        name: tuple(shape)
        for name, (shape, _) in golden.values["state_dict_keys_shapes"].items()
        if not name.endswith("inv_freq")
    }
    assert {name: tuple(x.shape) for name, x in golden.model.state_dict().items()} == official
    assert golden.model.num_parameters() == golden.values["num_parameters"]


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_the_committed_goldens_are_the_reference_ones(family: str, shared: Path) -> None:
    assert_committed_equals_reference(family, shared)


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
