"""Facts about the machine: versions, processor, memory, cards, and warnings of what is to be mended."""

import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from glmtune.errors import first_line
from glmtune.generate.runner import find_compiler
from glmtune.models.triton_products import find_obstacle
from glmtune.processor import (
    CAPS,
    find_instructions,
    free_memory,
    has_bf16,
    left_in_cgroups,
    name_processor,
)
from glmtune.reports.fonts import GET_A_FONT, find_families
from glmtune.workflows.findings import Finding
from glmtune.workflows.remedies import in_words

OLD_CARDS_INDEX = "https://download.pytorch.org/whl/cu126"
"""Index of PyTorch's builds for older drivers and for cards from Maxwell on."""
CURE = f"pip install --upgrade torch --index-url {OLD_CARDS_INDEX}"
NOT_FOR_USERS = ("dev", "bench")
"""Extras of glmtune for its developers."""
LEAST_DISK = 2 * 2**30
"""Free bytes of a disk below which a run of a 6 B model may not be saved."""


def look_at_machine() -> Iterator[Finding]:
    """Yield facts about versions, processor, memory, cards, disk, compiler, fonts and the hub's settings."""
    yield _fact("python", f"{platform.python_version()}, {platform.system()} {platform.release()}")
    yield from look_at_packages()
    yield from look_at_processor()
    yield from look_at_cards()
    here, scratch = (shutil.disk_usage(folder).free for folder in (".", tempfile.gettempdir()))
    is_full = here < LEAST_DISK
    warning = "little room for runs in this folder; name another: output=FOLDER" if is_full else ""
    yield _fact("disk", f"{in_words(here)} free here, {in_words(scratch)} for temporary files", warning)
    compiler = find_compiler()
    yield _fact("C++ compiler", Path(compiler).name if compiler else "none: no --compile on a CPU")
    has_font = find_families(["训练损失"]) is not None
    warning = "" if has_font else f"no font here can write Chinese in pictures; {GET_A_FONT}"
    yield _fact("Chinese font", "yes" if has_font else "none", warning)
    host = urlsplit(constants.ENDPOINT).hostname  # the address may have a password in it
    state = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "asked when a model is named"
    yield _fact("hub", f"{host}, {state}, cache {constants.HF_HUB_CACHE}")


def _fact(name: str, text: str, warning: str = "") -> Finding:
    return Finding("machine", name, text, warning)


def look_at_packages() -> Iterator[Finding]:
    """Yield the packages that glmtune requires, with a warning of those that do not go together, and others.

    The packages of glmtune and their least versions are those of its own metadata.
    """
    required, optional, missing = list[str](), list[str](), list[str]()
    conflicts = list(find_conflicts("glmtune"))
    for requirement in map(Requirement, requires("glmtune") or ()):
        name, found = requirement.name, _installed(requirement.name)
        extra = str(requirement.marker).rpartition("== ")[2].strip("'\"") if requirement.marker else ""
        if extra in NOT_FOR_USERS:
            continue
        if found is None:
            missing.append(f"{name} (pip install 'glmtune[{extra}]')")
            continue
        (optional if extra else required).append(f"{name} {found}")
        conflicts += find_conflicts(name)
    yield _fact("glmtune", version("glmtune"))
    yield _fact("packages", ", ".join(required), "; ".join(dict.fromkeys(conflicts)))
    lacking = f"not installed: {', '.join(missing)}" if missing else ""
    yield _fact("optional", "; ".join(filter(None, (", ".join(optional), lacking))))


