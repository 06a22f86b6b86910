"""Draws INT8 and INT4: a row of weights, its codes, and the weights that the codes stand for."""

from tools.pictures.computed import WEIGHTS, Quantised, quantise_row
from tools.pictures.shapes import FROZEN, LINE, SECOND, TRAINED, Page

CELL, STEP, LEFT = 0.84, 0.9, 3.4


def draw(chinese: bool) -> Page:
    """The three steps of INT8 as a table, below it both kinds of codes on a ruler."""
    page = Page(11.0, 6.2, chinese=chinese)
    row = quantise_row(8)
    largest = max(WEIGHTS, key=abs)
    page.text(0.35, 5.85, ("INT8 in three steps", "INT8 三步走"), size=13, align="left")
    steps = (
        ("a row of weights", "一行权重"),
        (
            f"1. scale = {abs(largest):g} / 127 = {row.scale:.2f}",
            f"1. scale = {abs(largest):g} / 127 = {row.scale:.2f}",
        ),
        ("2. code = round(weight / scale)", "2. 编码 = round(权重 / scale)"),
        ("3. multiply back: code x scale", "3. 乘回来：编码 x scale"),
        ("error, at most scale / 2", "误差，最多 scale / 2"),
    )
    for number, words in enumerate(steps):
        page.text(0.35, 5.35 - number * 0.5 if number != 1 else 4.85, words, align="left", size=10.5)
    for column, (weight, code, back) in enumerate(zip(WEIGHTS, row.codes, row.back, strict=True)):
        x = LEFT + column * STEP
        page.cell((x, 5.16, CELL, 0.38), f"{weight:g}", SECOND if weight == largest else FROZEN)
        page.cell((x, 4.16, CELL, 0.38), str(code), TRAINED)
        page.cell((x, 3.66, CELL, 0.38), f"{back:.2f}", FROZEN)
        page.text(x + CELL / 2, 3.35, f"{back - weight:+.3f}", size=10)
    page.text(
        LEFT,
        4.85,
        ("the largest magnitude of the row becomes 127 or -127", "这一行里绝对值最大的数，变成 127 或 -127"),
        align="left",
        size=10.5,
        colour=SECOND,
    )
    for y, bits, name in ((1.9, 8, "INT8"), (0.6, 4, "INT4")):
        _ruler(page, y, name, bits, quantise_row(bits))
    return page


def _ruler(page: Page, y: float, name: str, bits: int, row: Quantised) -> None:
    """The levels of the codes as ticks; each weight falls to the level next to it."""
    most = 2 ** (bits - 1) - 1
    left, middle = 1.3, 5.8
    unit = (middle - left) / most
    error = max(abs(back - weight) for back, weight in zip(row.back, WEIGHTS, strict=True))
    page.text(
        0.35, y + 0.72,
        (f"{name}: {2 * most + 1} levels, {row.scale:.2g} apart; largest error here {error:.2g}",
         f"{name}：{2 * most + 1} 个刻度，间隔 {row.scale:.2g}；这里最大的误差是 {error:.2g}"),
        align="left",
    )  # fmt: skip
    page.line([(left - 0.1, y), (2 * middle - left + 0.1, y)])
    for code in range(-most, most + 1):
        page.line(
            [(middle + code * unit, y - 0.06), (middle + code * unit, y + 0.06)],
            width=0.5 if bits == 8 else 1.4,
        )
    for code in (-most, 0, most):
        page.text(middle + code * unit, y - 0.25, str(code), size=10)
    for weight, code in zip(WEIGHTS, row.codes, strict=True):
        at = middle + weight / row.scale * unit
        page.line([(at, y + 0.34), (middle + code * unit, y + 0.06)], colour=LINE, width=0.9)
        page.bar((at - 0.045, y + 0.34, 0.09, 0.14), TRAINED)
