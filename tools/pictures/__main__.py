"""Draws the pictures of the guides.

python -m tools.pictures docs/pictures
"""

import sys
from collections.abc import Callable
from pathlib import Path

from tools.pictures import (
    adalora,
    chat,
    flash,
    heads,
    infilling,
    int8,
    lora,
    masks,
    positions,
    ptuning,
    qlora,
    where,
)
from tools.pictures.shapes import Page

PICTURES = {
    "where": where.draw,
    "lora": lora.draw,
    "adalora": adalora.draw,
    "ptuning": ptuning.draw,
    "qlora": qlora.draw,
}
"""Those of the methods' guide."""
EXPLAINED: dict[str, Callable[[bool], Page]] = {
    "lora": lora.draw,
    "ptuning": ptuning.draw,
    "infilling": infilling.draw,
    "positions": positions.draw,
    "masks": masks.draw,
    "heads": heads.draw,
    "flash": flash.draw,
    "int8": int8.draw,
    "chat": chat.draw,
}
"""Those of the guide "How GLM works", drawn in English or, with True, in Chinese."""


def draw_all(folder: Path) -> None:
    """Write every picture into the folder."""
    for name in PICTURES.keys() - EXPLAINED.keys():
        PICTURES[name]().save(folder / f"{name}.png")
    for name, explain in EXPLAINED.items():
        explain(False).save(folder / f"{name}.png")
        explain(True).save(folder / f"{name}.zh.png")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
