"""Every method on every base in every kind of export: it answers as the tuned model does, or says why not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from glmtune import load_model
from glmtune.adapters.logit_tolerance import largest_difference
from glmtune.errors import ConfigError
from glmtune.exports.fresh import OPENERS, logits_of
from glmtune.exports.kinds import KINDS, ExportKind, ExportSettings
from glmtune.exports.source import ExportSource, find_source
from glmtune.models.dtype import DTYPES
from models import tiny_folder
from proofs import make_checkpoint

SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # nf4 needs rows of whole blocks of 64
IDS = list(range(5, 30))
LORA: dict[str, Any] = {"name": "lora", "r": 4, "dropout": 0}
ADALORA: dict[str, Any] = {"name": "adalora", "init_r": 6, "target_r": 4, "dropout": 0}
PTUNING: dict[str, Any] = {"name": "ptuning", "num_prefix_tokens": 4, "dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "freeze": {"name": "freeze", "num_layers": 1},
    "LoRA": LORA,
    "rsLoRA": {**LORA, "use_rslora": True},
    "DoRA": {**LORA, "use_dora": True},
    "AdaLoRA": ADALORA,
    "AdaLoRA, pruned": ADALORA,
    "P-Tuning": PTUNING,
    "P-Tuning with projection": {**PTUNING, "projection": True},
}
QUANTS = ("int8", "int4", "nf4")
"""With these LoRA is QLoRA."""
BASES: dict[str, tuple[str, str | None]] = {kind: (kind, None) for kind in ("fp32", "bf16", "fp16")}
BASES |= {f"{kind} in {quant}": (kind, quant) for kind in ("bf16", "fp16") for quant in QUANTS}
"""The type that the base is stored in, and how it is quantised while it is trained on."""

NO_PREFIX = "so it has no prefix"
NOT_ADALORA = "not with AdaLoRA"
NO_WEIGHT = "P-Tuning's prefix is no part of any weight and cannot be merged"
MERGING = ("merged", "hf", "int8", "int4")
REFUSED: dict[tuple[str, str], str] = {
    **{(method, "official-ptuning"): NO_PREFIX for method in METHODS if "P-Tuning" not in method},
    **{(method, "lora-from-adalora"): NOT_ADALORA for method in METHODS if "AdaLoRA" not in method},
    **{(method, to): NO_WEIGHT for method in METHODS if "P-Tuning" in method for to in MERGING},
}
"""By method and kind of export: what the refusal says, on every base."""
UNTRAINED = {
    "full": "weights cannot be trained in full",
    "freeze": "is quantised: its codes cannot be trained",
}
"""What is not trained on a quantised base, so that there is nothing to export."""
ROUNDING = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 2.5e-2, "int8": 0.1, "int4": 1.0}
"""How far the logits may be off from the tuned model's, as a share of the largest, by the type that is
written: three to ten times as far as they are."""
FAST = ("fp32", "bf16", "fp16", "bf16 in nf4")
"""The bases that are tried in every run."""


@dataclass
class Desk:
    """A folder with bases and what is trained on them."""

    folder: Path
    opened: dict[Path, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def base(self, kind: str) -> Path:
        path = self.folder / kind
        return path if path.exists() else tiny_folder(path, dtype=DTYPES[kind], **SIZES)

    def run(self, method: str, base: str) -> Path:
        kind, quant = BASES[base]
        path = self.folder / f"{method} on {base}"
        if not path.exists():
            by = 0.15 if "AdaLoRA" in method else 0.05  # AdaLoRA's are multiplied by one another, three
            its: dict[str, Any] = {"dtype": kind, "quant": quant, "is_pruned": "pruned" in method}
            make_checkpoint(self.base(kind), path, METHODS[method], by=by, **its)
        return path

    def logits(self, source: ExportSource) -> tuple[Tensor, Tensor]:
        """The tuned model's, with the numbers that were trained, and its base's; (T, V) in fp32."""
        path = source.location.trained
        if path not in self.opened:
            tuned, base = source.open(), source.load_untrained() if source.is_whole else source.load_base()
            self.opened[path] = (logits_of(tuned, IDS, source.as_trained(tuned)), logits_of(base, IDS))
        return self.opened[path]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("matrix"))


def is_trained(method: str, base: str) -> bool:
    return not (BASES[base][1] and method in UNTRAINED)


def cells() -> Iterator[Any]:
    for base in BASES:
        marks = () if base in FAST else (pytest.mark.slow,)
        for method in METHODS:
            for to in KINDS if is_trained(method, base) else ():
                yield pytest.param(method, base, to, id=f"{method}-{base}-{to}", marks=marks)


def write(kind: ExportKind, source: ExportSource, folder: Path) -> Any:
    """The export, opened as a fresh process opens it."""
    kind.require(source)
    folder.mkdir()
    kind.draft(source, source.open(), ExportSettings()).write(folder)
    base = str(source.base) if kind.is_adapter else None
    template = source.identity.template if kind.is_adapter else None
    opened: Any = OPENERS[kind.opener]({"folder": str(folder), "base": base, "template": template})
    return opened.eval()


@pytest.mark.parametrize(("method", "base", "to"), list(cells()))
def test_an_export_answers_as_the_tuned_model_or_is_refused_by_name(
    method: str, base: str, to: str, desk: Desk, tmp_path: Path
) -> None:
    kind = KINDS[to]
    source = find_source(desk.run(method, base), is_merging=not kind.is_adapter)
    if (method, to) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[method, to]) as caught:
            write(kind, source, tmp_path / "out")
        assert caught.value.hint
        return
    ours = logits_of(write(kind, source, tmp_path / "out"), IDS)
    tuned, untrained = desk.logits(source)
    off, learned = largest_difference(ours, tuned), largest_difference(tuned, untrained)
    largest = float(tuned.abs().max())
    written = "fp32" if kind.is_adapter else to if to in QUANTS else BASES[base][0]
    assert off <= ROUNDING[written] * largest
    assert off < learned


@pytest.mark.parametrize(("method", "to"), [
    ("full", "merged"), ("freeze", "merged"), ("LoRA", "merged"), ("DoRA", "merged"), ("AdaLoRA", "hf"),
    ("AdaLoRA, pruned", "lora-from-adalora"),
])  # fmt: skip
def test_an_export_at_a_strength_answers_as_the_model_opened_at_it(
    method: str, to: str, desk: Desk, tmp_path: Path
) -> None:
    kind = KINDS[to]
    run = desk.run(method, "fp32")
    source = find_source(run, is_merging=not kind.is_adapter, strength=0.6)
    ours = logits_of(write(kind, source, tmp_path / "out"), IDS)
    expected = logits_of(load_model(run, dtype="fp32", device="cpu", strength=0.6), IDS)
    trained = desk.logits(find_source(run))[0]
    assert largest_difference(ours, expected) <= ROUNDING["fp32"] * float(expected.abs().max())
    assert largest_difference(trained, expected) > 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("method", UNTRAINED)
def test_what_cannot_be_trained_on_a_quantised_base_is_refused_by_name(
    method: str, quant: str, desk: Desk
) -> None:
    with pytest.raises(ConfigError, match=UNTRAINED[method]):
        desk.run(method, f"bf16 in {quant}")


IN_CHINESE = {
    "全量": "full",
    "AdaLoRA，已剪枝": "AdaLoRA, pruned",
    "P-Tuning，带投影": "P-Tuning with projection",
}


@pytest.mark.parametrize("page", ["export.md", "export.zh.md"])
def test_the_guide_has_the_same_table(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    start = 2 + next(at for at, row in enumerate(rows) if row[1:] == list(KINDS))
    found = {
        (IN_CHINESE.get(row[0], row[0]), to): cell == "✓"
        for row in rows[start : start + len(METHODS)]
        for to, cell in zip(KINDS, row[1:], strict=True)
    }
    assert found == {(method, to): (method, to) not in REFUSED for method in METHODS for to in KINDS}
