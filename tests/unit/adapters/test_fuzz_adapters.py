"""adapter_config.json with any value at any key: the adapter that it was, or a refusal."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzzed
from glmtune import Adapters, load_model
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.store import load_adapter
from glmtune.errors import CheckpointError, GlmtuneError
from glmtune.info import inspect
from glmtune.migration import migrate_path
from models import tiny_folder
from odd_files import FEW, MANY, VALUES, Tally, bounds
from old_scripts import write_adapter

CONFIGS = {
    "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["query_key_value", "dense"]),
    "adalora": lambda: peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=10, target_modules=["query_key_value"]
    ),
}
NAMES = ["query_key_value", ".*query_key_value", "(.*)*x", "dense", "lm_head", "word_embeddings", ".*", "("]
ODD = st.one_of(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(NAMES), max_size=2),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1, 4, 10**9, None, [True], [7]]), max_size=2),
    st.sampled_from(["LORA", "ADALORA", "gaussian", "eva", "all", "lora_only", "all-linear"]),
    VALUES,
)
SIZES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


def change(folder: Path, **settings: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **settings}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_any_value_at_any_key_is_read_or_refused(kind: str, count: int, base: Path, tmp_path: Path) -> None:
    model = load_model(base, device="cpu")
    folder = write_adapter(tmp_path / "it", CONFIGS[kind](), base)
    whole = json.loads((folder / "adapter_config.json").read_bytes())
    keys = sorted({*whole, "r", "init_r", "enable_lora", "self", "__class__", "layers_pattern"})
    tally, others = Tally(), Tally()

    @fuzzed(count)
    @given(st.data(), st.sampled_from(keys))
    def run(data: st.DataObject, key: str) -> None:
        value = data.draw(st.just(whole.get(key)) | ODD)
        if key == "base_model_name_or_path":
            return
        (folder / "adapter_config.json").write_text(json.dumps({**whole, key: value}), encoding="utf-8")
        found = tally.take(lambda: load_adapter(copy.deepcopy(model), folder))
        if tally.tried % 10 == 0:
            others.take(lambda: inspect(folder, base=base))
            others.take(lambda: Adapters(base).add("a", folder))
            others.take(lambda: _migrate(folder, tmp_path / "new", base))
        assert found is None or any("lora_" in name for name, _ in found.named_parameters())

    with bounds():
        run()
    tally.require(refused=count // 3, read=count // 10)
    others.require(refused=1, read=1)


def _migrate(folder: Path, output: Path, base: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    migrate_path(folder, output, base=base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", "(a+)+$"),
        ("exclude_modules", "(.*)*x"),
        ("rank_pattern", {"(.*)*x": 4}),
        ("alpha_pattern", {"(.*)*x": 4}),
        ("modules_to_save", ["(.*)*x"]),
    ],
)
def test_a_pattern_that_never_ends_is_refused_by_its_key(
    key: str, value: Any, base: Path, tmp_path: Path
) -> None:
    folder = change(write_adapter(tmp_path / "it", CONFIGS["lora"](), base), **{key: value})
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {key}: .*very long") as caught:
        load_model(base, adapter=folder)
    assert "in a list" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "x"),
        ("r", 10**12),
        ("lora_alpha", None),
        ("target_modules", 5),
        ("lora_dropout", 7),
        ("rank_pattern", []),
    ],
)
def test_a_value_that_cannot_be_is_named_by_its_key(key: str, value: Any, base: Path, tmp_path: Path) -> None:
    folder = change(write_adapter(tmp_path / "it", CONFIGS["lora"](), base), **{key: value})
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {key} must be"):
        read_adapter_config(folder)


def test_no_room_is_made_for_ranks_that_no_tensor_has(base: Path, tmp_path: Path) -> None:
    folder = change(write_adapter(tmp_path / "it", CONFIGS["lora"](), base), r=60_000)
    with pytest.raises(GlmtuneError, match="r is 60,000, but the tensors have ranks of at most 4"):
        load_model(base, adapter=folder)
