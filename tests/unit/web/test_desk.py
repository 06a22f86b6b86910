"""The models of the page: answers are those of a chat, whoever else asks; one base is in memory once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtune import Chat, load_model
from glmtune.adapters.store import Card, save_trained
from glmtune.errors import CheckpointError, DataError
from glmtune.locations import BUNDLED
from glmtune.methods import apply_method
from glmtune.web.desk import Asking, Desk, Opened
from tuned import settings_of, tune

GREEDY = {"temperature": 0.0, "max_new_tokens": 12}
MODEL = "glm-tiny"
FOLDER = BUNDLED[MODEL]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(FOLDER, tmp_path_factory.mktemp("tuned") / "adapter", "lora")


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk(device="cpu")
    yield desk
    desk.close()


def frozen_layers(folder: Path, num_layers: int) -> Path:
    """The model's last layers, trained themselves: such weights take the place of the base's."""
    method = {"name": "freeze", "num_layers": num_layers}
    tuned = apply_method(load_model(FOLDER, dtype="fp32"), settings_of(method))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data *= 1.3
    save_trained(tuned, folder, Card(base=str(FOLDER), template="chatglm3", method=method))
    return folder


def asked(desk: Desk, opened: Opened, *texts: str, owner: str = "me", **sampling: Any) -> Asking:
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)
    ]
    return desk.ask(opened, messages, {**GREEDY, **sampling}, owner=owner)


def read(asking: Asking) -> str:
    for _ in asking:
        pass
    return asking.text


def test_adapter_and_base_answer_side_by_side_as_they_do_in_chats_of_their_own(
    desk: Desk, adapter: Path
) -> None:
    tuned = desk.open(adapter)
    base = desk.open(adapter, untuned=True, keep=[tuned.key])
    assert base.key == tuned.key and (base.adapter, base.name) == (None, MODEL)
    askings = [asked(desk, each, "你好，你是谁？") for each in (tuned, base)]
    going = [iter(asking) for asking in askings]
    while going:  # in turns, as the page reads them
        going = [pieces for pieces in going if next(pieces, going) is not going]
    for path, asking in zip((adapter, MODEL), askings, strict=True):
        assert asking.text == "".join(Chat.open(path, **GREEDY).ask("你好，你是谁？"))
    assert askings[0].text != askings[1].text


def test_a_second_question_is_asked_with_the_first_answer(desk: Desk) -> None:
    chat = Chat.open(MODEL, **GREEDY)
    answers = ["".join(chat.ask(text)) for text in ("你好", "你会写诗吗？")]
    opened = desk.open(MODEL)
    first = asked(desk, opened, "你好")
    assert read(first) == answers[0]
    assert read(asked(desk, opened, "你好", first.remembered, "你会写诗吗？")) == answers[1]


def test_a_stopped_answer_keeps_what_has_come_and_others_go_on(desk: Desk) -> None:
    opened = desk.open(MODEL)
    alone = read(asked(desk, opened, "你好"))
    long, other = (asked(desk, opened, text, owner=text) for text in ("讲个故事", "你好"))
    pieces = iter(long)
    next(pieces)
    come = long.text
    desk.stop("讲个故事")
    assert list(pieces) == [] or long.text.startswith(come)
    assert long.is_stopped and not long.is_cut and long.text
    assert read(other) == alone and not other.is_stopped


def test_an_answer_that_reaches_its_longest_length_says_so(desk: Desk) -> None:
    asking = asked(desk, desk.open(MODEL), "你好", max_new_tokens=2)
    read(asking)
    assert asking.is_cut and asking.longest == 2


def test_a_whole_tuned_model_stands_beside_its_base_and_goes_when_another_is_opened(
    desk: Desk, tmp_path: Path
) -> None:
    frozen = frozen_layers(tmp_path / "freeze", 2)
    tuned = desk.open(frozen)
    base = desk.open(frozen, untuned=True, keep=[tuned.key])
    assert tuned.key != base.key
    texts = [read(asked(desk, each, "你好")) for each in (tuned, base)]
    assert texts == ["".join(Chat.open(path, **GREEDY).ask("你好")) for path in (frozen, MODEL)]
    assert desk.num_loaded == 2
    desk.open(frozen_layers(tmp_path / "other", 1))
    assert desk.num_loaded == 1
    assert read(asked(desk, tuned, "你好")) == texts[0]  # opened again
    assert desk.num_loaded == 1


def test_errors_come_to_the_one_who_asked(desk: Desk) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        desk.open("nowhere")
    opened = desk.open(MODEL)
    with pytest.raises(DataError):
        asked(desk, opened, "字" * 20_000)
    assert read(asked(desk, opened, "你好"))
