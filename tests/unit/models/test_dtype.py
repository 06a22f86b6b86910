"""Which types weights are held and computed in: by who asks, what was trained, and what the device can do."""

from pathlib import Path

import pytest
import torch

from glmtune.errors import ConfigError
from glmtune.models import choose_dtype, dtype
from glmtune.models.dtype import Choice, num_bytes, with_precision
from glmtune.models.shards import Stored, scan_tensors

CPU, CARD = torch.device("cpu"), torch.device("cuda")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SIZE = 1024**3
NO_BF16 = "this processor has no bf16 arithmetic"
GLM_TINY = Path(dtype.__file__).parents[1] / "glm_tiny"


def stored(held: torch.dtype, **others: torch.dtype) -> dict[str, Stored]:
    """One large tensor of a block, and small ones."""
    name = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    found = {name: Stored(Path("a"), name, (1024, 1024, 1024), held)}
    return found | {key: Stored(Path("a"), key, (2,), kind) for key, kind in others.items()}


@pytest.fixture(params=[True, False], ids=["with bf16", "without bf16"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU by its instructions; no card has bf16 that its CPU has not."""
    names = {"avx512_bf16": request.param, "avx512_fp16": False, "bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: names)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)
    set_free(monkeypatch, 100 * SIZE)
    return bool(request.param)


def name_of(kind: torch.dtype) -> str:
    """As torch calls it, and a card."""
    return str(kind).removeprefix("torch.")


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(dtype, "free_memory", lambda device: size)


@pytest.mark.parametrize("held", [BF16, FP16])
def test_half_precision_is_held_and_computed_in_bf16_on_a_cpu_that_has_it_else_as_stored_and_in_fp32(
    held: torch.dtype, has_bf16: bool
) -> None:
    expected = Choice(BF16, BF16) if has_bf16 else Choice(held, FP32, NO_BF16)
    assert choose_dtype("auto", stored(held), CPU) == expected


def test_fp32_stays_fp32_whatever_the_cpu_has(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 0)  # they are mapped from the file
    assert choose_dtype("auto", stored(FP32), CPU) == Choice(FP32, FP32)


def test_no_memory_is_asked_for_what_stays_in_its_file(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = choose_dtype("auto", stored(FP16), CPU)
    set_free(monkeypatch, 0)
    assert choose_dtype("auto", stored(FP16), CPU) == enough


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4", None])
def test_codes_are_computed_in_what_the_cpu_is_good_at(quant: str | None, has_bf16: bool) -> None:
    held = stored(FP16) if quant else stored(torch.int8, norm=FP16)
    found = choose_dtype("auto", held, CPU, quant=quant)
    assert (found.dtype, found.computing) == ((BF16, BF16) if has_bf16 else (FP16, FP32))


def test_a_buffer_of_whole_numbers_is_no_code(has_bf16: bool) -> None:
    found = choose_dtype("auto", stored(BF16, position_ids=torch.int64), CPU)
    assert found == choose_dtype("auto", stored(BF16), CPU)


@pytest.mark.parametrize("held", [FP32, BF16, FP16])
@pytest.mark.parametrize(
    ("trained", "computed"), [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP16, BF16), (FP16, FP32)]
)
def test_what_was_trained_is_opened_as_it_was_on_any_cpu(
    held: torch.dtype, trained: torch.dtype, computed: torch.dtype, has_bf16: bool
) -> None:
    names = {"trained": name_of(trained), "computed": name_of(computed)}
    found = choose_dtype("auto", stored(held), CPU, **names)
    assert (found.dtype, found.computing) == (trained, computed)
    untrained = choose_dtype("auto", stored(held), CPU)
    is_usual = (trained, computed) == (untrained.dtype, untrained.computing)
    assert ("as it was trained" in found.why) != is_usual
    is_slow = computed == BF16 and not has_bf16
    assert ("4 to 12 times" in found.why) == is_slow
    assert ("--dtype bf16" in found.why or "--dtype fp16" in found.why) == is_slow


@pytest.mark.parametrize("held", [BF16, FP16])
@pytest.mark.parametrize("computed", [BF16, FP32])
def test_decoding_is_hurried_where_the_types_are_those_that_the_cpu_takes_by_itself(
    held: torch.dtype, computed: torch.dtype, has_bf16: bool
) -> None:
    """So it is, or is not, in a run's samples as in the chat with what it trained."""
    precision = "bf16" if computed == BF16 else "fp32"
    sampled = with_precision(choose_dtype("auto", stored(held), CPU), precision, CPU)
    opened = choose_dtype("auto", stored(held), CPU, trained=sampled.name, computed=sampled.computing_name)
    assert opened.is_hurried == sampled.is_hurried == ((computed == BF16) == has_bf16)
    wide = choose_dtype("auto", stored(held), CPU, trained="float32", computed="float32")
    assert not wide.is_hurried


@pytest.mark.parametrize("trained", [FP32, BF16])
def test_a_card_of_earlier_versions_names_the_type_that_it_was_computed_in_too(
    trained: torch.dtype, has_bf16: bool
) -> None:
    found = choose_dtype("auto", stored(BF16), CPU, trained=name_of(trained))
    assert (found.dtype, found.computing) == (trained, trained)


def test_what_was_trained_in_a_type_that_cannot_be_had_says_what_changes(has_bf16: bool) -> None:
    on_cpu = choose_dtype("auto", stored(FP16), CPU, trained="float16")
    assert (on_cpu.dtype, on_cpu.computing) == ((BF16, BF16) if has_bf16 else (FP16, FP32))
    assert on_cpu.why.startswith("trained in fp16; CPUs are slow in it")
    on_card = choose_dtype("auto", stored(BF16), CARD, trained="bfloat16")
    assert on_card.dtype == on_card.computing == (BF16 if has_bf16 else FP16)
    assert on_card.why == ("" if has_bf16 else "trained in bf16; this card has no bf16")
    assert choose_dtype("auto", stored(FP16), CARD, trained="float32").why == "as it was trained"


@pytest.mark.parametrize(
    ("held", "computed"), [(BF16, FP32), (FP16, FP32), (FP16, BF16), (BF16, BF16), (FP32, FP32)]
)
def test_a_card_computes_what_a_cpu_trained_in_the_type_it_is_held_in(
    held: torch.dtype, computed: torch.dtype, has_bf16: bool
) -> None:
    names = {"trained": name_of(held), "computed": name_of(computed)}
    found = choose_dtype("auto", stored(held), CARD, **names)
    assert found.dtype == found.computing == (FP16 if held == BF16 and not has_bf16 else held)
    assert not found.is_hurried
    is_other = computed != found.computing
    assert (f"trained in {Choice(held, computed).computing_name}" in found.why) == is_other


@pytest.mark.parametrize("device", [CPU, CARD])
@pytest.mark.parametrize("held", [BF16, FP16])
def test_weights_too_large_for_the_fp32_of_their_training_are_computed_in_it_as_they_are_stored(
    held: torch.dtype, device: torch.device, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, SIZE)
    found = choose_dtype("auto", stored(held), device, trained="float32")
    assert (found.dtype, found.computing) == (held, FP32)
    assert found.why == "trained in fp32; fp32 takes 4.0 GiB where 0.8 GiB are to spare"
    kept = choose_dtype("auto", stored(FP32), device, trained="float32")
    assert (kept.dtype, kept.computing) == (FP32, FP32)


@pytest.mark.parametrize(("quant", "bits"), [("nf4", 4.25), ("int4", 4), ("int8", 8), (None, 32)])
def test_what_is_quantised_while_read_is_counted_as_codes(quant: str | None, bits: float) -> None:
    assert num_bytes(stored(FP16, word_embeddings=FP16), quant) == SIZE * bits / 8 + 2 * 4


@pytest.mark.parametrize("device", [CPU, CARD])
@pytest.mark.parametrize("quant", ["nf4", "int4", "int8"])
def test_codes_fit_where_the_weights_do_not(
    quant: str, device: torch.device, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, SIZE + SIZE // 2)
    assert choose_dtype("auto", stored(FP16), device, quant=quant, trained="float32").dtype == FP32


@pytest.mark.parametrize("held", [FP32, BF16, FP16])
def test_a_card_takes_the_stored_type_but_fp16_where_it_has_no_bf16(
    held: torch.dtype, has_bf16: bool
) -> None:
    found = choose_dtype("auto", stored(held), CARD)
    is_missing = held == BF16 and not has_bf16
    assert found == (Choice(FP16, FP16, "this card has no bf16") if is_missing else Choice(held, held))


def test_what_is_asked_for_is_held_and_computed_in_what_the_cpu_is_good_at(has_bf16: bool) -> None:
    assert choose_dtype("fp32", stored(BF16), CPU, trained="bfloat16") == Choice(FP32, FP32)
    half = (BF16,) if has_bf16 else (FP32, NO_BF16)
    assert choose_dtype("bf16", stored(FP32), CPU) == Choice(BF16, *half)
    assert choose_dtype(FP16, stored(FP16), CPU, trained="bfloat16") == Choice(FP16, *half)
    assert choose_dtype("fp16", stored(FP16), CARD) == Choice(FP16, FP16)


def test_a_choice_that_was_made_stays() -> None:
    made = Choice(FP16, FP32, "for a reason")
    assert choose_dtype(made, stored(BF16), CPU, trained="float32") == made


@pytest.mark.parametrize("device", [CPU, CARD])
def test_a_precision_is_what_half_precision_is_computed_in(device: torch.device, has_bf16: bool) -> None:
    for held in (BF16, FP16):
        base = choose_dtype("auto", stored(held), device)
        assert with_precision(base, base.computing_name, device) == base
        wide = with_precision(base, "fp32", device)
        assert (wide.dtype, wide.computing) == (held, FP32)  # nothing is rounded
    base = choose_dtype("auto", stored(BF16), CPU)
    forced = with_precision(base, "bf16", CPU)
    assert (forced.dtype, forced.computing) == (BF16, BF16)
    assert ("4 to 12 times" in forced.why) != has_bf16
    for asked in (
        choose_dtype("bf16", stored(FP16), CPU),
        choose_dtype("auto", stored(FP16), CPU, trained="bfloat16"),
    ):
        assert with_precision(asked, "fp32", CPU).dtype == BF16


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_held_in_fp32_stay_so_for_autocast_lowers_their_products(precision: str) -> None:
    base = Choice(FP32, FP32)
    assert with_precision(base, precision, CPU) == base


@pytest.mark.parametrize("requested", ["int8", "half", torch.int8, torch.float64])
def test_a_type_that_is_none_for_weights_is_refused(requested: str | torch.dtype) -> None:
    with pytest.raises(ConfigError, match="is not a type for weights"):
        choose_dtype(requested, stored(FP16), CPU)


def test_bf16_asked_of_a_card_without_it_is_refused(has_bf16: bool) -> None:
    if has_bf16:
        assert choose_dtype("bf16", stored(FP16), CARD) == Choice(BF16, BF16)
        return
    with pytest.raises(ConfigError, match=r"^dtype: bf16, but this card has no bf16") as caught:
        choose_dtype("bf16", stored(FP16), CARD)
    assert "dtype=fp16" in caught.value.hint


def test_the_size_in_fp32_is_told_from_headers() -> None:
    on_disk = sum(file.stat().st_size for file in GLM_TINY.glob("*.safetensors"))
    assert num_bytes(scan_tensors(GLM_TINY), None) == pytest.approx(2 * on_disk, rel=0.01)
