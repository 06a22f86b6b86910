"""loss.png and compare.png: a whole picture or the old one, whatever the losses are."""

import errno
import math
import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from glmtune.errors import OutputError
from glmtune.reports import fonts
from glmtune.reports.canvas import save
from glmtune.reports.curves import read_curve, read_seconds, smooth
from glmtune.reports.fonts import find_families, writable
from glmtune.reports.plots import (
    BEST_COLOUR,
    EVALUATION_COLOUR,
    RUN_COLOURS,
    TRAINING_COLOUR,
    Curves,
    draw_comparison,
    draw_loss,
    plot_comparison,
    plot_loss,
)

WIDTH, HEIGHT = 1200, 675


def run(num_steps: int, eval_every: int = 10) -> list[dict]:
    lines: list[dict] = [{"step": 0, "eval_loss": 4.0}]
    for step in range(1, num_steps + 1):
        lines.append({"step": step, "loss": 3 / step + math.sin(step) / 10, "lr": 1e-4})
        if step % eval_every == 0:
            lines.append({"step": step, "eval_loss": 3.2 / step})
    return lines


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def colours(path: Path) -> set[str]:
    """Colours of the pixels, so that a curve nobody can see does not pass."""
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    codes = (pixels[:, :, 0] << 16) + (pixels[:, :, 1] << 8) + pixels[:, :, 2]
    return {f"#{code:06X}" for code in set(codes[:, : WIDTH // 2].ravel().tolist())}


@pytest.mark.parametrize("num_steps", [5, 200])
def test_the_divergence_that_counts_in_the_loss_is_drawn_beside_it(num_steps):
    near = [line | {"kl": 0.01 * line["step"]} for line in run(num_steps) if "loss" in line]
    for metrics, number in ((run(num_steps), 0), (near, 1)):
        axes, *own = draw_loss(metrics, title="r").axes
        assert all(line.get_label() != "divergence from the base" for line in axes.lines)
        drawn = [line for each in own for line in each.lines]
        assert len(drawn) == number
        assert all(line.get_ydata()[-1] == pytest.approx(0.01 * num_steps, rel=0.3) for line in drawn)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1, "loss": 3.0}],
        [{"step": 0, "eval_loss": 3.0}],
        run(2),
        run(5000, 500),
        [{"step": 1, "loss": math.nan}, {"step": 2, "eval_loss": math.inf}, {"step": 3, "loss": None}],
        [{"step": step, "loss": math.nan if step % 3 else 2.0} for step in range(100)],
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0, "eval_loss": 2.0}],
    ],
    ids=["none", "one", "one evaluation", "two", "5000", "not finite", "some not finite", "both in a line"],
)
def test_any_metrics_give_a_png_of_the_same_size_and_nothing_else(tmp_path, metrics):
    plot_loss(metrics, tmp_path / "loss.png", title="r")
    assert size(tmp_path / "loss.png") == (WIDTH, HEIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_single_evaluation_can_be_seen(tmp_path):
    metrics = [{"step": 0, "eval_loss": 3.0}, {"step": 8, "loss": 2.0}]
    plot_loss(metrics, tmp_path / "loss.png", title="r")
    assert EVALUATION_COLOUR in colours(tmp_path / "loss.png")


def test_both_curves_and_the_best_evaluation_can_be_seen(tmp_path):
    metrics = [*run(30), {"step": 25, "eval_loss": 1.0}, {"step": 8, "eval_loss": 0.0}]
    plot_loss(metrics, tmp_path / "loss.png", title="r")
    assert {TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR} <= colours(tmp_path / "loss.png")


def test_a_step_run_again_replaces_its_first_run(tmp_path):
    once, twice = tmp_path / "once.png", tmp_path / "twice.png"
    plot_loss(run(20), once, title="r")
    plot_loss([{"step": 5, "loss": 99.0}, *run(20)], twice, title="r")
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "loss.png"
    plot_loss(run(5), path, title="r")
    before = path.read_bytes()

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_half(self: Path, content: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        fail()

    if call == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OutputError, match=r"loss\.png: cannot be written: No space left on device") as caught:
        plot_loss(run(9), path, title="r")
    assert caught.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_plotting_needs_no_display_and_no_global_state(tmp_path):
    code = (
        "import sys; from pathlib import Path; from glmtune.reports.plots import plot_loss;"
        "assert 'matplotlib' not in sys.modules;"
        "plot_loss([{'step': 1, 'loss': 2.0}], Path('loss.png'), title='r');"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# Several runs in one picture


def curves(label: str, num_steps: int, step_s: float) -> Curves:
    metrics = [{**line, "step_s": step_s} if "loss" in line else line for line in run(num_steps)]
    return Curves(
        label=label,
        training=read_curve(metrics, "loss"),
        evaluation=read_curve(metrics, "eval_loss"),
        seconds=read_seconds(metrics),
    )


def drawn(line: object) -> tuple[list[float], list[float]]:
    return tuple(np.asarray(values).tolist() for values in (line.get_xdata(), line.get_ydata()))


@pytest.mark.parametrize(("step_s", "unit", "unit_s"), [(2.0, "s", 1), (30.0, "min", 60), (400.0, "h", 3600)])
def test_both_panels_hold_each_runs_losses_at_their_steps_and_times(step_s, unit, unit_s):
    runs = [curves("a", 30, step_s), curves("b", 20, step_s / 2)]
    by_step, by_time = draw_comparison(runs).axes
    assert by_time.get_xlabel() == f"training time ({unit})"
    for axes, places in ((by_step, [range(31)] * 2), (by_time, [one.seconds for one in runs])):
        scale = unit_s if axes is by_time else 1
        lines = iter(axes.lines)
        for one, place in zip(runs, places, strict=True):
            for curve in (one.training, one.evaluation):
                x, y = drawn(next(lines))
                assert x == [place[step] / scale for step in curve]
                assert y == list(curve.values())
        assert next(lines, None) is None


def test_scores_by_turn_have_a_panel_of_their_own_with_a_line_for_each_run():
    runs = [replace(curves("a", 5, 1.0), turns={1: 90.0, 2: 70.0}), curves("b", 5, 1.0)]
    *losses, by_turn = draw_comparison(runs, turn_score="rouge-l of talks").axes
    assert len(losses) == 2
    assert [drawn(line) for line in by_turn.lines] == [([1, 2], [90.0, 70.0]), ([], [])]
    assert (by_turn.get_xlabel(), by_turn.get_ylabel()) == ("turn", "rouge-l of talks")


def test_a_long_run_has_its_losses_faintly_under_their_mean():
    one = curves("a", 60, 1.0)
    faint, mean, _ = draw_comparison([one]).axes[0].lines
    assert drawn(faint)[1] == list(one.training.values())
    assert drawn(mean)[1] == smooth(list(one.training.values()))
    assert faint.get_alpha() < 1


def test_of_equal_runs_both_can_be_seen(tmp_path):
    runs = [replace(curves(name, 60, 1.0), best=60) for name in ("one", "same")]
    plot_comparison(runs, tmp_path / "compare.png")
    from matplotlib.image import imread

    pixels = (imread(tmp_path / "compare.png")[200:, :, :3] * 255).round()  # below the head
    codes = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RUN_COLOURS[:2]]
    assert min(np.all(pixels == code, axis=2).sum() for code in codes) > 500


def test_each_run_has_a_star_at_its_best_and_the_legend_says_so():
    runs = [replace(curves("a", 60, 2.0), best=50), curves("b", 5, 1.0)]
    figure = draw_comparison(runs)
    for axes, at in zip(figure.axes, (50, 100), strict=True):
        [star] = [line for line in axes.lines if line.get_marker() == "*"]
        assert drawn(star) == ([at], [runs[0].evaluation[50]])
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["training, each step", "training, smoothed", "evaluation", "best evaluation", "a", "b"]


def test_a_smaller_line_stands_below_the_title():
    title, below = draw_loss(run(5), title="r", subtitle="glm-tiny, lora, learning rate 0.001").texts
    assert below.get_text() == "glm-tiny, lora, learning rate 0.001"
    assert below.get_fontsize() < title.get_fontsize()
    assert title.get_fontweight() == draw_loss(run(5), title="广告").texts[0].get_fontweight()


def test_names_stand_in_the_legend_as_they_are_in_the_colour_of_their_run():
    labels = ["_hidden", "a$b$c", "lora"]
    figure = draw_comparison([curves(label, 5, 1.0) for label in labels])
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "evaluation", *labels]
    assert figure.texts[0].get_text() == "_hidden, a$b$c, lora"
    assert not any(text.get_parse_math() for text in (*figure.texts, *legend.get_texts()))
    evaluations = figure.axes[0].lines[1::2]
    colours = [handle.get_color() for handle in legend.legend_handles[2:]]
    assert colours == [line.get_color() for line in evaluations]
    assert len(set(colours)) == 3


