"""ranks.png: every target a row, every pruning a change of colour."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from glmtune.reports.rank_map import plot_ranks

NAMES = [f"encoder.layers.{i}.{part}" for i in range(3) for part in ("qkv", "dense")]


def lines(ranks: list[list[int]], every: int = 10) -> list[dict]:
    return [{"step": i * every, "ranks": dict(zip(NAMES, row, strict=True))} for i, row in enumerate(ranks)]


def colours(path: Path) -> list[tuple[int, ...]]:
    """The colours of the middle row of the map, each once, from left to right."""
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    row = pixels[pixels.shape[0] // 5, 300:900]
    kept = [tuple(int(x) for x in row[0])]
    for pixel in row[1:]:
        if (found := tuple(int(x) for x in pixel)) != kept[-1]:
            kept.append(found)
    return kept


@pytest.mark.parametrize("last_step", [0, 20, 500])
def test_a_picture_is_drawn_whatever_is_there_and_no_partial_file_stays(
    tmp_path: Path, last_step: int
) -> None:
    plot_ranks(lines([[4] * 6]), last_step, tmp_path / "ranks.png", title="r")
    plot_ranks(lines([[4] * 6, [0, 1, 2, 3, 4, 4]]), last_step, tmp_path / "ranks.png", title="r")
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.png"]


def test_a_rank_that_falls_darkens_its_row(tmp_path: Path) -> None:
    falling = [[rank] * 6 for rank in (12, 8, 4)]
    plot_ranks(lines(falling), 30, tmp_path / "ranks.png", title="r")
    found = colours(tmp_path / "ranks.png")
    brightness = [sum(colour) for colour in found]
    assert len(found) == 3
    assert brightness == sorted(brightness, reverse=True)


def test_many_targets_make_a_higher_picture_not_smaller_rows(tmp_path: Path) -> None:
    heights = []
    for count in (6, 112):
        names = {f"layers.{i}.dense": i % 12 for i in range(count)}
        plot_ranks([{"step": 0, "ranks": names}], 10, tmp_path / "ranks.png", title="r")
        heights.append(np.shape(imread(tmp_path / "ranks.png"))[0])
    assert heights[1] > 2 * heights[0]
