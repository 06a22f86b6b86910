"""Draws an answer of glm-tiny from the question to the stop token, with the model's own numbers."""

from itertools import pairwise

from tools.pictures.computed import QUESTION, Trace, trace_chat
from tools.pictures.shapes import FROZEN, PALE, SECOND, TRAINED, Page, Words

from glmtune.generate.sampling import Sampling

SAMPLING = Sampling(temperature=0.8, top_p=0.8)
"""The draw that the picture shows."""
LEFT, WIDE, GAP = 3.0, 7.6, 0.06
STATIONS: tuple[tuple[float, Words, str], ...] = (
    (6.2, ("a question", "问题"), "Chat.ask"),
    (5.5, ("the chat format", "对话格式"), "render"),
    (4.8, ("token ids", "token 编号"), "encode_segments"),
    (4.1, ("4 layers", "4 层"), "ChatGLMBlock"),
    (3.2, ("chances of the next token", "下一个 token 的概率"), "score_tokens"),
    (1.6, ("an answer, token by token", "逐个 token 的回答"), "Engine.step"),
    (0.85, ("text", "文本"), "stream_text"),
)
"""From above: the height, the name, the function that does it."""


def draw(chinese: bool) -> Page:
    """A row for each station, and on the right what comes out of it."""
    page = Page(11.0, 6.6, chinese=chinese)
    trace = trace_chat(SAMPLING)
    for y, name, function in STATIONS:
        page.text(0.35, y + 0.12, name, align="left")
        page.text(0.35, y - 0.13, function, size=9, align="left", colour="#777777")
    for (y, *_), (below, *_) in pairwise(STATIONS):
        page.arrow((2.72, y - 0.15), (2.72, below + 0.2))
    page.cell((LEFT, 6.0, 2.0, 0.4), QUESTION, FROZEN)
    _cells(page, 5.3, [(text, SECOND if is_control else FROZEN) for text, is_control in trace.segments])
    _cells(page, 4.6, [(str(number), PALE) for number in trace.ids])
    page.cell(
        (LEFT, 3.9, WIDE, 0.4),
        (
            "attention and MLP, four times: each token gathers from those before it",
            "注意力和 MLP，重复四次：每个 token 从前面的 token 里汇集信息",
        ),
        PALE,
        size=10.5,
    )
    _chances(page, trace)
    shown = [(piece, TRAINED if i == trace.unsure else FROZEN) for i, piece in enumerate(trace.answer)]
    _cells(page, 1.4, [*shown, (trace.stop, SECOND)])
    page.cell((LEFT, 0.65, 2.0, 0.4), "".join(trace.answer).strip(), FROZEN)
    page.text(
        0.35,
        0.2,
        (
            "All numbers are glm-tiny's own. Orange: control tokens, which typed text never becomes.",
            "所有数字都是 glm-tiny 自己的。橙色：控制符，输入的文本永远不会变成它们。",
        ),
        size=10,
        align="left",
    )
    return page


def _cells(page: Page, y: float, cells: list[tuple[str, str]]) -> None:
    """Pieces side by side, white space as a sign."""
    width = min(1.2, WIDE / len(cells) - GAP)
    for number, (words, colour) in enumerate(cells):
        seen = words.replace("\n", "⏎") if words.strip(" ") else "␣"
        size = 10.5 if len(seen) < 10 else 9
        page.cell((LEFT + number * (width + GAP), y, width, 0.4), seen, colour, size=size)


def _chances(page: Page, trace: Trace) -> None:
    """The likeliest tokens in one place: the model's probabilities, and those that it is drawn by."""
    left, inch = LEFT + 0.8, 4.0
    for number, (piece, plain, drawn) in enumerate(trace.chances):
        y = 3.3 - number * 0.38
        page.text(LEFT + 0.65, y + 0.12, piece, align="right", colour=TRAINED if number == 0 else "#222222")
        page.bar((left, y + 0.13, inch * plain, 0.13), TRAINED)
        page.bar((left, y - 0.02, inch * drawn, 0.13), "#999999")
        end = left + inch * max(plain, drawn)
        page.text(end + 0.12, y + 0.12, f"{plain:.1%}, {drawn:.1%}", align="left", size=9.5)
    at = LEFT + 3.6
    page.text(
        at, 2.86,
        ("here of the token that it is least sure of", "这里是它最没有把握的那个 token"),
        align="left", size=10.5,
    )  # fmt: skip
    for y, colour, words in (
        (2.44, TRAINED, ("as the model gives them", "模型给出的概率")),
        (2.1, "#999999", (
            f"as they are drawn by: temperature {SAMPLING.temperature:g}, top_p {SAMPLING.top_p:g}",
            f"抽取时的概率：温度 {SAMPLING.temperature:g}，top_p {SAMPLING.top_p:g}",
        )),
    ):  # fmt: skip
        page.bar((at, y, 0.22, 0.16), colour)
        page.text(at + 0.32, y + 0.08, words, align="left", size=10)
