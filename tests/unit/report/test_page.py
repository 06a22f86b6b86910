"""report.html: what it shows is what the files say, and nothing of a run can break out of it."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from full_run import HOSTILE, PROMPTS, STEPS, write_full_run
from glmtune import report
from glmtune.data.lengths import MOST_BARS, LengthReport
from glmtune.errors import ConfigError
from glmtune.language import own_language
from glmtune.reports.html.charts import (
    MOST_POINTS,
    Series,
    curve_chart,
    histogram,
    rank_map,
    thin,
)
from glmtune.reports.html.page import FOLDER, render
from glmtune.reports.recorded_run import read_run
from glmtune.reports.texts import Text, all_texts, in_bytes, in_time
from glmtune.run_files import write_json
from unit.report.test_compare import write_lines, write_run

NAME = Text.of("a")


class Page(HTMLParser):
    """The elements of a page: names with attributes, texts, and the text of each script."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
            self._inside = ""
        elif data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(report(run, lang="en").read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_names_nothing_outside(page: Page) -> None:
    assert len(page.elements) > 100
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "a", "form", "base", "image", "use"}
        assert not attributes.keys() & {"src", "href", "xlink:href", "action", "srcset", "background"}
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")
    css = (FOLDER / "report.css").read_text(encoding="utf-8")
    assert "url(" not in css and "@import" not in css


def test_the_policy_allows_the_pages_own_script_and_no_other(page: Page) -> None:
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy


def test_a_text_of_the_run_stays_a_text(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run<b>", said=HOSTILE, samples={"prompts": [HOSTILE]})
    write_lines(
        run / "samples.jsonl", [{"step": step, "prompt": HOSTILE, "answer": HOSTILE} for step in (0, 60)]
    )
    other = write_full_run(tmp_path / "'other'")
    clean = Page(render([read_run(other)], "en"))
    for hostile in (
        Page(render([read_run(run)], "en")),
        Page(render([read_run(run), read_run(other)], "zh")),
    ):
        assert len(hostile.scripts) == 1
        assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in clean.elements} | {"ul", "li", "br"}
        assert not [a for _, attributes in hostile.elements for a in attributes if a.startswith("on")]
    one = Page(render([read_run(run)], "en"))
    assert sum(HOSTILE in text for text in ["".join(one.texts)]) == 1
    assert [tag for tag, _ in one.elements].count("b") == [tag for tag, _ in clean.elements].count("b")


def test_what_is_shown_is_what_the_files_say(run: Path, page: Page) -> None:
    shown = read_run(run)
    assert {"24,576", "42.50", "the limit: 512 tokens (the default)"} <= set(page.texts)
    best = shown.best_step
    assert best == 60
    assert f"{shown.evaluation[0]:.3g} → {shown.evaluated[best]:.3g}" in page.texts
    for text in (
        *PROMPTS,
        "我是一个语言模型。",
        f"我叫小橙。 {best}",
        "glmtune train model=glm-tiny data.train=my.json",
    ):
        assert text in page.texts
    charts = [json.loads(str(a["data-hover"])) for tag, a in page.elements if a.get("data-hover")]
    smooth_training, evaluation = charts[0]["series"][-2:]
    assert [step for step, *_ in evaluation["points"]] == list(shown.evaluation)
    assert [value for _, value, _ in evaluation["points"]] == pytest.approx(
        [*shown.evaluation.values()], rel=1e-4
    )
    assert len(smooth_training["points"]) == STEPS


def test_every_text_has_both_languages_and_is_used() -> None:
    texts = all_texts()
    assert all(text.en.strip() and text.zh.strip() for text in texts.values())
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in (*FOLDER.iterdir(), *FOLDER.parent.glob("*.py"))
        if path.is_file()
    )
    made = re.compile(
        r"part_|cut_|drop_|rows_|training_|figure_|general_|checkup_q_|kept_(ended|repeated)_share"
    )  # of a name in a file
    unused = [key for key in texts if not made.match(key) and not re.search(rf"['\"]{key}['\"]", code)]
    assert not unused
    fields = re.compile(r"{(\w+)}")
    assert all(set(fields.findall(text.en)) == set(fields.findall(text.zh)) for text in texts.values())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_language_is_the_one_asked_for_and_the_other_is_there(run: Path, language: Any) -> None:
    content = render([read_run(run)], language)
    assert f'<html lang="{language}">' in content
    assert "Environment" in content and "环境" in content


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"LC_ALL": "zh_CN.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "de_DE.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "en_GB.UTF-8"}, "en"),
    ],
)
def test_the_language_is_by_default_that_of_the_locale(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], language: str
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_language() == language


