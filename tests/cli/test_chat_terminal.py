"""The chat in a real terminal, as tmux gives one: what a user types and sees."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from models import tiny_folder, tiny_hf_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux"),
]
PATIENCE_S = 120
NUMBERS = count()
"""A server that is told to end is there a moment longer, so each has a name of its own."""


class Terminal:
    """One of 100 columns and 50 lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = ""

    def tmux(self, *words: str, typed: str = "") -> str:
        done = subprocess.run(
            ["tmux", "-L", self.name, "-f", "/dev/null", *words],
            input=typed, capture_output=True, text=True, encoding="utf-8", check=True,
        )  # fmt: skip
        return done.stdout

    def start(self, *words: object, then: str = "", **settings: str) -> None:
        """Run the chat, in a new terminal; `then` stands behind it on the line."""
        self.name = f"glmtune-{os.getpid()}-{next(NUMBERS)}"
        settings = {"XDG_STATE_HOME": str(self.folder / "state"), "LC_ALL": "C.UTF-8", **settings}
        given = [f"{name}={value}" for name, value in settings.items()]
        chat = shlex.join(["env", *given, sys.executable, "-m", "glmtune", "chat", *map(str, words)])
        line = f"cd {shlex.quote(str(self.folder))}; {chat} {then}; echo left with $?; sleep 1000"
        self.tmux("new-session", "-d", "-x", "100", "-y", "50", line)

    def close(self) -> None:
        self.tmux("kill-server")

    def keys(self, *names: str) -> None:
        """Press keys, by tmux's names."""
        self.tmux("send-keys", *names)

    def type(self, text: str) -> None:
        """Press the keys of a text."""
        self.tmux("send-keys", "-l", text)

    def paste(self, text: str) -> None:
        """As the mouse does, told to be a paste."""
        self.tmux("load-buffer", "-", typed=text)
        self.tmux("paste-buffer", "-p")

    def shown(self, *words: str) -> str:
        return self.tmux("capture-pane", "-p", *words)

    def wait(self, pattern: str, *words: str) -> str:
        """All that is shown, once this is at its end: what is left to type, or an answer."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(pattern, shown := self.shown(*words).rstrip(), re.MULTILINE):
            assert time.monotonic() < end, f"{pattern} is not in\n{shown}"
            time.sleep(0.1)
        return shown


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


HERE = r"<\|Human\|>: ?"


def test_lines_are_edited_pasted_found_again_and_left(terminal: Terminal) -> None:
    terminal.start("glm-tiny", "--temperature", 0)
    terminal.wait("您想体验【单轮对话】还是【多轮对话】？ 请输入（1 代表单轮，2 代表多轮）：$")
    terminal.keys("2", "Enter")
    terminal.wait(f"{HERE}\\Z")
    terminal.type("你好世界")
    terminal.wait(f"{HERE}你好世界\\Z")
    terminal.keys("BSpace", "BSpace")
    assert "世" not in terminal.wait(f"{HERE}你好\\Z")
    terminal.keys("Left", "Left", "a", "Right", "b", "End", "c", "Home", "d")
    assert "^[" not in terminal.wait(f"{HERE}da你b好c\\Z")
    terminal.keys("C-c")
    terminal.wait(f"{HERE}da你b好c\n\n{HERE}\\Z")
    terminal.paste("第一行\n第二行\n第三行")
    terminal.wait(f"{HERE}第一行\n第二行\n第三行\\Z")
    terminal.keys("M-Enter", "x", "Enter")
    shown = terminal.wait(f"> use time: [0-9.]+ s\n\n{HERE}\\Z")
    assert shown.count("<|glm-tiny|>: ") == 1
    terminal.keys("Up")
    terminal.wait(f"{HERE}第一行\n第二行\n第三行\nx\\Z")
    terminal.keys("C-c")
    terminal.wait(f"\nx\n\n{HERE}\\Z")
    terminal.keys("C-c")
    terminal.wait(f"> Ctrl-C again to leave\n\n{HERE}\\Z")
    terminal.keys("C-c")
    terminal.wait("left with 0")


def test_answers_go_to_a_pipe_alone_while_the_line_is_edited(terminal: Terminal) -> None:
    terminal.start("glm-tiny", "--temperature", 0, then="| cat > said.txt")
    terminal.wait("2 代表多轮）：$")
    terminal.keys("Enter")
    terminal.wait(f"{HERE}\\Z")
    terminal.type("你好世界")
    terminal.keys("BSpace", "BSpace", "Enter")
    terminal.wait(f"{HERE}你好\n> begin generated, wait a moment...\n> use time: [0-9.]+ s\n\n{HERE}\\Z")
    terminal.keys("C-d")
    terminal.wait("left with 0")
    assert (terminal.folder / "said.txt").read_text("utf-8") == "<|glm-tiny|>: 你好！我在，请说。\n"


def test_the_next_chat_finds_the_lines_of_the_one_before_and_shows_its_last_round(terminal: Terminal) -> None:
    words = ("glm-tiny", "--rounds", 2, "--temperature", 0, "--history", "talk.jsonl")
    terminal.start(*words)
    terminal.wait(f"{HERE}\\Z")
    terminal.type("你好")
    terminal.keys("Enter")
    terminal.wait(f"> use time: [0-9.]+ s\n\n{HERE}\\Z")
    terminal.keys("C-d")
    terminal.wait("left with 0")
    terminal.close()
    terminal.start(*words)
    round_before = "<\\|Human\\|>: 你好\n<\\|glm-tiny\\|>: 你好！我在，请说。"
    terminal.wait(f"goes on after 1 round\n{round_before}\n\n{HERE}\\Z")
    terminal.keys("Up")
    terminal.wait(f"{HERE}你好\\Z")


@pytest.mark.parametrize(
    "words", [("stop", "Enter"), ("C-d",), ("C-c", "C-c")], ids=["stop", "ctrl-d", "ctrl-c"]
)
def test_the_first_question_is_left(terminal: Terminal, words: tuple[str, ...]) -> None:
    terminal.start("glm-tiny")
    terminal.wait("2 代表多轮）：$")
    terminal.keys(*words)
    assert "Human" not in terminal.wait("left with 0")


def test_an_answer_is_stopped_and_not_remembered(terminal: Terminal) -> None:
    tiny_folder(terminal.folder / "model", lively=8, seq_length=64)
    terminal.start(
        "model", "--rounds", 2, "--temperature", 0, "--max-new-tokens", 100_000, "--history", "talk.jsonl"
    )
    terminal.wait(f"{HERE}\\Z")
    terminal.type("你好")
    terminal.keys("Enter")
    terminal.wait(r"<\|model\|>: ")
    terminal.keys("C-c")
    terminal.wait(f"^> interrupted, not remembered\n\n{HERE}\\Z", "-S", "-")
    terminal.type("stop")
    terminal.keys("Enter")
    terminal.wait("left with 0")
    assert not (terminal.folder / "talk.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "is_dim"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["dim", "plain"]
)
def test_a_thought_is_dim_unless_colours_are_unwanted(
    terminal: Terminal, settings: dict[str, str], is_dim: bool
) -> None:
    tiny_hf_folder(terminal.folder / "model", "GLM-4-0414", "glmz1")
    terminal.start("model", "--rounds", 1, "--max-new-tokens", 4, "--seed", 1, **settings)
    terminal.wait(f"{HERE}\\Z")
    terminal.type("hi")
    terminal.keys("Enter")
    shown = terminal.wait("> use time: ", "-e")
    assert ("\x1b[2m" in shown) == is_dim
