"""Draws FlashAttention: blocks instead of the whole matrix of scores, and what is known after each block."""

from math import exp

from tools.pictures.computed import SCORES, TILE, V1, VALUES, attend_in_blocks
from tools.pictures.shapes import FROZEN, LINE, PALE, SECOND, TRAINED, Page

NUM_TOKENS, SIDE, BLOCK = 8192, 8, 2
"""Tokens of the memory that is named; tokens and tokens of a block of the matrices that are drawn."""
CELL = 0.3


def score_bytes(num_tokens: int = NUM_TOKENS) -> int:
    """Count the bytes of a layer's scores in half precision: of each head, of each token with each."""
    return int(V1.num_attention_heads) * num_tokens**2 * 2


def kept_bytes(num_tokens: int = NUM_TOKENS) -> int:
    """Count the bytes that are kept beside the result instead: a number in fp32 of each head and token."""
    return int(V1.num_attention_heads) * num_tokens * 4


def draw(chinese: bool) -> Page:
    """The whole matrix and the one in blocks, side by side; below, an example worked through."""
    page = Page(11.0, 6.4, chinese=chinese)
    _matrix(page, 0.35, in_blocks=False)
    _matrix(page, 5.85, in_blocks=True)
    page.text(
        0.35,
        6.1,
        ("step by step: the whole matrix is written and read again", "一步一步：整个矩阵写出去，再读回来"),
        size=12,
        align="left",
    )
    page.text(
        5.85, 6.1, ("FlashAttention: block by block", "FlashAttention：一块一块"), size=12, align="left"
    )
    page.text(
        2.95, 4.6,
        (f"scores of all tokens with all,\nof {NUM_TOKENS:,} tokens:\n{score_bytes() / 2**30:g} GiB a layer",
         f"每个 token 对每个 token 的分数，\n{NUM_TOKENS:,} 个 token：\n每层 {score_bytes() / 2**30:g} GiB"),
        align="left",
    )  # fmt: skip
    page.text(
        8.45, 4.6,
        ("one block is in fast memory;\nof each token are kept its\nresult and one number:\n"
         f"{kept_bytes() / 2**20:g} MiB a layer.\nBlocks of the future\nare never computed",
         "快速存储里只有一块；\n每个 token 只留下结果和\n"
         f"一个数：每层 {kept_bytes() / 2**20:g} MiB。\n未来的块根本不算"),
        align="left",
    )  # fmt: skip
    _example(page)
    return page


def _matrix(page: Page, left: float, *, in_blocks: bool) -> None:
    bottom = 3.4
    for row in range(SIDE):
        for column in range(SIDE):
            is_future = column > row
            is_skipped = in_blocks and column // BLOCK > row // BLOCK
            is_now = in_blocks and (row // BLOCK, column // BLOCK) == (2, 1)
            fill = "white" if is_skipped else SECOND if is_now else PALE if is_future else FROZEN
            page.bar(
                (left + column * CELL, bottom + (SIDE - 1 - row) * CELL, CELL, CELL), fill, edge="#999999"
            )
    if in_blocks:
        for cut in range(0, SIDE + 1, BLOCK):
            page.line([(left + cut * CELL, bottom), (left + cut * CELL, bottom + SIDE * CELL)], width=1.8)
            page.line([(left, bottom + cut * CELL), (left + SIDE * CELL, bottom + cut * CELL)], width=1.8)


def _example(page: Page) -> None:
    """Six scores in three blocks: after each, the largest score, the sum, and the result so far."""
    page.text(
        0.35,
        2.95,
        ("one query and six keys, in three blocks of two", "一个 query、六个 key，分成三块，每块两个"),
        size=12,
        align="left",
    )
    blocks = attend_in_blocks()
    for number, (score, value) in enumerate(zip(SCORES, VALUES, strict=True)):
        x = 3.2 + number * 1.2 + number // TILE * 0.2
        page.cell((x, 2.2, 1.1, 0.36), f"{score:g}", FROZEN)
        page.cell((x, 1.8, 1.1, 0.36), f"{value:g}", PALE)
    for y, words in (
        (2.38, ("score of the query with a key", "query 与 key 的分数")),
        (1.98, ("value of the key", "key 对应的 value")),
        (1.38, ("largest score so far", "到目前为止最大的分数")),
        (1.0, ("sum of exp(score - largest)", "exp(分数 - 最大) 之和")),
        (0.62, ("result so far", "到目前为止的结果")),
    ):  # fmt: skip
        page.text(0.35, y, words, size=10.5, align="left")
    for number, block in enumerate(blocks):
        middle = 3.2 + number * 2.6 + 1.15
        for y, known in ((1.38, block.largest), (1.0, block.total), (0.62, block.output)):
            page.text(middle, y, f"{known:.3f}", colour=TRAINED if y == 0.62 else LINE)
        if number:
            page.arrow((middle - 1.85, 1.0), (middle - 0.6, 1.0))
            scaled = exp(blocks[number - 1].largest - block.largest)
            page.text(middle - 1.25, 1.18, f"x {scaled:.3f}", size=10, colour=SECOND)
    page.text(
        0.35, 0.22,
        ("The last result is that of a softmax over all six. "
         "Orange: when a larger score comes, what was summed is scaled down.",
         "最后的结果就是对六个一起做 softmax 的结果。橙色：出现更大的分数时，把之前累加的按比例缩小。"),
        size=10.5, align="left",
    )  # fmt: skip
