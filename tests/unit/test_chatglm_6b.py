"""ChatGLM-6B from the folder to the answer, in all three revisions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import glmtune
from closeness import assert_close
from commands import glmtune as run
from glmtune.conversation import encode_messages
from glmtune.generate import Sampling, complete
from models import tiny_folder, tiny_v1_folder

REVISIONS = ("early", "mid", "late")
GREEDY = Sampling(do_sample=False, max_new_tokens=12)
EXAMPLES = Path(__file__).parents[2] / "examples"
TALK = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "一加一？"},
]


class Unlikely(LogitsProcessor):
    """Keeps a random model from ids that have no text; finite, for the official chat replaces what is not."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.tensor(self.ids), -1e4)


@pytest.fixture(scope="module", params=REVISIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_v1_folder(tmp_path_factory.mktemp(request.param) / "v1", request.param)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    return glmtune.load_model(folder, dtype="fp32", device="cpu"), glmtune.load_tokenizer(folder)


def test_the_engine_answers_what_generate_does_and_a_batch_what_its_rows_do(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    prompts = [encode_messages(tokenizer, TALK[:n]) for n in (1, 3)]
    alone = [complete(model, [prompt], GREEDY, stop_ids=[])[0] for prompt in prompts]
    assert complete(model, prompts, GREEDY, stop_ids=[]) == alone
    for prompt, answer in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(ids, do_sample=False, max_new_tokens=12, min_new_tokens=12, eos_token_id=-1)
        assert out[0, len(prompt) :].tolist() == answer


def test_a_greedy_answer_is_what_reading_all_anew_for_each_token_gives(pair: tuple[Any, Any]) -> None:
    """Positions are counted from the ids here and advanced step by step there."""
    model, tokenizer = pair
    for n in (1, 3):
        prompt = encode_messages(tokenizer, TALK[:n])
        (answer,) = complete(model, [prompt], GREEDY, stop_ids=[])
        assert len(set(answer)) > 4, "the tiny model answers every position alike"
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == answer


def test_what_the_tokenizer_pads_is_read_as_its_rows_are_alone(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    texts = ["今天天气很好，我们一起去公园散步。", "你好"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    rows = [tokenizer(text, return_tensors="pt") for text in texts]
    with torch.no_grad():
        for logits, row in zip(model(**batch).logits, rows, strict=True):
            assert_close(logits[-1], model(**row).logits[0, -1])


def test_chat_keeps_pairs_and_stream_chat_ends_where_chat_does(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    history = [("你好", "你好！")]
    size = model.config.vocab_size
    silent = [i for i in range(size) if not tokenizer.decode([i]).strip("\ufffd ")]
    settings = {
        "do_sample": False,
        "max_length": len(encode_messages(tokenizer, TALK)) + 10,
        "logits_processor": LogitsProcessorList([Unlikely(silent)]),
    }
    answer, kept = model.chat(tokenizer, "一加一？", history=history, **settings)
    assert kept == [*history, ("一加一？", answer)]
    *_, (streamed, _) = model.stream_chat(tokenizer, "一加一？", history=history, **settings)
    assert streamed == answer != ""


def test_it_is_trained_evaluated_and_talked_to(folder: Path, tmp_path: Path) -> None:
    """LoRA on an int8 base; the run opens the same way, and its card says so."""
    data = EXAMPLES / "chat_history.jsonl"
    done = run(
        "train", f"model={folder}", f"data.train={data}", "data.max_rows=24", "train.steps=2", "quant=int8",
        "train.batch_size=4", "samples.max_new_tokens=4", "output=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "<eop>" in done.stdout.partition("what is learned of it:")[2]
    assert json.loads((tmp_path / "run/last/glmtune.json").read_text("utf-8"))["quant"] == "int8"
    scored = run(
        "evaluate", "run", "--data", data, "evaluate.max_rows=3", "evaluate.max_new_tokens=4", cwd=tmp_path
    )
    assert scored.returncode == 0, scored.stderr
    talk = run("chat", "run", "--rounds", 2, "--max-new-tokens", 4, cwd=tmp_path, typed="你好\n好\nstop\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.count("<|run|>: ") == 2


def test_a_two_round_row_is_two_examples_lest_the_first_answer_be_seen_from_both_sides(
    folder: Path, tmp_path: Path
) -> None:
    from glmtune.templates import messages_from_dicts, training_examples

    talk = messages_from_dicts([*TALK, {"role": "assistant", "content": "二。"}])
    examples = training_examples("chatglm", talk)
    assert len(examples) == 2
    for segments in examples:
        learned = [segment.is_target for segment in segments]
        start = next(i for i, segment in enumerate(segments) if segment.text == "<sop>")
        assert not any(learned[: start + 1])
        assert all(learned[start + 1 :])


@pytest.mark.parametrize("own", ["tokenizer", "model"])
def test_another_familys_tokenizer_is_refused(own: str, tmp_path: Path) -> None:
    v1, v3 = tiny_v1_folder(tmp_path / "v1"), tiny_folder(tmp_path / "v3")
    (v1 / "ice_text.model").rename(v3 / "ice_text.model")
    (v3 / "tokenizer.model").rename(v1 / "tokenizer.model")
    done = run("chat", v1 if own == "model" else v3, "--rounds", 1, cwd=tmp_path, typed="stop\n")
    assert done.returncode == 2
    assert "hint:" in done.stderr
    assert "tokenizer.model" in done.stderr or "ice_text.model" in done.stderr
    assert "Traceback" not in done.stderr
