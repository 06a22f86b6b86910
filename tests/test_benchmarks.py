"""The benchmarks run, take turns on the same weights, and the page says what their results say."""

import json
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import (
    chat,
    decode,
    encode,
    evaluate,
    goals,
    laptop,
    llama,
    measure,
    memory,
    memory_cases,
    memory_gpu,
    models,
    prefill,
    processor,
    products,
    report,
    scores,
)

from closeness import assert_close

ROOT = Path(__file__).parents[1]

DRY = ["--rounds", "1", "--threads", "1", "--dry"]
SMALL = ["--shape", "test", "--rounds", "1", "--threads", "1"]  # kept by no run, dry or not
ADGEN = pytest.mark.shared
BITS = ("int8", "int4", "nf4")
RUNS: list[Any] = [
    pytest.param(
        decode.main,
        ["tiny", "--longest", "4", "--held-rows", "2", "--no-compile", *DRY],
        {"generate fp32", "ours fp32", "ours W8A8"},
        id="decode tiny",
    ),
    pytest.param(
        decode.main,
        ["1b", "--longest", "3", *SMALL],
        {"GlmForCausalLM.generate bf16", "ours bf16", "ours W8A8", "bandwidth, int8 weights"},
        id="decode 1b",
    ),
    pytest.param(
        decode.main,
        ["170m", "--rows", "3", "--longest", "3", *SMALL],
        {"generate fp32, batch 16", "ours bf16, all at once", "ours W8A8, all at once"},
        id="decode 170m",
        marks=ADGEN,
    ),
    pytest.param(
        decode.main,
        ["6b", "--longest", "2", "--all-rows", "5", *SMALL],
        {"ours bf16", "ours int8", "ours bf16, batch 32"},
        id="decode 6b",
    ),
    pytest.param(prefill.main, ["single", *SMALL], {"GlmForCausalLM bf16", "ours W8A8"}, id="prefill"),
    pytest.param(products.main, SMALL, {"int4, codes, 1 rows", "W8A8, 256 rows"}, id="products"),
    pytest.param(
        processor.main,
        ["product", "--calls", "1", *DRY],
        {"fp32, 512 rows", "bf16, 1 rows", "fp16, 1 rows", "W8A8, 512 rows"},
        id="product",
    ),
    pytest.param(
        processor.main,
        ["lora", "--steps", "2", *DRY],
        {"dtype=auto", "dtype=fp32", "dtype=bf16"},
        id="lora",
        marks=pytest.mark.slow,
    ),
    pytest.param(laptop.main, ["--steps", "2", *SMALL], {"step"}, id="laptop", marks=pytest.mark.slow),
    pytest.param(prefill.main, ["packed", *SMALL], {"GlmForCausalLM bf16"}, id="packed", marks=ADGEN),
    pytest.param(
        evaluate.main,
        ["--rows", "3", "--longest", "3", *SMALL],
        {"generate bf16, batch 16; packages", "ours bf16", "ours W8A8"},
        id="evaluate",
        marks=ADGEN,
    ),
    pytest.param(
        encode.main,
        ["chatglm3", "--num-rows", "40", *DRY],
        {"sentencepiece alone", "ours", "ours, 5 % over-long", "tokenizer(texts)"},
        id="encode",
        marks=ADGEN,
    ),
    pytest.param(
        scores.main,
        ["--num-pairs", "2", *DRY],
        {"thudm, official", "thudm, ours", "both, ours"},
        id="scores",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("main", "words", "sides"), RUNS)
def test_a_benchmark_runs_and_every_side_has_a_figure(
    main: Callable[[list[str]], Any], words: list[str], sides: set[str], tmp_path: Path
) -> None:
    found = main([*words, "--work", str(tmp_path)])
    record = found[0] if isinstance(found, list) else found
    assert sides <= set(record["sides"])
    assert all(len(figures) == 1 and figures[0] > 0 for figures in record["sides"].values())
    assert record["machine"]["threads"] == 1
    for name, value in record.get("checks", {}).items():
        assert value == 1 or "equal" not in name, name


@pytest.mark.slow  # a terminal of its own, as in cli/test_fuzz_chat.py
def test_the_chat_is_timed_to_its_first_token() -> None:
    assert 0 < chat.start_chat() < 600


def test_a_side_that_is_not_installed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "find_spec", lambda name: None if name == "gguf" else name)
    record = decode.main(["1b", "--longest", "1", *SMALL])
    assert record["skipped"]["llama.cpp q8_0"].startswith("gguf not installed: pip install")
    assert "gguf not installed" in report.write_page({"decode 1b": {"here": record}}, "en", "")


def test_sides_take_turns() -> None:
    order: list[str] = []
    sides = {name: measure.Probe(lambda name=name: order.append(name) or 1.0) for name in "ab"}
    assert measure.take_turns(sides, 2) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert order == ["a", "b", "a", "b"]


