"""The guide "How GLM works": the code that it links is there, and its numbers are the package's own."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from tools.pictures import computed, flash, infilling, masks, positions
from tools.pictures.__main__ import EXPLAINED
from tools.pictures.chat import SAMPLING

from glmtune import Chat
from glmtune.models.attention import eager_attention
from glmtune.models.chatglm_layout import build_mask
from glmtune.models.official_chat import InvalidScoreLogitsProcessor
from glmtune.reports.fonts import find_families
from test_docs import blocks, both
from test_methods_guide import size_of, table

ROOT = Path(__file__).parents[1]
PAGES = both("how-glm-works")
MIB = 2**20


@pytest.fixture(scope="module")
def text() -> str:
    return PAGES[0].read_text("utf-8")


@cache
def names_in(path: Path) -> set[str]:
    """The functions, classes, methods and constants of a file; methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_that_the_guide_links_is_there(page: Path) -> None:
    links = re.findall(r"\[`([^`]+)`\]\(\.\./([\w/]+\.py)\)", page.read_text("utf-8"))
    assert len(links) >= 40
    assert [(name, path) for name, path in links if name not in names_in(ROOT / path)] == []


def test_the_guides_python_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    [code], [shown] = blocks(PAGES[0], language="python"), blocks(PAGES[0], language="text")
    exec(code, {})
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("name", EXPLAINED)
def test_each_picture_stands_in_the_guide_of_its_language(name: str) -> None:
    for page, picture in zip(PAGES, (f"{name}.png", f"{name}.zh.png"), strict=True):
        assert f"](pictures/{picture})" in page.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["", ".zh"])
@pytest.mark.parametrize("name", EXPLAINED)
def test_a_picture_of_the_guide_is_drawn_by_the_script(name: str, language: str, tmp_path: Path) -> None:
    if language and find_families(["空白"]) is None:
        pytest.skip("no Chinese font here")
    EXPLAINED[name](bool(language)).save(tmp_path / "drawn.png")
    assert size_of(tmp_path / "drawn.png") == size_of(ROOT / "docs" / "pictures" / f"{name}{language}.png")


# Blanks, positions and masks


def test_part_a_sees_itself_and_part_b_sees_what_stands_before() -> None:
    blanks = computed.blank_out()
    seen = computed.seen_by(computed.tiny_chatglm(), blanks.ids)
    size, context = len(blanks.ids), blanks.num_context
    wanted = torch.ones(size, size, dtype=torch.bool).tril()
    wanted[:, :context] = True
    assert torch.equal(seen, wanted)
    built = build_mask(computed.V1, torch.tensor([blanks.ids]), None, past=0, width=size)
    assert built is not None
    assert torch.equal(seen, built[0, 0])


def test_part_b_has_every_word_that_part_a_lacks_and_predicts_the_next_one() -> None:
    blanks = computed.blank_out()
    words = [word for word in blanks.words if word is not None]
    assert sorted(words) == list(range(6))
    for column in range(blanks.num_context, len(blanks.ids)):
        target = blanks.targets[column]
        is_last = column + 1 == len(blanks.ids) or blanks.words[column + 1] is None
        assert target == (-1 if is_last else blanks.words[column + 1])


def test_a_blanks_words_are_placed_at_its_mask_and_counted_from_1() -> None:
    blanks = computed.blank_out()
    text = [(place, 0) for place in range(5)]
    assert blanks.positions == [*text, (4, 1), (4, 2), (4, 3), (2, 1), (2, 2)]
    assert positions.chat_positions() == [*text, (4, 1), (4, 2), (4, 3)]
    assert [infilling.names(blanks)[place] for place in (2, 4)] == ["[MASK]", "[MASK]"]


def test_chatglm_reads_both_ways_and_chatglm2_backwards() -> None:
    first, second = masks.first_mask(), masks.second_mask()
    assert first[: masks.NUM_CONTEXT, : masks.NUM_CONTEXT].all()
    assert not first[: masks.NUM_CONTEXT, masks.NUM_CONTEXT :].any()
    assert torch.equal(first[masks.NUM_CONTEXT :], torch.ones_like(first).tril()[masks.NUM_CONTEXT :])
    assert torch.equal(second, torch.ones_like(second).tril())


