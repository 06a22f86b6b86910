"""Writes the table of docs/cluster.md: the bytes that a step moves between processes, and the time on wires.

python -m tools.cluster_tables

Of N processes in a ring each sends 2 (N - 1) / N of a tensor to sum it over all (an all-reduce), and half of
that to gather it (all-gather) or to sum and keep a part (reduce-scatter). DDP sums the gradients. ZeRO-3
gathers the weights for the forward and again for the backward pass, and keeps parts of the summed gradients;
FSDP2 does so too, but those outside the layers stay whole between the two passes. ZeRO-2 keeps parts of the
summed gradients, and gathers the trained weights once they are updated; DeepSpeed makes a copy of the trained
weights' parts, though they are fp32. tests/invariants/test_engines.py counts the bytes of real steps.
Source: arxiv.org/abs/1910.02054, section 7; arxiv.org/abs/2304.11277, section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tools.pages import table, with_table, write_pages

MARK = "<!-- {}: made by `python -m tools.cluster_tables` -->"
PAGES = {"cluster.md": "en", "cluster.zh.md": "zh"}
PROCESSES = 16
"""Two machines of eight cards each."""
HALF, SINGLE = 2, 4
"""Bytes of a weight of a base in bf16, and of a trained one, its gradient and each of Adam's means."""


@dataclass(frozen=True)
class Model:
    """A model's numbers of weights: all, those outside the layers (embedding, output layer, last norm), and
    those of LoRA with rank 8 on its attention (the default).
    """

    name: str
    weights: int
    outer: int
    lora: int


ZERO_2 = "deepspeed, stage 2"
MODELS = (
    # docs/methods.md; LoRA on query_key_value, (4096 -> 4608) in 28 layers
    Model("ChatGLM3-6B", 6_243_584_000, (2 * 65_024 + 1) * 4096, 28 * 8 * (4096 + 4608)),
    Model("GLM-4-9B", 9_399_951_360, (2 * 151_552 + 1) * 4096, 40 * 8 * (4096 + 4608)),
    # huggingface.co/zai-org/GLM-4-32B-0414: 61 layers of 6144, 48 heads and 2 KV heads of 128
    Model(
        "GLM-4-32B-0414",
        32_566_081_536,
        (2 * 151_552 + 1) * 6144,
        61 * 8 * (4 * 6144 + 2 * (6144 + 256)),
    ),
    # docs.vultr.com/models/z.ai-glm-5: 744B of which 40B are active, 78 layers of 6144, 154,880 tokens. This
    # program has no class for its attention: four square projections are counted
    Model("GLM-5 (744B MoE)", 744_000_000_000, (2 * 154_880 + 1) * 6144, 78 * 8 * 4 * 2 * 6144),
)
WIRES = {"PCIe 4.0 x16": 32e9, "NVLink (H100)": 450e9, "100 Gb Ethernet": 12.5e9}
"""Bytes a second in one direction. Sources: PCI-SIG's 16 GT/s on 16 lanes; NVIDIA's H100 data sheet, 900 GB/s
both ways; 100 Gb / 8, one network card that all cards of a machine share."""
WORDS = {
    "en": {
        "model": "model", "method": "method", "engine": "engine", "held": "held by a process",
        "sent": "sent by a process in a step", "full": "full",
    },
    "zh": {
        "model": "模型", "method": "方法", "engine": "引擎", "held": "一个进程保存",
        "sent": "一个进程每步发送", "full": "full",
    },
}  # fmt: skip


def sent(model: Model, method: str, engine: str, processes: int = PROCESSES) -> float:
    """The bytes that a process sends in a step of one micro-batch."""
    trained = model.weights if method == "full" else model.lora
    share = (processes - 1) / processes
    if engine in ("ddp", ZERO_2):
        return 2 * share * trained * SINGLE
    gathered = 2 * weight_bytes(model, method)
    if engine == "fsdp2":
        gathered -= model.outer * (SINGLE if method == "full" else HALF)
    return share * (gathered + trained * SINGLE)


def held(model: Model, method: str, engine: str, processes: int = PROCESSES) -> float:
    """The bytes of weights, gradients and Adam's two means that a process holds, without activations."""
    trained = model.weights if method == "full" else model.lora
    if engine == ZERO_2:
        return weight_bytes(model, method) + trained * SINGLE * 4 / processes
    # DistributedDataParallel keeps the gradients once more, in the buckets that it exchanges
    whole = weight_bytes(model, method) + trained * SINGLE * (4 if engine == "ddp" else 3)
    return whole if engine == "ddp" else whole / processes


def weight_bytes(model: Model, method: str) -> int:
    """The bytes of the weights: a frozen base in bf16 with fp32 factors, or all in fp32."""
    return model.weights * SINGLE if method == "full" else model.weights * HALF + model.lora * SINGLE


def show_bytes(number: float) -> str:
    """A size in decimal units, of three digits."""
    unit, name = next(
        (unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1, "B")) if number >= unit
    )
    return f"{number / unit:.3g} {name}" if number / unit < 1000 else f"{number / unit:,.0f} {name}"


def show_seconds(number: float) -> str:
    """A time of about two digits, in milliseconds below a second."""
    number, name = (number * 1000, "ms") if number < 0.95 else (number, "s")
    return f"{number:,.0f} {name}" if number >= 9.5 else f"{number:.2g} {name}"


def cases() -> Iterator[tuple[Model, str, str]]:
    """Each model with each method and engine."""
    for model in MODELS:
        for method in ("lora", "full"):
            for engine in ("ddp", ZERO_2, "fsdp2"):
                yield model, method, engine


def traffic(language: str) -> str:
    """A line for each model, method and engine: bytes held, bytes sent, the time of these on each wire."""
    words = WORDS[language]
    rows = [[*(words[key] for key in ("model", "method", "engine", "held", "sent")), *WIRES]]
    for model, method, engine in cases():
        number = sent(model, method, engine)
        times = (show_seconds(number / speed) for speed in WIRES.values())
        cells = (show_bytes(held(model, method, engine)), show_bytes(number), *times)
        rows.append([model.name, method, engine, *cells])
    return table(rows)


def fill(text: str, page: str) -> str:
    """The page's text with its table behind its mark."""
    return with_table(text, MARK.format("traffic"), traffic(PAGES[page]))


if __name__ == "__main__":
    write_pages(PAGES, fill)
