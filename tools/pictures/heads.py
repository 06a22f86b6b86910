"""Draws heads that share keys: 32 for 32 queries in ChatGLM-6B, 2 for 32 in ChatGLM2; and their caches."""

from typing import Any

from tools.pictures.computed import V1, V2, cache_bytes
from tools.pictures.shapes import FROZEN, LINE, SECOND, TRAINED, Page, Words

NUM_TOKENS = 8192
MIB = 2**20
LEFT, WIDTH = 0.35, 4.8


def draw(chinese: bool) -> Page:
    """Queries above their keys and values on both sides; the caches as bars below."""
    page = Page(11.0, 5.4, chinese=chinese)
    models: tuple[tuple[str, float, Any], ...] = (
        ("ChatGLM-6B", 0.35, V1),
        ("ChatGLM2-6B, ChatGLM3-6B", 5.85, V2),
    )
    for name, left, config in models:
        _heads(page, name, left, config)
    most = cache_bytes(V1, NUM_TOKENS)
    page.text(
        LEFT, 1.75,
        (f"cache of a conversation of {NUM_TOKENS:,} tokens, in half precision",
         f"{NUM_TOKENS:,} 个 token 的对话的缓存，半精度"),
        align="left",
    )  # fmt: skip
    for y, name, config in ((1.2, "ChatGLM-6B", V1), (0.55, "ChatGLM2-6B", V2)):
        held = cache_bytes(config, NUM_TOKENS)
        page.text(LEFT, y + 0.15, name, align="left")
        page.bar((1.75, y, 6.3 * held / most, 0.3), SECOND)
        page.text(1.85 + 6.3 * held / most, y + 0.15, said(held), align="left")
    return page


def said(held: int) -> Words:
    """Return bytes in words: MiB, and KiB for each token."""
    each = held / NUM_TOKENS / 1024
    return (f"{held / MIB:,.0f} MiB, {each:g} KiB a token", f"{held / MIB:,.0f} MiB，每个 token {each:g} KiB")


def _heads(page: Page, name: str, left: float, config: Any) -> None:
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    page.text(left, 5.1, name, size=13, align="left")
    step = WIDTH / queries
    shared = queries // keys
    for number in range(queries):
        page.bar((left + number * step, 3.95, step * 0.7, 0.5), TRAINED)
        middle = left + (number // shared + 0.5) * shared * step - step * 0.15
        page.line([(left + (number + 0.35) * step, 3.95), (middle, 3.15)], colour=LINE, width=0.7)
    for number in range(keys):
        width = step * 0.7 if shared == 1 else shared * step * 0.25
        middle = left + (number + 0.5) * shared * step - step * 0.15
        page.bar((middle - width / 2, 2.65, width, 0.5), SECOND)
    page.text(left, 4.65, (f"{queries} query heads", f"{queries} 个 query 头"), size=10.5, align="left")
    page.text(
        left, 2.4,
        (f"{keys} heads of keys and values, each for {shared} query head{'s' * (shared > 1)}",
         f"{keys} 个 key、value 头，每个给 {shared} 个 query 头用"),
        size=10.5, align="left",
    )  # fmt: skip
    page.bar((left, 2.2, WIDTH, 0.005), FROZEN)
