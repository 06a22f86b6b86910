"""From a command's words to the program it starts, its flags, and on how many devices."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from glmtune.migration.shell import Command

PROGRAMS = ("main.py", "web_demo.py", "cli_demo.py", "finetune_hf.py")
"""The official programs that a recipe is made of. Source: github.com/THUDM/ChatGLM-6B and ChatGLM2-6B
(ptuning/), github.com/THUDM/ChatGLM3 (finetune_demo/)."""

_COUNTS = ("nproc_per_node", "num_gpus", "num_processes")
_NODES = ("nnodes", "num_nodes", "num_machines")
MOST_DIGITS = 6
"""Of a number of processes."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One of the official programs, as a script starts it."""

    program: str
    arguments: list[str]
    """Words in front of the first flag."""
    flags: dict[str, str | None]
    """By name without dashes, None where a flag stands alone; the last of several counts, as in argparse."""
    command: Command
    launcher: str = "python"
    processes: int = 1
    nodes: int = 1
    devices: str = ""
    """CUDA_VISIBLE_DEVICES."""
    mended: list[str] = field(default_factory=list)


def find_launches(commands: Sequence[Command]) -> Iterator[Launch]:
    """The commands that start an official program."""
    for command in commands:
        names = [word.rpartition("/")[2] for word in command.words]
        index = next((i for i, name in enumerate(names) if name in PROGRAMS), None)
        if index is not None:
            yield _read_launch(command, names[index], command.words[:index], command.words[index + 1 :])


def _read_launch(command: Command, program: str, before: list[str], after: list[str]) -> Launch:
    arguments, flags = read_flags(after)
    options = read_flags(before)[1]
    launcher = _launcher(before)
    devices = command.environment.get("CUDA_VISIBLE_DEVICES", "")
    nodes = next((number for name in _NODES if (number := _number(options.get(name)))), 1)
    per_node, mended = _processes(launcher, options, devices)
    return Launch(
        program, arguments, flags, command, launcher, per_node * nodes, nodes, devices, mended
    )  # fmt: skip


def read_flags(words: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """The words in front of the first flag, and the flags: `--name value`, `--name=value` or `--name`."""
    arguments: list[str] = []
    flags: dict[str, str | None] = {}
    name = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            flags[name] = value if equals else None
        elif name is None:
            arguments.append(word)
        else:
            flags[name] = word if flags[name] is None else f"{flags[name]} {word}"
    return arguments, flags


def _launcher(words: Sequence[str]) -> str:
    for name in ("deepspeed", "torchrun", "accelerate"):
        if any(word.rpartition("/")[2] == name for word in words):
            return name
    return "torchrun" if any(word.startswith("torch.distributed.") for word in words) else "python"


def _processes(launcher: str, options: dict[str, str | None], devices: str) -> tuple[int, list[str]]:
    """Processes on a node. `python` alone on several cards is torch's DataParallel, in the Trainer.

    Source: github.com/huggingface/transformers, `TrainingArguments.train_batch_size`: rows x cards.
    """
    for name in _COUNTS:
        if name in options:
            number = _number(options[name])
            unknown = [f"--{name} {options[name]}: no number, so one process is assumed"]
            return number or 1, [] if number else unknown
    cards = len([card for card in devices.split(",") if card])
    if options.get("include"):
        cards = sum(len(host.partition(":")[2].split(",")) for host in str(options["include"]).split("@"))
        return cards, []
    if launcher == "python" and cards > 1:
        text = "without torchrun, its Trainer splits each step over the cards by DataParallel"
        return cards, [
            f"CUDA_VISIBLE_DEVICES={devices}: {text}, whose first card fills up; torchrun does not"
        ]
    if launcher == "deepspeed":
        text = "all cards of the machine; their number is not in the script, so one process is assumed"
        return cards or 1, [] if cards else [f"deepspeed without --num_gpus: {text}"]
    return 1, []


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) <= MOST_DIGITS else 0
