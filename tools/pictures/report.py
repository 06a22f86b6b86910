"""Draws the pictures of the guide to reports, of a run of glm-tiny.

python -m tools.pictures.report docs/pictures

It trains for a minute, and takes Chromium for the picture of the page.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import glmtune

WIDTH, HEIGHT = 1160, 1330
"""Pixels of the page that are shown: the head, the curves and the answers."""


def draw_all(folder: Path) -> None:
    """Write report.png and card.png into the folder."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("this takes chromium or google-chrome")
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "adverts"
        glmtune.train(
            model="glm-tiny",
            data={"train": "examples/adverts.jsonl"},
            train={"epochs": 7, "lr": 3e-3},
            samples={"prompts": ["类型#裙*颜色#蓝色*风格#文艺"]},
            output=run,
        )
        glmtune.evaluate(run, data="examples/adverts_heldout.jsonl")
        page = glmtune.report(run, lang="en")
        glmtune.card(run, output=folder / "card.png", lang="en", force=True)
        size = f"--window-size={WIDTH},{HEIGHT}"
        shot = f"--screenshot={(folder / 'report.png').resolve()}"
        flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={place}/profile")
        subprocess.run([chromium, *flags, size, shot, page.as_uri()], check=True)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
