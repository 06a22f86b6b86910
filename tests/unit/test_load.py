"""What a path means."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from closeness import assert_close, distance
from glmtune.adapters.store import Card, save_trained
from glmtune.errors import CheckpointError, ConfigError
from glmtune.info import inspect
from glmtune.load import load_model, load_tokenizer
from glmtune.locations import lasting_name, resolve
from glmtune.methods import apply_method
from glmtune.recipe import Lora
from models import tiny_folder
from proofs import edit_card


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA adapter that changes something, with a card that names its base."""
    tuned = apply_method(load_model(base), Lora(r=2, dropout=0.0))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_trained(tuned, tmp_path / "adapter", Card(base=str(base), template="chatglm3", method={}))
    return tmp_path / "adapter"


IDS = torch.tensor([[5, 6, 7]])


def test_an_adapter_finds_its_base_and_changes_its_answers(base: Path, adapter: Path) -> None:
    assert (resolve(adapter).base, resolve(adapter).adapter) == (base, adapter)
    tuned = load_model(adapter)(IDS).logits
    assert_close(tuned, load_model(base, adapter=adapter)(IDS).logits)
    assert distance(tuned, load_model(base)(IDS).logits) > 1e-3
    assert load_tokenizer(adapter).template == "chatglm3"


def test_two_adapters_are_not_combined(adapter: Path) -> None:
    with pytest.raises(ConfigError, match="already an adapter"):
        load_model(adapter, adapter=adapter)


def test_a_lost_base_is_asked_for(base: Path, adapter: Path) -> None:
    edit_card(adapter, lambda card: card.update(base="/gone"))
    with pytest.raises(CheckpointError, match="its base model is not at /gone"):
        resolve(adapter)
    assert resolve(adapter, base=base).base == base


def test_what_is_no_model_is_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="a file, not a folder"):
        resolve(base / "config.json")
    with pytest.raises(CheckpointError, match="neither a model"):
        resolve(tmp_path)


def test_an_official_p_tuning_folder_of_a_bare_file_opens_on_its_base(base: Path, tmp_path: Path) -> None:
    weight = torch.randn(8, 2 * 2 * 2 * 8)  # keys and values, layers, heads, head size
    file = tmp_path / "checkpoint-3000" / "pytorch_model.bin"
    file.parent.mkdir()
    torch.save({"transformer.prefix_encoder.embedding.weight": weight}, file)
    place = resolve(file.parent, base=base)
    assert (place.base, place.adapter) == (base, file.parent)
    tuned = load_model(base, adapter=file.parent)
    assert torch.equal(tuned.transformer.prefix_encoder.embedding.weight, weight)
    assert distance(tuned(IDS).logits, load_model(base)(IDS).logits) > 1e-3
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: truncated or damaged"):
        load_model(base, adapter=file.parent)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What glmtune tells."""
    logger = logging.getLogger("glmtune")
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def test_the_chosen_type_is_said(base: Path, said: Callable[[], str]) -> None:
    load_model(base, dtype="bf16")
    assert "bfloat16 on cpu" in said()


def test_what_told_the_chat_format_is_said(base: Path, adapter: Path, said: Callable[[], str]) -> None:
    load_model(adapter)
    assert "chatglm3 (recorded with the adapter)" in said()
    assert "the template setting" not in said()
    load_model(adapter, template="chatglm3")
    assert "chatglm3 (the template setting)" in said()


def test_weights_without_a_config_are_told_from_a_folder_of_nothing(base: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as caught:
        resolve(tmp_path)
    assert "copy config.json" in caught.value.hint


def test_an_adapter_on_another_base_than_its_own_is_said(
    base: Path, adapter: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    load_model(adapter)
    load_model(base, adapter=adapter)
    assert "trained on" not in said()
    other = tiny_folder(tmp_path / "other")
    load_model(other, adapter=adapter)
    assert f"trained on {base}, put on {other}" in said()
    assert f"trained on {base}, put on {other}" in inspect(adapter, base=other).warnings[0]
    assert not inspect(adapter).warnings


@pytest.mark.parametrize("named", ["a\0b", "a" * 300, "hf:a:b"])
def test_a_recorded_base_that_cannot_be_anywhere_is_named_or_stood_for(
    named: str, adapter: Path, base: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    (folder / "glmtune.json").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    held = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": named}
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(f"{file}: base_model_name_or_path: ")) as caught:
        resolve(folder)
    assert "base=" in caught.value.hint
    load_model(base, adapter=folder)
    assert "trained on " in said()


def test_a_bundled_model_is_the_same_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    folder = resolve("glm-tiny").base
    assert lasting_name(folder) == lasting_name("glm-tiny") == resolve(folder).name
    config = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    assert not resolve(tmp_path, base="glm-tiny").other_base


def test_a_folder_of_either_family_opens_and_asks_for_the_template_only_to_chat(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("chatglm3-6b", "somebody"), encoding="utf-8")
    assert resolve(folder).base == folder
    assert load_model(folder)(IDS).logits.isfinite().all()
    tokenizer = load_tokenizer(folder)
    assert tokenizer("你好")["input_ids"]
    with pytest.raises(ConfigError, match="ChatGLM2's or ChatGLM3's") as caught:
        _ = tokenizer.stop_ids
    assert "template=chatglm2" in caught.value.hint
    assert load_tokenizer(folder, template="chatglm2").template == "chatglm2"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.model"])
def test_a_file_that_cannot_be_read_is_named(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened = Path.open

    def refuse(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: Permission denied") as caught:
        load_tokenizer(base)
    assert caught.value.hint
