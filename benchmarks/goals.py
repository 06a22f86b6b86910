"""What was to be reached, and how a case's figures tell whether it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Record

Figures = Callable[[Record], list[float]]
"""A figure a round; none if the case has not what it takes."""


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    case: str
    english: str
    chinese: str
    figures: Figures
    wanted: float
    unit: str = "x"
    is_at_most: bool = False

    def is_met(self, found: Sequence[float]) -> bool:
        """By the median."""
        middle = median(found)
        return middle <= self.wanted if self.is_at_most else middle >= self.wanted


def ratio(over: Sequence[str] | str, under: Sequence[str] | str, *, scale: float = 1.0) -> Figures:
    """The best of some sides over the best of others, round by round."""

    def figures(record: Record) -> list[float]:
        one, other = _best(record, over), _best(record, under)
        return [scale * a / b for a, b in zip(one, other, strict=True)] if one and other else []

    return figures


def _best(record: Record, names: Sequence[str] | str) -> list[float]:
    """The rounds of the side with the highest median; none if one of them did not take part."""
    wanted = [names] if isinstance(names, str) else names
    sides: dict[str, list[float]] = record["sides"]
    if not all(name in sides for name in wanted):
        return []
    return max((sides[name] for name in wanted), key=median)


def side(name: str) -> Figures:
    """A side's own figures."""
    return lambda record: record["sides"].get(name, [])


def check(name: str) -> Figures:
    """A share that was checked, in per cent."""
    return lambda record: [100 * record["checks"][name]] if name in record.get("checks", {}) else []


_BATCH_32 = "ours bf16, batch 32"
_PEER_16 = ("generate fp32, batch 16", "generate bf16, batch 16")
_PEER_1 = ("generate fp32, batch 1", "generate bf16, batch 1")
_EXACT = ("ours fp32, all at once", "ours bf16, all at once")
_FAST = "ours W8A8, all at once"

GOALS = [
    Goal(
        "decode 1b", "1 B, batch 1: W8A8 over `GlmForCausalLM.generate` in bf16, at least 4",
        "1 B，单条：W8A8 对 bf16 的 `GlmForCausalLM.generate`，至少 4 倍",
        ratio("ours W8A8", "GlmForCausalLM.generate bf16"), 4,
    ),
    Goal(
        "decode 1b", "1 B, batch 1: W8A8 over llama.cpp q8_0, at least 1.2",
        "1 B，单条：W8A8 对 llama.cpp q8_0，至少 1.2 倍",
        ratio("ours W8A8", "llama.cpp q8_0"), 1.2,
    ),
    Goal(
        "decode 1b", "1 B, batch 1: W8A8's share of the read bandwidth, at least 80 %",
        "1 B，单条：W8A8 占读带宽的比例，至少 80 %",
        ratio("ours W8A8", "bandwidth, int8 weights", scale=100), 80, "%",
    ),
    Goal(
        "prefill 128", "1 B, a prompt of 128 tokens: W8A8 over llama.cpp q8_0, at least 3",
        "1 B，128 个 token 的提示：W8A8 对 llama.cpp q8_0，至少 3 倍",
        ratio("ours W8A8", "llama.cpp q8_0"), 3,
    ),
    Goal(
        "decode 170m", "170 M, ADGEN: greedy ids equal those of `generate` in fp32",
        "170 M，ADGEN：fp32 下贪心 id 与 `generate` 相同",
        check("greedy ids equal"), 100, "%",
    ),
    Goal(
        "decode 170m", "170 M, ADGEN: best exact precision over that of `generate` at batch 16, at least 2",
        "170 M，ADGEN：最好的精确精度对批量 16 的 `generate`（取其最好精度），至少 2 倍",
        ratio(_EXACT, _PEER_16), 2,
    ),
    Goal(
        "decode 170m", "170 M, ADGEN: W8A8 over `generate` at batch 16, at least 4",
        "170 M，ADGEN：W8A8 对批量 16 的 `generate`，至少 4 倍", ratio(_FAST, _PEER_16), 4,
    ),
    Goal(
        "decode 170m", "170 M, ADGEN: W8A8 over `generate` at batch 1, at least 12",
        "170 M，ADGEN：W8A8 对单条的 `generate`，至少 12 倍", ratio(_FAST, _PEER_1), 12,
    ),
    Goal(
        "decode tiny", "glm-tiny, batch 1, bf16 as it is stored: ours over `generate`, at least 2.5",
        "glm-tiny，单条，bf16（与存储一致）：我们对 `generate`，至少 2.5 倍",
        ratio("ours bf16", "generate bf16"), 2.5,
    ),
    Goal(
        "decode tiny", "the same with the compiled step, at least 5", "同上，用编译的一步，至少 5 倍",
        ratio("ours bf16, compiled step", "generate bf16"), 5,
    ),
    Goal(
        "chat", "`glmtune chat glm-tiny` to its first token, cold, at most 6 s",
        "`glmtune chat glm-tiny` 冷启动到第一个 token，至多 6 秒", side("cold"), 6, "s", is_at_most=True,
    ),
    Goal(
        "scores", "scores of `thudm`: the packages' time over ours, at least 2.5",
        "`thudm` 评分：各软件包的时间对我们的，至少 2.5 倍", ratio("thudm, official", "thudm, ours"), 2.5,
    ),
    Goal(
        "scores", "scores of `chatglm3`: the packages' time over ours, at least 2.5",
        "`chatglm3` 评分：各软件包的时间对我们的，至少 2.5 倍",
        ratio("chatglm3, official", "chatglm3, ours"), 2.5,
    ),
    Goal(
        "decode 6b", "ChatGLM3-6B on a GPU, batch 1: bf16, at least 300 tokens/s",
        "GPU 上的 ChatGLM3-6B，单条：bf16，至少 300 tokens/s", side("ours bf16"), 300, "tokens/s",
    ),
    Goal(
        "decode 6b", "the same: int8, at least 480 tokens/s", "同上：int8，至少 480 tokens/s",
        side("ours int8"), 480, "tokens/s",
    ),
    Goal(
        "decode 6b", "the same: bf16 at batch 32 over batch 1, at least 20",
        "同上：bf16，批量 32 对单条，至少 20 倍", ratio(_BATCH_32, "ours bf16"), 20,
    ),
]  # fmt: skip
