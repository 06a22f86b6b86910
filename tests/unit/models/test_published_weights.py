"""Opening folders: every layout gives the same weights, and every broken one is refused by name."""

import io
import json
import os
import pathlib
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from forks import run_fork
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.models import ChatGLMConfig, load_base, resolve_device
from glmtune.models.dtype import DTYPES
from odd_files import bounds

GOLDENS = Path(__file__).parents[2] / "goldens"
QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
LAYOUTS = ("single safetensors", "sharded safetensors", "single bin", "sharded bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, writable official folder."""
    shutil.copytree(GOLDENS / "v3" / "ckpt", tmp_path / "chatglm")
    return tmp_path / "chatglm"


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDENS / "v3" / "ckpt" / "model.safetensors")


def write(folder: Path, tensors: dict[str, Tensor], layout: str = "single safetensors") -> list[Path]:
    """Replace the folder's weights by these, in this layout; returns the files of weights."""
    (folder / "model.safetensors").unlink()
    count, kind = (1 if layout.startswith("single") else 3), layout.split()[1]
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names = [f"{stem}-{i + 1:05}-of-{count:05}.{suffix}" for i in range(count)]
    names = names if count > 1 else [f"{stem}.{suffix}"]
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[names[i * count // len(tensors)]][name] = tensor
    for name, part in parts.items():
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
    if count > 1:
        weight_map = {tensor: name for name, part in parts.items() for tensor in part}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return [folder / name for name in names]


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refusal(folder: Path, kind: type[GlmtuneError] = CheckpointError, **kwargs: Any) -> str:
    """The one line that opening the folder is refused with; it always has a hint beside it."""
    with pytest.raises(kind) as caught:
        load_base(folder, device="cpu", **kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


# What opens


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_layout_opens_with_the_stored_values_in_the_asked_type(
    folder: Path, tensors: dict[str, Tensor], layout: str, dtype: str
) -> None:
    write(folder, tensors, layout)
    model = load_base(folder, dtype=dtype, device="cpu")
    wanted = DTYPES[dtype]
    weights = model.state_dict()
    assert weights.keys() == {name for name in tensors if not name.endswith("inv_freq")}
    for name, tensor in weights.items():
        assert tensor.dtype == wanted
        assert torch.equal(tensor, tensors[name].to(wanted)), name


def test_an_opened_model_is_ready_to_use(folder: Path) -> None:
    model = load_base(folder, dtype="fp32", device="cpu")
    assert not model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert model.config.name_or_path == str(folder)
    assert model.config.dtype == torch.float32
    assert model.generation_config.eos_token_id == 2


def test_all_eos_ids_of_glm4_reach_the_generation_config() -> None:
    model = load_base(GOLDENS / "glm4" / "ckpt", device="cpu")
    assert model.generation_config.eos_token_id == [308, 314, 316]


def test_without_a_generation_config_the_eos_id_comes_from_config_json(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert load_base(folder, device="cpu").generation_config.eos_token_id == 2


def test_progress_is_told_after_each_tensor_and_ends_at_the_whole(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    model = load_base(folder, dtype="fp32", device="cpu", progress=lambda *now: told.append(now))
    assert len(told) == len(model.state_dict())
    assert told == sorted(told)
    assert told[-1] == (4 * model.num_parameters(), 4 * model.num_parameters())


def test_a_bar_appears_on_a_terminal_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("glmtune.models.published_weights._SHOW_BAR_AFTER_S", 0.0)
    load_base(folder, device="cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    load_base(folder, device="cpu")
    assert "loading weights" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: 'warp' is unknown"):
        resolve_device("warp")
    with pytest.raises(ConfigError, match="device: cuda:99 is not there"):
        resolve_device("cuda:99")


# What rope_ratio scales


@pytest.mark.parametrize(("template", "scaled"), [("chatglm2", "positions"), ("chatglm3", "base")])
def test_the_template_decides_what_rope_ratio_scales(folder: Path, template: str, scaled: str) -> None:
    edit_config(folder, rope_ratio=50)
    rotary = load_base(folder, device="cpu", template=template).transformer.rotary_pos_emb
    assert (rotary.base, rotary.divisor) == ((10000, 50) if scaled == "positions" else (500000, 1))


@pytest.mark.parametrize(
    ("changes", "base", "divisor"),
    [
        ({"_name_or_path": "THUDM/chatglm3-6b-32k"}, 500000, 1),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k"}, 10000, 50),
        ({"eos_token_id": [2, 64795]}, 500000, 1),
        ({"layernorm_epsilon": 1.5625e-07}, 500000, 1),
    ],
)
def test_the_folder_itself_may_tell_what_rope_ratio_scales(
    folder: Path, changes: dict[str, Any], base: float, divisor: float
) -> None:
    edit_config(folder, rope_ratio=50, **changes)
    rotary = load_base(folder, device="cpu").transformer.rotary_pos_emb
    assert (rotary.base, rotary.divisor) == (base, divisor)


def test_an_open_rope_ratio_asks_for_the_template_whatever_the_folder_is_called(folder: Path) -> None:
    edit_config(folder, rope_ratio=50)
    named = folder.rename(folder.parent / "chatglm3-6b-32k")
    with pytest.raises(ConfigError) as caught:
        load_base(named, device="cpu")
    assert "rope_ratio = 50" in str(caught.value)
    assert 'template="chatglm2"' in caught.value.hint


# What does not open: config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_bias_linear", True),
        ("rmsnorm", False),
        ("post_layer_norm", False),
        ("apply_residual_connection_post_layernorm", True),
        ("fp32_residual_connection", True),
        ("multi_query_attention", False),
    ],
)
def test_a_setting_the_model_cannot_express_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    edit_config(folder, **{key: value})
    said = refusal(folder, ConfigError)
    assert said.startswith(f"{folder / 'config.json'}: {key} = {value}")


def test_a_config_that_names_a_prefix_needs_its_weights(folder: Path) -> None:
    edit_config(folder, pre_seq_len=8)
    assert "tensor transformer.prefix_encoder.embedding.weight is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", "2"),
        ("pre_seq_len", "8"),
        ("hidden_size", 0),
        ("multi_query_group_num", 3),
        ("kv_channels", 18),
        ("rope_ratio", None),
        ("quantization_bit", 3),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    edit_config(folder, **{key: value})
    said = refusal(folder, ConfigError)
    assert said.startswith(f"{folder / 'config.json'}: ")
    assert key in said


def test_what_no_published_folder_says_is_not_passed_over(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    assert "tie_word_embeddings = True is not supported, only False" in refusal(folder, ConfigError)
    edit_config(folder, tie_word_embeddings=False, quantization_config={"quant_method": "x"})
    assert refusal(folder) == f"{folder / 'config.json'}: pre-quantised weights (x) cannot be opened"


def test_two_names_of_one_setting_must_agree(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=5)
    said = refusal(folder, ConfigError)
    assert said == f"{folder / 'config.json'}: num_hidden_layers = 5 contradicts num_layers = 2"


def test_a_config_that_mixes_v1_and_later_keys_is_refused(folder: Path) -> None:
    edit_config(folder, position_encoding_2d=True)
    assert "mixes keys of ChatGLM-6B v1 (position_encoding_2d)" in refusal(folder)


def test_a_config_without_the_family_s_keys_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "chatglm", "hidden_size": 64}')
    assert "no key ffn_hidden_size, kv_channels" in refusal(folder)


def test_another_model_type_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="llama")
    assert "model_type is 'llama'" in refusal(folder)


# What does not open: files


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such folder"


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == f"{folder / 'config.json'}: cannot be read: No such file or directory"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json_is_refused_with_line_and_column(folder: Path, name: str) -> None:
    (folder / name).write_text('{\n  "a": 1,\n  oops\n}')
    assert refusal(folder).startswith(f"{folder / name}:3:3: broken JSON")


def test_json_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    assert "holds a list, expected an object" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights; looked for model.safetensors, model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded bin"])
def test_a_missing_shard_is_refused_by_name(folder: Path, tensors: dict[str, Tensor], layout: str) -> None:
    shard = write(folder, tensors, layout)[1]
    shard.unlink()
    assert refusal(folder).startswith(f"{shard}: missing, but listed in ")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_git_lfs_pointer_is_refused_by_name(folder: Path, tensors: dict[str, Tensor], layout: str) -> None:
    shard = write(folder, tensors, layout)[-1]
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1827781090\n")
    with pytest.raises(CheckpointError) as caught:
        load_base(folder, device="cpu")
    assert str(caught.value).startswith(f"{shard}: a git-lfs pointer")
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 5, 2000, -100])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file_is_refused_by_name(
    folder: Path, tensors: dict[str, Tensor], layout: str, keep: int
) -> None:
    shard = write(folder, tensors, layout)[-1]
    shard.write_bytes(shard.read_bytes()[:keep])
    assert refusal(folder).startswith(f"{shard}: truncated or damaged")


