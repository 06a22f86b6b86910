"""Open an official folder: every tensor checked first, then copied once, from the mapped file to its place.

Nothing is held but the weights: on a CPU the anonymous memory at the peak is the weights' own size.
"""

import errno
import os
import pickle
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import COPY_AGAIN, read_json, read_start, unreadable
from glmtune.models.chatglm import ChatGLM6BForConditionalGeneration
from glmtune.models.chatglm2 import ChatGLMForConditionalGeneration
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.config import ChatGLMConfig
from glmtune.models.quant import QuantizedLinear, find_bits, name_bits, quantised_layers

Config = ChatGLMConfig | ChatGLM6BConfig
Model = ChatGLMForConditionalGeneration | ChatGLM6BForConditionalGeneration
MODELS: Mapping[type[Config], type[Model]] = {
    ChatGLMConfig: ChatGLMForConditionalGeneration,
    ChatGLM6BConfig: ChatGLM6BForConditionalGeneration,
}
"""The model of each config."""

Progress = Callable[[int, int], None]
"""Called after each tensor with the bytes copied so far and the bytes in all."""

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}

_LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
}
_IGNORED = re.compile(r"rotary(_pos)?_emb\.inv_freq$")  # buffers that the models compute themselves
_ZIP = b"PK\x03\x04"  # how torch.save files begin since torch 1.6
_SHOW_BAR_AFTER_S = 1.0


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies and what its header says."""

    file: Path
    name: str
    """Its name there."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shard(Protocol):
    """One open file of tensors."""

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every tensor, without reading any."""

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from the file."""


