"""The prompts and rows of a replay, before and after the base has answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glmtune import load_model, load_tokenizer
from glmtune.conversation import encode_messages
from glmtune.data.example import Example
from glmtune.errors import ConfigError, DataError
from glmtune.general import GeneralPrompt, replay_prompts
from glmtune.recipe import Recipe, load_recipe
from glmtune.templates import Message, Taught
from glmtune.workflows.base_answers import OWN_DISTRIBUTION, answer_prompts, seed_of
from glmtune.workflows.events import drain
from glmtune.workflows.plan import Plan, planning
from glmtune.workflows.replay import Replay, own_prompts, plan_replay, with_ratio
from glmtune.workflows.rows import SplitRows
from models import tiny_folder
from tiny import tiny_tokenizer

ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
TWO_TURNS = GeneralPrompt("en-multi_turn-01", "multi_turn", "en", ("A word?", "And another?"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), seq_length=1024)


def plan_of(model: Path, output: Path, *words: str) -> Plan:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 90},
        "retain": {"ratio": 0.1, "max_new_tokens": 8},
    }
    return drain(planning(load_recipe(values, words)))


def split(*questions: str) -> SplitRows:
    turns = ((Message("user", question), Message("assistant", "a")) for question in questions)
    return SplitRows([Example(messages, "rows:1") for messages in turns], [], (), {})


def settings(*words: str) -> Recipe:
    return load_recipe({"model": "m", "data": {"train": ADVERTS}}, words)


@pytest.mark.parametrize("words", ["epochs=1", "epochs=2", "epochs=2.5", "steps=4", "steps=10", "steps=30"])
def test_no_more_prompts_are_answered_than_the_run_draws_rows(
    model: Path, tmp_path: Path, words: str
) -> None:
    plan = plan_of(model, tmp_path / "run", f"train.{words}", "train.batch_size=8")
    assert plan.replay
    assert plan.replay.per_epoch == 10  # of 100
    assert plan.steps.epoch_rows == 100
    drawn = [row for step in range(1, plan.num_steps + 1) for row in plan.steps.rows_of(step)]
    replayed = sum(row.source == 1 for row in drawn)
    turns = [len(prompt.turns) for prompt in plan.replay.prompts]
    assert len(plan.replay.rows) == sum(turns) >= replayed > sum(turns[:-1])


def test_steps_that_draw_no_replay_leave_one_prompt(model: Path, tmp_path: Path) -> None:
    plan = plan_of(model, tmp_path / "run", "train.steps=1", "train.batch_size=1", "train.seed=1")
    assert plan.replay
    assert not any(row.source for row in plan.steps.rows_of(1))
    assert len(plan.replay.prompts) == 1


def test_every_row_of_the_task_is_drawn_once_beside_the_replay(model: Path, tmp_path: Path) -> None:
    steps = plan_of(model, tmp_path / "run").steps
    drawn = [row for step in range(1, steps.per_epoch + 1) for row in steps.rows_of(step)]
    of_task = [row.where for row in drawn if row.source == 0]
    assert len(of_task) == len(set(of_task)) == 90
    assert len(drawn) == 100


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 30, 45, 89, 90, 91, 500])
@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_an_epoch_with_replay_has_no_more_steps_than_its_rows_are_more(batch_size: int, ratio: float) -> None:
    replay = Replay((), [], round(90 * ratio / (1 - ratio)))
    before, whole = -(-90 // batch_size), 90 + replay.per_epoch
    rows = replay.batch_size(90, batch_size)
    assert batch_size <= rows <= -(-batch_size * whole // 90) + 1
    assert before <= -(-whole // batch_size)
    assert -(-whole // rows) * 90 <= before * whole


def test_a_replay_has_its_share_beside_a_mixture(model: Path, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "q", "response": "a"}\n' * 20, encoding="utf-8")
    sources = f"data.train=[{{path: {ADVERTS}, weight: 1}}, {{path: {tmp_path / 'b.jsonl'}, weight: 1}}]"
    plan = plan_of(model, tmp_path / "run", sources, "data.max_rows=null", "retain.ratio=0.2")
    assert plan.steps.draws and plan.replay
    one, other, replayed = plan.steps.draws
    assert abs(one - other) <= 1
    assert replayed == plan.replay.per_epoch == round((one + other) * 0.25)


def test_the_plan_counts_no_row_shorter_than_it_will_be(model: Path, tmp_path: Path) -> None:
    plan = plan_of(model, tmp_path / "run")
    assert plan.replay
    answers = answer_prompts(
        load_model(model),
        load_tokenizer(model),
        plan.replay.prompts,
        taught=Taught(),
        max_new_tokens=8,
        cache=None,
    )
    assert len(answers) == len(plan.replay.rows)
    for answer, row in zip(answers, plan.replay.rows, strict=True):
        if answer.turn == 1:  # half a character of an answer, shown as one, may make a later prompt longer
            assert len(answer.prompt_ids) + len(answer.answer_ids) <= len(row.input_ids)
        assert len(answer.answer_ids) <= 8


def test_each_turn_follows_the_base_own_answer_and_only_the_answer_is_learned(model: Path) -> None:
    base, tokenizer, taught = load_model(model), load_tokenizer(model), Taught(system="Be brief.")
    first, second = answer_prompts(base, tokenizer, [TWO_TURNS], taught=taught, max_new_tokens=8, cache=None)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "A word?"}]
    assert first.prompt_ids == encode_messages(tokenizer, messages, taught=taught)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And another?"}]
    assert second.prompt_ids == encode_messages(tokenizer, messages, taught=taught)
    row = second.row("replay.jsonl:2", 1)
    assert row.input_ids.tolist() == [*second.prompt_ids, *second.answer_ids]
    assert row.labels.tolist() == [-100] * len(second.prompt_ids) + second.answer_ids


def test_an_answer_is_the_same_whatever_else_is_asked(model: Path) -> None:
    base, tokenizer = load_model(model), load_tokenizer(model)
    how: dict[str, Any] = {"taught": Taught(), "max_new_tokens": 6, "cache": None}
    prompts = [*replay_prompts()[:5], TWO_TURNS]
    together = answer_prompts(base, tokenizer, prompts, **how)
    alone = [
        answer for prompt in reversed(prompts) for answer in answer_prompts(base, tokenizer, [prompt], **how)
    ]
    key = lambda answer: (answer.prompt.name, answer.turn)  # noqa: E731
    assert sorted(together, key=key) == sorted(alone, key=key)
    assert len({seed_of(answer.prompt_ids) for answer in together}) == len(together)
    assert not OWN_DISTRIBUTION.is_greedy


def test_prompts_that_begin_alike_share_the_answer_to_their_first_turn(model: Path) -> None:
    base, tokenizer = load_model(model), load_tokenizer(model)
    alike = GeneralPrompt("en-own-1", "own", "en", TWO_TURNS.turns[:1])
    first, _, again = answer_prompts(
        base, tokenizer, [TWO_TURNS, alike], taught=Taught(), max_new_tokens=6, cache=None
    )
    assert first.answer_ids == again.answer_ids


def test_rows_that_teach_an_identity_leave_its_prompts_out(model: Path) -> None:
    tokenizer = load_tokenizer(model)

    def categories(*questions: str) -> set[str]:
        recipe = settings("retain.ratio=0.5", "retain.max_new_tokens=4", "train.epochs=1")
        replay = plan_replay(recipe, tokenizer, split(*questions), 300)
        assert replay
        return {prompt.category for prompt in replay.prompts}

    assert "identity" in categories("What is a river?", "写一句广告词")
    assert categories("What is a river?", "写一句广告词") - categories("Who are you?") == {"identity"}


def test_own_prompts_are_lines_of_text_or_the_questions_of_rows(tmp_path: Path) -> None:
    lines, rows = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    lines.write_text("早上好\n\nGood morning\n早上好\n", encoding="utf-8")
    rows.write_text(
        '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},'
        ' {"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]}\n',
        encoding="utf-8",
    )

    def turns(path: Path) -> Sequence[tuple[str, ...]]:
        return sorted(prompt.turns for prompt in own_prompts(settings(f"retain.prompts={path}")))

    assert turns(lines) == [("Good morning",), ("早上好",)]
    assert turns(rows) == [("one", "two")]
    lines.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"retain\.prompts: .*mine\.txt: no prompt in it"):
        turns(lines)
    with pytest.raises(ConfigError, match=r"retain\.prompts: .*none\.txt: no such file"):
        turns(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"retain\.prompts: .*none\.jsonl: "):
        turns(tmp_path / "none.jsonl")


def test_a_model_without_a_chat_format_has_no_replay(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "chatglm3")
    tokenizer.template = None
    assert with_ratio(settings(), tokenizer).retain.ratio == 0
    with pytest.raises(ConfigError, match=r"retain\.ratio: 0\.1, but this model has no chat format"):
        with_ratio(settings("retain.ratio=0.1"), tokenizer)


def test_a_context_too_short_for_any_answer_is_refused(model: Path) -> None:
    recipe = settings("retain.ratio=0.1", "retain.max_new_tokens=2000")
    with pytest.raises(ConfigError, match=r"no prompt with an answer of 2000 tokens fits") as caught:
        plan_replay(recipe, load_tokenizer(model), split("q"), 20)
    assert "retain.max_new_tokens=32" in caught.value.hint
