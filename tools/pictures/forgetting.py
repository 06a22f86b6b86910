"""Draws the picture of the guide on forgetting, of a run of glm-tiny that forgot.

python -m tools.pictures.forgetting docs/pictures [RUN]

Without a run it trains one for half a minute. It takes Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import glmtune
from glmtune.language import LANGUAGES

WIDTH, HEIGHT = 1000, 800
"""Pixels that hold the part of the page."""
ALONE = "<style>main>:not(.kept),header,footer{display:none}</style></head>"
"""Hides all other parts."""


def draw_all(folder: Path, run: Path | None) -> None:
    """Write the page's part on forgetting into the folder, in English and in Chinese."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("this takes chromium or google-chrome")
    with tempfile.TemporaryDirectory() as place:
        if run is None:
            run = Path(place) / "adverts"
            glmtune.train(
                model="glm-tiny",
                data={"train": "examples/adverts.jsonl"},
                train={"steps": 40, "lr": 1e-2},
                retain={"ratio": 0},
                output=run,
            )
        size = f"--window-size={WIDTH},{HEIGHT}"
        flags = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={place}/profile")
        for lang in LANGUAGES:
            page = glmtune.report(run, lang=lang, output=Path(place) / f"{lang}.html")
            page.write_text(page.read_text(encoding="utf-8").replace("</head>", ALONE), encoding="utf-8")
            name = "forgetting.png" if lang == "en" else f"forgetting.{lang}.png"
            shot = f"--screenshot={(folder / name).resolve()}"
            subprocess.run([chromium, *flags, size, shot, page.as_uri()], check=True)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