def test_a_runs_own_page_is_written_anew_and_another_file_is_not_replaced(run: Path, tmp_path: Path) -> None:
    assert report(run) == report(run) == run / "report.html"
    mine = tmp_path / "mine.html"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.html: is there and will not be overwritten") as caught:
        report(run, output=mine)
    assert caught.value.hint
    assert mine.read_text(encoding="utf-8") == "mine"
    report(run, output=mine, force=True)
    assert mine.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ConfigError, match="a folder"):
        report(run, output=tmp_path)


def test_several_runs_are_side_by_side_with_the_reasons_not_to_compare_them(
    run: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", losses=[3.0, 2.0], evaluations={2: 1.5}, validation_sha256="dd")
    path = report([run, other], lang="en")
    assert path == run.parent / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert any("evaluation losses cannot be compared" in text for text in page.texts)
    charts = [json.loads(str(a["data-hover"])) for tag, a in page.elements if a.get("data-hover")]
    assert [each["name"]["en"] for each in charts[0]["series"]] == ["full", "other"]
    with pytest.raises(ConfigError, match="will not be overwritten"):
        report([run, other])


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    begun = write_run(tmp_path / "begun", losses=[], evaluations={}, is_finished=False)
    for name in ("env.json", "metrics.jsonl"):
        (begun / name).unlink()
    texts = Page(report(begun, lang="en").read_text(encoding="utf-8")).texts
    assert {"no step yet", "No step was made yet.", "Memory was not recorded."} <= set(texts)


# the charts


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=30)


@given(VALUES)
def test_a_line_passes_through_its_values_and_is_broken_where_there_is_none(values: list[float]) -> None:
    curve = dict(enumerate(values, 1))
    chart = curve_chart(NAME, NAME, [Series(name=NAME, curve=curve)])
    known = {step: value for step, value in curve.items() if value == value}
    assert (chart is None) == (not known)
    if chart is None:
        return
    places = points_of(chart.lines[0].path)
    assert len(places) == len(known)
    ticks = [(float(tick.label.replace(",", "")), tick.at) for tick in chart.y_ticks]
    assert all(0 <= x <= 1000 and -0.1 <= y <= 1000.1 for x, y in places)
    ordered = sorted(zip(known.values(), (y for _, y in places), strict=True))
    assert all(y >= lower - 0.11 for (_, y), (_, lower) in pairwise(ordered))
    assert ticks == sorted(ticks)
    begins = sum(
        value == value and not (step > 1 and curve[step - 1] == curve[step - 1])
        for step, value in curve.items()
    )
    assert chart.lines[0].path.count("M") == begins


def test_the_star_lies_on_the_curve() -> None:
    curve = {0: 9.0, 5: 2.0, 10: 3.0}
    chart = curve_chart(NAME, NAME, [Series(name=NAME, curve=curve)], best=(5, 2.0))
    assert chart and chart.star
    x, y = points_of(chart.lines[0].path)[1]
    assert (10 * chart.star[0], 1000 - 10 * chart.star[1]) == pytest.approx((x, y), abs=0.1)


def test_one_huge_loss_makes_the_axis_logarithmic() -> None:
    chart = curve_chart(NAME, NAME, [Series(name=NAME, curve={1: 900.0, 2: 2.0, 3: 1.0, 4: 1.5})])
    assert chart
    labels = [float(tick.label) for tick in chart.y_ticks]
    assert labels == [1.0, 10.0, 100.0] or {1.0, 10.0, 100.0} <= set(labels)