def load_base(
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    template: str | None = None,
    quant: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Model of an official folder, in evaluation mode, its weights in `dtype` on `device`.

    `quant`, int8 or int4, quantises the blocks' linear layers from their stored values while they are read;
    a folder that is quantised opens as it is. Scales keep their stored type whatever `dtype` is.
    `template` is the chat format if it is known; only a config with `rope_ratio` != 1 needs it. Without
    `progress` a bar appears on a terminal when loading takes long. Raises CheckpointError (files, names,
    shapes) and ConfigError (settings, `dtype`, `device`).
    """
    place = resolve_device(device)
    folder = Path(folder)
    config = read_config(folder, template=template)
    bits = _bits_to_make(config, quant, folder)
    generation = _read_generation_config(folder)
    stored = scan_tensors(folder)
    wanted = resolve_dtype(dtype, _main_dtype(stored), place)
    model = _build_empty(config, wanted)
    stored = _without_copies(model, stored)
    check_stored(model, stored)
    if bits:
        model.quantize(bits)
    _set_scale_types(model, stored)
    _fill(model, stored, place, progress)
    model.tie_weights()
    if generation is not None:
        model.generation_config = generation
    model.eval()
    return model


def _bits_to_make(config: ChatGLMConfig, quant: str | None, folder: Path) -> int:
    """Bits to quantise to while loading; 0 for none, or if the folder has them. ConfigError for others."""
    bits, held = find_bits(quant), config.quantization_bit
    if bits and held and bits != held:
        raise ConfigError(
            f"quant: {quant}, but {folder} is {name_bits(held)} already",
            hint="leave quant out, or open the original, unquantised folder",
        )
    return 0 if held else bits


def resolve_device(requested: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one, else the CPU."""
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ConfigError(f"device: {requested!r} is unknown", hint="auto, cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {requested} is not there: torch sees no CUDA device", hint="device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {requested} is not there: torch sees {torch.cuda.device_count()} devices")
    return device


def resolve_dtype(requested: str | torch.dtype, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The weights' type: "auto" is the stored one, but on a CPU bf16 for half precision and fp32 else."""
    if requested == "auto":
        if device.type != "cpu":
            return stored
        return torch.bfloat16 if stored in (torch.float16, torch.bfloat16) else torch.float32
    dtype = DTYPES.get(requested) if isinstance(requested, str) else requested
    if dtype is None or dtype not in DTYPES.values():
        raise ConfigError(f"dtype: {requested!r} is not a type for weights", hint="auto, fp32, bf16 or fp16")
    return dtype


def read_config(folder: Path, *, template: str | None = None) -> Config:
    """The folder's `config.json`, checked; `template` settles what `rope_ratio` scales."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", hint="give the folder that holds config.json")
    content = read_json(folder / "config.json")
    if content.get("model_type") != ChatGLMConfig.model_type:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {content.get('model_type')!r}, not 'chatglm'",
            hint="supported are ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in the chatglm layout",
        )
    config: Config = ChatGLMConfig.from_dict(content)
    config.set_template(template)
    config.check_supported()
    config.name_or_path = str(folder)
    return config


def build_outline(folder: Path, *, template: str | None = None) -> Model:
    """The folder's model without any weights: every parameter on the meta device, from config.json alone."""
    config = read_config(folder, template=template)
    return _build_empty(config, config.dtype or torch.float32)


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint's file is in the folder, in any layout."""
    return any((folder / name).exists() for layout in _LAYOUTS for name in layout)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of most weights of a folder."""
    return _main_dtype(scan_tensors(folder))


def scan_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's checkpoint by name, from the files' headers alone."""
    found: dict[str, Stored] = {}
    listed = _list_shards(folder)
    for file in sorted(set(listed.values())):
        with _open_shard(file) as shard:
            for name, (shape, dtype) in shard.headers().items():
                if name in found:
                    raise CheckpointError(
                        f"{file}: {name} is also in {found[name].file.name}", hint=COPY_AGAIN
                    )
                found[name] = Stored(file, name, shape, dtype)
    for name, file in listed.items():
        if name and name not in found:
            raise CheckpointError(
                f"{file}: tensor {name} is missing, though the index lists it", hint=COPY_AGAIN
            )
    return found


def _list_shards(folder: Path) -> dict[str, Path]:
    """The files of the checkpoint, by tensor name; a single file has the name ''."""
    for index, single in _LAYOUTS:
        if (folder / index).exists():
            return _read_index(folder / index)
        if (folder / single).exists():
            return {"": folder / single}
    names = ", ".join(name for layout in _LAYOUTS for name in layout)
    raise CheckpointError(f"{folder}: no weights; looked for {names}", hint="download the weights too")


def _read_index(file: Path) -> dict[str, Path]:
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: no weight_map, an object of tensor name to file", hint=COPY_AGAIN)
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard:
            raise CheckpointError(f"{file}: {shard!r} is not the name of a file beside it", hint=COPY_AGAIN)
        if not (file.parent / shard).exists():
            raise CheckpointError(
                f"{file.parent / shard}: missing, but listed in {file.name}", hint="download this shard"
            )
    return {name: file.parent / shard for name, shard in weight_map.items()}


def _read_generation_config(folder: Path) -> GenerationConfig | None:
    file = folder / "generation_config.json"
    return GenerationConfig.from_dict(read_json(file)) if file.exists() else None


@contextmanager
def _open_shard(file: Path) -> Iterator[Shard]:
    """Map a file of weights; whatever is wrong with it becomes a CheckpointError that names it."""
    start = read_start(file)
    if file.suffix == ".bin" and start and not start.startswith(_ZIP):
        raise CheckpointError(
            f"{file}: damaged, or written by torch before 1.6 (such files cannot be mapped)",
            hint="copy the file again, or load and torch.save it once with a current torch",
        )
    opened = _SafetensorsShard if file.suffix == ".safetensors" else _PickleShard
    with _explain_damage(file):
        shard = opened(file)
    yield shard


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    """Turn what the file libraries raise into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:  # how mapping a cut-off file fails
            raise CheckpointError(f"{file}: truncated or damaged", hint=COPY_AGAIN) from None
        raise unreadable(file, error) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds more than tensors, and is not loaded for safety: {_first_line(error)}",
            hint="only weights are ever unpickled; get the safetensors files or re-save the state dict",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file}: truncated or damaged: {_first_line(error)}", hint=COPY_AGAIN
        ) from None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


class _SafetensorsShard:
    """A mapped safetensors file."""

    def __init__(self, file: Path) -> None:
        self._file: Any = safe_open(file, framework="pt")

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 it is no dict
        return {
            name: (tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8))
            for name, part in slices.items()
        }

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _PickleShard:
    """A mapped `torch.save` file; only tensors are unpickled."""

    def __init__(self, file: Path) -> None:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}, expected a dict of tensors")
        self._tensors = content
        for name, tensor in content.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor")

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._tensors[name]
        return tensor


def _main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """The type of most weights that are not quantised."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += torch.Size(tensor.shape).numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _build_empty(config: Config, dtype: torch.dtype) -> Model:
    """The model without memory: every parameter on the meta device."""
    with torch.device("meta"):
        model: Model = MODELS[type(config)]._from_config(config, dtype=dtype)
    return model


def _without_copies(model: Model, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Each tied weight once, under the name of the parameter that is filled, whichever copies are stored.

    Where both are, the output's copy is left unread, as the official code leaves it.
    """
    found = dict(stored)
    for copy, source in model.all_tied_weights_keys.items():
        tensor = found.pop(copy, None)
        if tensor is not None and source not in found:
            found[source] = tensor
    return found


def check_stored(model: Model, stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for the first tensor that is quantised, unknown, missing or of another shape."""
    stored = _without_copies(model, stored)
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _check_kinds(state, stored)
    extra = [name for name in stored if name not in expected and not _IGNORED.search(name)]
    missing = [name for name in expected if name not in stored]
    if extra:
        raise CheckpointError(
            f"{stored[extra[0]].file}: tensor {extra[0]} is not part of this model{_and_more(extra)}",
            hint="config.json and weights must be of the same model",
        )
    if missing:
        raise CheckpointError(
            f"{_whereabouts(stored)}: tensor {missing[0]} is missing{_and_more(missing)}",
            hint="config.json and weights must be of the same model, and complete",
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{stored[name].file}: tensor {name} has shape {list(stored[name].shape)}, "
                f"config.json makes it {list(shape)}",
                hint="config.json, its quantization_bit too, and weights must be of the same model",
            )


def _check_kinds(expected: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for the first tensor that is quantised where the model is not, or the reverse."""
    for name, tensor in stored.items():
        wanted = expected.get(name)
        is_scale = wanted is None and name.endswith(".weight_scale")
        is_quantised = is_scale or not tensor.dtype.is_floating_point
        if is_quantised == (wanted is not None and wanted.dtype == torch.int8):
            continue
        if is_quantised:
            raise CheckpointError(
                f"{tensor.file}: {name} belongs to a pre-quantised model, but config.json makes it dense",
                hint='"quantization_bit" in config.json must be 8 or 4 then; only the linear layers of the '
                "blocks can be quantised, no embeddings (int4-qe)",
            )
        raise CheckpointError(
            f"{tensor.file}: {name} is not quantised, though config.json has a quantization_bit",
            hint='for a dense folder it is 0; quant="int8" or "int4" then quantises while loading',
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _whereabouts(stored: Mapping[str, Stored]) -> str:
    files = sorted({tensor.file for tensor in stored.values()})
    return str(files[0] if len(files) == 1 else files[0].parent if files else "checkpoint")


def _set_scale_types(model: torch.nn.Module, stored: Mapping[str, Stored]) -> None:
    """Scales keep the type they are stored in, or that of the weights they are made from."""
    for name, layer in quantised_layers(model).items():
        source = stored.get(f"{name}.weight_scale", stored[f"{name}.weight"])
        layer.weight_scale.data = layer.weight_scale.data.to(source.dtype)


def _fill(
    model: torch.nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Give every parameter its memory on `device` and its values, file by file."""
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if name in stored]  # scales may be made here
    total = sum(parameter.nbytes for parameter in parameters.values())
    done = 0
    with _bar(total) if progress is None else _given(progress) as report:
        for file in sorted({stored[name].file for name in names}):
            with _open_shard(file) as shard:
                for name in names:
                    if stored[name].file == file:
                        with _explain_damage(file):
                            source = shard.read(stored[name].name)
                        done += _place(model, name, source, device)
                        report(done, total)


def _place(model: torch.nn.Module, name: str, source: Tensor, device: torch.device) -> int:
    """Replace one meta parameter by its values, quantised where the model is; returns their bytes."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, QuantizedLinear) and leaf == "weight" and source.is_floating_point():
        module.fill(source, device)
        return module.weight.nbytes + module.weight_scale.nbytes
    empty = module.get_parameter(leaf)
    values = torch.empty(source.shape, dtype=empty.dtype, device=device).copy_(source)
    setattr(module, leaf, torch.nn.Parameter(values, requires_grad=empty.requires_grad))
    return values.nbytes


@contextmanager
def _given(progress: Progress) -> Iterator[Progress]:
    yield progress


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """A bar on stderr: only on a terminal, and only once loading has taken a moment."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total)
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - started > _SHOW_BAR_AFTER_S:
            bar.start()
        bar.update(task, completed=done)

    try:
        yield report
    finally:
        bar.stop()
