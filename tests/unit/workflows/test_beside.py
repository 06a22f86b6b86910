"""Answers beside a run: with less memory they say the same, and the forecast knows their memory."""

from pathlib import Path

import torch

from glmtune.conversation import encode_messages
from glmtune.general import held_out_prompts
from glmtune.generate import Sampling, complete
from glmtune.generate.beside import ROWS, SHARE, column_bytes, engine_beside
from glmtune.load import load_model, load_tokenizer
from glmtune.processor import imagining
from glmtune.recipe import load_recipe
from glmtune.workflows.beside import bytes_beside
from glmtune.workflows.events import drain
from glmtune.workflows.imagining import imagine_run, types_on
from glmtune.workflows.plan import planning

ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
NEW = 24


def answer(free: int) -> tuple[list[list[int]], int]:
    """The answers to general prompts with so many bytes free, and the most bytes of keys and values."""
    model, tokenizer = load_model("glm-tiny", dtype="fp32", device="cpu"), load_tokenizer("glm-tiny")
    prompts = [
        encode_messages(tokenizer, [{"role": "user", "content": prompt.turns[0]}])
        for prompt in held_out_prompts()[: ROWS + 8]
    ]
    with imagining(has_bf16=False, free=free):
        engine = engine_beside(model)
    most, step = 0, engine.step

    def watched() -> list:  # type: ignore[type-arg]
        nonlocal most
        tokens = step()
        most = max(most, sum(part.nbytes for layer in engine.rows.layers for part in layer))
        return tokens

    engine.step = watched  # type: ignore[method-assign]
    sampling = Sampling(do_sample=False, max_new_tokens=NEW)
    return complete(model, prompts, sampling, stop_ids=tokenizer.stop_ids, engine=engine), most


def test_with_less_memory_fewer_answer_at_once_and_say_the_same() -> None:
    free = SHARE * 2**20  # of which the cache, in blocks of columns, may take twice its share
    (many, widest), (few, narrow) = answer(2**40), answer(free)
    assert few == many
    assert narrow <= 2**21 < widest / 4


def test_the_forecast_covers_the_answers_of_the_report(tmp_path: Path) -> None:
    words = [
        f"data.train={ADVERTS}",
        f"output={tmp_path}",
        f"retain.max_new_tokens={NEW}",
        "samples.prompts=[]",
    ]
    plan = drain(planning(load_recipe({"model": "glm-tiny", "device": "cpu"}, words)))
    run = imagine_run(plan, types_on(plan, device="cpu", has_bf16=False, free=2**40))
    cpu = torch.device("cpu")
    told = bytes_beside(plan, run.model, run.need, device=cpu, free=2**40)
    _, taken = answer(2**40)
    assert taken <= told
    # with next to nothing free one row is answered at a time
    least = bytes_beside(plan, run.model, run.need, device=cpu, free=1)
    assert told - least >= (ROWS - 1) * NEW * column_bytes(run.model)


def test_a_run_without_answers_needs_no_memory_for_them(tmp_path: Path) -> None:
    words = [f"data.train={ADVERTS}", f"output={tmp_path}", "retain.report=off", "samples.prompts=[]"]
    plan = drain(planning(load_recipe({"model": "glm-tiny", "device": "cpu"}, words)))
    run = imagine_run(plan, types_on(plan, device="cpu", has_bf16=False, free=2**40))
    assert bytes_beside(plan, run.model, run.need, device=torch.device("cpu"), free=2**40) == 0
