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
from glmtune.language import LANGUAGES

WIDTH, HEIGHT = 1160, 1330
"""Pixels of the page that are shown: the head, the curves and the answers."""


def draw_all(folder: Path) -> None:
    """Write the page and the card into the folder, in English and in Chinese."""
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
        size = f"--window-size={WIDTH},{HEIGHT}"
        flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={place}/profile")
        for lang in LANGUAGES:
            ending = ".png" if lang == "en" else f".{lang}.png"
            glmtune.card(run, output=folder / f"card{ending}", lang=lang, force=True)
            shot = f"--screenshot={(folder / f'report{ending}').resolve()}"
            page = glmtune.report(run, lang=lang)
            subprocess.run([chromium, *flags, size, shot, page.as_uri()], check=True)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
