"""ChatGLM-6B (v1) inside transformers, PEFT and our loader; its numbers are in `parity`."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from closeness import assert_close
from glmtune.errors import CheckpointError, ConfigError, DataError
from glmtune.generate import Sampling, complete
from glmtune.models import (
    ChatGLM6BConfig,
    ChatGLM6BForConditionalGeneration,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    load_base,
)
from glmtune.models.positions import positions_of
from glmtune.signs import v1_revision
from golden import GOLDENS

REVISIONS = ("early", "mid", "late")
IDS = torch.tensor([[20, 21, 22, 301, 304, 30, 31, 32], [40, 300, 41, 42, 304, 50, 51, 52]])
EMBEDDINGS, HEAD = "transformer.word_embeddings.weight", "lm_head.weight"


@pytest.fixture
def model() -> ChatGLM6BForConditionalGeneration:
    return load_base(GOLDENS / "v1_late" / "ckpt", dtype="fp32", device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, writable official folder."""
    shutil.copytree(GOLDENS / "v1_late" / "ckpt", tmp_path / "chatglm-6b")
    return tmp_path / "chatglm-6b"


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rewrite_weights(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for part, tensor in changes.items():
        name = {"embeddings": EMBEDDINGS, "head": HEAD}[part]
        del tensors[name]
        tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


# Config


@pytest.mark.parametrize("revision", REVISIONS)
def test_auto_classes_open_an_official_folder_without_remote_code(revision: str) -> None:
    folder = GOLDENS / f"v1_{revision}" / "ckpt"
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert type(config) is ChatGLM6BConfig
    assert config.revision == revision
    assert type(ChatGLMConfig.from_pretrained(folder)) is ChatGLM6BConfig
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSeq2SeqLM):
        opened = auto.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
        assert type(opened) is ChatGLM6BForConditionalGeneration
        assert opened.lm_head.weight is opened.transformer.word_embeddings.weight
        assert torch.equal(logits(opened), logits(load_base(folder, dtype="fp32", device="cpu")))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_saved_config_keeps_its_revision_and_every_official_key(revision: str, tmp_path: Path) -> None:
    official = json.loads((GOLDENS / f"v1_{revision}" / "ckpt" / "config.json").read_text())
    official |= {"someone_elses_key": {"a": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(official))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    if revision == "early":
        config.pad_token_id = 3  # as training code likes to do; it must not turn early into mid
    for round_trip in ("once", "twice"):
        config.save_pretrained(tmp_path / round_trip)
        saved = json.loads((tmp_path / round_trip / "config.json").read_text())
        assert v1_revision(saved) == v1_revision(config.to_dict()) == revision
        for key in official.keys() - {"transformers_version", "_name_or_path"}:
            assert saved[key] == official[key], key
        config = AutoConfig.from_pretrained(tmp_path / round_trip, trust_remote_code=False)
        assert config.revision == revision


def test_mask_ids_that_the_config_does_not_name_lie_before_bos() -> None:
    published = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "inner_hidden_size": 8}
    early = ChatGLM6BConfig.from_dict(
        published | {"vocab_size": 150528, "bos_token_id": 150004, "eos_token_id": 150005}
    )
    assert early.mask_ids == (150000, 150001)
    assert ChatGLM6BConfig().mask_ids == (130000, 130001)
    assert ChatGLM6BConfig(mask_token_id=7, gmask_token_id=9).mask_ids == (7, 9)


