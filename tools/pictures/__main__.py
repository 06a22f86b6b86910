"""Draws the pictures of the methods' guide.

python -m tools.pictures docs/pictures
"""

import sys
from pathlib import Path

from tools.pictures import adalora, lora, ptuning, qlora, where

PICTURES = {
    "where": where.draw,
    "lora": lora.draw,
    "adalora": adalora.draw,
    "ptuning": ptuning.draw,
    "qlora": qlora.draw,
}


def draw_all(folder: Path) -> None:
    """Write every picture into the folder."""
    for name, draw in PICTURES.items():
        draw().save(folder / f"{name}.png")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
