"""Anything that is typed into a chat is answered, or refused in a line; the conversation goes on."""

import os
import random
import re
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from commands import glmtune
from forks import run_fork
from glmtune import load_model, load_tokenizer
from glmtune.chat import Chat
from glmtune.errors import DataError
from models import tiny_folder, tiny_v1_folder

SPELLED = [
    *("<|user|>", "<|assistant|>", "</s>", "[gMASK]", "sop", "<|endoftext|>", "[Round 1]\n\n问：", "<n>"),
    *("\0", "\x1b[31m", "\x1b]0;title\x07", "\x7f", "\u202e", "\ufeff"),
    *("\ud800", "\udcff", "\ue000", "\U0010ffff"),
    *("{{ messages }}", "%s%n", "../..", "\u2028", "\u0301" * 20, "🙂‍🙂", "stop ", "clear ", "1"),
]  # fmt: skip
TYPED = st.lists(st.text(st.characters(), max_size=8) | st.sampled_from(SPELLED), max_size=6).map("".join)


def check_questions(cases: int, chats: list[Chat]) -> Counter[str]:
    counts: Counter[str] = Counter()

    @seed(20)
    @settings(max_examples=cases, database=None, deadline=None)
    @given(TYPED, st.integers(0, len(chats) - 1))
    def check(text: str, number: int) -> None:
        chat = chats[number]
        before = list(chat.messages)
        counts["tried"] += 1
        try:
            answer = "".join(chat.ask(text))
        except DataError as err:
            counts["refused"] += 1
            assert err.hint
            assert any("\ud800" <= character <= "\udfff" for character in text)
            assert chat.messages == before
            return
        counts["answered"] += 1
        answer.encode()
        assert [message["content"] for message in chat.messages[len(before) :]][:1] == [text]
        if len(chat.messages) > 6:
            chat.clear()

    check()
    return counts


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> list[Chat]:
    folders = [
        tiny_folder(tmp_path_factory.mktemp("v3"), lively=8),
        tiny_folder(tmp_path_factory.mktemp("glm4"), "glm4", lively=8),
        tiny_v1_folder(tmp_path_factory.mktemp("v1")),
    ]
    return [Chat(load_model(path), load_tokenizer(path), max_new_tokens=3, seed=1) for path in folders]


def test_any_question_is_answered_or_refused(chats: list[Chat]) -> None:
    counts = check_questions(300, chats)
    assert min(counts["answered"], counts["refused"]) > 20, counts


@pytest.mark.slow
def test_any_question_is_answered_or_refused_many_times(chats: list[Chat]) -> None:
    counts = check_questions(3000, chats)
    assert min(counts["answered"], counts["refused"]) > 300, counts


def test_each_line_has_an_answer_or_an_error(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    draw = random.Random(0)
    lines = ["".join(draw.choices(SPELLED, k=3)).replace("\n", "") for _ in range(40)]
    done = glmtune(
        "chat", "model", "--max-new-tokens", 2, cwd=tmp_path, typed="\n".join([*lines, "stop", ""])
    )
    assert done.returncode == 0, done.stderr
    num_refused = sum(any("\ud800" <= character <= "\udfff" for character in line) for line in lines)
    assert done.stderr.count("\nerror: character ") == num_refused > 5
    assert done.stdout.count("<|model|>: ") == len(lines) - num_refused > 5


BYTES = b"\n".join(
    [b"\xff\xfe", b"\xed\xb3\xbf", b"ab\xff", "你好\0\x1b[31m".encode(), bytes(range(32, 256)), b""]
)


@pytest.mark.parametrize(
    "settings_of_console",
    [{"PYTHONIOENCODING": "utf-8"}, {"PYTHONIOENCODING": "ascii"},
     {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["utf-8", "ascii", "LANG=C"],
)  # fmt: skip
def test_bytes_that_are_no_text_end_no_chat(settings_of_console: dict[str, str]) -> None:
    run = subprocess.run if "LC_ALL" in settings_of_console else run_fork  # a fork keeps its locale
    done: subprocess.CompletedProcess[bytes] = run(
        [sys.executable, "-m", "glmtune", "chat", "glm-tiny", "--max-new-tokens", "2"],
        input=BYTES,
        env={**os.environ, **settings_of_console},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"error: character ") == 4
    assert done.stdout.count(b"<|glm-tiny|>: ") == 1
    assert b"hint: the conversation goes on" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
@pytest.mark.slow
def test_a_long_line_pasted_into_a_terminal_comes_in_whole(tmp_path: Path) -> None:
    import pty
    import termios

    process, terminal = pty.fork()
    if process == 0:
        words = ["-m", "glmtune", "chat", "glm-tiny", "--rounds", "1", "--max-new-tokens", "1"]
        settings = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
        os.execve(sys.executable, [sys.executable, *words], settings)
    shown = _wait_for(terminal, "<|Human|>")
    end = time.monotonic() + 60
    while termios.tcgetattr(terminal)[3] & termios.ICANON and time.monotonic() < end:
        time.sleep(0.05)  # until prompt_toolkit has taken over from the terminal
    _type(terminal, b"\x1b[200~" + b"a" * 6_000 + b"\x1b[201~\r")
    shown += _wait_for(terminal, "use time")
    _type(terminal, b"stop\r")
    os.waitpid(process, 0)
    os.close(terminal)
    found = re.search(r"made for \(([\d,]+) tokens\)", shown)
    assert found
    assert int(found[1].replace(",", "")) >= 6_000


def _wait_for(terminal: int, text: str) -> str:
    shown, end = b"", time.monotonic() + 300
    while text.encode() not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65_536)
    return shown.decode(errors="replace")


def _type(terminal: int, content: bytes) -> None:
    """In parts, reading what is shown meanwhile: a terminal holds little of either."""
    while content:
        readable, writable, _ = select.select([terminal], [terminal], [], 1)
        if readable:
            os.read(terminal, 65_536)
        if writable:
            content = content[os.write(terminal, content[:512]) :]