def test_peft_and_generate_find_the_names_they_look_up(model: ChatGLM6BForConditionalGeneration) -> None:
    content = model.config.to_dict()
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    assert [content[name] for name in sizes] == [3, 4, 4, 16, 64]
    assert (model.config.num_hidden_layers, model.config.max_position_embeddings) == (3, 128)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_layers": 0}, "num_layers must be an integer from 1 to 1,000"),
        ({"inner_hidden_size": "many"}, "inner_hidden_size must be"),
        ({"layernorm_epsilon": -1}, "layernorm_epsilon must be a number above 0"),
        ({"num_attention_heads": 5}, "hidden_size = 64 is not a multiple of 4 times num_attention_heads = 5"),
        ({"num_hidden_layers": 5}, "num_hidden_layers = 5 contradicts num_layers = 3"),
        ({"quantization_bit": 3}, "quantization_bit must be 8 or 4"),
        ({"pre_seq_len": -8}, "pre_seq_len must be"),
        ({"prefix_projection": 1}, "prefix_projection must be"),
        ({"bos_token_id": None}, "bos_token_id must be an id below vocab_size"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(
    folder: Path, changes: dict[str, Any], problem: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=problem):
        load_base(folder, device="cpu")


def test_a_config_without_its_sizes_is_refused(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    del content["vocab_size"], content["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no key bos_token_id, vocab_size"):
        load_base(folder, device="cpu")


def test_each_family_s_class_refuses_the_other_s_folder() -> None:
    with pytest.raises(ConfigError, match="ChatGLM6BConfig"):
        ChatGLMForConditionalGeneration.from_pretrained(GOLDENS / "v1_late" / "ckpt")
    with pytest.raises(CheckpointError, match="not a ChatGLM-6B config"):
        ChatGLM6BForConditionalGeneration.from_pretrained(GOLDENS / "v3" / "ckpt")
    with pytest.raises(ConfigError, match="not ChatGLM-6B's"):
        load_base(GOLDENS / "v1_late" / "ckpt", device="cpu", template="chatglm3")


# The tie


def is_tied(model: Any) -> bool:
    return model.lm_head.weight is model.transformer.word_embeddings.weight


@pytest.mark.parametrize("changes", [{}, {"head": None}, {"embeddings": None}], ids=["both", "in", "out"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_checkpoint_may_hold_either_copy_or_both(
    folder: Path, changes: dict[str, None], kind: str, model: ChatGLM6BForConditionalGeneration
) -> None:
    rewrite_weights(folder, **changes)
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for opened in (
        load_base(folder, dtype="fp32", device="cpu"),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False),
    ):
        assert is_tied(opened)
        assert torch.equal(logits(opened), logits(model))


def test_the_embeddings_win_over_an_output_copy_that_differs(
    folder: Path, model: ChatGLM6BForConditionalGeneration
) -> None:
    rewrite_weights(folder, head=torch.zeros(320, 64, dtype=torch.float16))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    for opened in (load_base(folder, dtype="fp32", device="cpu"), theirs):
        assert is_tied(opened)
        assert torch.equal(logits(opened), logits(model))


def test_a_tied_weight_is_read_once(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    model = load_base(folder, dtype="fp32", device="cpu", progress=lambda *now: told.append(now))
    assert len(told) == len(list(model.parameters())) == len(model.state_dict()) - 1
    assert told[-1] == (4 * model.num_parameters(), 4 * model.num_parameters())


def test_a_config_can_untie_them(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    rewrite_weights(folder, head=torch.zeros(320, 64, dtype=torch.float16))
    opened = load_base(folder, dtype="fp32", device="cpu")
    assert not is_tied(opened)
    assert not logits(opened).any()
    rewrite_weights(folder, head=None)
    with pytest.raises(CheckpointError, match=f"tensor {HEAD} is missing"):
        load_base(folder, device="cpu")


def test_a_copy_of_another_shape_is_refused(folder: Path) -> None:
    rewrite_weights(folder, embeddings=None, head=torch.zeros(300, 64, dtype=torch.float16))
    with pytest.raises(CheckpointError, match=r"has shape \[300, 64\]"):
        load_base(folder, device="cpu")


def test_official_buffers_are_passed_over(folder: Path, model: ChatGLM6BForConditionalGeneration) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(4, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_base(folder, dtype="fp32", device="cpu")), logits(model))


@pytest.mark.parametrize("shard_size", ["50KB", "5GB"])
def test_a_saved_model_opens_with_the_same_weights(
    model: ChatGLM6BForConditionalGeneration, tmp_path: Path, shard_size: str
) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    again = load_base(tmp_path, dtype="fp32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert is_tied(again)
    assert is_tied(theirs)
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(theirs), logits(model))


def test_resized_embeddings_stay_tied(model: ChatGLM6BForConditionalGeneration) -> None:
    before = logits(model)
    model.resize_token_embeddings(400)
    assert is_tied(model)
    assert model.config.vocab_size == 400
    assert torch.equal(logits(model)[..., :320], before)


# Masks and positions


def test_ids_that_tell_no_positions_are_refused_by_row(model: ChatGLM6BForConditionalGeneration) -> None:
    no_bos = torch.tensor([[20, 301, 304], [20, 301, 21]])
    with pytest.raises(DataError, match="row 1: no <sop>"):
        model(no_bos)
    no_mask = torch.tensor([[20, 21, 304, 301]])  # a mask token after <sop> is none
    with pytest.raises(DataError, match=r"row 0: no \[MASK\] or \[gMASK\]"):
        model(no_mask)
    with pytest.raises(ValueError, match="position_ids"):
        model(inputs_embeds=model.get_input_embeddings()(IDS))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(2, 1, 8, 8), "torch.float32"),
        (torch.ones(2, 1, 1, 8, dtype=torch.bool), r"\(2, 1, 1, 8\)"),
        (torch.ones(8, 8, dtype=torch.bool).tril().expand(2, 1, 8, 8), "row 0: a token does not see itself"),
    ],
)
def test_a_4d_mask_of_another_meaning_is_refused_with_the_official_one(
    model: ChatGLM6BForConditionalGeneration, mask: Tensor, found: str
) -> None:
    for call in (model, model.generate):
        with pytest.raises(DataError, match=f"attention_mask.*{found}") as raised:
            call(IDS, attention_mask=mask)
        assert "true = not seen" in str(raised.value)
        assert "2-D" in str(raised.value.hint)


def test_positions_of_another_shape_are_refused_with_the_expected_one(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    one_row = torch.arange(8).expand(2, 8)
    with pytest.raises(DataError, match=r"position_ids: shape \(2, 8\), expected \(2 or 1, 2, 8\)") as raised:
        model(IDS, position_ids=one_row)
    assert "count_positions" in str(raised.value.hint)
    with pytest.raises(DataError, match=r"expected \(2 or 1, 2, 8\)"):
        model(IDS, position_ids=torch.zeros(2, 2, 9, dtype=torch.long))
    model.config.position_encoding_2d = False
    with pytest.raises(DataError, match=r"shape \(2, 2, 8\), expected \(2 or 1, 8\)"):
        model(IDS, position_ids=torch.zeros(2, 2, 8, dtype=torch.long))


def test_a_pad_id_in_the_text_is_a_token_and_a_padded_bos_is_none(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    """Only the mask tells pads, whatever their id is."""
    row = torch.tensor([[3, 20, 301, 304, 3, 30]])
    padded = torch.cat([torch.tensor([[304, 301]]), row, torch.tensor([[304]])], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0]])
    assert_close(model(padded, attention_mask=mask).logits[:, 2:8], model(row).logits)


def test_one_new_token_needs_no_mask_and_a_forward_makes_one_for_all_layers(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    seen: list[Tensor | None] = []
    for layer in model.transformer.layers:
        layer.attention.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    positions, following = model.count_positions(IDS)
    outputs = model(IDS, position_ids=positions)
    assert all(mask is seen[0] and mask.dtype == torch.bool for mask in seen)
    seen.clear()
    model(IDS[:, :1], position_ids=following, past_key_values=outputs.past_key_values)
    assert seen == [None] * model.config.num_layers


def test_ready_masks_positions_and_embeddings_equal_ids(model: ChatGLM6BForConditionalGeneration) -> None:
    """What old code passes: true = not seen."""
    positions, _ = model.count_positions(IDS)
    is_hidden = torch.ones(8, 8).triu(1).bool()
    is_hidden[:, :4] = False
    official = is_hidden[None, None].expand(2, 1, 8, 8)
    ready = model(IDS, attention_mask=official, position_ids=positions).logits
    assert torch.equal(ready, logits(model))
    assert torch.equal(model(IDS, attention_mask=official).logits, ready)
    embedded = model.get_input_embeddings()(IDS)
    given = model(inputs_embeds=embedded, attention_mask=official[:1], position_ids=positions).logits
    assert torch.equal(given, ready)


def test_a_cache_filled_before_the_prompt_is_seen_and_moves_no_position(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    """As P-Tuning v2 needs it: the same keys and values twice over are the same attention."""
    outputs = model(IDS[:1], use_cache=True)
    alone = model(IDS[:1], past_key_values=outputs.past_key_values).logits
    ones = torch.ones(1, 16, dtype=torch.long)
    again = model(IDS[:1], use_cache=True)
    masked = model(IDS[:1], attention_mask=ones, past_key_values=again.past_key_values).logits
    assert torch.equal(alone, masked)
    nothing = torch.cat([torch.zeros(1, 8, dtype=torch.long), ones[:, :8]], dim=1)
    third = model(IDS[:1], use_cache=True)
    blind = model(IDS[:1], attention_mask=nothing, past_key_values=third.past_key_values).logits
    assert_close(blind, logits(model)[:1])


def test_other_models_count_one_after_the_other() -> None:
    counter = positions_of(load_base(GOLDENS / "v3" / "ckpt", device="cpu"))
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions, following = counter.count_positions(torch.ones(2, 4, dtype=torch.long), mask)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert following.tolist() == [[2], [4]]
    assert counter.advance_positions(following).tolist() == [[3], [5]]


# Training and PEFT


def wrap(model: ChatGLM6BForConditionalGeneration) -> peft.PeftModel:
    settings = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(model, settings)


def test_gradient_checkpointing_changes_no_gradient(model: ChatGLM6BForConditionalGeneration) -> None:
    plain = gradients(model.train())
    model.gradient_checkpointing_enable()
    recomputed = gradients(model)
    assert recomputed.keys() == plain.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_lora_step_with_checkpointing_equals_one_without(model: ChatGLM6BForConditionalGeneration) -> None:
    wrapped = wrap(model).train()
    plain = gradients(wrapped)
    assert len(plain) == 2 * model.config.num_layers
    assert all("attention.query_key_value.lora_" in name for name in plain)
    wrapped.gradient_checkpointing_enable()
    wrapped.enable_input_require_grads()
    recomputed = gradients(wrapped)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_wrapped_model_generates_as_the_decoder_does(model: ChatGLM6BForConditionalGeneration) -> None:
    wrapped = wrap(model).eval()
    prompts = [[20, 21, 22, 301, 304], [40, 301, 304]]
    ids = torch.tensor([prompts[0], [3, 3, *prompts[1]]])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    theirs = wrapped.generate(input_ids=ids, attention_mask=mask, **settings)[:, 5:].tolist()
    assert complete(wrapped, prompts, Sampling(do_sample=False, max_new_tokens=8), stop_ids=[]) == theirs


def test_the_loss_divides_a_sum_by_the_given_number_of_items(
    model: ChatGLM6BForConditionalGeneration,
) -> None:
    mean = model(IDS, labels=IDS).loss
    summed = model(IDS, labels=IDS, num_items_in_batch=torch.tensor(28)).loss
    assert_close(summed, mean / 2)
    kept = model(IDS, logits_to_keep=2).logits
    assert_close(kept, logits(model)[:, -2:])


def test_no_cache_is_built_while_training_unless_asked_for(model: ChatGLM6BForConditionalGeneration) -> None:
    assert model.train()(IDS).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values is not None
    assert model.eval()(IDS, labels=IDS).past_key_values is None


@pytest.mark.parametrize("is_in_config", [False, True])
def test_a_prompt_is_not_read_in_parts_for_its_tokens_see_each_other(
    model: ChatGLM6BForConditionalGeneration, is_in_config: bool
) -> None:
    ids = IDS[:1]
    words = {"prefill_chunk_size": 4}
    given = {"generation_config": GenerationConfig(**words)} if is_in_config else words
    with pytest.raises(ConfigError, match="prefill_chunk_size=4, but ChatGLM-6B's context is bidirectional"):
        model.generate(ids, max_new_tokens=2, **given)
