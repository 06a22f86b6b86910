"""The decoder against `model.generate` and against itself."""

import math

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from closeness import assert_close
from glmtune.errors import ConfigError
from glmtune.generate import Engine, Request, Sampling, complete, decode
from glmtune.generate.sampling import Draw, draw_tokens, score_tokens
from models import VOCABULARY, lively_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33]]
GREEDY = Sampling(do_sample=False, max_new_tokens=24)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return lively_model()


def generated(model: torch.nn.Module, prompt: list[int], **settings: object) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return out[0, len(prompt) :].tolist()


def test_greedy_answers_equal_generate(model: torch.nn.Module) -> None:
    ours = complete(model, PROMPTS, GREEDY, stop_ids=[])
    theirs = [generated(model, p, max_new_tokens=24, eos_token_id=None) for p in PROMPTS]
    assert ours == theirs
    assert all(len(set(answer)) > 3 for answer in ours)


def test_a_batch_equals_its_rows_one_by_one(model: torch.nn.Module) -> None:
    batch = complete(model, PROMPTS, GREEDY, stop_ids=[4, 40])
    assert batch == [complete(model, [p], GREEDY, stop_ids=[4, 40])[0] for p in PROMPTS]


def test_every_stop_token_stops_its_row_and_only_that(model: torch.nn.Module) -> None:
    free = complete(model, PROMPTS, GREEDY, stop_ids=[])
    stops = {free[0][3], free[1][7]}
    stopped = complete(model, PROMPTS, GREEDY, stop_ids=stops)
    for whole, cut in zip(free, stopped, strict=True):
        end = next((i for i, token in enumerate(whole) if token in stops), len(whole) - 1)
        assert cut == whole[: end + 1]


def test_a_repetition_penalty_equals_generate(model: torch.nn.Module) -> None:
    sampling = Sampling(do_sample=False, max_new_tokens=16, repetition_penalty=1.3)
    ours = complete(model, PROMPTS[1:2], sampling, stop_ids=[])[0]
    assert ours == generated(model, PROMPTS[1], max_new_tokens=16, eos_token_id=None, repetition_penalty=1.3)


def test_a_seed_makes_the_draw_repeatable(model: torch.nn.Module) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0, seed=7)
    first, second = (complete(model, PROMPTS, sampling, stop_ids=[]) for _ in range(2))
    assert first == second
    assert first != complete(
        model, PROMPTS, Sampling(max_new_tokens=12, temperature=1.0, seed=8), stop_ids=[]
    )


def test_the_model_is_left_in_the_mode_it_was_in(model: torch.nn.Module) -> None:
    model.train()
    steps = decode(model, PROMPTS[:1], GREEDY, stop_ids=[])
    next(steps)
    assert not model.training
    steps.close()
    assert model.training
    model.eval()


def test_an_interrupt_before_the_first_step_leaves_the_model_in_the_mode_it_was_in(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "remember", interrupt)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        complete(model, [[*range(1, 60), end] for end in (1, 2)], GREEDY, stop_ids=[])
    assert model.training
    model.eval()


def test_a_model_in_training_mode_is_refused(model: torch.nn.Module) -> None:
    engine = Engine(model)
    model.train()
    for refused in (lambda: engine.submit(Request([1])), lambda: engine.remember([1])):
        with pytest.raises(ConfigError, match="training mode"):
            refused()
    model.eval()
    engine.submit(Request([1]))


def test_a_model_that_was_cast_needs_a_new_engine() -> None:
    model = lively_model()
    engine = Engine(model)
    model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="cast or moved"):
        engine.submit(Request([1]))
    assert complete(model, PROMPTS, GREEDY, stop_ids=[])