def test_a_truncated_tensor_in_a_safetensors_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[QKV]["data_offsets"][1] -= 2
    new = json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    assert refusal(folder).startswith(f"{file}: truncated or damaged")


def test_a_file_that_the_system_gives_no_memory_for_is_not_called_damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    held = len(content) - 8 - length
    header = json.loads(content[8 : 8 + length])
    header["more"] = {"dtype": "U8", "shape": [2**35], "data_offsets": [held, held + 2**35]}
    new = json.dumps(header).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    os.truncate(file, 8 + len(new) + held + 2**35)  # takes no room on the disk
    with bounds():
        assert refusal(folder).startswith(f"{file}: the system gives no memory to read it")


def test_a_truncated_tensor_in_a_bin_file_is_refused(folder: Path, tensors: dict[str, Tensor]) -> None:
    storage = torch.UntypedStorage(8)

    class Short(Tensor):
        def __reduce_ex__(self, protocol: Any) -> Any:
            typed = torch.TypedStorage(wrap_storage=storage, dtype=torch.float16, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, 0, (128, 64), (64, 1), False, {})

    [file] = write(folder, tensors | {QKV: torch.zeros(128, 64).as_subclass(Short)}, "single bin")
    assert refusal(folder).startswith(f"{file}: truncated or damaged")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (pathlib.Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"transformer.x": Payload()}, folder / "pytorch_model.bin")
    assert "holds more than tensors" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_old_torch_files_are_refused_and_new_ones_open(
    folder: Path, tensors: dict[str, Tensor], zipped: bool
) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    if zipped:
        load_base(folder, device="cpu")
    else:
        assert "written by torch before 1.6" in refusal(folder)


