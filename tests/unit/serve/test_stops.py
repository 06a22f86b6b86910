"""Stop texts, wherever the text falls into pieces."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from glmtune.serve.stops import StopTexts


def passed(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    texts = StopTexts(stops)
    shown = "".join(map(texts.add, pieces))
    return shown + texts.finish(), texts.found


def test_an_answer_ends_in_front_of_its_stop_text_at_every_split() -> None:
    text = "你好<END>再见"
    for ends in combinations(range(len(text) + 1), 2):
        pieces = [text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]]
        assert passed(["<END>"], pieces) == ("你好", "<END>")


@given(text=st.text("ab\n", max_size=12), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_character_by_character_is_the_same_as_whole(text: str, stops: list[str]) -> None:
    assert passed(stops, list(text)) == passed(stops, [text])


@given(text=st.text("abc", max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_what_is_shown_is_the_text_up_to_the_stop_text_that_is_complete_first(
    text: str, stops: list[str]
) -> None:
    ended = (text[:end] for end in range(len(text) + 1) if text[:end].endswith(tuple(stops)))
    first = next(ended, text)
    longest = max((len(stop) for stop in stops if first.endswith(stop)), default=0)
    assert passed(stops, [text])[0] == first[: len(first) - longest]


def test_what_only_begins_like_a_stop_text_is_held_back_and_then_shown() -> None:
    texts = StopTexts(["###"])
    assert [texts.add(piece) for piece in ("a#", "#", "b")] == ["a", "", "##b"]
    assert texts.finish() == ""


def test_a_text_that_ends_like_the_beginning_of_a_stop_text_keeps_its_end() -> None:
    assert passed(["ab"], ["xa"]) == ("xa", None)
