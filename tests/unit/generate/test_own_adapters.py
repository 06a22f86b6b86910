"""Requests under different adapters in one engine: each answers as if its adapter were the only one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from fuzz import examples
from glmtune import Adapters, load_model
from glmtune.errors import ConfigError
from glmtune.generate import Engine, Request, Sampling
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder
from tuned import METHODS, tune

NEW = 8
GREEDY = Sampling(do_sample=False, max_new_tokens=NEW)
HEADER = [(7 * i) % 80 + 5 for i in range(30)]
TEXTS = [[20, 21, 22, 23, 24, 25, 26], [40], [50, 51, 52, 60]]
EVERYWHERE = {
    "chatglm": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h", "lm_head"],
    "chatglm3": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h", "output_layer"],
    "GLM-4-hf": ["q_proj", "gate_up_proj", "down_proj", "lm_head"],
}


def base_folder(folder: Path, family: str) -> Path:
    if family == "chatglm":
        return tiny_v1_folder(folder)
    return tiny_folder(folder, lively=8) if family == "chatglm3" else tiny_hf_folder(folder, family)


class Alone:
    """What `generate` answers with one adapter at work, remembered."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.known: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}

    def answer(self, request: Request) -> list[int]:
        key = (request.adapter, tuple(request.prompt))
        if key not in self.known:
            ids = torch.tensor([list(request.prompt)])
            with self.adapters.using(request.adapter) as model:
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW,
                    do_sample=False,
                    eos_token_id=None,
                )
            self.known[key] = out[0, ids.shape[1] :].tolist()
        return self.known[key]


@pytest.fixture(scope="module", params=EVERYWHERE)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = Adapters(base_folder(folder / "base", request.param), dtype="fp32")
    for name in METHODS:
        if hasattr(adapters.model, "hold_prefix") or METHODS[name]["name"] != "ptuning":
            adapters.add(name, tune(folder / "base", folder / name, name), verify=False)
    targets = EVERYWHERE[request.param]
    everywhere = tune(folder / "base", folder / "everywhere", "lora", target_modules=targets)
    adapters.add("everywhere", everywhere, verify=False)
    return Alone(adapters)


@pytest.fixture
def chatglm3(tmp_path: Path) -> Adapters:
    """A base with a LoRA adapter and a prefix."""
    base = tiny_folder(tmp_path / "base", lively=8)
    adapters = Adapters(base, dtype="fp32")
    for name in ("lora", "short"):
        adapters.add(name, tune(base, tmp_path / name, name), verify=False)
    return adapters


def prompt_of(model: Any, text: Sequence[int]) -> list[int]:
    """The text, as a prompt of ChatGLM-6B where that is what the model is."""
    config = model.config
    return [*text, config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else list(text)


def requests_of(adapters: Adapters, texts: Sequence[Sequence[int]] = TEXTS) -> list[Request]:
    """Each text under each adapter and under none."""
    prompts = [prompt_of(adapters.model, text) for text in texts]
    return [Request(ids, GREEDY, adapter=name) for ids in prompts for name in (*adapters.names, None)]


def finish(engine: Engine, answers: dict[int, list[int]]) -> None:
    while not engine.is_idle:
        collect(engine, answers)


def collect(engine: Engine, answers: dict[int, list[int]]) -> None:
    for token in engine.step():
        answers[token.request].append(token.id)


def ask(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    answers: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    finish(engine, answers)
    return list(answers.values())


@pytest.mark.parametrize("max_rows", [64, 4])
def test_every_adapter_answers_beside_the_others_as_generate_does_with_it_alone(
    alone: Alone, max_rows: int
) -> None:
    requests = requests_of(alone.adapters)
    answers = ask(Engine(alone.adapters, max_rows=max_rows), requests)
    assert answers == [alone.answer(request) for request in requests]
    assert len({tuple(answer) for answer in answers[: len(alone.adapters.names) + 1]}) > 3


arrivals = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([*METHODS, "everywhere", None]),
        st.integers(0, len(HEADER)),
        st.lists(st.integers(5, 90), min_size=1, max_size=10),
        st.booleans(),
    ),
    min_size=1,
    max_size=7,
)


