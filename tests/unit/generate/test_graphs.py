"""A captured step: what is replayed reads what it is given and writes where the rows lie now.

Here a capture is a stand-in that runs the step's Python again, into the memory that its first result has. The
real one, which keeps the kernels of the first run, is captured where there is a GPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmtune.generate import Engine, Request, Sampling
from glmtune.generate.graphs import Replay, StepGraphs, capture_on
from golden import read_golden
from models import lively_model, with_lora, with_prefix

REQUESTS = [
    Request(list(range(3, 3 + length)), Sampling(do_sample=False, max_new_tokens=new))
    for length, new in ((5, 70), (3, 9), (60, 20), (1, 4), (8, 15))
]


def answers_of(engine: Engine, requests: list[Request]) -> list[list[int]]:
    first = engine.submit(requests[0])
    for request in requests[1:]:
        engine.submit(request)
    answers: list[list[int]] = [[] for _ in requests]
    while not engine.is_idle:
        for token in engine.step():
            answers[token.request - first].append(token.id)
    return answers


def engine_with(capture: Any, model: Any) -> Engine:
    engine = Engine(model, max_rows=3)
    engine.rows.is_room_kept = True
    engine.runner.compiled = StepGraphs(engine.runner._step_whole, capture)
    return engine


class Captures:
    """Counts captures, and replays them on a CPU."""

    def __init__(self) -> None:
        self.count = self.replayed = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        self.count += 1
        result = run()

        def replay() -> None:
            self.replayed += 1
            result.copy_(run())

        return replay, result


def own_prompts(model: Any) -> list[Request]:
    """As prompts of ChatGLM-6B where that is what the model is."""
    config = model.config
    end = [config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else []
    return [Request([*asked.prompt, *end], asked.sampling) for asked in REQUESTS]


@pytest.mark.parametrize(
    "build",
    [
        lively_model,
        lambda: with_lora(lively_model()),
        lambda: with_prefix(lively_model()),
        lambda: read_golden("v1_late").model,
    ],
    ids=["chatglm2", "lora", "prefix", "chatglm"],
)
def test_replayed_steps_give_the_ids_of_plain_ones(build: Callable[[], Any]) -> None:
    model = build()
    captures = Captures()
    replayed = answers_of(engine_with(captures, model), own_prompts(model))
    assert replayed == answers_of(Engine(model), own_prompts(model))
    assert captures.replayed > 5 * captures.count


def test_a_graph_is_captured_once_for_each_number_of_rows_and_each_room() -> None:
    captures = Captures()
    engine = engine_with(captures, lively_model())
    engine.submit(Request([5, 6], Sampling(do_sample=False, max_new_tokens=200)))
    while not engine.is_idle:
        engine.step()
    assert captures.count == 3  # columns: 64, 128, 256
    assert captures.replayed == 199
    answers_of(engine, [Request([5, 6], Sampling(do_sample=False, max_new_tokens=100))])
    assert captures.count == 3  # the room is still there


def test_graphs_of_a_model_that_has_changed_are_let_go() -> None:
    captures = Captures()
    model = lively_model()
    engine = engine_with(captures, model)
    few = [Request([5, 6], Sampling(do_sample=False, max_new_tokens=3))]
    answers_of(engine, few)
    answers_of(engine, few)
    assert captures.count == 1
    with_lora(model)
    answers_of(engine, few)
    assert captures.count == 2


def test_graphs_of_rows_that_have_moved_are_let_go() -> None:
    captures = Captures()
    engine = engine_with(captures, lively_model())
    answers_of(engine, REQUESTS)
    graphs = engine.runner.compiled
    assert isinstance(graphs, StepGraphs)
    assert set(graphs.graphs) <= {1, 2, 4}
    assert captures.count > len(graphs.graphs)  # those of a smaller room are gone


@pytest.mark.gpu
@pytest.mark.parametrize("change", [lambda model: model, with_lora, with_prefix])
def test_a_cuda_graph_gives_the_ids_of_plain_steps(change: Callable[[Any], Any]) -> None:
    model = change(lively_model()).to("cuda")
    captured = engine_with(capture_on(torch.device("cuda")), model)
    assert answers_of(captured, REQUESTS) == answers_of(Engine(model), REQUESTS)
    assert answers_of(Engine(model, compile_step=True), REQUESTS) == answers_of(Engine(model), REQUESTS)