@pytest.mark.parametrize("settings", [{"max_rows": 0}, {"reused_tokens": -1}, {"max_held_tokens": 0}])
def test_sizes_with_which_nothing_is_ever_answered_are_refused(
    model: torch.nn.Module, settings: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Engine(model, **settings)
    with pytest.raises(ConfigError, match="max_rows"):
        complete(model, PROMPTS, GREEDY, stop_ids=[], max_rows=0)


@pytest.mark.parametrize("name", ["max_rows", "max_prefill_tokens", "max_held_tokens", "reused_tokens"])
@pytest.mark.parametrize("size", [2.5, "8"])
def test_a_size_that_is_no_whole_number_is_refused(model: torch.nn.Module, name: str, size: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: must be a whole number, got {size!r}"):
        Engine(model, **{name: size})


def test_prompts_that_peft_has_learned_are_refused_and_not_ignored() -> None:
    model = get_peft_model(lively_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="PROMPT_TUNING"):
        complete(model, PROMPTS, GREEDY, stop_ids=[])


def test_an_engine_that_answers_already_is_refused_for_other_answers(model: torch.nn.Module) -> None:
    engine = Engine(model)
    first = decode(model, PROMPTS[:1], GREEDY, stop_ids=[], engine=engine)
    answer = [token for _, token in next(first)]
    with pytest.raises(ConfigError, match="still answering"):
        next(decode(model, PROMPTS[1:], GREEDY, stop_ids=[], engine=engine))
    answer += [token for pairs in first for _, token in pairs]
    assert answer == complete(model, PROMPTS[:1], GREEDY, stop_ids=[])[0]


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.6, "temperature": 1.0}, {"top_p": 1.0, "top_k": 5, "temperature": 0.7}]
)
def test_draws_follow_the_exact_probabilities(settings: dict[str, float]) -> None:
    sampling = Sampling(**settings)
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))
    probability = (logits / sampling.temperature).softmax(0)
    ordered, order = probability.sort(descending=True)
    kept = sampling.top_k or int(((ordered.cumsum(0) - ordered) < sampling.top_p).sum())
    expected = torch.zeros(VOCABULARY)
    expected[order[:kept]] = ordered[:kept] / ordered[:kept].sum()
    draws = 5000
    chances = score_tokens(logits[None], sampling).softmax(dim=-1)
    assert_close(chances[0], expected)
    draw = Draw(Sampling(seed=1, **settings), [], device=logits.device)
    drawn = torch.tensor([draw_tokens(logits[None], [draw])[0] for _ in range(draws)])
    assert_drawn_from(expected, drawn)


def assert_drawn_from(expected: torch.Tensor, drawn: torch.Tensor) -> None:
    """Chi-square of tokens drawn against probabilities (V,); 4.5 standard deviations allowed."""
    counts = drawn.bincount(minlength=VOCABULARY).float()
    assert counts[expected == 0].sum() == 0
    means = expected * len(drawn)
    likely = means >= 5
    chi_square = float(((counts - means)[likely] ** 2 / means[likely]).sum())
    freedom = int(likely.sum()) - 1
    assert freedom > 0
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom)


def test_tokens_of_a_batch_follow_the_exact_probabilities(model: torch.nn.Module) -> None:
    """Both tokens of 4000 answers, the second given the likeliest first; exact ones from a forward pass."""
    engine = Engine(model)
    prompt = PROMPTS[1]
    for seed in range(4000):
        engine.submit(Request(prompt, Sampling(temperature=0.5, top_p=0.9, max_new_tokens=2, seed=seed)))
    answers: list[list[int]] = [[] for _ in range(4000)]
    while not engine.is_idle:
        for token in engine.step():
            answers[token.request].append(token.id)
    likeliest = int(exact(model, prompt).argmax())
    seconds = [answer[1] for answer in answers if answer[0] == likeliest]
    assert len(seconds) > 400
    for drawn, before in ((seconds, [*prompt, likeliest]), ([answer[0] for answer in answers], prompt)):
        assert_drawn_from(exact(model, before), torch.tensor(drawn))


@torch.no_grad()
def exact(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Probabilities (V,) of the next token at temperature 0.5 and top_p 0.9, by definition."""
    ordered, order = (model(torch.tensor([ids])).logits[0, -1] / 0.5).softmax(0).sort(descending=True)
    kept = int(((ordered.cumsum(0) - ordered) < 0.9).sum())
    return torch.zeros(VOCABULARY).scatter(0, order[:kept], ordered[:kept] / ordered[:kept].sum())


def test_a_top_p_of_zero_is_greedy(model: torch.nn.Module) -> None:
    sampling = Sampling(top_p=0.0, temperature=1.0, max_new_tokens=8)
    assert complete(model, PROMPTS, sampling, stop_ids=[]) == [
        answer[:8] for answer in complete(model, PROMPTS, GREEDY, stop_ids=[])
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1}, {"temperature": 1e-40}, {"temperature": math.inf}, {"temperature": "0.8"},
        {"top_p": 1.5}, {"top_k": -1}, {"top_k": 2.5}, {"max_new_tokens": 0}, {"max_new_tokens": 2.5},
        {"repetition_penalty": math.nan}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_a_sampling_that_means_nothing_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sampling(**settings)
