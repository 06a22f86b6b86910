"""ChatGLM-6B (v1) in its three revisions against what the official code made of the same tiny checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from closeness import assert_close
from glmtune.generate import Sampling, complete
from glmtune.models import load_base
from glmtune.models.chatglm import ChatGLM6BForConditionalGeneration
from glmtune.objectives.sft import SftObjective
from golden import GOLDENS, Golden, assert_committed_equals_reference, read_golden
from models import as_batch

REVISIONS = ("v1_early", "v1_mid", "v1_late")
GREEDY = ("single", "single_eos", "mask_token")


def with_batches(cases: Sequence[str], batched: Sequence[str]) -> list[tuple[str, str]]:
    """Revision and case; early's official code takes no batches."""
    return [(r, c) for r in REVISIONS for c in (*cases, *(() if r == "v1_early" else batched))]


@pytest.fixture(scope="module", params=REVISIONS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


@pytest.fixture(scope="module", params=("v1_mid", "v1_late"))
def batched(request: pytest.FixtureRequest) -> Golden:
    """The revisions whose official code takes batches."""
    return read_golden(request.param)


@pytest.fixture
def model() -> ChatGLM6BForConditionalGeneration:
    """Late, to be changed by a test."""
    return load_base(GOLDENS / "v1_late" / "ckpt", dtype="fp32", device="cpu")


def assert_logits(golden: Golden, case: str, logits: Tensor) -> None:
    real = golden.real(case)
    assert_close(logits[real], golden.tensors[f"{case}.logits"][real])


def pad_rows(rows: list[list[int]], side: str, pad: int = 3) -> tuple[Tensor, Tensor]:
    """ids and mask, (B, T)."""
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        pads = [pad] * (width - len(row))
        ids.append(pads + row if side == "left" else row + pads)
        mask.append([0] * len(pads) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pads))
    return torch.tensor(ids), torch.tensor(mask)


def uneven_rows(golden: Golden) -> list[list[int]]:
    """Rows of different lengths with answers, one of them filling a [MASK]."""
    full = golden.tensors["full.input_ids"][0].tolist()
    return [full, full[6:], [*golden.tensors["mask_token.input_ids"][0].tolist(), 8, 9], full[3:-5]]


# One forward pass


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["single", "full", "mask_token"])
@torch.no_grad()
def test_logits_are_the_official_ones(golden: Golden, case: str, attention: str) -> None:
    golden.model.set_attn_implementation(attention)
    try:
        assert_logits(golden, case, golden.run(case).logits)
    finally:
        golden.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "case", ["both_masks", "mask_token_batch", "train_batch", "left_pad", "left_pad_masks"]
)
@torch.no_grad()
def test_logits_of_batches_are_the_official_ones(batched: Golden, case: str, attention: str) -> None:
    """With the official tokenizer's 4-D masks and two rows of positions where the case has them."""
    batched.model.set_attn_implementation(attention)
    try:
        assert_logits(batched, case, batched.run(case).logits)
    finally:
        batched.model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_a_plain_mask_gives_what_the_official_mask_and_positions_give(batched: Golden) -> None:
    ids, mask = batched.tensors["left_pad.input_ids"], batched.real("left_pad").long()
    assert_logits(batched, "left_pad", batched.model(ids, attention_mask=mask).logits)


def test_positions_are_the_official_ones(golden: Golden) -> None:
    cases = [n.removesuffix(".ref_position_ids") for n in golden.tensors if n.endswith(".ref_position_ids")]
    for case in (c for c in cases if not c.startswith("pos1d.")):
        counted, _ = golden.model.count_positions(golden.tensors[f"{case}.input_ids"])
        assert torch.equal(counted, golden.tensors[f"{case}.ref_position_ids"]), case
    for case in {"left_pad", "greedy_batch"} & {n.split(".")[0] for n in golden.tensors}:
        counted, _ = golden.model.count_positions(
            golden.tensors[f"{case}.input_ids"], golden.real(case).long()
        )
        assert torch.equal(counted, golden.tensors[f"{case}.position_ids"]), case


@torch.no_grad()
def test_one_row_of_positions_gives_the_official_logits(model: ChatGLM6BForConditionalGeneration) -> None:
    golden = one_row_of_positions()
    for case in ("full", "mask_token"):
        ids = golden.tensors[f"{case}.input_ids"]
        counted, _ = golden.model.count_positions(ids)
        assert torch.equal(counted, golden.tensors[f"pos1d.{case}.ref_position_ids"])
        assert_close(golden.model(ids).logits, golden.tensors[f"pos1d.{case}.logits"])


def one_row_of_positions() -> Golden:
    golden = read_golden("v1_late")
    golden.model.config.position_encoding_2d = False
    flat = ChatGLM6BForConditionalGeneration(golden.model.config)
    flat.load_state_dict(golden.model.state_dict())
    golden.model = flat.eval()
    return golden