def boxes(path: Path, letters: str) -> None:
    """A font that has a box for each of the letters."""
    pen = TTGlyphPen(None)
    for i, corner in enumerate([(100, 0), (100, 700), (900, 700), (900, 0)]):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "box"])
    font.setupCharacterMap({ord(letter): "box" for letter in letters})
    font.setupGlyf({".notdef": pen.glyph(), "box": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 100), "box": (1000, 100)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Boxes Sans", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


@pytest.fixture
def few_fonts(monkeypatch):
    """A machine with matplotlib's own fonts and no others."""
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if "DejaVu" in f.name])
    monkeypatch.setattr("glmtune.reports.fonts._add_new_fonts", lambda: None)


def test_chinese_names_are_written_in_a_font_that_has_them(tmp_path, few_fonts, caplog):
    names = ["甲 (lora)", "乙 (full)"]
    assert find_families(names) is None
    boxes(tmp_path / "boxes.ttf", "甲乙")
    fontManager.addfont(tmp_path / "boxes.ttf")
    figure = draw_comparison([curves(name, 5, 1.0) for name in names])
    for text in (figure.texts[0], *figure.legends[0].get_texts()[2:]):
        assert text.get_fontfamily() == ["DejaVu Sans", "Boxes Sans"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter that no font has
        plot_comparison([curves(name, 5, 1.0) for name in names], tmp_path / "compare.png")
    assert not caplog.records  # nor of a font without bold letters


@pytest.mark.parametrize("font", [True, False], ids=["found", "none"])
def test_a_font_installed_since_is_found_and_without_one_no_box_is_drawn(
    tmp_path, monkeypatch, few_fonts, font
):
    monkeypatch.undo()
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if "DejaVu" in f.name])
    boxes(tmp_path / "boxes.ttf", "广告")
    found = [str(tmp_path / "boxes.ttf")] if font else []
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    fonts._add_new_fonts.cache_clear()
    try:
        figure = draw_loss(run(20), title="广告-lora 新")
        assert writable("广告-lora") == ("广告-lora" if font else "…-lora")
    finally:
        fonts._add_new_fonts.cache_clear()
    assert figure.texts[0].get_text() == "…-lora …"  # no font here has 新
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "loss.png")