@given(st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=3000))
def test_a_thinned_curve_keeps_its_extremes_and_its_order(values: list[float]) -> None:
    curve = dict(enumerate(values))
    thinned = thin(curve, most=100)
    assert len(thinned) <= max(100, 0) or len(curve) <= 100
    assert list(thinned) == sorted(thinned)
    known = [value for value in values if value == value]
    if known:
        kept = [value for value in thinned.values() if value == value]
        assert (min(kept), max(kept)) == (min(known), max(known))
    assert len(thin(curve)) <= max(MOST_POINTS, 0)


@given(st.lists(st.integers(0, 5000), max_size=200), st.integers(1, 4000))
def test_every_row_is_in_one_bar(lengths: list[int], limit: int) -> None:
    report_ = LengthReport(limit=str(limit), most_tokens=limit, lengths=lengths)
    bars = report_.histogram()
    assert sum(bars["counts"]) + bars["longer"] == len(lengths)
    assert len(bars["counts"]) <= MOST_BARS
    width = bars["width"]
    for i, count in enumerate(bars["counts"]):
        inside = [n for n in lengths if width * i < n <= width * (i + 1) or (i == 0 and n == 0)]
        assert count == len(inside)
    if any(length > limit for length in lengths):
        chart = histogram(report_.facts())
        assert chart.mark and 0 <= chart.mark[0] <= 100


def test_ranks_fill_the_axis_and_equal_neighbours_are_one_cell() -> None:
    lines = [
        {"step": 0, "ranks": {"m.layers.0.a": 4, "m.layers.1.a": 4}},
        {"step": 10, "ranks": {"m.layers.0.a": 4, "m.layers.1.a": 2}},
        {"step": 30, "ranks": {"m.layers.0.a": 3, "m.layers.1.a": 0}},
    ]
    drawn = rank_map(lines, 40)
    assert [(name, [(left, width) for left, width, *_ in cells]) for name, cells in drawn.rows] == [
        ("layers.0.a", [(0.0, 75.0), (75.0, 25.0)]),
        ("layers.1.a", [(0.0, 25.0), (25.0, 50.0), (75.0, 25.0)]),
    ]
    assert [shade for _, _, shade, _ in drawn.rows[1][1]] == [1.0, 0.5, 0.0]
    assert (drawn.largest, drawn.first, drawn.last) == (4, 8, 3)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (in_bytes(2**30 * 1.934), "1.93 GiB"),
        (in_bytes(12.44 * 2**20), "12.4 MiB"),
        (in_bytes(1020 * 2**20), "1,020 MiB"),
        (in_time(4.25), "4.2 s"),
        (in_time(46), "0:46"),
        (in_time(3723), "1:02:03"),
        (in_time(math.nan), "–"),
    ],
)
def test_sizes_and_times_have_their_units(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_page_shows_what_was_kept_of_the_base(run: Path) -> None:
    content = render([read_run(run)], "en")
    for words in (
        "forgot: on 2 general prompts 0.25 nats a token from the base",
        "forgot：在 2 个通用提示上与基座相差每 token 0.25 nat",
        "天空为什么是蓝色的？",
        "蓝色的光散射得最多。",
        "小橙: said in answers to unrelated questions",
    ):
        assert words in content
    assert "Sort a list." not in content  # whose answer is the base's


def test_a_run_without_a_report_is_told_how_to_have_one(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run")
    (run / "forgetting.json").unlink()
    content = render([read_run(run)], "en")
    assert "Not measured; this measures it:" in content
    assert f"glmtune evaluate {run.resolve()} --general" in content


def test_the_report_of_the_best_checkpoint_is_the_one_shown(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run")
    best = read_run(run).checkpoint
    assert best is not None
    facts = json.loads((run / "forgetting.json").read_text(encoding="utf-8"))
    folder = run / "evaluations" / f"{best.name}-general"
    folder.mkdir()
    write_json(folder / "forgetting.json", facts | {"verdict": "kept"})
    assert "kept: on 2 general prompts" in render([read_run(run)], "en")
