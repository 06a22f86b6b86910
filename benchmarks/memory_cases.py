"""The runs whose memory benchmarks/memory.py foretells and measures."""

from dataclasses import dataclass
from typing import Any

GLM_TINY = "glm-tiny"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora"},
    "lora, all linear": {
        "name": "lora",
        "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    },
    "rslora": {"name": "lora", "use_rslora": True},
    "dora": {"name": "lora", "use_dora": True},
    "ptuning": {"name": "ptuning"},
    "adalora": {"name": "adalora"},
    "freeze": {"name": "freeze"},
    "full": {"name": "full"},
}
ROWS = {128: 2, 512: 1, 1024: 1}
"""Rows of a micro-batch, by their length."""


@dataclass(frozen=True)
class Case:
    """A run: method, bits, length, recomputation, and what is done with it afterwards."""

    method: str
    quant: str | None
    length: int
    is_recomputed: bool
    kind: str = "chatglm3"
    """`chatglm3` or `glm4`, of random weights; or `glm-tiny`."""
    then: tuple[str, ...] = ()
    """`evaluate`, or the kind of an export."""
    is_reported: bool = False
    """True for a run with the report of forgetting, all of it however long it takes."""

    @property
    def name(self) -> str:
        """All of it in words."""
        kind = "" if self.kind == "chatglm3" else f"{self.kind} "
        ending = (", recomputed" if self.is_recomputed else "") + (", reported" if self.is_reported else "")
        return f"{kind}{self.method} {self.quant or 'bf16'} {ROWS[self.length]} x {self.length}{ending}"


PAIRS = (
    Case("lora", "int8", 512, True),
    Case("lora", "int4", 1024, False),
    Case("lora", "nf4", 512, False),
    Case("lora, all linear", None, 512, True),
    Case("lora, all linear", "int8", 128, False),
    Case("lora, all linear", "int4", 512, False),
    Case("lora, all linear", "nf4", 1024, True),
    Case("ptuning", None, 1024, False),
    Case("ptuning", "int8", 1024, True),
    Case("ptuning", "nf4", 512, False),
    Case("adalora", None, 512, False),
    Case("adalora", "int8", 1024, False),
    Case("adalora", "int4", 512, True),
    Case("adalora", "nf4", 128, True),
    Case("freeze", None, 1024, True),
    Case("freeze", None, 512, False),
    Case("freeze", None, 128, False),
    Case("full", None, 512, False),
    Case("full", None, 1024, True),
    Case("lora", None, 512, False, kind="glm4"),
    Case("lora", "int4", 1024, True, kind="glm4"),
    Case("lora", None, 128, False, then=("evaluate", "merged", "int4")),
    Case("ptuning", "int4", 128, True, then=("evaluate",)),
    Case("full", None, 128, True, then=("evaluate", "merged")),
    Case("lora", None, 128, True, is_reported=True),
    Case("lora", "int4", 128, True, kind="glm4", is_reported=True),
)
"""Every possible pair of method, bits, length and recomputation is among them: codes are not trained."""
TRAINED = (
    *((method, None) for method in METHODS if method != "lora, all linear"),
    *(("lora", quant) for quant in ("int8", "int4", "nf4")),
)
"""Every way to train, each on a row of 512 tokens of two models."""
EACH_WAY = tuple(
    Case(method, quant, 512, False, kind) for kind in (GLM_TINY, "chatglm3") for method, quant in TRAINED
)
CASES = tuple({case.name: case for case in (*EACH_WAY, *PAIRS)}.values())