@torch.no_grad()
def test_hidden_states_are_the_official_ones_the_last_after_the_final_norm(golden: Golden) -> None:
    outputs = golden.run("full", output_hidden_states=True)
    assert len(outputs.hidden_states) == golden.model.config.num_layers + 1
    for i, hidden_states in enumerate(outputs.hidden_states):
        assert_close(hidden_states, golden.tensors[f"full.hidden_states.{i}"])


@pytest.mark.parametrize("case", ["single", "full", "mask_token"])
@torch.no_grad()
def test_attention_weights_are_the_official_ones(golden: Golden, case: str) -> None:
    golden.model.set_attn_implementation("eager")
    try:
        weights = golden.run(case, output_attentions=True).attentions[0]
    finally:
        golden.model.set_attn_implementation("sdpa")
    assert_close(weights[0], golden.tensors[f"{case}.attentions.0"])


def test_angles_come_from_frequencies_rounded_to_half(batched: Golden) -> None:
    positions = torch.ones(1, 2, 1, dtype=torch.long)
    cos, sin = batched.model.transformer.rotary_emb(positions, torch.float32)
    for row in range(2):
        official = batched.tensors["rotary.inv_freq_float_of_half"]
        assert_close(torch.atan2(sin, cos)[0, 0, row], official)


# Training


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("golden", "case"), with_batches(["full"], ["train_batch"]), indirect=["golden"])
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


def test_the_objective_gives_the_official_loss_and_gradients_on_a_padded_batch(batched: Golden) -> None:
    batched.model.zero_grad()
    ids, labels = (batched.tensors[f"train_batch.{name}"] for name in ("input_ids", "labels"))
    objective = SftObjective(batched.model)
    mask = (ids != batched.model.config.pad_token_id).long()
    batch = as_batch(ids, labels, mask)
    loss = objective(batch) / objective.weight(batch)
    loss.backward()
    batched.assert_loss_close(loss, batched.values["train_batch.loss"])
    batched.assert_gradients_close("train_batch")


