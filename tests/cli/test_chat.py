"""The chat as it is used: through a pipe, with a record, beside the base, and typed at a terminal."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from commands import Done, glmtune
from glmtune import load_model
from glmtune.adapters.attached import setting_aside
from glmtune.adapters.store import Card, save_trained
from glmtune.cli.typed import LineHistory, Typed, kept_lines
from glmtune.data.reader import read_examples
from glmtune.generate.text import begins_thought, find_thoughts
from glmtune.recipe.settings import Data
from glmtune.run_files import write_text
from models import tiny_folder, tiny_hf_folder
from proofs import edit_card
from tuned import tune

GREEDY = ("--temperature", 0, "--max-new-tokens", 6)


def answers(done: Done) -> dict[str, list[str]]:
    """What each speaker has said."""
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    _, *parts = re.split(r"^<\|([\w() -]+)\|>: ", done.stdout, flags=re.MULTILINE)
    for name, said in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(name, []).append(said.removesuffix("\n"))
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_folder(folder / "model", lively=8)
    for method in ("lora", "dora", "short"):
        tune(folder / "model", folder / method, method)
    return folder


# A pipe


def test_every_line_of_a_pipe_is_a_question_and_only_answers_are_printed(work: Path) -> None:
    done = glmtune("chat", "model", *GREEDY, cwd=work, typed="1\n2\n\n你好")
    assert done.returncode == 0, done.stderr
    assert list(answers(done)) == ["model"]
    assert len(answers(done)["model"]) == 3
    assert done.stdout.startswith("<|model|>: ")
    for ceremony in ("<|Human|>", "> begin generated", "> use time", "单轮"):
        assert ceremony not in done.stdout + done.stderr


def test_the_lines_of_a_pipe_are_one_conversation_unless_rounds_is_1(work: Path) -> None:
    typed = "你好\n你好\n"
    first, second = answers(glmtune("chat", "model", *GREEDY, cwd=work, typed=typed))["model"]
    alone = answers(glmtune("chat", "model", *GREEDY, "--rounds", 1, cwd=work, typed=typed))["model"]
    assert alone == [first, first]
    assert second != first


@pytest.mark.parametrize(
    ("path", "name"),
    [("glm-tiny", "glm-tiny"), ("model", "model"), (".", "chatglm3"), ("../lora", "lora")],
    ids=["bundled", "folder", "here", "adapter"],
)
def test_the_greeting_names_what_is_talked_to(work: Path, path: str, name: str) -> None:
    here = work / "chatglm3"
    if not here.exists():
        shutil.copytree(work / "model", here)
    cwd = here if path.startswith(".") else work
    done = glmtune("chat", path, cwd=cwd, typed="stop\n")
    assert done.returncode == 0, done.stderr
    shown = {"chatglm3": "ChatGLM3"}.get(name, name)  # the family's own name is written as people do
    assert f"欢迎使用 {shown} 人工智能助手！" in done.stderr
    assert done.stdout == ""


# The record


def test_a_conversation_is_kept_goes_on_and_can_be_trained_on(work: Path, tmp_path: Path) -> None:
    record = tmp_path / "new" / "talk.jsonl"
    words = ("chat", "model", *GREEDY, "--history", record)
    whole = answers(glmtune("chat", "model", *GREEDY, cwd=work, typed="你好\n你是谁\n"))["model"]
    glmtune(*words, cwd=work, typed="你好\n")
    done = glmtune(*words, cwd=work, typed="你是谁\nclear\n早\n")
    assert "talk.jsonl: goes on after 1 round\n" in done.stderr
    assert answers(done)["model"][0] == whole[1]
    kept = [example.messages for example in read_examples(record, Data(train=record))]
    assert [[m.content for m in messages if m.role == "user"] for messages in kept] == [
        ["你好", "你是谁"],
        ["早"],
    ]
    before = record.read_text("utf-8")
    glmtune(*words, "--rounds", 1, cwd=work, typed="晚\n晚\n")
    lines = record.read_text("utf-8").splitlines()
    assert "\n".join([*lines[:2], ""]) == before
    assert [len(json.loads(line)["messages"]) for line in lines[2:]] == [2, 2]


def test_another_system_message_begins_another_conversation(work: Path, tmp_path: Path) -> None:
    record = tmp_path / "talk.jsonl"
    for system in ("甲", "乙"):
        done = glmtune(
            "chat", "model", *GREEDY, "--system", system, "--history", record, cwd=work, typed="好\n"
        )
        assert answers(done)
    assert "its last conversation has another system message" in done.stderr
    lines = [json.loads(line)["messages"] for line in record.read_text("utf-8").splitlines()]
    assert [[message["content"] for message in messages[:2]] for messages in lines] == [
        ["甲", "好"],
        ["乙", "好"],
    ]


BROKEN = {
    "cut": ('{"messages": [{"role"', "talk.jsonl:1: column"),
    "rows of another form": ('{"prompt": "a", "response": "b"}', "talk.jsonl:1: must hold 'messages' alone"),
    "a role": ('{"messages": [{"role": "me", "content": "a"}]}', "messages[0].role"),
    "an array": ("[]", "talk.jsonl:1: must hold 'messages' alone, got list"),
    "text": ("你好", "talk.jsonl:1: column 1: broken JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_an_error_and_stays_as_it_is(work: Path, tmp_path: Path, kind: str) -> None:
    content, message = BROKEN[kind]
    record = tmp_path / "talk.jsonl"
    write_text(record, content)
    done = glmtune("chat", "model", "--history", record, cwd=work, typed="你好\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "hint: " in done.stderr
    assert record.read_text("utf-8") == content


def test_a_folder_for_a_record_is_refused_and_stays(work: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("", "utf-8")
    done = glmtune("chat", "model", "--history", tmp_path, cwd=work, typed="你好\n")
    assert done.returncode == 2
    assert f"{tmp_path}: cannot be read" in done.stderr
    assert (tmp_path / "kept").exists()


# The base beside


def whole_model(base: Path, folder: Path) -> Path:
    """A fully tuned model, as a run leaves it."""
    shutil.copytree(base, folder)
    model = load_model(base, dtype="fp32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.1)
    save_trained(model, folder, Card(base=str(base), template="chatglm3", method={"name": "full"}))
    return folder


@pytest.mark.parametrize("tuned", ["lora", "dora", "short", "full"])
def test_a_comparison_gives_the_answers_of_both_alone(work: Path, tmp_path: Path, tuned: str) -> None:
    folder = whole_model(work / "model", tmp_path / "full") if tuned == "full" else work / tuned
    typed = "你好\n你是谁\nclear\n你好\n"
    base, alone = (
        answers(glmtune("chat", path, *GREEDY, cwd=work, typed=typed)) for path in ("model", folder)
    )
    both = answers(glmtune("chat", folder, *GREEDY, "--compare", cwd=work, typed=typed))
    assert both == {"model (base)": base["model"], f"{tuned} (tuned)": alone[tuned]}
    assert base["model"] != alone[tuned]


def test_an_adapter_is_set_aside_only_where_the_base_is_left_then(work: Path, tmp_path: Path) -> None:
    model = load_model(work / "lora")
    assert setting_aside(model, work / "lora", work / "model")
    for key, value in {"bias": "lora_only", "modules_to_save": ["output_layer"]}.items():
        other = shutil.copytree(work / "lora", tmp_path / key)
        settings = json.loads((other / "adapter_config.json").read_text("utf-8"))
        write_text(other / "adapter_config.json", json.dumps({**settings, key: value}))
        assert setting_aside(model, other, work / "model") is None


def test_a_comparison_without_a_base_says_how_to_name_one(work: Path, tmp_path: Path) -> None:
    done = glmtune("chat", "model", "--compare", cwd=work, typed="你好\n")
    assert done.returncode == 2
    assert "no base recorded" in done.stderr
    assert "--base FOLDER" in done.stderr
    named = glmtune("chat", "model", "--compare", "--base", "glm-tiny", *GREEDY, cwd=work, typed="你好\n")
    assert list(answers(named)) == ["glm-tiny (base)", "model (tuned)"]
    moved = whole_model(work / "model", tmp_path / "full")
    edit_card(moved, lambda card: card.update(base="/moved/model"))
    done = glmtune("chat", moved, "--compare", cwd=work, typed="你好\n")
    assert done.returncode == 2
    assert "/moved/model: no such folder" in done.stderr
    assert "hint: name the base's folder: --base FOLDER" in done.stderr
    words = ("chat", moved, "--compare", "--base", work / "model", *GREEDY)
    assert list(answers(glmtune(*words, cwd=work, typed="你好\n"))) == ["model (base)", "full (tuned)"]


# Thoughts


@pytest.mark.parametrize(
    ("written", "is_open", "thought"),
    [
        ("<think>想一想</think>你好", False, "<think>想一想</think>"),
        ("想一想</think>\n你好", True, "想一想</think>"),
        ("想一想", True, "想一想"),
        ("你好</think>", False, ""),
        ("你好<think>想</think>", False, ""),
        ("<think></think>", False, "<think></think>"),
        ("", True, ""),
    ],
)
def test_a_thought_is_told_from_the_answer_behind_it(written: str, is_open: bool, thought: str) -> None:
    for size in (7, 8, 100):  # <think> comes as one piece, </think> as any
        pieces = [written[:7], *(written[i : i + size - 6] for i in range(7, len(written), size - 6))]
        found = list(find_thoughts(pieces, is_open=is_open))
        assert "".join(piece for piece, _ in found) == written
        assert "".join(piece for piece, is_thought in found if is_thought) == thought


@pytest.mark.parametrize(
    ("family", "template", "begins"),
    [("GLM-4-0414", "glmz1", True), ("GLM-4.5", "glm45", False), ("GLM-4-0414", "glm4_0414", False)],
)
def test_a_prompt_that_begins_a_thought_is_known(
    family: str, template: str, begins: bool, tmp_path: Path
) -> None:
    from glmtune import load_tokenizer

    assert begins_thought(load_tokenizer(tiny_hf_folder(tmp_path, family, template))) == begins


# A terminal


@pytest.fixture
def typing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Keys go in here; what was typed before is nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield lambda text: keys.send_bytes(text.encode("utf-8", "surrogateescape"))


LEFT, UP, ERASE, BREAK = "\x1b[D", "\x1b[A", "\x7f", "\x1b\r"
CLEAR, LEAVE = "\x03", "\x04"
PASTE = "\x1b[200~{}\x1b[201~"


@pytest.mark.parametrize(
    ("keys", "questions"),
    [
        (f"你好世界{ERASE}{ERASE}\r{LEAVE}", ["你好"]),
        (f"你界{LEFT}好\r{LEAVE}", ["你好界"]),
        (PASTE.format("一\n二\r\n三") + f"\r{LEAVE}", ["一\n二\n三"]),
        (f"一{BREAK}二\r{LEAVE}", ["一\n二"]),
        (f"一二{CLEAR}三\r{LEAVE}", ["三"]),
        (f"{CLEAR}一\r{CLEAR}二\r{CLEAR}{CLEAR}", ["一", "二"]),
        (f"一{CLEAR}二{CLEAR}{CLEAR}三\r{LEAVE}", ["三"]),
        (f"一\r{CLEAR}{UP}{CLEAR}二\r{LEAVE}", ["一", "二"]),
        (f"{CLEAR}一{ERASE}{CLEAR}二\r{LEAVE}", ["二"]),
        (f"{CLEAR}{LEFT}{CLEAR}二\r{LEAVE}", ["二"]),
        (f"{CLEAR}{CLEAR}一\r", []),
        (f"  stop \r{LEAVE}", ["stop"]),
    ],
    ids=[
        "erase",
        "left",
        "paste",
        "break",
        "clear",
        "twice",
        "full",
        "history",
        "between",
        "arrow",
        "empty",
        "space",
    ],
)
def test_keys_edit_the_question(typing: Any, keys: str, questions: list[str]) -> None:
    typing(keys)
    assert list(Typed()) == questions


ROUNDS = {
    "1\r": "1",
    "2\r": "2",
    "\r": "2",
    "stop\r": None,
    "/Quit\r": None,
    "单轮\r": "1",
    "多轮对话\r": "2",
    LEAVE: None,
    CLEAR + CLEAR: None,
    f"{CLEAR}1{CLEAR}{CLEAR}1\r": "1",
}


@pytest.mark.parametrize(
    ("keys", "rounds"),
    list(ROUNDS.items()),
    ids=["1", "2", "enter", "stop", "quit", "one", "more", "ctrl-d", "ctrl-c", "cleared"],
)
def test_the_first_question_can_be_answered_and_left(typing: Any, keys: str, rounds: str | None) -> None:
    typing(keys)
    assert Typed().ask_rounds() == rounds
    assert not kept_lines().exists()


def test_any_other_text_is_the_first_question_of_a_conversation(typing: Any) -> None:
    typing(f"你好\r再见\r{LEAVE}")
    typed = Typed()
    assert typed.ask_rounds() == "2"
    assert list(typed) == ["你好", "再见"]
    assert list(LineHistory(kept_lines()).load_history_strings()) == ["再见", "你好"]


def test_typed_lines_are_there_the_next_time(typing: Any) -> None:
    typing(PASTE.format("一\n二") + f"\r三\r{LEAVE}")
    assert list(Typed()) == ["一\n二", "三"]
    assert list(LineHistory(kept_lines()).load_history_strings()) == ["三", "一\n二"]
    assert kept_lines().parent.stat().st_mode & 0o77 == 0 or sys.platform == "win32"


@pytest.mark.parametrize("kind", ["a file in the way", "a folder", "bytes"])
def test_a_file_of_typed_lines_that_cannot_be_used_is_no_harm(typing: Any, tmp_path: Path, kind: str) -> None:
    path = kept_lines()
    if kind == "a file in the way":
        (tmp_path / "state").write_text("", "utf-8")
    elif kind == "a folder":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(range(256)))
    typing(f"一\r\udcff\r{LEAVE}")
    assert list(Typed()) == ["一", "\udcff"]
    assert kind == "bytes" or list(LineHistory(path).load_history_strings()) == []


@pytest.mark.parametrize("word", ["exit", "QUIT", "退出", "/stop"])
def test_other_words_of_leaving_are_no_question(work: Path, word: str) -> None:
    assert answers(glmtune("chat", "model", *GREEDY, cwd=work, typed=f"{word}\n你好\n")) == {}