@given(
    arriving=arrivals,
    max_rows=st.integers(1, 5),
    max_prefill_tokens=st.sampled_from([1, 50, 4096]),
    reused_tokens=st.sampled_from([0, 200]),
)
@settings(max_examples=examples(25), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_an_answer_is_its_adapters_whatever_else_arrives_and_when(
    alone: Alone, arriving: Any, max_rows: int, max_prefill_tokens: int, reused_tokens: int
) -> None:
    adapters = alone.adapters
    engine = Engine(
        adapters, max_rows=max_rows, max_prefill_tokens=max_prefill_tokens, reused_tokens=reused_tokens
    )
    asked: dict[int, Request] = {}
    answers: dict[int, list[int]] = {}
    given_up: list[int] = []
    for wait, name, shared, rest, is_given_up in arriving:
        for _ in range(wait):
            collect(engine, answers)
        for number in given_up:
            engine.cancel(number)
        adapter = name if name in adapters.names else None
        prompt = prompt_of(adapters.model, [*HEADER[:shared], *rest])
        request = Request(prompt, GREEDY, adapter=adapter)
        number = engine.submit(request)
        asked[number], answers[number] = request, []
        given_up += [number] if is_given_up else []  # when the next one arrives
    finish(engine, answers)
    for number, request in asked.items():
        answer, whole = answers[number], alone.answer(request)
        assert answer == (whole[: len(answer)] if number in given_up else whole)
    assert engine.rows.num_bytes == 0


def test_a_text_kept_under_one_adapter_serves_no_other(alone: Alone) -> None:
    requests = requests_of(alone.adapters, [HEADER])
    engine = Engine(alone.adapters, reused_tokens=2000)
    computed = count_prompt_tokens(engine)
    theirs = [alone.answer(request) for request in requests]
    assert [ask(engine, [request])[0] for request in requests] == theirs
    assert computed == [len(request.prompt) for request in requests]
    computed.clear()
    assert ask(engine, requests[::-1]) == theirs[::-1]
    assert computed == [1] * len(requests)


def test_a_beginning_is_remembered_under_its_adapter(alone: Alone) -> None:
    model = alone.adapters.model
    if hasattr(model.config, "mask_ids"):
        pytest.skip("a context of ChatGLM-6B is reused whole or not at all")
    engine = Engine(alone.adapters)
    engine.remember(HEADER, adapter="lora")
    computed = count_prompt_tokens(engine)
    requests = [Request([*HEADER, 9, 10], GREEDY, adapter=name) for name in ("wide", "lora", None)]
    assert ask(engine, requests) == [alone.answer(request) for request in requests]
    assert computed == [32, 2, 32]


def count_prompt_tokens(engine: Engine) -> list[int]:
    """A list that gets the number of computed tokens of each prompt that the engine reads."""
    computed: list[int] = []
    prefill = engine.runner.prefill

    def counted(rows: Any, prompts: Any) -> Any:
        computed.extend(len(prompt.ids) - prompt.cached for prompt in prompts)
        return prefill(rows, prompts)

    engine.runner.prefill = counted  # type: ignore[method-assign]
    return computed


def test_the_base_is_read_once_a_step_whatever_the_adapters(alone: Alone) -> None:
    adapters = alone.adapters
    before = {p.data_ptr() for p in adapters.model.parameters()}
    engine = Engine(adapters)
    numbers = [engine.submit(request) for request in requests_of(adapters)]
    engine.step()
    layer = next(part for part in adapters.model.modules() if isinstance(part, LoraLayer))
    rows: list[int] = []
    hook = layer.get_base_layer().register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    try:
        tokens = engine.step()
    finally:
        hook.remove()
    assert rows == [len(numbers)] == [len(tokens)]
    assert {p.data_ptr() for p in adapters.model.parameters()} == before


def test_a_cancelled_request_frees_its_memory_and_leaves_the_others_as_they_are(alone: Alone) -> None:
    requests = requests_of(alone.adapters, [TEXTS[0]])
    long = Request(prompt_of(alone.adapters.model, [*range(5, 90)] * 2), GREEDY, adapter="lora")
    engine = Engine(alone.adapters)
    answers: dict[int, list[int]] = {engine.submit(request): [] for request in (long, *requests)}
    collect(engine, answers)
    before = engine.rows.num_bytes
    engine.cancel(0)
    assert engine.rows.num_bytes <= before // 2  # the columns of the long one
    del answers[0]
    engine.cancel(3)
    finish(engine, answers)
    del answers[3]
    assert answers == {n: alone.answer(request) for n, request in enumerate(requests, 1) if n != 3}
    assert engine.rows.num_bytes == 0


class Broken(Exception):
    pass


@pytest.fixture(params=["lora", "short", None])
def active(chatglm3: Adapters, request: pytest.FixtureRequest) -> Iterator[str | None]:
    chatglm3.use(request.param)
    yield request.param
    assert chatglm3.active == request.param


def test_the_active_adapter_is_at_work_again_after_every_step_and_after_an_exception(
    chatglm3: Adapters, active: str | None
) -> None:
    def fail(*_: object) -> None:
        raise Broken

    ids = torch.tensor([[5, 6, 7]])
    before = chatglm3.model(ids).logits
    engine = Engine(chatglm3)
    requests = requests_of(chatglm3)
    answers: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    for _ in range(2):
        collect(engine, answers)
        assert chatglm3.active == active
        assert torch.equal(chatglm3.model(ids).logits, before)
    part = chatglm3.model.transformer.encoder.layers[1].self_attention.query_key_value
    hook = part.register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        engine.step()
    hook.remove()
    assert torch.equal(chatglm3.model(ids).logits, before)
    assert not any(part._forward_hooks for part in chatglm3.model.modules())
    finish(engine, answers)
    single = Alone(chatglm3)
    assert list(answers.values()) == [single.answer(request) for request in requests]


def test_an_adapter_may_come_and_another_be_set_to_work_while_requests_are_answered(
    chatglm3: Adapters, tmp_path: Path
) -> None:
    engine = Engine(chatglm3, reused_tokens=500)
    requests = requests_of(chatglm3)
    answers: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    collect(engine, answers)
    chatglm3.add("dora", tune(tmp_path / "base", tmp_path / "dora", "dora"), verify=False)
    requests += requests_of(chatglm3)
    answers |= {engine.submit(request): [] for request in requests[len(answers) :]}
    collect(engine, answers)
    chatglm3.use("short")
    finish(engine, answers)
    single = Alone(chatglm3)
    assert list(answers.values()) == [single.answer(request) for request in requests]


def test_a_base_with_a_prefix_of_its_own_keeps_it_under_lora(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", lively=8)
    prefixed = load_model(base, dtype="fp32")
    torch.manual_seed(1)
    prefixed.attach_prefix(4)
    prefixed.save_pretrained(base)
    adapters = Adapters(base, dtype="fp32")
    for name in ("lora", "short"):
        adapters.add(name, tune(base, tmp_path / name, name), verify=False)
    requests, single = requests_of(adapters), Alone(adapters)
    engine = Engine(adapters, reused_tokens=500)
    for _ in range(2):
        assert ask(engine, requests) == [single.answer(request) for request in requests]


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_adapters_answer_together_on_a_quantised_base(quant: str, tmp_path: Path) -> None:
    base = tiny_folder(
        tmp_path / "base", lively=4, hidden_size=64, ffn_hidden_size=128, kv_channels=16
    )  # nf4 has blocks of 64
    adapters = Adapters(base, dtype="fp32", quant=quant)
    for name in ("lora", "dora", "short"):
        adapters.add(name, tune(base, tmp_path / name, name, quant), verify=False)
    requests, single = requests_of(adapters), Alone(adapters)
    answers = ask(Engine(adapters), requests)
    assert answers == [single.answer(request) for request in requests]
    assert any(len(set(answer)) > 3 for answer in answers)


def test_a_name_that_is_not_there_is_refused_when_it_is_asked_for(chatglm3: Adapters) -> None:
    engine = Engine(chatglm3)
    with pytest.raises(ConfigError, match="ads: no adapter of this name") as caught:
        engine.submit(Request([5, 6], GREEDY, adapter="ads"))
    assert caught.value.hint == "there are lora, short"
    with pytest.raises(ConfigError, match="ads: no adapter of this name"):
        engine.remember([5, 6], adapter="ads")
    assert engine.is_idle
    with pytest.raises(ConfigError, match="a model without names for adapters"):
        Engine(chatglm3.model).submit(Request([5, 6], GREEDY, adapter="lora"))


def test_a_compiled_step_is_refused_for_it_has_one_adapter_in_it(chatglm3: Adapters) -> None:
    with pytest.raises(ConfigError, match="compile_step"):
        Engine(chatglm3, compile_step=True)


def test_an_adapter_of_other_layers_than_linear_ones_answers_alone_only(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_folder(tmp_path / "base")
    settings = LoraConfig(r=4, target_modules=["word_embeddings"], init_lora_weights=False)
    get_peft_model(load_model(base, dtype="fp32"), settings).save_pretrained(tmp_path / "embedding")
    adapters = Adapters(base, dtype="fp32")
    adapters.add("embedding", tmp_path / "embedding", verify=False)
    with pytest.raises(ConfigError, match="embedding: adapts a Embedding") as caught:
        Engine(adapters).submit(Request([5, 6], GREEDY, adapter="embedding"))
    assert "Adapters.use(name)" in caught.value.hint
    adapters.use("embedding")
    assert len(ask(Engine(adapters.model), [Request([5, 6], GREEDY)])[0]) == NEW
