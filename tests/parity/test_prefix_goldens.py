"""P-Tuning v2 against what the official code made of the same tiny checkpoints and prefixes, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, DynamicCache

from closeness import assert_close
from glmtune import load_model
from glmtune.generate import Sampling, complete
from glmtune.models import load_base
from glmtune.models.computing import compute_in
from glmtune.objectives.sft import SftObjective
from golden import GOLDENS, Golden, assert_committed_equals_reference, read_prefix_golden
from models import as_batch

FAMILIES = ("v1_mid", "v1_late", "v2", "v3")
KINDS = ("prefix", "prefix_proj")
PREFIX = "transformer.prefix_encoder."


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in KINDS], ids="-".join)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_prefix_golden(*request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> Golden:
    """Without the projection: the cases that do not depend on it."""
    return read_prefix_golden(request.param, "prefix")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["full", "train_batch"])
def test_logits_are_the_official_ones(golden: Golden, case: str, attention: str) -> None:
    assert_logits(golden, case, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_a_batch_padded_by_the_official_tokenizer_are_the_official_ones(
    plain: Golden, attention: str
) -> None:
    """With its masks, ChatGLM-6B's in four dimensions, and its positions."""
    assert_logits(plain, "left_pad", attention)


@torch.no_grad()
def assert_logits(golden: Golden, case: str, attention: str) -> None:
    golden.model.set_attn_implementation(attention)
    try:
        logits = golden.run(case).logits
    finally:
        golden.model.set_attn_implementation("sdpa")
    real = golden.real(case)
    assert_close(logits[real], golden.tensors[f"{case}.logits"][real])


@pytest.mark.parametrize("case", ["full", "train_batch"])
def test_losses_and_gradients_are_the_official_ones_and_the_prefix_alone_has_any(
    golden: Golden, case: str
) -> None:
    golden.model.zero_grad()
    loss = golden.run(case).loss
    loss.backward()
    golden.assert_loss_close(loss, golden.values[f"{case}.loss"])
    golden.assert_norms_close(golden.model, golden.values[f"{case}.grad_norms"])


def test_the_objective_gives_the_official_loss_and_gradients_on_a_padded_batch(golden: Golden) -> None:
    golden.model.zero_grad()
    ids, labels = (golden.tensors[f"train_batch.{name}"] for name in ("input_ids", "labels"))
    batch = as_batch(ids, labels, real_of(golden, ids))
    objective = SftObjective(golden.model)
    loss = objective(batch) / objective.weight(batch)
    loss.backward()
    golden.assert_loss_close(loss, golden.values["train_batch.loss"])
    golden.assert_norms_close(golden.model, golden.values["train_batch.grad_norms"])


def real_of(golden: Golden, ids: Tensor) -> Tensor:
    """1 = a token; the rows are padded on the right."""
    pads = (ids == golden.model.config.pad_token_id).flip(-1).long().cumprod(-1).flip(-1)
    return 1 - pads


def test_the_gradient_is_that_of_a_cache_filled_beforehand(golden: Golden) -> None:
    """The plain path: autograd through the base model on top of keys and values put into its cache."""
    ids, labels = (golden.tensors[f"train_batch.{name}"] for name in ("input_ids", "labels"))
    encoder, config = golden.model.transformer.prefix_encoder, golden.model.config
    golden.model.zero_grad()
    golden.model(ids, attention_mask=real_of(golden, ids), labels=labels).loss.backward()
    base = load_base(GOLDENS / golden.family / "ckpt", dtype="fp32", device="cpu")
    leaf = encoder.project().detach().requires_grad_()
    shape = (config.pre_seq_len, config.num_layers, 2, config.num_key_value_heads, config.head_dim)
    parts = leaf.view(shape).permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, len(ids), -1, -1, -1)
    cache = DynamicCache()
    for i, (key, value) in enumerate(parts):
        cache.update(key, value, i)
    mask = real_of(golden, ids)
    base(
        ids,
        attention_mask=torch.cat((mask.new_ones(len(ids), config.pre_seq_len), mask), dim=-1),
        position_ids=base.count_positions(ids, mask)[0],
        past_key_values=cache,
        use_cache=True,
        labels=labels,
    ).loss.backward()
    wanted = torch.autograd.grad(encoder.project(), list(encoder.parameters()), leaf.grad)
    assert_close([parameter.grad for parameter in encoder.parameters()], wanted)


@torch.no_grad()
def test_cached_steps_give_the_official_logits_and_cache(plain: Golden) -> None:
    """The official cache holds the prefix too, in front."""
    official, cache = plain.tensors["kv.logits"], None
    for step in range(official.shape[1]):
        outputs = plain.run(f"kv.step{step}", past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        assert_close(outputs.logits[:, 0], official[:, step])
    for layer in (0, plain.model.config.num_layers - 1):
        for part, ours in (("key", cache.layers[layer].keys), ("value", cache.layers[layer].values)):
            assert_close(ours, plain.tensors[f"kv.past.{layer}.{part}"].permute(1, 2, 0, 3))


CACHES = pytest.mark.parametrize(
    "settings",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}],
    ids=["dynamic", "none", "static"],
)


@CACHES
def test_greedy_ids_are_the_official_ones_with_any_cache(golden: Golden, settings: dict[str, Any]) -> None:
    assert_greedy(golden, "greedy_single", settings)