def test_a_control_character_of_an_answer_is_a_blank(tmp_path: Path) -> None:
    figure = draw_loss(run(20), title="one\x0btwo\x1bthree\u3000four")
    assert figure.texts[0].get_text() == "one two three four"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "loss.png")


# The head: title, caveats, legend


def odd_run(seed: int) -> list[dict]:
    """A run of any length with losses of any size, some of them huge, some missing."""
    draw = random.Random(seed)
    scale, num_steps = 10 ** draw.uniform(-3, 4), draw.choice([2, 3, 30, 45, 2000])
    lines: list[dict] = []
    for step in range(num_steps + 1):
        loss = scale * draw.lognormvariate(0, draw.choice([0.1, 3]))
        lines.append({"step": step, "loss" if step % 3 else "eval_loss": loss, "step_s": draw.uniform(0, 99)})
    return [*lines, {"step": num_steps, "loss": math.nan}] if seed % 2 else lines


def boxes_of(figure) -> list:
    """Where the head's lines and the legend stand, in pixels."""
    figure.draw_without_rendering()
    return [part.get_window_extent() for part in (*figure.texts, *figure.legends)]


def assert_readable(figure) -> None:
    head = boxes_of(figure)
    for one in head:
        assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 and one.y1 <= figure.bbox.y1
    for above, below in pairwise(head):
        assert above.y0 >= below.y1
    for axes in figure.axes:
        assert axes.get_tightbbox().y1 <= head[-1].y0
        for line in axes.lines:
            points = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
            assert not any(box.contains(*point) for box in head for point in points)
        assert axes.bbox.height > figure.bbox.height / 3


@pytest.mark.parametrize("seed", range(6))
def test_title_and_legend_cover_no_point_and_stand_in_the_picture(seed):
    assert_readable(draw_loss(odd_run(seed), title="r" * (1 + 40 * seed)))


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_the_legend_of_many_runs_covers_no_point_either(count):
    names = [f"run-{i}-" + "x" * (i % 80) for i in range(count)]
    caveats = ["the evaluation losses cannot be compared: " + "data.validation, " * 20] * 2
    assert_readable(draw_comparison([curves(name, 3, 1.0) for name in names], caveats=caveats))


def test_one_huge_loss_does_not_flatten_the_others():
    lines = [{"step": 1, "loss": 4000.0}, *run(30)[2:]]
    scales = [draw_loss(metrics, title="r").axes[0].get_yscale() for metrics in (lines, run(30))]
    assert scales == ["log", "linear"]


# The star


def star(metrics: list[dict]) -> tuple[list, list] | None:
    found = [line for line in draw_loss(metrics, title="r").axes[0].lines if line.get_marker() == "*"]
    return drawn(found[0]) if found else None


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        ([(0, 1.0, True), (1, 3.0, True), (2, 2.0, True)], 2),
        ([(0, 9.0, False), (1, 1.0, False), (2, 3.0, True), (3, 4.0, True)], 2),
        ([(0, 9.0, True), (1, 2.0, True), (2, 2.0, True)], 1),
        ([(0, 9.0, False), (1, 1.0, False)], None),
    ],
    ids=["the start is none", "ranks that had not settled", "the first of two", "not yet one"],
)
def test_the_star_is_where_the_log_has_its_best(evaluations, best):
    metrics = [
        {"step": step, "eval_loss": loss} | ({} if is_settled else {"is_settled": False})
        for step, loss, is_settled in evaluations
    ]
    assert star(metrics) == (None if best is None else ([best], [dict(e[:2] for e in evaluations)[best]]))
