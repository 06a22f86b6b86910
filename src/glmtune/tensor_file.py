"""Open safetensors files, with errors that name the file. Loads no torch."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from glmtune.errors import CheckpointError, first_line
from glmtune.files import COPY_AGAIN, read_start, unreadable


def open_safetensors(file: Path, framework: Literal["pt", "numpy"]) -> Any:
    """Memory-map a file with `safe_open`. Raises CheckpointError."""
    read_start(file)  # a missing, empty or unreadable file gets its own message first
    with explain_damage(file):
        return safe_open(file, framework=framework)


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors by name, from the header alone. Raises CheckpointError."""
    opened = open_safetensors(file, "numpy")
    return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 no dict


@contextmanager
def explain_damage(file: Path) -> Iterator[None]:
    """Turn the errors that file libraries raise inside into a CheckpointError that names the file."""
    try:
        yield
    # RuntimeError, EOFError and the rest: torch.load and pickle on a damaged .bin file
    except (
        OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, MemoryError,
    ) as error:  # fmt: skip
        # safetensors tells in words alone that a file could not be mapped
        if os.strerror(errno.ENOMEM) in str(error):
            raise CheckpointError(
                f"{file}: the system gives no memory to read it: {first_line(error)}",
                hint="see `ulimit -v` and `free -h`; more room is needed than the file takes",
            ) from None
        # EINVAL comes from mapping a file that was cut off
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise unreadable(file, error) from error
        raise CheckpointError(f"{file}: truncated or damaged: {first_line(error)}", hint=COPY_AGAIN) from None
