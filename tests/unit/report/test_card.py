"""card.png: everything a reader asks of a run on one picture, whatever its texts are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from full_run import HOSTILE, PROMPTS, write_full_run
from glmtune import card
from glmtune.errors import ConfigError
from glmtune.reports.card import LETTER, draw_card
from glmtune.reports.card import _wrap as wrap
from glmtune.reports.recorded_run import read_run
from unit.report.test_compare import write_run


def words_of(run: Path, language: str) -> str:
    [axes] = draw_card(read_run(run), language).axes  # type: ignore[arg-type]
    return "\n".join(text.get_text() for text in axes.texts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.mark.parametrize(("language", "before"), [("en", "before"), ("zh", "训练前")])
def test_the_card_has_answers_scores_time_memory_and_versions(run: Path, language: str, before: str) -> None:
    words = words_of(run, language)
    for text in (
        *PROMPTS,
        "我是一个语言模型。",
        "我叫小橙。 60",
        "2.00",
        "2:00",
        "1.5 GiB",
        before,
    ):
        assert text in words, text
    for version in ("glmtune 0.1.0", "torch 2.13.0", "peft 0.21.2"):
        assert version in words


def test_a_card_is_a_picture_of_its_own_name(run: Path, tmp_path: Path) -> None:
    path = card(run)
    assert path == run / "card.png"
    height, width, _ = imread(path).shape
    assert width == 1200 and 600 < height < 2400
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="will not be overwritten"):
        card(run, output=tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_a_run_without_answers_or_with_endless_ones_has_a_card(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", losses=[3.0], evaluations={})
    assert card(bare).exists()
    endless = write_full_run(tmp_path / ("long" * 40), said=HOSTILE * 40)
    height, *_ = imread(card(endless, lang="zh")).shape
    assert height < 2400


@given(st.text(st.sampled_from("ab 好的，\n<"), max_size=120), st.integers(1, 6))
def test_a_wrapped_text_fits_its_lines(words: str, most: int) -> None:
    room = 12
    lines = wrap(words, room * 10 / 72, 10, most=most)
    assert len(lines) <= most
    assert all(sum(1 if c >= "\u2e80" else LETTER for c in line.rstrip("… ")) <= room + 1 for line in lines)
    kept = "".join("".join(lines).split())
    whole = "".join(words.split())
    assert kept == whole or (kept.endswith("…") and whole.startswith(kept[:-1]))
