"""What was to be reached, and how a case's figures tell whether it was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Record

Figures = Callable[[Record], list[float]]
"""A figure a round; none if the case has not what it takes."""
TILES, HALF, PLAIN = "AMX", "bf16 instructions", "AVX2 alone"
KINDS = {TILES: "amx_bf16", HALF: "avx512_bf16", PLAIN: "avx2"}
"""Kinds of processor, best first, by the instruction that makes each."""


def kind_of(record: Record) -> str:
    """The kind of the processor that the case ran on, or `GPU`."""
    machine = record["machine"]
    if "GPU" in machine:
        return "GPU"
    return next((kind for kind, name in KINDS.items() if name in machine["instructions"]), "")


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    case: str
    english: str
    chinese: str
    figures: Figures
    wanted: float | Mapping[str, float]
    """By the kind of processor, if it differs; kinds that are not named have no such goal."""
    unit: str = "x"
    is_at_most: bool = False

    def limit(self, record: Record) -> float | None:
        """What is wanted of the machine that the case ran on; None: nothing."""
        if isinstance(self.wanted, Mapping):
            return self.wanted.get(kind_of(record))
        return self.wanted

    def is_met(self, found: Sequence[float], record: Record) -> bool:
        """By the median."""
        middle, wanted = median(found), self.limit(record)
        assert wanted is not None
        return middle <= wanted if self.is_at_most else middle >= wanted


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


def check(name: str, *, scale: float = 100) -> Figures:
    """A figure that was taken once a run: a share, in per cent, unless told."""
    return lambda record: [scale * record["checks"][name]] if name in record.get("checks", {}) else []


def beside(one: str, others: Sequence[str], *, scale: float = 1.0) -> Figures:
    """One side over the best of those beside it that took part."""

    def figures(record: Record) -> list[float]:
        present = [name for name in others if name in record["sides"]]
        return ratio(one, present, scale=scale)(record) if present else []

    return figures


_PEER, _PEER_HALF = "peer fp32", "peer, base in bf16"
_PEAKS = ("matrix peak fp32", "matrix peak bf16")


_ON_GPU = [
    Goal(
        "train gpu 6b",
        "LoRA on a GPU, ChatGLM3-6B in bf16, 8k tokens packed: share of what bf16 products of its shapes "
        "reach, at least 55 %",
        "GPU 上的 LoRA，ChatGLM3-6B，bf16，打包 8k token：占其形状的 bf16 乘法所能达到的比例，至少 55 %",
        ratio("ours", "matrix peak bf16", scale=100), 55, "%",
    ),
    Goal(
        "train gpu 6b", "the same: over the peer with its best attention, at least 2.5",
        "同上：对使用其最好注意力的对手，至少 2.5 倍",
        beside("ours", ("peer, sdpa", "peer, sdpa, 16 rows", "peer, flash_attention_2")), 2.5,
    ),
    Goal(
        "train gpu 6b, memory", "the same: memory of the whole process, recomputed, at most 15,500 MiB",
        "同上：重算时整个进程的显存，至多 15,500 MiB", side("ours, recomputed"), 15_500, "MiB",
        is_at_most=True,
    ),
    Goal(
        "train gpu 6b, memory", "the same: 4 x 140 tokens, at most 13,300 MiB",
        "同上：4 x 140 token，至多 13,300 MiB", side("ours, 4 x 140 tokens"), 13_300, "MiB", is_at_most=True,
    ),
    Goal(
        "train gpu 6b, memory", "QLoRA, nf4, 2k tokens, ChatGLM3-6B: at most 5,000 MiB",
        "QLoRA，nf4，2k token，ChatGLM3-6B：至多 5,000 MiB", side("ours, nf4, 2k tokens"), 5_000, "MiB",
        is_at_most=True,
    ),
    Goal(
        "train gpu 9b", "GLM-4-9B in bf16, 8k tokens packed: the same share, at least 55 %",
        "GLM-4-9B，bf16，打包 8k token：同样的比例，至少 55 %",
        ratio("ours", "matrix peak bf16", scale=100), 55, "%",
    ),
    Goal(
        "train gpu 9b, memory", "QLoRA, nf4, 2k tokens, GLM-4-9B: at most 8,192 MiB",
        "QLoRA，nf4，2k token，GLM-4-9B：至多 8,192 MiB", side("ours, nf4, 2k tokens"), 8_192, "MiB",
        is_at_most=True,
    ),
]  # fmt: skip
_TRAINING = [
    Goal(
        "train lora 4",
        "LoRA, 170 M, 4 ADGEN rows a step: ours over the peer in fp32, at least 8 with AMX, 4 with bf16 "
        "instructions, 1.8 with AVX2 alone",
        "LoRA，170 M，每步 4 行 ADGEN：我们对 fp32 的对手，有 AMX 时至少 8 倍，有 bf16 指令时 4 倍，"
        "只有 AVX2 时 1.8 倍",
        ratio("ours", _PEER), {TILES: 8, HALF: 4, PLAIN: 1.8},
    ),
    Goal(
        "train lora 4", "the same: over the peer padded to 256, at least 7",
        "同上：对填充到 256 的对手，至少 7 倍", ratio("ours", "peer fp32, padded to 256"), 7,
    ),
    Goal(
        "train lora 4", "the same: over the peer with its base in bf16, at least 2.5 with bf16 instructions",
        "同上：对基座为 bf16 的对手，有 bf16 指令时至少 2.5 倍", ratio("ours", _PEER_HALF),
        {TILES: 2.5, HALF: 2.5},
    ),
    Goal(
        "train lora 4", "the same: useful operations, share of the matrix peak, at least 65 %",
        "同上：有用运算占矩阵峰值的比例，至少 65 %", beside("ours", _PEAKS, scale=100), 65, "%",
    ),
    Goal(
        "train lora 4, memory", "the same: memory of a step above the weights, over the peer's, at most 1/5",
        "同上：一步在权重之外的内存，与对手之比，至多 1/5", ratio("ours", _PEER), 0.2, is_at_most=True,
    ),
    Goal(
        "train lora 16",
        "LoRA, 16 rows a step: ours over the peer in fp32, at least 5 with bf16 instructions, 2.5 with "
        "AVX2 alone",
        "LoRA，每步 16 行：我们对 fp32 的对手，有 bf16 指令时至少 5 倍，只有 AVX2 时 2.5 倍",
        ratio("ours", _PEER), {TILES: 5, HALF: 5, PLAIN: 2.5},
    ),
    Goal(
        "train defaults",
        "`glmtune train` with nothing set over the peer's defaults, at least 3 with bf16 instructions, 2 "
        "with AVX2 alone",
        "不作任何设置的 `glmtune train` 对对手的默认设置，有 bf16 指令时至少 3 倍，只有 AVX2 时 2 倍",
        beside("ours", (_PEER, _PEER_HALF)), {TILES: 3, HALF: 3, PLAIN: 2},
    ),
    Goal(
        "train all linear", "LoRA in all linear layers: speed over that with query_key_value, at least 0.8",
        "所有线性层加 LoRA：速度与只加 query_key_value 之比，至少 0.8",
        ratio("ours, all linear layers", "ours, query_key_value"), 0.8,
    ),
    Goal(
        "train glm4",
        "`Glm4ForCausalLM` of that size: ours over HF Trainer and PEFT, at least 3 with bf16 instructions, "
        "1.5 with AVX2 alone",
        "同样大小的 `Glm4ForCausalLM`：我们对 HF Trainer 加 PEFT，有 bf16 指令时至少 3 倍，"
        "只有 AVX2 时 1.5 倍",
        ratio("ours", _PEER), {TILES: 3, HALF: 3, PLAIN: 1.5},
    ),
    Goal(
        "train ptuning",
        "P-Tuning v2: ours over a prefix as `past_key_values`, padded, at least 3.5 with bf16 instructions, "
        "2.2 with AVX2 alone",
        "P-Tuning v2：我们对以 `past_key_values` 给出前缀、带填充的做法，有 bf16 指令时至少 3.5 倍，"
        "只有 AVX2 时 2.2 倍",
        ratio("ours", _PEER), {TILES: 3.5, HALF: 3.5, PLAIN: 2.2},
    ),
    Goal(
        "laptop 6b",
        "ChatGLM3-6B without a GPU, INT4 base, LoRA, one row of 256 tokens: useful operations, the "
        "recomputation counted, share of the matrix peak, at least 50 %",
        "没有 GPU 的 ChatGLM3-6B，INT4 基座，LoRA，一行 256 个 token：有用运算（计入重算）占矩阵峰值的比例，"
        "至少 50 %",
        check("share of the peak"), 50, "%",
    ),
    Goal(
        "laptop 6b", "the same: peak of the resident memory, the mapped file counted, at most 7.5 GB",
        "同上：常驻内存的峰值，计入映射的文件，至多 7.5 GB", check("peak_gb", scale=1), 7.5, "GB",
        is_at_most=True,
    ),
]  # fmt: skip

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
        "demo", "`glmtune demo`, at most 180 s with AVX2 alone", "`glmtune demo`，只有 AVX2 时至多 180 秒",
        side("glmtune demo"), {PLAIN: 180}, "s", is_at_most=True,
    ),
    *(
        Goal(
            f"encode {family}", f"{title}: {what} `sentencepiece` alone, at most 1.4 times",
            f"{title}：{chinese}是单独 `sentencepiece` 的至多 1.4 倍",
            ratio(name, "sentencepiece alone"), 1.4, is_at_most=True,
        )
        for family, title in (("chatglm3", "ChatGLM3"), ("chatglm2", "ChatGLM2"), ("chatglm", "ChatGLM-6B"))
        for name, what, chinese in (
            ("ours", "encoding rows over", "编码各行的时间"),
            ("ours, 5 % over-long", "the same, one row in twenty cut, over", "每二十行有一行被截短时"),
        )
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
    *_TRAINING,
    *_ON_GPU,
]  # fmt: skip