def lively(dtype: torch.dtype = torch.float32) -> Any:
    model = models.build_model("test", dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.mul_(5)
    return model


def test_transformers_class_computes_the_same_from_the_same_memory() -> None:
    model = lively()
    peer = models.as_glm(model)
    ids = torch.tensor([models.numbered_prompt(19)])
    with torch.inference_mode():
        assert_close(peer(input_ids=ids).logits, model(input_ids=ids).logits)
    own = model.get_output_embeddings().weight
    assert peer.get_output_embeddings().weight.data_ptr() == own.data_ptr()


def test_llama_cpp_computes_the_same_from_our_weights(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    model, prompt = lively(), models.numbered_prompt(19)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    for kind, error in (("F32", 5e-3), ("Q8_0", 5e-2)):  # its keys and values are fp16
        peer = llama.LlamaCpp(llama.make_gguf(model, tmp_path, kind=kind), 1)
        assert (peer.logits(prompt) - expected).norm() / expected.norm() < error
        peer.close()


@pytest.mark.parametrize("rows", [1, 4])
def test_generate_in_batches_and_the_engine_answer_alike(rows: int) -> None:
    model = lively()
    asked = models.Asked([models.numbered_prompt(n) for n in (5, 9, 3, 7)], [4, 2, 6, 3])
    assert models.generate(model, rows)(asked) == models.ours(model, rows)(asked)


def test_a_padded_forward_pass_and_the_packed_one_give_the_same_tokens() -> None:
    model = lively()
    asked = models.Asked([models.numbered_prompt(n) for n in (5, 9, 3)], [1, 1, 1])
    assert models.forward(models.as_glm(model))(asked) == models.ours(model)(asked)


def line(case: str = "decode 1b", **more: Any) -> dict[str, Any]:
    machine = {
        "processor": "p", "cores": 2, "memory_gib": 8, "instructions": ["i"], "threads": 2, "load": 0.1
    }  # fmt: skip
    sides = {"ours W8A8": [8.0, 10.0, 9.0], "llama.cpp q8_0": [10.0, 5.0, 10.0]}
    return {
        "case": case, "unit": "tokens/s", "when": "2026-01-01", "machine": machine, "rounds": 3,
        "settings": {}, "sides": sides, **more,
    }  # fmt: skip


def test_a_ratio_is_taken_round_by_round() -> None:
    assert goals.ratio("ours W8A8", "llama.cpp q8_0")(line()) == [0.8, 2.0, 0.9]


def test_the_better_side_is_compared_with() -> None:
    record = line(sides={"a": [1.0], "b": [2.0], "c": [8.0]})
    assert goals.ratio("c", ("a", "b"))(record) == [4.0]


def test_a_ratio_without_one_of_its_sides_is_not_measured() -> None:
    assert goals.ratio("ours W8A8", ("llama.cpp q8_0", "another"))(line()) == []


@pytest.mark.parametrize(("figure", "verdict"), [(12.0, "met"), (11.0, "**missed**")])
def test_a_goal_is_met_or_missed_by_the_median(figure: float, verdict: str) -> None:
    record = line(sides={"ours W8A8": [1.0, figure, 99.0], "llama.cpp q8_0": [10.0] * 3})
    page = report.write_page({"decode 1b": {"here": record}, "prefill 128": {"there": line()}}, "en", "")
    [row] = [text for text in page.splitlines() if "batch 1: W8A8 over llama.cpp" in text]
    assert row.endswith(f"| {figure / 10:.2g} (0.1 to 9.9) {verdict} | not measured |")


def test_a_time_is_met_from_below() -> None:
    goal = next(goal for goal in goals.GOALS if goal.case == "chat")
    assert goal.is_met([5.0], line())
    assert not goal.is_met([7.0], line())


def test_a_figure_taken_once_a_run_is_a_share_unless_told() -> None:
    run = line("laptop 6b", checks={"share of the peak": 0.51, "peak_gb": 7.7})
    judged = {
        goal.unit: goal.is_met(goal.figures(run), run) for goal in goals.GOALS if goal.case == run["case"]
    }
    assert judged == {"%": True, "GB": False}


def test_a_goal_that_differs_by_processor_speaks_only_of_the_kinds_it_names() -> None:
    sides = {"ours": [3.0], "peer fp32": [1.0]}
    old, new = ({**line()["machine"], "instructions": ["avx2", *more]} for more in ([], ["avx512_bf16"]))
    goal = goals.Goal("a", "three times", "三倍", goals.ratio("ours", "peer fp32"), {goals.HALF: 4})
    assert goal.limit(line("a", machine=old, sides=sides)) is None
    assert not goal.is_met([3.0], line("a", machine=new, sides=sides))


def test_a_machine_without_a_goal_has_that_said_in_its_cell() -> None:
    results = {"chat": {"old": line("chat", machine={**line()["machine"], "instructions": ["avx512_bf16"]})}}
    results["chat"]["old"]["sides"] = {"cold": [5.0]}
    [row] = [
        text for text in report.write_page(results, "en", "").splitlines() if "`glmtune demo`, at" in text
    ]
    assert row.endswith("| no goal |")


def test_the_newest_line_of_a_case_counts_on_each_machine(tmp_path: Path) -> None:
    plain = {"processor": "x86_64, Intel(R) Xeon(R) Processor", "instructions": ["avx2"]}
    tiles = {**plain, "instructions": ["avx2", "amx_int8"]}
    lines = [
        line(machine=plain, rounds=1),
        line("prefill 128", machine=plain),
        line(machine=tiles, rounds=4),
        line(machine=plain, rounds=2),
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    found = report.read_results(tmp_path)
    rounds = {case: {name: record["rounds"] for name, record in of.items()} for case, of in found.items()}
    assert rounds == {
        "decode 1b": {"Intel Xeon": 2, "Intel Xeon, AMX": 4},
        "prefill 128": {"Intel Xeon": 3},
    }


def test_a_capped_processor_is_a_machine_of_its_own_and_says_its_caps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in measure.CAPS:
        monkeypatch.delenv(name, raising=False)
    free = measure.describe_machine(1, "cpu")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    capped = measure.describe_machine(1, "cpu")
    assert "caps" not in free
    assert capped["caps"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert set(capped["instructions"]) <= {"avx2"}
    record = line(machine=capped)
    assert report.name_machine(record).endswith(", `ONEDNN_MAX_CPU_ISA=AVX2`")
    assert report.name_machine(line(machine=free)) != report.name_machine(record)
    page = report.write_page({"decode 1b": {report.name_machine(record): record}}, "en", "")
    assert "`ONEDNN_MAX_CPU_ISA=AVX2`; 1 threads" in page


def test_a_processor_that_counts_as_an_older_one_is_named_by_the_option_that_does_it() -> None:
    machine = {**line()["machine"], "instructions": ["avx2"], "caps": measure.OLDER["AVX2"]}
    assert report.name_machine(line(machine=machine)) == "p, `--cap AVX2`"


def test_a_run_is_kept_as_one_line_unless_it_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    words = ["single", "--tokens", "4", "--work", str(tmp_path), *SMALL]
    prefill.main(words)
    assert not list(tmp_path.glob("*.jsonl"))
    monkeypatch.setitem(models.SHAPES, "170m", models.SHAPES["test"])
    kept = prefill.main([*words, "--shape", "170m"])
    lines = (tmp_path / "prefill.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(text) for text in lines] == kept


@pytest.mark.parametrize("path", report.pages(), ids=lambda path: path.name)
def test_the_page_is_what_the_report_makes_of_the_results(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == report.pages()[path], "python -m benchmarks.report"


@pytest.mark.slow
def test_the_memory_of_each_thing_that_is_done_is_foretold_and_measured(tmp_path: Path) -> None:
    words = ["--shape", "test", "--threads", "1", "--work", str(tmp_path), "--case", "ptuning int4"]
    found = memory.main(words)["cases"]
    for name, facts in found.items():
        compared = memory.compare(name, facts)
        assert min(compared["predicted"], compared["measured"]) > 0
    assert len(found) == 2  # trained, and evaluated
    assert set(next(iter(found.values()))["measured"]) == {
        "loading", "evaluating", "answering samples", "step", "saving"
    }  # fmt: skip


def test_the_memory_cases_have_every_pair_that_there_is() -> None:
    untrained = set(product(["full", "freeze"], BITS))  # codes are not trained
    for one, other in combinations(("method", "quant", "length", "is_recomputed"), 2):
        pairs = {(getattr(case, one), getattr(case, other)) for case in memory_cases.PAIRS}
        every = product(*({pair[i] for pair in pairs} for i in (0, 1)))
        assert {pair for pair in every if pair not in pairs} <= untrained, (one, other)


@pytest.mark.slow
def test_the_memory_of_an_imitated_card_is_foretold(tmp_path: Path) -> None:
    words = [
        "--size",
        "tiny",
        "--dry",
        "--threads",
        "1",
        "--work",
        str(tmp_path),
        "--case",
        "6 GB: lora int4",
    ]
    [(name, facts)] = memory_gpu.main(words)["cases"].items()
    assert name == "6 GB: lora int4 4 x 128"
    assert sum(facts["phases"]["training"].values()) < facts["free"]
    assert facts["measured"]["resident"] > 0
