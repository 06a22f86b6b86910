"""Our classes inside transformers and PEFT: opened, trained, saved and wrapped as those libraries do it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    StaticCache,
)

from closeness import assert_close
from glmtune.errors import ConfigError
from glmtune.models import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
    load_base,
)
from glmtune.models.dtype import Choice

GOLDENS = Path(__file__).parents[2] / "goldens"
FAMILIES = ("v2", "v3", "glm4")
IDS = torch.arange(20, 44).reshape(2, 12)


@pytest.fixture
def model() -> ChatGLMForConditionalGeneration:
    return load_base(GOLDENS / "v3" / "ckpt", dtype="fp32", device="cpu")


def gradients(model: torch.nn.Module, **kwargs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


# Opening


def test_importing_the_package_itself_loads_no_torch() -> None:
    code = "import glmtune, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_classes_open_an_official_folder_without_remote_code(family: str) -> None:
    folder = GOLDENS / family / "ckpt"
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=False)) is ChatGLMConfig
    for auto, kind in (
        (AutoModel, ChatGLMForConditionalGeneration),
        (AutoModelForCausalLM, ChatGLMForConditionalGeneration),
        (AutoModelForSeq2SeqLM, ChatGLMForConditionalGeneration),
        (AutoModelForSequenceClassification, ChatGLMForSequenceClassification),
    ):
        assert type(auto.from_pretrained(folder, trust_remote_code=False)) is kind


@pytest.mark.parametrize("family", FAMILIES)
def test_from_pretrained_and_load_base_give_the_same_model(family: str) -> None:
    folder = GOLDENS / family / "ckpt"
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    ours = load_base(folder, dtype="fp32", device="cpu")
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert type(ours.transformer.encoder.layers[0]).__name__ in ours._no_split_modules


def test_an_auto_class_refuses_an_open_rope_ratio_and_takes_its_answer(tmp_path: Path) -> None:
    model = load_base(GOLDENS / "v3" / "ckpt", device="cpu")
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"rope_ratio": 50}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="rope_ratio = 50"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, rope_scaling_by="base", trust_remote_code=False)
    assert opened.transformer.rotary_pos_emb.base == 500000
    opened.save_pretrained(tmp_path / "again")  # and the answer is kept
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=False)
    assert again.transformer.rotary_pos_emb.base == 500000


# Saving


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_config_keeps_every_official_key_and_value(family: str, tmp_path: Path) -> None:
    official = json.loads((GOLDENS / family / "ckpt" / "config.json").read_text())
    official |= {"_name_or_path": "THUDM/chatglm3-6b", "someone_elses_key": {"a": [1]}}
    (tmp_path / "config.json").write_text(json.dumps(official))
    AutoConfig.from_pretrained(tmp_path, trust_remote_code=False).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    del official["transformers_version"]
    assert {key: saved.get(key) for key in official} == official


def test_a_saved_config_is_read_back_equal(model: ChatGLMForConditionalGeneration, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    again = ChatGLMConfig.from_pretrained(tmp_path, name_or_path=model.config.name_or_path)
    assert again.to_dict() == model.config.to_dict()


def test_peft_and_generate_find_the_names_they_look_up(model: ChatGLMForConditionalGeneration) -> None:
    content = model.config.to_dict()
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    assert [content[name] for name in sizes] == [2, 4, 2, 16, 64]
    assert (model.config.vocab_size, model.config.max_position_embeddings) == (352, 192)


@pytest.mark.parametrize("shard_size", ["50KB", "5GB"])
def test_a_saved_model_opens_with_the_same_weights_under_official_names(
    model: ChatGLMForConditionalGeneration, tmp_path: Path, shard_size: str
) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "50KB")
    names = {name for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118
    assert names == model.state_dict().keys()
    assert torch.equal(logits(load_base(tmp_path, dtype="fp32", device="cpu")), logits(model))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert torch.equal(logits(theirs), logits(model))


# Training


def test_gradient_checkpointing_changes_no_gradient(model: ChatGLMForConditionalGeneration) -> None:
    plain = gradients(model.train())
    model.gradient_checkpointing_enable()
    recomputed = gradients(model)
    assert recomputed.keys() == plain.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_no_cache_is_built_while_training_unless_asked_for(model: ChatGLMForConditionalGeneration) -> None:
    assert model.train()(IDS).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values is not None
    assert model.eval()(IDS).past_key_values is not None
    assert model(IDS, labels=IDS).past_key_values is None


@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_do_not_see_each_other(
    model: ChatGLMForConditionalGeneration, training: bool
) -> None:
    model.train(training)
    packed = model(
        IDS.reshape(1, 24), position_ids=torch.arange(12).repeat(2)[None], labels=IDS.reshape(1, 24)
    )
    assert_close(packed.logits.reshape(2, 12, -1), logits(model))


def test_without_padding_no_mask_is_made(
    model: ChatGLMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor | None] = []
    layer = model.transformer.encoder.layers[0]
    layer.self_attention.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    model(IDS)
    model(IDS, attention_mask=torch.ones_like(IDS))
    assert seen == [None, None]


def test_the_loss_divides_a_sum_by_the_given_number_of_items(model: ChatGLMForConditionalGeneration) -> None:
    mean = model(IDS, labels=IDS).loss
    summed = model(IDS, labels=IDS, num_items_in_batch=torch.tensor(44)).loss
    assert_close(summed, mean / 2)


def test_the_loss_of_half_precision_weights_is_computed_in_fp32() -> None:
    half = Choice(torch.bfloat16, torch.bfloat16)  # by itself a processor without bf16 computes in fp32
    outputs = load_base(GOLDENS / "v3" / "ckpt", dtype=half, device="cpu")(IDS, labels=IDS)
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32


def test_dropout_acts_in_training_only() -> None:
    config = AutoConfig.from_pretrained(
        GOLDENS / "v3" / "ckpt", hidden_dropout=0.5, attention_dropout=0.5, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert not torch.equal(logits(model.train()), logits(model))
    assert torch.equal(logits(model.eval()), logits(model))


# Generating


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5, 11])])
def test_kept_logits_are_those_of_the_full_forward(
    model: ChatGLMForConditionalGeneration, keep: int | Tensor
) -> None:
    part = slice(-keep, None) if isinstance(keep, int) else keep
    kept = model(IDS, logits_to_keep=keep).logits
    assert_close(kept, logits(model)[:, part])


def test_return_last_logit_keeps_one_position(model: ChatGLMForConditionalGeneration) -> None:
    assert model(IDS, return_last_logit=True).logits.shape == (2, 1, 352)


def test_left_padded_rows_are_generated_as_they_are_alone(model: ChatGLMForConditionalGeneration) -> None:
    rows = [IDS[0, :5], IDS[1]]
    batch = torch.stack([torch.cat((torch.zeros(12 - len(row)), row)).long() for row in rows])
    mask = torch.stack([torch.arange(12) >= 12 - len(row) for row in rows]).long()
    settings = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": -1}
    together = model.generate(batch, attention_mask=mask, **settings)[:, 12:]
    for row, generated in zip(rows, together, strict=True):
        alone = model.generate(row[None], attention_mask=torch.ones(1, len(row)).long(), **settings)
        assert torch.equal(alone[0, len(row) :], generated)


def test_a_static_cache_gives_the_same_ids(model: ChatGLMForConditionalGeneration) -> None:
    settings = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 8}
    cache = StaticCache(config=model.config, max_cache_len=24)
    static = model.generate(IDS, past_key_values=cache, disable_compile=True, **settings)
    assert torch.equal(static, model.generate(IDS, **settings))


def test_a_plain_tuple_comes_back_where_it_is_asked_for(model: ChatGLMForConditionalGeneration) -> None:
    loss, found, *_ = model(IDS, labels=IDS, return_dict=False)
    assert loss.ndim == 0
    assert_close(found, logits(model))


def test_eager_attention_gives_its_weights_and_the_same_logits() -> None:
    folder = GOLDENS / "v3" / "ckpt"
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
    )
    outputs = model(IDS, output_attentions=True)
    assert [tuple(w.shape) for w in outputs.attentions] == [(2, 4, 12, 12)] * 2
    assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 12))
    sdpa = load_base(folder, dtype="fp32", device="cpu")
    assert_close(outputs.logits, logits(sdpa))


def test_embeddings_can_be_given_and_resized(model: ChatGLMForConditionalGeneration) -> None:
    embedded = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
    assert torch.equal(embedded, logits(model))
    model.resize_token_embeddings(400)
    assert model.config.padded_vocab_size == 400
    assert logits(model).shape == (2, 12, 400)


# PEFT


def wrap(model: ChatGLMForConditionalGeneration) -> peft.PeftModel:
    settings = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(model, settings)


def test_peft_finds_query_key_value_itself_and_trains_only_its_own(
    model: ChatGLMForConditionalGeneration,
) -> None:
    wrapped = wrap(model)
    trained = gradients(wrapped.train())
    assert len(trained) == 2 * model.config.num_layers
    assert all("self_attention.query_key_value.lora_" in name for name in trained)


def test_a_lora_adapter_is_saved_reopened_and_merged(
    model: ChatGLMForConditionalGeneration, tmp_path: Path
) -> None:
    wrapped = wrap(model).eval()
    expected = logits(wrapped)
    wrapped.save_pretrained(tmp_path)
    base = load_base(GOLDENS / "v3" / "ckpt", dtype="fp32", device="cpu")
    again = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(again), expected)
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(GOLDENS / "v3" / "ckpt")
    assert_close(logits(again.merge_and_unload()), expected)


def test_lora_trains_under_gradient_checkpointing(model: ChatGLMForConditionalGeneration) -> None:
    wrapped = wrap(model).train()
    plain = gradients(wrapped)
    wrapped.gradient_checkpointing_enable()
    wrapped.enable_input_require_grads()
    recomputed = gradients(wrapped)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