def find_conflicts(package: str) -> Iterator[str]:
    """Yield, for an installed package, each version that it does not go with, and the cure."""
    for requirement in map(Requirement, requires(package) or ()):
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        found = _installed(requirement.name) if is_wanted else None
        if found and not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield f"{package} needs {wanted}, installed is {found}: pip install '{wanted}'"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def look_at_processor() -> Iterator[Finding]:
    """Yield the processor and its instructions, the way of computing that follows, and the free memory."""
    cores, threads = psutil.cpu_count(logical=False), torch.get_num_threads()
    caps = "".join(f", {name}={os.environ[name]}" for name in CAPS if os.environ.get(name))
    instructions = " ".join(sorted(find_instructions())) or "none that glmtune asks for"
    where = f"{name_processor()}, {cores} cores, {threads} threads"
    yield _fact("processor", f"{where}; instructions: {instructions}{caps}")
    cpu = torch.device("cpu")
    half = "in bf16" if has_bf16(cpu) else "in fp32: it has no bf16 instructions"
    w8a8 = "works" if torch.backends.quantized.engine == "x86" else "does not work: it is for x86"
    yield _fact("computing", f"weights in half precision are multiplied {half}; --compute fast {w8a8}")
    memory = psutil.virtual_memory()
    limits = [left for left in left_in_cgroups() if left < memory.available]
    limited = f"; a limit of its container leaves {in_words(min(limits))}" if limits else ""
    yield _fact("memory", f"{in_words(memory.total)}, {in_words(free_memory(cpu))} free for a run{limited}")


def look_at_cards() -> Iterator[Finding]:
    """Yield each card that torch sees; a warning if the driver has cards and torch sees none."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sees = torch.cuda.is_available()  # torch tells by a warning why it is not
    if sees:
        yield from (look_at_card(torch.device("cuda", i)) for i in range(torch.cuda.device_count()))
    elif not (listed := list_cards()):
        yield _fact("cards", "none")
    else:
        visible, build = os.environ.get("CUDA_VISIBLE_DEVICES"), f"PyTorch {torch.__version__}"
        if visible is not None:
            warning = f"the cards are hidden by CUDA_VISIBLE_DEVICES={visible!r}; unset it"
        elif torch.version.cuda is None:
            warning = f"{build} is a build without CUDA; {CURE}"
        else:
            reason = first_line(RuntimeError(said[-1].message)) if said else "it does not say why"
            warning = f"{build} for CUDA {torch.version.cuda} sees no card: {reason}; {CURE}, or newer driver"
        yield _fact("cards", f"{listed}: PyTorch sees none", warning)


def list_cards() -> str:
    """Return the NVIDIA cards of this machine with their driver; empty if its `nvidia-smi` lists none."""
    program = shutil.which("nvidia-smi")
    words = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run([program or "", *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.replace(", ", ", driver ") for line in done.stdout.splitlines())


def look_at_card(device: torch.device) -> Finding:
    """Return what a card is and can do; a warning if this build of torch has no code for it."""
    name = f"card {device.index}"
    facts = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    text = f"{facts.name}, compute capability {major}.{minor}, {in_words(facts.total_memory)}"
    architectures = torch.cuda.get_arch_list()
    if not has_code(architectures, major, minor):
        warning = f"PyTorch {torch.__version__} has no code for {facts.name} ({' '.join(architectures)})"
        return _fact(name, text, f"{warning}; {CURE}")
    obstacle = find_obstacle(device)
    abilities = (
        f"{in_words(free_memory(device))} free",
        "bf16" if has_bf16(device) else "no bf16: fp16 with loss scaling",
        f"no Triton kernels ({obstacle})" if obstacle else "Triton kernels",
        f"CUDA {torch.version.cuda}",
    )
    return _fact(name, ", ".join((text, *abilities)))


def has_code(architectures: list[str], major: int, minor: int) -> bool:
    """Return True if a build for these architectures runs on a card of a compute capability.

    Machine code (`sm_80`) runs on cards of the same major number, `compute_80` on all later ones. Source:
    docs.nvidia.com/cuda/cuda-c-programming-guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        if kind not in {"sm", "compute"}:  # a build for AMD's cards, of which nothing is known here
            return True
        digits = "".join(filter(str.isdigit, number))
        first, last = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and first == major and last <= minor:
            return True
        if kind == "compute" and (first, last) <= (major, minor):
            return True
    return False
