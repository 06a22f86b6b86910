"""Where `make setup` takes PyTorch from: prints pip's options, and on stderr one line that says why.

    python tools/torch_index.py [auto | default | URL]

Run before anything is installed, so by the standard library alone.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

CPU = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5
"""Seconds in which an index must answer. A look-up of its name has no limit of its own, hence the thread."""
DRIVER = Path("/proc/driver/nvidia/version")
ON_WSL = Path("/usr/lib/wsl/lib/nvidia-smi")


def choose(asked: str) -> tuple[str, str]:
    """The index for PyTorch, empty for pip's own, and the reason."""
    if asked and asked not in ("auto", "default"):
        return asked, "TORCH_INDEX says so"
    if asked != "auto":
        return "", "TORCH_INDEX says so"
    if sys.platform != "linux":
        return "", "its builds for this system are the right ones"
    if has_card():
        return "", "there is an NVIDIA card"
    if answers(f"{CPU}/torch/"):
        return CPU, "no NVIDIA card is seen, and the CPU builds save gigabytes"
    return "", f"no NVIDIA card is seen, but {CPU} with the smaller CPU builds does not answer"


def has_card() -> bool:
    """Whether an NVIDIA driver is loaded or its tool finds a card."""
    tool = shutil.which("nvidia-smi") or (str(ON_WSL) if ON_WSL.exists() else None)
    if DRIVER.exists() or tool is None:
        return DRIVER.exists()
    try:
        return subprocess.run([tool, "-L"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def answers(url: str) -> bool:
    """Whether a page can be read within `PATIENCE`."""
    read: list[bytes] = []

    def look() -> None:
        try:
            with urlopen(url, timeout=PATIENCE) as page:
                read.append(page.read(1))
        except (OSError, ValueError):
            return

    thread = Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(read)


def main() -> None:
    """Print the options for pip."""
    index, why = choose(" ".join(sys.argv[1:]).strip())
    print(f"PyTorch from {index or 'the default package index'}: {why}", file=sys.stderr)
    if index:  # the index has few other packages: what PyTorch needs comes from pip's own, next
        print(f"--no-deps --index-url {index}")


if __name__ == "__main__":
    main()
