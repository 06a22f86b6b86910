"""Find the official program that a shell command starts, its flags, and its number of processes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from glmtune.migration.shell import Command

PROGRAMS = ("main.py", "web_demo.py", "web_demo2.py", "cli_demo.py", "finetune_hf.py")
"""The official programs that can be migrated. Source: github.com/THUDM/ChatGLM-6B and ChatGLM2-6B
(ptuning/), github.com/THUDM/ChatGLM3 (finetune_demo/)."""
PORTS = {"web_demo.py": "7860", "web_demo2.py": "8501"}
"""Ports of the pages, which are Gradio's and Streamlit's own. Sources: https://www.gradio.app/docs/gradio/blocks,
https://docs.streamlit.io/develop/api-reference/configuration/config.toml"""

# how torchrun, deepspeed and accelerate name the processes of a node, and the nodes
_COUNTS = ("nproc_per_node", "num_gpus", "num_processes")
_NODES = ("nnodes", "num_nodes", "num_machines")
MOST_DIGITS = 6
"""Digits of a number of processes; a longer number is none."""


@dataclass(frozen=True, slots=True)
class Launch:
    """An official program with its flags, as a script starts it."""

    program: str
    arguments: list[str]
    """Words before the first flag."""
    flags: dict[str, str | None]
    """Values by name without dashes, None for a flag alone; the last of several counts, as in argparse."""
    command: Command
    launcher: str = "python"
    processes: int = 1
    """Processes on all nodes together."""
    nodes: int = 1
    devices: str = ""
    """CUDA_VISIBLE_DEVICES; empty if not set."""
    mended: list[str] = field(default_factory=list)
    """Assumptions about the number of processes, a sentence each."""


def find_launches(commands: Sequence[Command]) -> Iterator[Launch]:
    """Yield a `Launch` for each command that starts an official program."""
    for command in commands:
        names = [word.rpartition("/")[2] for word in command.words]
        index = next((i for i, name in enumerate(names) if name in PROGRAMS), None)
        if index is None:
            continue
        # LAUNCHER OPTIONS main.py ARGUMENTS FLAGS
        before = command.words[:index]
        arguments, flags = read_flags(command.words[index + 1 :])
        options = read_flags(before)[1]
        words = [word.rpartition("/")[2] for word in before]
        launcher = next((name for name in ("deepspeed", "torchrun", "accelerate") if name in words), "python")
        if launcher == "python" and any(word.startswith("torch.distributed.") for word in before):
            launcher = "torchrun"  # python -m torch.distributed.run, or .launch
        devices = command.environment.get("CUDA_VISIBLE_DEVICES", "")
        nodes = next((number for name in _NODES if (number := _number(options.get(name)))), 1)
        per_node, mended = _count_processes(launcher, options, devices)
        yield Launch(
            names[index], arguments, flags, command, launcher, per_node * nodes, nodes, devices, mended
        )


def read_flags(words: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Split words into those before the first flag, and flags: `--name value`, `--name=value`, `--name`."""
    arguments: list[str] = []
    flags: dict[str, str | None] = {}
    name = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):  # a letter after the dash: -1 is a value
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            flags[name] = value if equals else None
        elif name is None:
            arguments.append(word)
        else:  # a flag with several values keeps them as one text
            flags[name] = word if flags[name] is None else f"{flags[name]} {word}"
    return arguments, flags


def _count_processes(launcher: str, options: dict[str, str | None], devices: str) -> tuple[int, list[str]]:
    """Return the processes on a node, and a sentence on each assumption.

    `python` alone on several cards makes the Trainer use torch's DataParallel, whose batch is that of as many
    processes. Source: github.com/huggingface/transformers, `TrainingArguments.train_batch_size`.
    """
    for name in _COUNTS:
        if name in options:
            number = _number(options[name])
            unknown = [f"--{name} {options[name]}: no number, so one process is assumed"]
            return number or 1, [] if number else unknown
    cards = len([card for card in devices.split(",") if card])
    if options.get("include"):  # deepspeed --include host1:0,1@host2:0,1
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
