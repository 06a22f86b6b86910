"""Load the weights of an official folder into one of our models: check every tensor, then copy each once.

On a CPU, a weight that keeps its stored dtype stays in the mapped file (a private mapping: training changes
memory, never the file). Converted and quantised weights are held once, each read in a mapping of its own that
ends with it: at the peak, the process has the size of the weights it holds and of the one it reads.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from glmtune.errors import CheckpointError
from glmtune.folder import ModelFolder
from glmtune.models.config_checks import GENERATION_RULES, check_content, explain_config
from glmtune.models.dtype import main_dtype
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import QuantizedLinear, quantised_layers
from glmtune.models.reading import Reading, require_held_types
from glmtune.models.shards import Stored, open_shard, read_stored, scan_tensors

Progress = Callable[[int, int], None]
"""A callback after each tensor: the bytes copied so far, and the bytes in all."""

_IGNORED = re.compile(r"rotary(_pos)?_emb\.inv_freq$")  # buffers that the models compute themselves
_SHOW_BAR_AFTER_S = 1.0


def stored_dtype(folder: Path | ModelFolder) -> torch.dtype:
    """Return the dtype of most weights of a folder."""
    return main_dtype(scan_tensors(folder))


def without_copies(model: CausalLM, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the stored tensors with each tied weight once, under the name of the parameter it fills."""
    tensors = dict(stored)
    for copy, source in model.all_tied_weights_keys.items():
        tensor = tensors.pop(copy, None)  # with both stored the output layer's is dropped, as officially
        if tensor is not None and source not in tensors:
            tensors[source] = tensor
    return tensors


def check_stored(model: CausalLM, stored: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for the first stored tensor that does not fit the model, or that is missing.

    Checks dtype, quantisation, name and shape, in this order.
    """
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    require_held_types({name: held for name, held in stored.items() if not _IGNORED.search(name)})
    _check_kinds(state, stored)
    extra = [name for name in stored if name not in expected and not _IGNORED.search(name)]
    missing = [name for name in expected if name not in stored]
    if extra:
        raise CheckpointError(
            f"{stored[extra[0]].file}: tensor {extra[0]} is not part of this model{_and_more(extra)}",
            hint="config.json and weights must be of the same model",
        )
    if missing:
        files = sorted({tensor.file for tensor in stored.values()})
        where = str(files[0] if len(files) == 1 else files[0].parent if files else "checkpoint")
        raise CheckpointError(
            f"{where}: tensor {missing[0]} is missing{_and_more(missing)}",
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


def set_scale_types(model: CausalLM, stored: Mapping[str, Stored]) -> None:
    """Set the dtype of all scales: the stored one, else the family's, else the stored weights'."""
    of_family = getattr(model, "scale_dtype", None)  # in our own classes alone
    for name, layer in quantised_layers(model).items():
        scale = stored.get(f"{name}.weight_scale")
        dtype = scale.dtype if scale else of_family or stored[f"{name}.weight"].dtype
        if layer.weight_scale.is_floating_point():  # nf4's scales are codes, which no cast may touch
            layer.weight_scale.data = layer.weight_scale.data.to(dtype)


def fill(
    model: torch.nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    progress: Progress | None,
    reading: Reading,
) -> None:
    """Replace the model's meta parameters by the stored values on `device`, file by file."""
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if name in stored]  # all but the scales that `quant` makes
    total = sum(parameter.nbytes for parameter in parameters.values())
    done = 0
    with _bar(total) if progress is None else nullcontext(progress) as report:
        for file in sorted({stored[name].file for name in names}):
            shard = open_shard(file)
            for name in (name for name in names if stored[name].file == file):
                stays = device.type == "cpu" and parameters[name].dtype == stored[name].dtype
                # a mapping counts as the process's memory wherever it was read, for as long as it lasts
                source = shard.read(stored[name].name) if stays else read_stored(stored[name])
                reading.look(name, file, source)
                done += _set_parameter(model, name, source, device)
                del source
                report(done, total)
    reading.finish()  # `look` only notes problems: it may run in threads


def _set_parameter(model: torch.nn.Module, name: str, source: Tensor, device: torch.device) -> int:
    """Replace one meta parameter by its values, quantised if the layer is; return their bytes."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, QuantizedLinear) and leaf == "weight" and source.is_floating_point():
        module.fill(source, device)
        return sum(parameter.nbytes for parameter in module.held)
    empty = module.get_parameter(leaf)
    values = source.to(device, empty.dtype)  # no copy where nothing changes: it stays in the mapped file
    setattr(module, leaf, torch.nn.Parameter(values, requires_grad=empty.requires_grad))
    return values.nbytes


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """Show a progress bar on stderr, on a terminal alone and once loading has taken a second."""
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


def read_generation_config(folder: Path | ModelFolder) -> GenerationConfig | None:
    """Read a folder's generation_config.json, None if it has none. Raises ConfigError and CheckpointError."""
    folder = ModelFolder.of(folder)
    file = folder.path / "generation_config.json"
    if not file.exists():
        return None
    content = folder.json(file.name)
    check_content(content, GENERATION_RULES, where=file, kind=GenerationConfig)
    with explain_config(file):
        return GenerationConfig.from_dict(dict(content))