def test_an_official_lora_adapter_gives_the_official_logits_and_gradients(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    golden = read_golden("v1_late")
    wrapped = peft.PeftModel.from_pretrained(model, GOLDENS / "v1_late" / "lora", is_trainable=True).eval()
    assert_close(wrapped(golden.tensors["full.input_ids"]).logits, golden.tensors["lora.full.logits"])
    counts = (golden.values["lora.trainable_params"], golden.values["lora.all_params"])
    assert wrapped.get_nb_trainable_parameters() == counts
    loss = wrapped(**golden.inputs("train_batch", "input_ids", "labels")).loss
    loss.backward()
    golden.assert_loss_close(loss, golden.values["lora.train_batch.loss"])
    golden.assert_norms_close(wrapped, golden.values["lora.train_batch.grad_norms"])


# A batch is its rows, and a cache changes nothing


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_mixed_lengths_give_what_each_gives_alone(golden: Golden, side: str) -> None:
    rows = uneven_rows(golden)
    ids, mask = pad_rows(rows, side)
    logits = golden.model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        assert_close(logits[i][mask[i].bool()], golden.model(torch.tensor([row])).logits[0])


@pytest.mark.parametrize("sizes", [[1] * 10, [4, 1, 5]], ids=["token by token", "in chunks"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(golden: Golden, sizes: list[int]) -> None:
    """The prompt must be read whole, because its tokens see each other."""
    ids = golden.tensors["full.input_ids"]
    full, prompt = golden.model(ids).logits, ids[:, : ids.shape[1] - 10]
    positions, following = golden.model.count_positions(prompt)
    outputs = golden.model(prompt, position_ids=positions, use_cache=True)
    assert_close(outputs.logits, full[:, : prompt.shape[1]])
    done = prompt.shape[1]
    for size in sizes:
        positions = golden.model.advance_positions(following, torch.arange(size))
        outputs = golden.model(
            ids[:, done : done + size], position_ids=positions, past_key_values=outputs.past_key_values
        )
        assert_close(outputs.logits, full[:, done : done + size])
        following, done = golden.model.advance_positions(positions[..., -1:]), done + size


@pytest.mark.parametrize(("golden", "case"), with_batches(["kv"], ["kv_batch"]), indirect=["golden"])
@torch.no_grad()
def test_cached_steps_give_the_official_logits_and_cache(golden: Golden, case: str) -> None:
    official, cache = golden.tensors[f"{case}.logits"], None
    for step in range(official.shape[1]):
        outputs = golden.run(f"{case}.step{step}", past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        assert_close(outputs.logits[:, 0], official[:, step])
    golden.assert_cache_close(case, cache)


# Generation


@pytest.mark.parametrize(
    ("golden", "case"),
    with_batches(GREEDY, ["batch", "batch_eos", "row0", "row1", "row2"]),
    indirect=["golden"],
)
def test_greedy_ids_are_the_official_ones(golden: Golden, case: str) -> None:
    case = f"greedy_{case}"
    official = golden.tensors[f"{case}.sequences"]
    eos = golden.values.get(f"{case}.eos_token_id", -1)  # -1: the official run had eos switched off
    new = official.shape[1] - golden.tensors[f"{case}.input_ids"].shape[1]
    plain = {"attention_mask": golden.real(case).long(), **settings_of(eos, new)}
    assert torch.equal(golden.model.generate(golden.tensors[f"{case}.input_ids"], **plain), official)
    # old code: the 4-D mask and the two rows of positions of the official tokenizer
    given = golden.inputs(case, "input_ids", "attention_mask", "position_ids")
    assert torch.equal(golden.model.generate(**given, **settings_of(eos, new)), official)


def settings_of(eos: int, new: int) -> dict[str, Any]:
    return {"eos_token_id": eos, "max_new_tokens": new, "do_sample": False, "pad_token_id": 3}


@pytest.mark.parametrize("case", ["beam3_single", "beam3_batch"])
def test_beam_search_ids_are_the_official_ones(batched: Golden, case: str) -> None:
    official = batched.tensors[f"{case}.sequences"]
    new = official.shape[1] - batched.tensors[f"{case}.input_ids"].shape[1]
    for names in (["input_ids"], ["input_ids", "attention_mask", "position_ids"]):
        given = {"attention_mask": batched.real(case).long()} | batched.inputs(case, *names)
        assert torch.equal(batched.model.generate(**given, num_beams=3, **settings_of(-1, new)), official)


def test_greedy_ids_with_one_row_of_positions_are_the_official_ones() -> None:
    golden = one_row_of_positions()
    ids, official = (golden.tensors[f"pos1d.greedy_single.{name}"] for name in ("input_ids", "sequences"))
    new = official.shape[1] - ids.shape[1]
    assert torch.equal(golden.model.generate(ids, **settings_of(-1, new)), official)
    ours = complete(golden.model, ids.tolist(), Sampling(do_sample=False, max_new_tokens=new), stop_ids=[])
    assert ours[0] == official[0, -new:].tolist()


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_generate_gives_the_same_ids_with_any_cache(batched: Golden, settings: dict[str, Any]) -> None:
    ids, official = (batched.tensors[f"greedy_batch.{name}"] for name in ("input_ids", "sequences"))
    mask = batched.real("greedy_batch").long()
    found = batched.model.generate(ids, attention_mask=mask, **settings_of(-1, 12), **settings)
    assert torch.equal(found, official[:, : ids.shape[1] + 12])


def test_the_decoder_gives_the_official_ids_and_rows_leave_the_batch(golden: Golden) -> None:
    sampling = Sampling(do_sample=False, max_new_tokens=24)
    prompts = [golden.tensors[f"greedy_{c}.input_ids"][0].tolist() for c in ("single", "mask_token")]
    prompts += [prompts[0][5:]]
    batch = complete(golden.model, prompts, sampling, stop_ids=[])
    for name, answer in zip(("single", "mask_token"), batch, strict=False):
        start = golden.tensors[f"greedy_{name}.input_ids"].shape[1]
        assert answer == golden.tensors[f"greedy_{name}.sequences"][0, start : start + 24].tolist()
    stops = {batch[0][3], batch[2][9]}
    alone = [complete(golden.model, [prompt], sampling, stop_ids=stops)[0] for prompt in prompts]
    assert complete(golden.model, prompts, sampling, stop_ids=stops) == alone
    assert len({len(answer) for answer in alone}) > 1


# The checkpoint


def test_parameter_names_and_shapes_are_the_official_ones(golden: Golden) -> None:
    official = {
        name: tuple(shape)
        for name, (shape, _) in golden.values["state_dict_keys_shapes"].items()
        if not name.endswith("inv_freq")
    }
    assert {name: tuple(x.shape) for name, x in golden.model.state_dict().items()} == official
    assert golden.model.num_parameters() == golden.values["num_parameters_tied"]


@pytest.mark.shared
@pytest.mark.parametrize("revision", REVISIONS)
def test_the_committed_goldens_are_the_reference_ones(revision: str, shared: Path) -> None:
    assert_committed_equals_reference(revision, shared)


@pytest.mark.shared
@pytest.mark.parametrize("revision", REVISIONS)
@torch.no_grad()
def test_the_bin_file_of_a_reference_folder_gives_the_same_logits(
    revision: str, shared: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).symlink_to(shared / "goldens" / revision / "ckpt" / name)
    golden = read_golden(revision)
    golden.model = load_base(tmp_path, dtype="fp32", device="cpu")
    assert_logits(golden, "full", golden.run("full").logits)