def test_a_bare_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    assert refusal(folder).startswith(
        f"{folder / 'pytorch_model.bin'}: damaged, or written by torch before 1.6"
    )


def test_a_bin_file_of_something_else_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "holds a list, expected a dict of tensors" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_an_unreadable_file_is_refused_by_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised where the file is opened: whoever runs this as root could read everything."""
    system_open = io.open

    def deny(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(f"/{name}"):
            raise PermissionError(13, "Permission denied", str(file))
        return system_open(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", deny)
    assert refusal(folder) == f"{folder / name}: cannot be read: Permission denied"


def test_a_disk_that_fails_while_reading_is_told_by_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open = io.open

    class Failing(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    def fail(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith("model.safetensors"):
            return Failing()
        return system_open(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", fail)
    assert refusal(folder) == f"{folder / 'model.safetensors'}: cannot be read: Input/output error"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "is not the name of a file beside it"),
        ("{", "broken JSON"),
    ],
)
def test_a_broken_index_is_refused(folder: Path, content: str, told: str) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    message = refusal(folder)
    assert message.startswith(str(index))
    assert told in message


# What does not open: tensors


Change = Callable[[dict[str, Tensor]], None]


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[QKV]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.encoder.layers.2.input_layernorm.weight"] = torch.ones(64, dtype=torch.float16)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors[QKV] = tensors[QKV][:-1].clone()


def quantise(tensors: dict[str, Tensor]) -> None:
    tensors[QKV] = torch.zeros(128, 64, dtype=torch.int8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, f"tensor {QKV} is missing"),
        (add, "tensor transformer.encoder.layers.2.input_layernorm.weight is not part of this model"),
        (reshape, f"tensor {QKV} has shape [127, 64], config.json makes it [128, 64]"),
        (quantise, f"{QKV} belongs to a pre-quantised model"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name_and_file(
    folder: Path, tensors: dict[str, Tensor], layout: str, change: Change, told: str
) -> None:
    change(tensors)
    files = write(folder, tensors, layout)
    message = refusal(folder)
    assert told in message
    place = message.split(": ")[0]
    assert place in {str(folder), *map(str, files)}


def test_a_tensor_that_its_indexed_shard_lacks_is_refused(folder: Path, tensors: dict[str, Tensor]) -> None:
    shards = write(folder, tensors, "sharded safetensors")
    kept = load_file(shards[1])
    lost = sorted(kept)[0]
    del kept[lost]
    save_file(kept, shards[1])
    assert refusal(folder) == f"{shards[1]}: tensor {lost} is missing, though the index lists it"


def test_a_tensor_in_two_shards_is_refused(folder: Path, tensors: dict[str, Tensor]) -> None:
    shards = write(folder, tensors, "sharded safetensors")
    twice = load_file(shards[1])
    save_file(twice | load_file(shards[0]), shards[1])
    assert "is also in model-00001-of-00003.safetensors" in refusal(folder)


def test_every_tensor_is_checked_before_the_first_is_copied(folder: Path, tensors: dict[str, Tensor]) -> None:
    reshape(tensors)
    write(folder, tensors, "sharded bin")
    copied: list[int] = []
    refusal(folder, progress=lambda done, total: copied.append(done))
    assert copied == []


# Memory


MEASURE = """
import ctypes, sys, threading, time
from pathlib import Path
from glmtune.models import load_base

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