# Attention


def test_the_cache_takes_what_the_guide_says(text: str) -> None:
    model = computed.tiny_chatglm2()
    cache = model(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 2 * computed.cache_bytes(model.config, 3)  # the tiny model is fp32
    for config, each, whole in ((computed.V1, "448", "3,584"), (computed.V2, "28", "224")):
        assert computed.cache_bytes(config) == int(each) * 1024
        assert computed.cache_bytes(config, 8192) == int(whole.replace(",", "")) * MIB
        assert f"| {each} KiB |" in text
        assert f"| {whole} MiB |" in text


def test_the_scores_take_what_the_guide_says(text: str) -> None:
    said = " ".join(text.split())
    assert f"{flash.score_bytes() // 2:,} scores a layer" in said
    assert flash.score_bytes() == 4096 * MIB
    assert "4 GiB a layer" in said
    assert flash.kept_bytes() == MIB
    assert "1 MiB in place of 4 GiB" in said


def test_attention_block_by_block_is_attention() -> None:
    keys, values = (torch.tensor(row).view(1, 1, -1, 1) for row in (computed.SCORES, computed.VALUES))
    whole, _ = eager_attention(torch.nn.Identity(), torch.ones(1, 1, 1, 1), keys, values, None, scaling=1.0)
    last = computed.attend_in_blocks()[-1]
    assert last.output == pytest.approx(float(whole), rel=1e-6)
    assert last.largest == max(computed.SCORES)


# Codes, prefixes, LoRA


def rows_of(text: str, first: str) -> list[float]:
    found = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.MULTILINE)
    assert found
    return [float(cell) for cell in found[1].split("|")]


def test_the_worked_row_is_what_int8_makes_of_it(text: str) -> None:
    row = computed.quantise_row(8)
    assert rows_of(text, "weight") == list(computed.WEIGHTS)
    assert rows_of(text, "code") == row.codes
    assert rows_of(text, "code x scale") == pytest.approx(row.back, abs=1e-6)
    assert row.scale == pytest.approx(1.27 / 127)
    errors = [abs(back - weight) for back, weight in zip(row.back, computed.WEIGHTS, strict=True)]
    assert max(errors) <= row.scale / 2


def test_int4_is_as_coarse_as_the_guide_says(text: str) -> None:
    fine, coarse = computed.quantise_row(8), computed.quantise_row(4)
    said = " ".join(text.split())
    assert f"1.27 / 7 = {coarse.scale:.2f}" in said
    assert f"{coarse.scale / fine.scale:.0f} times as wide" in said
    assert all(-7 <= code <= 7 for code in coarse.codes)


def test_the_guides_counts_are_those_of_the_methods(text: str) -> None:
    counted = table()
    for method in ("`lora`, r = 8", "`ptuning`, 128 tokens"):
        for model in ("ChatGLM-6B", "ChatGLM2-6B, ChatGLM3-6B"):
            assert f"| {counted[method][model]:,} |" in text
    formulas = re.findall(r"\| (\d+ x [\d, x()+]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(formulas) == 4
    for formula, count in formulas:
        assert eval(formula.replace(",", "").replace("x", "*")) == int(count.replace(",", ""))


# A chat


def test_the_traced_answer_is_the_chats() -> None:
    trace = computed.trace_chat(SAMPLING)
    assert "".join(trace.answer).strip() == "".join(
        Chat.open("glm-tiny", do_sample=False).ask(computed.QUESTION)
    )
    plain, drawn = ([chance[i] for chance in trace.chances] for i in (1, 2))
    assert plain == sorted(plain, reverse=True)
    assert drawn[0] > plain[0]  # a temperature below 1 and top_p sharpen
    assert [text for text, is_control in trace.segments if not is_control][-1].strip() == computed.QUESTION


def test_scores_that_are_not_finite_give_token_5() -> None:
    scores = torch.tensor([[1.0, float("nan"), 2.0, 0.0, 0.0, 0.0]])
    assert InvalidScoreLogitsProcessor()(torch.zeros(1, 0), scores).tolist() == [[0, 0, 0, 0, 0, 5e4]]