@CACHES
def test_greedy_ids_of_a_batch_are_the_official_ones_with_any_cache(
    plain: Golden, settings: dict[str, Any]
) -> None:
    assert_greedy(plain, "greedy_batch", settings)


def assert_greedy(golden: Golden, case: str, settings: dict[str, Any]) -> None:
    official, ids = golden.tensors[f"{case}.sequences"], golden.tensors[f"{case}.input_ids"]
    new = 12 if settings else official.shape[1] - ids.shape[1]
    pad = {"eos_token_id": -1, "pad_token_id": 3}
    mask = golden.real(case).long()
    found = golden.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new, **pad, **settings
    )
    assert torch.equal(found, official[:, : ids.shape[1] + new])


def test_the_decoder_gives_the_official_ids_and_rows_leave_the_batch(plain: Golden) -> None:
    ids, real = plain.tensors["greedy_batch.input_ids"], plain.real("greedy_batch")
    prompts = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
    sampling = Sampling(do_sample=False, max_new_tokens=24)
    official = plain.tensors["greedy_batch.sequences"][:, ids.shape[1] : ids.shape[1] + 24].tolist()
    assert complete(plain.model, prompts, sampling, stop_ids=[]) == official
    stops = {official[0][3], official[2][9]}
    alone = [complete(plain.model, [prompt], sampling, stop_ids=stops)[0] for prompt in prompts]
    assert complete(plain.model, prompts, sampling, stop_ids=stops) == alone
    assert len({len(answer) for answer in alone}) > 1


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_rows_of_mixed_lengths_give_what_each_gives_alone(golden: Golden, side: str) -> None:
    whole = golden.tensors["full.input_ids"][0]
    rows = [whole, whole[5:], whole[2:-4]]
    ids, mask = torch.full((3, len(whole)), 3), torch.zeros(3, len(whole), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(len(whole) - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    positions, _ = golden.model.count_positions(ids, mask)
    logits = golden.model(ids, attention_mask=mask, position_ids=positions).logits
    for i, row in enumerate(rows):
        assert_close(logits[i][mask[i].bool()], golden.model(row[None]).logits[0])


@pytest.mark.parametrize("sizes", [[1] * 10, [4, 1, 5]], ids=["token by token", "in chunks"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(golden: Golden, sizes: list[int]) -> None:
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


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_neither_loss_nor_gradient(golden: Golden, use_reentrant: bool) -> None:
    ids, labels = (golden.tensors[f"train_batch.{name}"] for name in ("input_ids", "labels"))
    model, encoder = golden.model, golden.model.transformer.prefix_encoder
    losses, gradients = [], []
    model.train()
    encoder.dropout.p = 0.0
    try:
        for is_on in (False, True):
            if is_on:
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.zero_grad()
            loss = model(ids, attention_mask=real_of(golden, ids), labels=labels).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append([p.grad.clone() for p in encoder.parameters()])
    finally:
        model.gradient_checkpointing_disable()
        encoder.dropout.p = 0.1
        model.eval()
    assert losses[0] == losses[1]
    assert all(off.norm() > 0 for off in gradients[0])
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f in FAMILIES for k in KINDS])
@torch.no_grad()
def test_the_write_ups_own_loading_code_gives_the_logits_of_an_opened_folder(family: str, kind: str) -> None:
    """As in ptuning/README.md of THUDM/ChatGLM-6B: load, take the prefix over, quantise, cast."""
    folder = GOLDENS / family / "ckpt"
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.pre_seq_len, config.prefix_projection = 8, kind == "prefix_proj"
    model = AutoModel.from_pretrained(folder, config=config, trust_remote_code=False)
    state = torch.load(GOLDENS / family / f"ckpt_{kind}" / "pytorch_model.bin")
    taken = {name[len(PREFIX) :]: x for name, x in state.items() if name.startswith(PREFIX)}
    model.transformer.prefix_encoder.load_state_dict(taken)
    model = model.quantize(4).half()
    model.transformer.prefix_encoder.float()
    model = model.eval()
    ids = read_prefix_golden(family, kind).tensors["full.input_ids"]
    ours = load_model(folder, adapter=GOLDENS / family / f"ckpt_{kind}", quant="int4", dtype="fp16")
    compute_in(ours, torch.float16)  # as that code does; on a CPU fp16 weights compute in another type
    ours.transformer.prefix_encoder.half().float()  # that code rounds the prefix's weights on its way
    torch.testing.assert_close(ours(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_a_prefix_has_the_official_names_shapes_and_count(golden: Golden) -> None:
    trained = {n: p for n, p in golden.model.named_parameters() if p.requires_grad}
    assert sorted(trained) == sorted(golden.values["checkpoint_keys"])
    assert sum(p.numel() for p in trained.values()) == golden.values["trainable_params"]
    assert {p.dtype for p in trained.values()} == {torch.float32}


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_the_committed_goldens_are_the_reference_ones(family: str, shared: Path) -> None:
    assert_committed_equals_reference(family, shared, "prefix")
    for kind in KINDS:
        for name in ("config.json", "pytorch_model.bin"):
            ours = GOLDENS / family / f"ckpt_{kind}" / name
            assert ours.read_bytes() == (shared / "goldens" / family / f"ckpt_{kind}" / name).read_bytes()