# else glibc keeps freed scratch of up to 32 MiB, which is much only for so small a model
ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
quant = sys.argv[4] or None
load_base(sys.argv[2], dtype=sys.argv[3], device="cpu", quant=quant)  # whatever torch sets up once
before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
model = load_base(sys.argv[1], dtype=sys.argv[3], device="cpu", quant=quant)
peak = max(peak, anonymous())
running = False
watcher.join()
weights = sum(p.nbytes for p in model.parameters())
print(weights, peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
@pytest.mark.parametrize(
    "layout", ["sharded safetensors", pytest.param("sharded bin", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("dtype", "quant"),
    [("bf16", ""), pytest.param("fp16", "int8", marks=pytest.mark.slow), ("bf16", "int4")],
)
def test_loading_takes_no_more_anonymous_memory_than_the_weights_and_a_tenth(
    folder: Path, tmp_path: Path, layout: str, dtype: str, quant: str
) -> None:
    large = tmp_path / "large"
    shutil.copytree(folder, large)
    edit_config(large, hidden_size=1024, ffn_hidden_size=4096, padded_vocab_size=20000, num_layers=8)
    write(large, zeros_like_config(large), layout)
    weights, grown = measure(large, folder, dtype, quant)
    assert weights > (120e6 if quant else 250e6)
    least = 0.5 if dtype == "fp16" else 0.9  # fp16 as stored: what is not quantised stays in the file
    assert weights * least < grown <= weights * 1.1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
def test_weights_that_keep_their_stored_type_stay_in_the_file(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, hidden_size=1024, ffn_hidden_size=4096, padded_vocab_size=20000, num_layers=8)
    write(folder, zeros_like_config(folder))
    load_base(folder, dtype="fp16", device="cpu", quant="int4").save_pretrained(tmp_path / "int4")
    weights, grown = measure(tmp_path / "int4", GOLDENS / "v3" / "ckpt", "fp16", "")
    assert 120e6 < weights < 180e6
    assert grown < weights * 0.1


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded bin"])
def test_a_model_is_changed_and_saved_into_its_own_folder_without_touching_what_was_mapped(
    folder: Path, tensors: dict[str, Tensor], layout: str
) -> None:
    files = write(folder, tensors, layout)
    before = {path: path.read_bytes() for path in files}
    model = load_base(folder, dtype="fp16", device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert {path: path.read_bytes() for path in files} == before
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder)
    assert all(torch.equal(changed[name], tensor) for name, tensor in model.state_dict().items())
    if "bin" in layout:
        assert all(path.exists() for path in files)  # beside the new file, which comes first
    again = load_base(folder, dtype="fp16", device="cpu").state_dict()
    assert all(torch.equal(changed[name], tensor) for name, tensor in again.items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
def test_quantising_to_nf4_takes_no_more_than_the_weights_and_a_tenth(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, ffn_hidden_size=128)
    write(folder, zeros_like_config(folder))
    large = tmp_path / "large"
    shutil.copytree(folder, large)
    edit_config(large, hidden_size=1024, ffn_hidden_size=4096, padded_vocab_size=20000, num_layers=8)
    write(large, zeros_like_config(large))
    weights, grown = measure(large, folder, "bf16", "nf4")
    assert 120e6 < weights < 180e6
    assert weights * 0.9 < grown <= weights * 1.1


def measure(large: Path, small: Path, dtype: str, quant: str) -> tuple[int, int]:
    """Bytes of the weights, and what anonymous memory grew by at most while they were loaded."""
    command = [sys.executable, "-c", MEASURE, str(large), str(small), dtype, quant]
    done = run_fork(command, text=True, check=True)
    weights, grown = map(int, done.stdout.split())
    return weights, grown


def zeros_like_config(folder: Path) -> dict[str, Tensor]:
    from glmtune.models.config import read_config
    from glmtune.models.own import build_empty

    empty = build_empty(read_config(folder), torch.float16, {})
    return {name: torch.zeros(x.shape, dtype=torch.float16) for name, x in empty.state_dict().items()}


def test_a_config_can_be_made_in_code() -> None:
    config = ChatGLMConfig(num_hidden_layers=3, multi_query_attention=True, num_key_value_heads=2)
    assert (config.num_layers, config.multi_query_group_num) == (3, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("layernorm_epsilon", "a"), ("hidden_dropout", 2.0), ("rope_ratio", 0), ("num_layers", "2")],
)
def test_a_config_with_a_value_that_cannot_be_is_refused_by_name(
    folder: Path, key: str, value: object
) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=key) as caught:
        load_base(folder)
    assert caught.value.hint
