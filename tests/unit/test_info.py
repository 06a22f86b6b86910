"""What `inspect` says of folders, held against the models themselves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.adapters.store import Card, save_trained
from glmtune.errors import CheckpointError, ConfigError
from glmtune.info import inspect
from glmtune.load import load_model, load_tokenizer
from glmtune.methods import apply_method, count_parameters
from glmtune.models.outline import PARTS, Parameter, collapse
from glmtune.recipe import Lora
from models import tiny_folder, tiny_v1_folder

CHATGLM3 = {
    "_name_or_path": "THUDM/chatglm3-6b", "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096,
    "padded_vocab_size": 65024, "ffn_hidden_size": 13696, "kv_channels": 128, "num_attention_heads": 32,
    "add_qkv_bias": True, "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 8192,
    "eos_token_id": 2, "torch_dtype": "float16",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", dtype=torch.bfloat16)


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A folder of ChatGLM3-6B's full size, without weights and tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM3), encoding="utf-8")
    return tmp_path


def test_parameters_are_the_models_own_and_sizes_the_files(folder: Path) -> None:
    found, model = inspect(folder), load_model(folder, dtype="fp32")
    assert [(p.name, p.shape) for p in found.parameters] == [
        (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    ]
    assert {p.dtype for p in found.parameters} == {found.dtype} == {"bfloat16"}
    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.num_bytes for part in found.parts) == 2 * found.num_parameters
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    assert [part.name for part in found.parts] == ["embedding", "norms", "attention", "mlp", "output layer"]


def test_stop_tokens_context_and_tokenizer_are_the_folders(folder: Path) -> None:
    found, tokenizer = inspect(folder), load_tokenizer(folder)
    assert [token.id for token in found.stop_tokens] == tokenizer.stop_ids
    assert [token.text for token in found.stop_tokens] == ["</s>", "<|user|>", "<|observation|>"]
    assert (found.context, found.context_key) == (128, "seq_length")
    assert found.tokenizer
    assert (found.tokenizer.kind, found.tokenizer.num_tokens) == ("ChatGLMTokenizer", len(tokenizer))
    assert found.num_rows == len(tokenizer) + 3
    assert (found.family, found.template, found.warnings) == ("ChatGLM2/ChatGLM3", "chatglm3", ())
    assert found.template_rule


def test_a_config_of_full_size_is_counted_without_weights(config_only: Path) -> None:
    found = inspect(config_only)
    assert found.num_parameters == 6_243_584_000
    assert not found.has_weights
    assert found.dtype == "float16"
    assert found.tokenizer is None
    assert "tokenizer.model: the vocabulary file is missing" in found.tokenizer_problem
    tuned = inspect(config_only, method=Lora(r=8))
    assert tuned.trainable == (
        "trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312"
    )
    trained = [p for p in collapse(tuned.parameters) if p.is_trained]
    inside = "base_model.model.transformer.encoder.layers.{0..27}.self_attention.query_key_value"
    assert [p.name for p in trained] == [f"{inside}.lora_{ab}.default.weight" for ab in "AB"]


def test_a_tokenizer_of_another_model_is_a_warning(folder: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "m")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 77}), encoding="utf-8")
    [warning] = inspect(other).warnings
    assert "ends a text with id 2, but the model with [77]" in warning


def test_what_is_broken_is_a_warning_and_the_rest_is_still_told(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    whole, weights = inspect(folder), folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    found = inspect(folder)
    assert "these weights cannot be read: model.safetensors: truncated or damaged" in found.warnings[0]
    assert (found.has_weights, found.weight_files) == (True, ())
    assert found.num_parameters == whole.num_parameters
    tiny_folder(tmp_path / "other", num_layers=3)
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    [warning] = inspect(folder).warnings
    assert "this folder cannot be loaded: model.safetensors: tensor transformer.encoder.layers.2" in warning


def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        inspect(tmp_path)
    with pytest.raises(ConfigError, match="is not a hub's name, so it has no revisions"):
        inspect(folder, revision="main")
    with pytest.raises(ConfigError, match="'glm4' is not a chat format"):
        inspect(folder, template="glm4")


def test_an_adapter_is_shown_with_its_base_card_and_trained_parameters(folder: Path, tmp_path: Path) -> None:
    method = Lora(r=2)
    tuned = apply_method(load_model(folder), method)
    card = Card(
        base=str(folder), template="chatglm3", method=method.model_dump(mode="json"), system="短", quant="nf4"
    )
    save_trained(tuned, tmp_path / "adapter", card)
    found = inspect(tmp_path / "adapter")
    assert (found.kind, found.folder) == ("adapter", folder.resolve())
    assert found.adapter
    assert found.adapter.method["r"] == 2
    assert (found.adapter.system, found.adapter.quant) == ("短", "nf4")
    assert found.adapter.num_trained == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert [(p.name, p.is_trained) for p in found.parameters] == [
        (name, parameter.requires_grad) for name, parameter in tuned.named_parameters()
    ]


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_quantised_folder_says_so_and_counts_the_weights_it_stands_for(
    folder: Path, tmp_path: Path, quant: str
) -> None:
    dense, model = inspect(folder), load_model(folder, quant=quant)
    model.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert (found.quant, found.dtype, found.warnings) == (quant, "bfloat16", ())
    assert found.num_parameters == dense.num_parameters == count_parameters(model)[1]
    assert [(part.name, part.count) for part in found.parts] == [(p.name, p.count) for p in dense.parts]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sum(part.num_bytes for part in found.parts) == weights
    tuned = inspect(tmp_path, method=Lora(r=2))
    assert tuned.trainable
    assert f"all params: {tuned.num_parameters:,}" in tuned.trainable


def test_a_run_on_a_base_quantised_while_loading_says_so(folder: Path, tmp_path: Path) -> None:
    method = Lora(r=2)
    tuned = apply_method(load_model(folder, quant="int4"), method)
    card = Card(base=str(folder), template="chatglm3", method=method.model_dump(mode="json"), quant="int4")
    save_trained(tuned, tmp_path, card)
    found = inspect(tmp_path)
    assert found.adapter
    assert (found.adapter.quant, found.quant) == ("int4", None)
    assert (found.adapter.layers, found.adapter.ranks) == ((0, 1), (2, 2))


@pytest.mark.parametrize("revision", ["early", "mid", "late"])
def test_an_official_chatglm_6b_opens_though_its_output_is_stored_twice(
    tmp_path: Path, revision: str
) -> None:
    folder = tiny_v1_folder(tmp_path, revision)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = inspect(folder)
    assert (found.family_revision, found.warnings) == (revision, ())
    assert found.num_parameters == sum(p.numel() for p in load_model(folder).parameters())


def test_equal_parameters_of_several_layers_are_one_line() -> None:
    def parameter(name: str, size: int = 4) -> Parameter:
        return Parameter(name, (size,), "float16", 2 * size)

    names = ["embed.weight", *(f"layers.{i}.{part}.weight" for i in range(3) for part in ("a", "b"))]
    found = collapse(
        [*map(parameter, names), parameter("layers.3.a.weight", 5), parameter("layers.5.b.weight")]
    )
    assert [(p.name, p.num_bytes) for p in found] == [
        ("embed.weight", 8), ("layers.{0..2}.a.weight", 24), ("layers.{0,1,2,5}.b.weight", 32),
        ("layers.3.a.weight", 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("transformer.word_embeddings.weight", "embedding"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.layers.0.attention.dense.bias", "attention"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.post_self_attn_layernorm.weight", "norms"),
        ("transformer.layers.0.post_attention_layernorm.bias", "norms"),
        ("transformer.layers.0.mlp.dense_h_to_4h.weight", "mlp"),
        ("lm_head.weight", "output layer"),
        ("transformer.prefix_encoder.embedding.weight", "prefix"),
        ("base_model.model.a.self_attention.query_key_value.lora_A.default.weight", "adapter"),
        ("base_model.model.a.self_attention.query_key_value.ranknum.default", "adapter"),
        ("something.else", "other"),
    ],
)
def test_a_parameters_part_is_told_by_its_name(name: str, part: str) -> None:
    assert Parameter(name, (1,), "float32").part == part
    assert part in [known for known, _ in PARTS]
