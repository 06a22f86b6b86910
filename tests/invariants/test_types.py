"""The types that a run is held and computed in: by its processor, recorded, the same for all who open it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import glmtune
from glmtune.adapters.logit_tolerance import SAME
from glmtune.adapters.proof import allowed_share
from glmtune.adapters.store import read_card, stored_tensors
from glmtune.files import read_json
from glmtune.load import load_location
from glmtune.locations import resolve
from glmtune.models.computing import computes_in
from glmtune.models.dtype import DTYPES
from glmtune.models.shards import read_stored, scan_tensors
from glmtune.recipe import load_recipe
from glmtune.run_files import ENVIRONMENT_FILE, SETTINGS_FILE, follow, read_json_lines
from glmtune.workflows import verify
from glmtune.workflows.events import Note, Saved, drain
from glmtune.workflows.execute import training
from models import tiny_folder

LAYERS = {"freeze": ("method.num_layers=1",)}
ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
Move = Callable[[bool], None]


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Move:
    """Go on to a processor that has bf16 instructions, or to one that has none."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)

    def move(has_bf16: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": has_bf16})

    return move


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What was told since the last call."""
    logger = logging.getLogger("glmtune")
    logger.addHandler(caplog.handler)

    def take() -> str:
        text = "\n".join(record.getMessage() for record in caplog.records)
        caplog.clear()
        return text

    yield take
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="module")
def fp16_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("fp16"), dtype=torch.float16)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16)


def recipe(base: Path, output: Path, *words: str) -> glmtune.Recipe:
    values = {
        "model": str(base),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 12, "holdout_rows": 4},
        "train": {"steps": 4, "batch_size": 2, "lr": 1e-2, "eval_every": 2},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


@pytest.mark.parametrize(
    ("has_bf16", "precision", "kind"), [(True, "bf16", "bfloat16"), (False, "fp32", "float32")]
)
def test_a_run_says_and_records_its_types_and_all_who_open_it_take_those(
    has_bf16: bool,
    precision: str,
    kind: str,
    base: Path,
    tmp_path: Path,
    move: Move,
    said: Callable[[], str],
) -> None:
    move(has_bf16)
    run = drain(training(recipe(base, tmp_path / "run"))).path
    line = said()
    assert "bfloat16 on cpu" in line
    assert ("computed in float32 (this processor has no bf16 arithmetic)" in line) != has_bf16
    settled = load_recipe(run / "recipe.yaml")
    assert (settled.dtype, settled.train.precision) == ("bf16", precision)
    assert read_json(run / ENVIRONMENT_FILE)["types"] == {"held": "bf16", "computing": precision}
    card = read_card(follow(run / "best"))
    assert card is not None
    assert (card.dtype, card.computing) == ("bfloat16", kind)
    move(not has_bf16)
    opened = glmtune.load_model(run, device="cpu")
    assert (opened.dtype, computes_in(opened)) == (torch.bfloat16, getattr(torch, kind))
    assert "as it was trained" in said()
    checks = {check.name: check.found for check in verify(run, device="cpu")}
    named = "bfloat16" if has_bf16 else "bfloat16 computed in float32"
    assert f"({named}, saved in {named})" in checks["logits"]
    glmtune.evaluate(
        {
            "model": str(run),
            "device": "cpu",
            "output": tmp_path / "scores",
            "data": {"test": ADVERTS},
            "evaluate": {"max_rows": 2, "max_new_tokens": 2},
        }
    )
    facts = read_json(tmp_path / "scores" / SETTINGS_FILE)
    assert facts["dtype"] == ("bf16" if has_bf16 else "bf16 computed in fp32")
    opened = load_location(resolve(run), template=None, dtype="auto", device="cpu")  # as chat does
    assert (opened.dtype, computes_in(opened)) == (torch.bfloat16, getattr(torch, kind))


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("method", ["lora", "freeze"])
def test_fp32_arithmetic_on_half_precision_is_proven_as_exactly_as_in_fp32(
    has_bf16: bool, method: str, base: Path, tmp_path: Path, move: Move
) -> None:
    move(has_bf16)
    words = ("train.precision=fp32", f"method.name={method}", *LAYERS.get(method, ()))
    run = drain(training(recipe(base, tmp_path / "run", *words))).path
    card = read_card(follow(run / "best"))
    assert card is not None
    assert (card.dtype, card.computing) == ("bfloat16", "float32")
    opened = glmtune.load_model(run, device="cpu")
    assert allowed_share(card, opened) == SAME[torch.float32]
    checks = {check.name: check for check in verify(run, device="cpu")}
    assert checks["logits"].proves_effect


@pytest.mark.parametrize("has_bf16", [True, False])
def test_what_is_set_is_held_and_computed_on_any_processor(
    has_bf16: bool, base: Path, tmp_path: Path, move: Move
) -> None:
    move(has_bf16)
    usual = "bf16" if has_bf16 else "fp32"
    for number, (words, dtype, precision) in enumerate(
        [
            (["dtype=fp32"], "fp32", "fp32"),
            (["dtype=bf16"], "bf16", usual),
            (["train.precision=bf16"], "bf16", "bf16"),
            (["train.precision=bf16", "dtype=fp32"], "fp32", "bf16"),
        ]
    ):
        run = drain(training(recipe(base, tmp_path / str(number), "train.steps=1", *words))).path
        settled = load_recipe(run / "recipe.yaml")
        assert (settled.dtype, settled.train.precision) == (dtype, precision)
        glmtune.load_model(run, device="cpu")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_fp16_is_rounded_to_bf16_for_products_in_that_alone(
    has_bf16: bool, fp16_base: Path, tmp_path: Path, move: Move
) -> None:
    move(has_bf16)
    usual = ("bf16", "bf16") if has_bf16 else ("fp16", "fp32")
    for words, types in (((), usual), (("train.precision=fp32",), ("fp16", "fp32"))):
        run = drain(training(recipe(fp16_base, tmp_path / str(len(words)), "train.steps=1", *words))).path
        settled = load_recipe(run / "recipe.yaml")
        assert (settled.dtype, settled.train.precision) == types
        assert read_json(run / ENVIRONMENT_FILE)["types"] == {"held": types[0], "computing": types[1]}
        move(not has_bf16)
        opened = glmtune.load_model(run, device="cpu")
        assert (opened.dtype, computes_in(opened)) == tuple(DTYPES[name] for name in types)
        move(has_bf16)


@pytest.mark.usefixtures("warm_processes")
def test_a_merge_is_made_into_the_stored_weights_not_into_those_that_were_rounded_for_training(
    fp16_base: Path, tmp_path: Path, move: Move
) -> None:
    move(True)
    run = drain(training(recipe(fp16_base, tmp_path / "run"))).path
    out = glmtune.export(run, to="merged", output=tmp_path / "out").path
    adapter = stored_tensors(follow(run / "best"))
    before, after = (
        {name: read_stored(held) for name, held in scan_tensors(folder).items()}
        for folder in (fp16_base, out)
    )
    scaling = 4.0  # the default: alpha 32, r 8
    for name, weight in before.items():
        factors = [f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight" for side in "BA"]
        if factors[0] not in adapter:
            assert torch.equal(after[name], weight)
            continue
        b, a = (adapter[factor].float() for factor in factors)
        exact = weight.float() + scaling * (b @ a)
        assert after[name].dtype == torch.float16
        error = float((after[name].float() - exact).abs().max() / exact.abs().max())
        assert error < torch.finfo(torch.float16).eps  # a tenth of bf16's


def test_a_run_goes_on_in_its_type_on_another_processor(base: Path, tmp_path: Path, move: Move) -> None:
    move(False)
    whole, parts = (recipe(base, tmp_path / name) for name in ("whole", "parts"))
    drain(training(whole))
    interrupted = training(parts)
    while not isinstance(next(interrupted), Saved):
        pass
    interrupted.close()
    move(True)
    events = list(training(parts, resume=True))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("1 process on cpu, fp32" in note for note in notes)
    assert not any("so far" in note for note in notes)
    losses = [
        [line["loss"] for line in read_json_lines(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_run_that_recorded_no_type_says_what_changes(base: Path, tmp_path: Path, move: Move) -> None:
    move(True)
    begun = training(recipe(base, tmp_path / "run"))
    while not isinstance(next(begun), Saved):
        pass
    begun.close()
    file = tmp_path / "run" / "recipe.yaml"
    text = file.read_text(encoding="utf-8").replace("dtype: bf16", "dtype: auto")
    file.write_text(text.replace("precision: bf16", "precision: auto"), encoding="utf-8")
    move(False)
    notes = [
        e.text
        for e in training(load_recipe(file, [f"output={tmp_path / 'run'}"]), resume=True)
        if isinstance(e, Note)
    ]
    assert any("the base was computed in bfloat16 so far, from here in float32" in note for note in notes)


@pytest.mark.usefixtures("warm_processes")
def test_an_export_keeps_the_stored_type_whatever_it_was_computed_in(
    base: Path, tmp_path: Path, move: Move
) -> None:
    move(False)
    run = drain(training(recipe(base, tmp_path / "run"))).path
    out = glmtune.export(run, to="merged", output=tmp_path / "out").path
    assert {stored.dtype for stored in scan_tensors(out).values()} == {torch.bfloat16}
    wide = glmtune.export(run, to="merged", output=tmp_path / "wide", dtype="fp32").path
    assert {stored.dtype for stored in scan_tensors(wide).values()} == {torch.float32}
