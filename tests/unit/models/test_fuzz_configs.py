"""config.json and generation_config.json with any value at any key: a model that answers, or a refusal."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, GenerationConfig

from fuzz import fuzzed
from glmtune.errors import GlmtuneError
from glmtune.families import identify
from glmtune.folder import ModelFolder
from glmtune.info import inspect
from glmtune.load import load_model
from glmtune.models import ChatGLM6BConfig
from glmtune.models.fingerprint import fingerprint
from glmtune.models.loaders import outline_of_folder
from glmtune.models.published_weights import read_generation_config
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder
from odd_files import FEW, MANY, VALUES, Tally, bounds

FAMILIES = {
    "v1_early": lambda folder: tiny_v1_folder(folder, "early"),
    "v1_late": tiny_v1_folder,
    "chatglm2": lambda folder: tiny_folder(folder, "chatglm2"),
    "chatglm3": tiny_folder,
    "glm4": lambda folder: tiny_folder(folder, "glm4"),
    "GLM-4-hf": lambda folder: tiny_hf_folder(folder, "GLM-4-hf"),
    "GLM-4-0414": lambda folder: tiny_hf_folder(folder, "GLM-4-0414"),
    "GLM-4.5": lambda folder: tiny_hf_folder(folder, "GLM-4.5"),
}
MORE_KEYS = (
    "num_labels", "id2label", "torch_dtype", "dtype", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "layer_types", "quantization_config", "auto_map", "attn_implementation",
    "_attn_implementation", "experts_implementation", "to_dict", "get_text_config", "sub_configs",
    "attribute_map", "is_encoder_decoder", "output_hidden_states", "return_dict", "head_dim", "hidden_act",
    "sliding_window", "per_layer_config", "text_config", "base_model_tp_plan", "quantization_bit",
    "pre_seq_len", "prefix_projection", "rope_ratio", "num_nextn_predict_layers", "num_local_experts",
    "template", "self", "__class__", "__dict__", "name_or_path", "trust_remote_code", "_commit_hash",
)  # fmt: skip
SIZES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in FAMILIES.items()}


def keys_of(folder: Path) -> list[str]:
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    known = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    return sorted({*stated, *map(str, known), *MORE_KEYS})


def ask(folder: Path) -> bool:
    """Open the folder, and see that what opens can answer."""
    model = load_model(folder, device="cpu")
    ids = [5, 6, 7]
    if isinstance(model.config, ChatGLM6BConfig):  # whose positions count from these
        ids = [5, model.config.mask_ids[1], model.config.bos_token_id]
    return bool(model(input_ids=torch.tensor([ids])).logits.shape[:2] == (1, 3))


def near(value: Any) -> st.SearchStrategy[Any]:
    """A value of the same kind, the same one too."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([value, value + 1, value - 1, 2 * value])
    return st.sampled_from([value, value / 2, value * 1.5]) if isinstance(value, float) else st.just(value)


@pytest.mark.parametrize(
    ("family", "keys", "words"),
    [
        ("GLM-4.5", {"num_hidden_layers": 1000, "n_routed_experts": 2048}, "at most 147,200 experts"),
        ("GLM-4.5", {"num_hidden_layers": 1000}, "num_hidden_layers = 1,000, and the files hold 2"),
        ("GLM-4.5", {"n_routed_experts": 2048}, "n_routed_experts = 2,048, and the files hold 4"),
        ("GLM-4-hf", {"num_hidden_layers": 1000}, "num_hidden_layers = 1,000, and the files hold 2"),
        ("chatglm3", {"num_layers": 1000}, "num_layers = 1,000, and the files hold 2"),
        ("v1_late", {"num_layers": 1000}, "num_layers = 1,000, and the files hold 2"),
        ("GLM-4.5", {"num_hidden_layers": 100}, r"layers\.\d+\..*is missing"),
        ("chatglm3", {"num_layers": 100}, r"layers\.\d+\..*is missing"),
    ],
)
def test_more_layers_than_the_files_have_are_not_built(
    folders: dict[str, Path], family: str, keys: dict[str, int], words: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[family], tmp_path / "m"))
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "num_layers" in keys:
        stated.pop("num_hidden_layers", None)
    (folder / "config.json").write_text(json.dumps(stated | keys), encoding="utf-8")
    with pytest.raises(GlmtuneError, match=words):
        load_model(folder, device="cpu")
    assert any(re.search(words, said) for said in inspect(folder).warnings)


@pytest.mark.parametrize("count", SIZES)
def test_any_value_at_any_key_is_read_or_refused(
    folders: dict[str, Path], count: int, tmp_path: Path
) -> None:
    work = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}
    whole = {name: json.loads((folder / "config.json").read_bytes()) for name, folder in folders.items()}
    places = [(name, key) for name, folder in folders.items() for key in keys_of(folder)]
    told, opened = Tally(), Tally()

    @fuzzed(count)
    @given(st.data(), st.sampled_from(places))
    def run(data: st.DataObject, place: tuple[str, str]) -> None:
        name, key = place
        stated = whole[name].get(key)
        value = data.draw(VALUES if stated is None else near(stated) | VALUES)
        (work[name] / "config.json").write_text(json.dumps({**whole[name], key: value}), encoding="utf-8")
        if opened.tried % 3 == 0:  # each takes its while
            told.take(lambda: inspect(work[name]))
            told.take(lambda: fingerprint(work[name]))
        assert opened.take(lambda: ask(work[name])) in (None, True)

    with bounds():
        run()
    told.require(refused=1, read=count // 6)
    opened.require(refused=count // 3, read=count // 10)


LARGE = [10**4, 10**6, 10**9, 10**12, 2**63, 2**64, 10**400]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_size_makes_an_outline_that_never_ends(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without weights nothing else stops it."""
    whole = json.loads((folders[name] / "config.json").read_bytes())
    shutil.copytree(folders[name], tmp_path / name)
    known, tally = identify(folders[name]), Tally()
    sizes = [key for key, value in whole.items() if type(value) is int and "token_id" not in key]
    with bounds():
        for key in sizes:
            for value in LARGE:
                content = json.dumps({**whole, key: value})
                (tmp_path / name / "config.json").write_text(content, encoding="utf-8")
                tally.take(lambda: outline_of_folder(ModelFolder(tmp_path / name), known, {}))
    tally.require(refused=len(sizes) * len(LARGE) // 2, read=1)


@pytest.mark.parametrize("count", SIZES)
def test_an_odd_generation_config_is_read_or_refused(count: int, tmp_path: Path) -> None:
    whole = {"eos_token_id": [1, 2], "pad_token_id": 1, "do_sample": True, "temperature": 0.8, "top_p": 0.8}
    keys = sorted(
        {*whole, *GenerationConfig().to_dict(), "validate", "update", "stop_strings", "cache_config"}
    )
    tally = Tally()

    @fuzzed(count)
    @given(st.sampled_from(keys), VALUES)
    def run(key: str, value: Any) -> None:
        path = tmp_path / "generation_config.json"
        path.write_text(json.dumps({**whole, key: value}), encoding="utf-8")
        tally.take(lambda: read_generation_config(tmp_path))

    with bounds():
        run()
    tally.require(refused=count // 6, read=count // 10)
