"""Every row of the table is whole, leads somewhere, and explains the log that belongs to it."""

import re

import pytest
from tools.explained_messages import DOCS, PAGES, fill

from explained_logs import HEALTHY, LOGS
from glmtune.explanations import explain
from glmtune.explanations.table import KINDS, KnownMessage, Wording, known_messages
from glmtune.language import LANGUAGES
from hints import ROOT, SETTINGS, follow_command, follow_names, follow_setting

ROWS = known_messages()
FOREIGN_PROGRAMS = {"git"}


def wordings(row: KnownMessage) -> tuple[Wording, Wording]:
    return row.en, row.zh


def quoted(text: str) -> list[str]:
    return text.split("`")[1::2]


def test_every_row_has_a_log() -> None:
    assert LOGS.keys() == ROWS.keys()


@pytest.mark.parametrize("name", LOGS)
def test_a_log_is_explained_by_its_row_first(name: str) -> None:
    first, *others = explain(LOGS[name], "en")
    assert first.name == name
    assert first.text in LOGS[name].splitlines()[first.line - 1]
    assert {each.kind for each in others} <= {"consequence"}


def test_a_log_without_errors_explains_nothing() -> None:
    assert explain(HEALTHY) == []


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_commands_can_be_typed(name: str) -> None:
    for command in ROWS[name].commands:
        assert command.split()[0] in FOREIGN_PROGRAMS or "glmtune" in command.split()
        assert not list(follow_command(command)), command


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_texts_lead_somewhere(name: str) -> None:
    for wording in wordings(ROWS[name]):
        for text in (wording.title, wording.cause, wording.there, wording.here):
            assert text
            assert not list(follow_names(text)), text
            assert text.count("`") % 2 == 0
        for key, value in re.findall(r"(?<![\w.\"])([a-z_.]+)=([\w.]+)", wording.here):
            assert key in SETTINGS, key
            assert not list(follow_setting(key, value))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_the_same_in_both_languages(name: str) -> None:
    english, chinese = wordings(ROWS[name])
    for part in Wording.__slots__:
        assert sorted(set(quoted(getattr(english, part)))) == sorted(set(quoted(getattr(chinese, part)))), (
            part
        )
    for text in (chinese.title, chinese.cause, chinese.there, chinese.here):
        assert re.search("[\u4e00-\u9fff]", text)
        # between Chinese characters stands Chinese punctuation
        assert not re.search("[\u4e00-\u9fff][,;:!?]|[,;:!?][\u4e00-\u9fff]", text), text
    assert not re.search("[\u4e00-\u9fff]", english.title + english.cause + english.there + english.here)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_links_to_a_page_that_is_there_or_to_the_net(name: str) -> None:
    link = ROWS[name].link
    assert re.fullmatch(r"https://[\w./#?=&%+-]+", link) or (ROOT / link).is_file()
    assert ROWS[name].kind in KINDS
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


def test_no_sign_is_in_the_table_twice() -> None:
    signs = [sign for row in ROWS.values() for sign in row.signs]
    assert len(signs) == len(set(signs))
    assert {"en", "zh"} == set(LANGUAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_guides_table_is_the_programs(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.explained_messages"
