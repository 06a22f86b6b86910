"""Replay: general prompts with the answers of the untouched base, mixed into each epoch of a run.

Planned with the longest rows that the answers may make; the base answers before the method is applied.
"""

import hashlib
import json
import math
import random
import re
import time
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.data.batches import Steps, collate
from glmtune.data.reader import SUFFIXES, read_dataset
from glmtune.data.row import TrainingRow
from glmtune.data.tables import is_hub_name
from glmtune.errors import ConfigError, DataError
from glmtune.files import read_text
from glmtune.general import GeneralPrompt, replay_prompts, teaches_identity
from glmtune.models.protocol import CausalLM
from glmtune.objectives import build_objective
from glmtune.objectives.teacher import record_likeliest
from glmtune.recipe import Recipe, TrainedPart, retain
from glmtune.recipe.train import DEFAULT_EPOCHS
from glmtune.run_files import REPLAY_FILE, read_json_lines
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.loop import mean_loss
from glmtune.workflows.base_answers import OWN_DISTRIBUTION, Answering, BaseAnswer, PromptTurns, cache_file
from glmtune.workflows.events import Answered, Event, Note, Working
from glmtune.workflows.rows import SplitRows

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

LEAST_CONTEXT = 512
"""Tokens of a context that has room for the built-in prompts and their answers."""
NAME = "replay"
"""Name of the replay among the sources of rows."""
FIRST = 10
"""Prompts that are answered before the rest is estimated."""
MOST_SHARE = 0.15
"""Share of a run's time that its replay may take to be answered."""
SHORT_S = 60.0
"""Seconds that it, or the report of forgetting, may take in any run."""
TIMED_TOKENS = 512
"""Tokens of the rows that a forward pass is timed with."""
OWN = "own"
"""Category of the user's own prompts."""


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """The replay of a run."""

    prompts: Sequence[GeneralPrompt]
    rows: list[TrainingRow]
    """One for each turn: as long as the answer may become, until the base has answered."""
    per_epoch: int
    """Rows of an epoch that are drawn from these."""
    answers: Sequence[BaseAnswer] = ()
    """Empty until the base has answered."""

    def batch_size(self, num_rows: int, asked: int) -> int:
        """Return the rows of a step: those asked for, or a few more where the replay would begin a step.

        24 rows, 24 a step, and 3 of replay would make two steps an epoch, the second of the rest: twice the
        steps, where they are to be an eighth more.
        """
        before, whole = -(-num_rows // asked), num_rows + self.per_epoch
        after = -(-whole // asked)
        return asked if after * num_rows <= before * whole else -(-whole // before)

    def note(self, epoch_rows: int, most_tokens: int) -> str:
        """Return a line for the plan: the replay's part of an epoch, and its cost before step 1."""
        start = (
            f"replay: {self.per_epoch:,} of the {epoch_rows:,} rows of an epoch "
            f"({self.per_epoch / epoch_rows:.1%}): general prompts"
        )
        if self.answers:
            answers = "1 answer" if len(self.answers) == 1 else f"{len(self.answers):,} answers"
            return f"{start}, with {answers} of the base in {REPLAY_FILE}"
        return (
            f"{start}; the base answers {len(self.prompts):,} of them before step 1, at most {most_tokens:,} "
            "tokens each (docs/forgetting.md; retain.ratio=0: no replay)"
        )


def with_ratio(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """Return the recipe with `retain.ratio` settled. Raises `ConfigError` for one that cannot be had."""
    ratio = recipe.retain.ratio
    if ratio and tokenizer.template is None:
        raise ConfigError(
            f"retain.ratio: {ratio:g}, but this model has no chat format in which it could answer prompts",
            hint="retain.ratio=0, or template=... if it has one",
        )
    if ratio is None:
        is_answering = (
            tokenizer.template is not None and (tokenizer.context or LEAST_CONTEXT) >= LEAST_CONTEXT
        )
        ratio = retain.DEFAULT_RATIO if is_answering and recipe.data.encoding == "chat" else 0.0
    return recipe.model_copy(update={"retain": recipe.retain.model_copy(update={"ratio": ratio})})


def plan_replay(
    recipe: Recipe, tokenizer: Tokenizer, rows: SplitRows, num_rows: int, run: Path | None = None
) -> Replay | None:
    """Return the replay of a run of `num_rows` rows an epoch, prompts of whole epochs; None without any.

    `run`: the folder of a run that goes on, whose answers are taken. Raises `ConfigError` and `DataError`.
    """
    ratio, source = recipe.retain.ratio or 0.0, len(recipe.data.sources)
    if not ratio:
        return None
    per_epoch = max(1, round(num_rows * ratio / (1 - ratio)))
    if run is not None:
        answers = read_replay(run)
        prompts = list(dict.fromkeys(answer.prompt for answer in answers))
        return Replay(prompts, _rows_of(answers, source), per_epoch, answers)
    settings = recipe.train
    passes = settings.epochs or DEFAULT_EPOCHS
    if settings.steps:
        batch_size = Replay((), [], per_epoch).batch_size(num_rows, settings.batch_size)
        passes = settings.steps / -(-(num_rows + per_epoch) // batch_size)
    pool = own_prompts(recipe) if recipe.retain.prompts else built_in_prompts(rows)
    answers = _imagine(recipe, tokenizer, pool, per_epoch * math.ceil(passes))
    if not answers:
        raise ConfigError(
            f"retain.ratio: {ratio:g}, but no prompt with an answer of {recipe.retain.max_new_tokens} tokens "
            f"fits into the {tokenizer.context} tokens that the model was made for",
            hint="retain.max_new_tokens=32, or retain.ratio=0",
        )
    prompts = list(dict.fromkeys(answer.prompt for answer in answers))
    return Replay(prompts, _rows_of(answers, source), per_epoch)


def as_drawn(replay: Replay | None, steps: Steps, num_steps: int) -> tuple[Replay | None, Steps]:
    """Return the replay without the prompts of which the first steps draw no row, and the steps of the rest.

    A replay that has been answered stays as it is.
    """
    if replay is None or replay.answers:
        return replay, steps
    source, own = replay.rows[0].source, steps.rows[: -len(replay.rows)]
    number = steps.num_of_source(source, num_steps)
    ends = list(accumulate(len(prompt.turns) for prompt in replay.prompts))
    kept = min(bisect_left(ends, number), len(ends) - 1)
    prompts, rows = replay.prompts[: kept + 1], replay.rows[: ends[kept]]
    return replace(replay, prompts=prompts, rows=rows), steps.with_rows([*own, *rows])


def _imagine(
    recipe: Recipe, tokenizer: Tokenizer, pool: Sequence[GeneralPrompt], num_rows: int
) -> list[BaseAnswer]:
    """Return as many answers as a run needs, or as the pool has, as long as they may become.

    Prompts whose answers would not fit into the model's context are left out.
    """
    questions, filler = PromptTurns(tokenizer, Taught.of(recipe.data)), tokenizer.encode_plain(".")[0]
    most, answers = recipe.retain.max_new_tokens, list[BaseAnswer]()
    for prompt in pool:
        if len(answers) >= num_rows:
            break
        turns = questions.longest(prompt, most, filler)
        if tokenizer.context is None or len(turns[-1]) + most <= tokenizer.context:
            answers += (
                BaseAnswer(prompt, turn, ids, [filler] * most, "", is_ended=False)
                for turn, ids in enumerate(turns, start=1)
            )
    return answers


def built_in_prompts(rows: SplitRows) -> list[GeneralPrompt]:
    """Return the built-in prompts; without those on the model's identity, if the rows teach another one."""
    questions = (message.content for row in rows.train for message in row.messages if message.role == "user")
    is_taught = teaches_identity(questions)
    return [prompt for prompt in replay_prompts() if not (is_taught and prompt.category == "identity")]


def own_prompts(recipe: Recipe) -> list[GeneralPrompt]:
    """Return the prompts of `retain.prompts`, in an order drawn with `data.split_seed`.

    Of a data file these are the user's turns of each row. Raises `ConfigError` and `DataError`.
    """
    path = recipe.retain.prompts
    assert path is not None
    if path.suffix in SUFFIXES or path.is_dir() or is_hub_name(path):
        try:
            examples = read_dataset(path, recipe.data).examples
        except DataError as err:
            raise DataError(f"retain.prompts: {err}", hint=err.hint) from None
        turns = [tuple(m.content for m in example.messages if m.role == "user") for example in examples]
    elif path.is_file():
        turns = [(line.strip(),) for line in read_text(path, is_given=True).splitlines()]
    else:
        raise ConfigError(
            f"retain.prompts: {path}: no such file, seen from {Path.cwd()}",
            hint="check the path; retain.prompts=null takes the built-in prompts",
        )
    unique = [each for each in dict.fromkeys(turns) if any(each)]
    if not unique:
        raise DataError(f"retain.prompts: {path}: no prompt in it", hint="write one a line")
    random.Random(recipe.data.split_seed).shuffle(unique)
    return [
        GeneralPrompt(f"{path.stem}-{i}", OWN, "zh" if re.search("[\u4e00-\u9fff]", each[0]) else "en", each)
        for i, each in enumerate(unique, start=1)
    ]


def answer_replay(plan: "Plan", base: CausalLM) -> Generator[Event, None, "Plan"]:
    """Let the untouched base answer the replay's prompts; return the plan with the rows that they make.

    Fewer are answered if that would take too large a share of the run. Answers that the run has, or an
    earlier one of this base has given, are taken.
    """
    replay, settings = plan.replay, plan.recipe.retain
    if replay is None:
        return plan
    if not replay.answers:
        sampling = replace(OWN_DISTRIBUTION, max_new_tokens=settings.max_new_tokens)
        cache = cache_file(plan.location.under.folder, base, plan.tokenizer, sampling)
        answering = Answering(
            base,
            plan.tokenizer,
            Taught.of(plan.recipe.data),
            sampling,
            cache=cache,
            processes=plan.processes.sharing,
        )
        prompts = yield from _answer(plan, base, answering, replay.prompts)
        answers = answering.of(prompts)
        replay = replace(
            replay, prompts=prompts, answers=answers, rows=_rows_of(answers, len(plan.recipe.data.sources))
        )
    if settings.targets == "likeliest":
        yield Working("recording probabilities")
        pad_id = plan.tokenizer.pad_token_id
        recorded = record_likeliest(base, replay.rows, processes=plan.processes.sharing, pad_id=pad_id)
        replay = replace(replay, rows=recorded)
    hashes = {**plan.row_hashes, "replay_sha256": hashlib.sha256(replay_text(replay).encode()).hexdigest()}
    steps = plan.steps.with_rows([*plan.rows.train.rows, *replay.rows])
    return replace(plan, replay=replay, steps=steps, row_hashes=hashes)


def _answer(
    plan: "Plan", base: CausalLM, answering: Answering, prompts: Sequence[GeneralPrompt]
) -> Generator[Event, None, Sequence[GeneralPrompt]]:
    """Answer as many of the prompts as the run's time allows; return these."""
    left = answering.unanswered(prompts)
    if not left:
        yield Note(f"replay: {_count(len(prompts))}, all answered by this base before")
        return prompts
    before = f", {len(prompts) - len(left):,} answered before" if len(left) < len(prompts) else ""
    yield Note(f"replay: the base answers {_count(len(left))}{before}")
    yield Working("answering general prompts")
    start = time.perf_counter()
    for done in answering.parts(left[:FIRST]):
        yield Answered(done, len(left))
    if len(left) > FIRST:
        each = (time.perf_counter() - start) / FIRST
        allowed = allowed_seconds(plan, base, MOST_SHARE)
        # all ranks take rank 0's number: their clocks differ
        most = int(plan.processes.firsts(max(FIRST, min(len(left), int(allowed / each)))))
        for done in answering.parts(left[:most]):
            yield Answered(done, most)
        if most < len(left):
            yield Note(
                f"replay: to answer {_count(len(left))} would take about {each * len(left):,.0f} s, more "
                f"than {MOST_SHARE:.0%} of the run: it has {most:,} of them, more often (retain.ratio=0: "
                "no replay)"
            )
    yield Note(f"replay: {_count(done)} answered in {time.perf_counter() - start:.1f} s")
    unanswered = set(answering.unanswered(prompts))
    return [prompt for prompt in prompts if prompt not in unanswered]


def _count(number: int) -> str:
    return "1 prompt" if number == 1 else f"{number:,} prompts"


def allowed_seconds(plan: "Plan", base: CausalLM, share: float) -> float:
    """Return the time that something beside the steps may take: a share of theirs, or `SHORT_S` if longer."""
    return max(SHORT_S, share * expected_seconds(plan, base))


def expected_seconds(plan: "Plan", base: CausalLM) -> float:
    """Return about how long the run's steps will take: its tokens, at the speed of a timed forward pass."""
    rows, num_tokens = list[TrainingRow](), 0
    for row in plan.rows.train.rows:
        rows.append(row)
        num_tokens += len(row.input_ids)
        if num_tokens >= TIMED_TOKENS:
            break
    objective = build_objective(base, plan.recipe.objective)
    batches = [collate(rows, plan.tokenizer.pad_token_id)]
    seconds = list[float]()
    for _ in range(2):  # memory is taken and kernels are chosen in the first
        start = time.perf_counter()
        mean_loss(objective, batches, plan.processes)
        seconds.append(time.perf_counter() - start)
    # the backward pass takes as long for the inputs' gradients, and once more for those of trained weights
    passes = 3 if plan.recipe.method.kept is TrainedPart.MODEL else 2
    lengths = [len(row.input_ids) for row in plan.steps.rows]
    all_tokens = sum(lengths) / len(lengths) * plan.steps.num_samples(plan.num_steps)
    return passes * seconds[-1] / num_tokens * all_tokens / plan.processes.sharing.number


def _rows_of(answers: Sequence[BaseAnswer], source: int) -> list[TrainingRow]:
    return [answer.row(f"{REPLAY_FILE}:{i}", source) for i, answer in enumerate(answers, start=1)]


def replay_lines(replay: Replay) -> Iterator[dict[str, object]]:
    """Yield the lines of replay.jsonl, one for each answer."""
    for answer in replay.answers:
        prompt = answer.prompt
        yield {
            "name": prompt.name,
            "category": prompt.category,
            "language": prompt.language,
            "turns": prompt.turns,
            "turn": answer.turn,
            "answer": answer.text,
            "is_ended": answer.is_ended,
            "prompt_ids": answer.prompt_ids,
            "answer_ids": answer.answer_ids,
        }


def replay_text(replay: Replay) -> str:
    """Return the content of replay.jsonl."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in replay_lines(replay))


def read_replay(run: Path) -> list[BaseAnswer]:
    """Return the answers that a run has in its replay.jsonl."""
    return [
        BaseAnswer(
            GeneralPrompt(line["name"], line["category"], line["language"], tuple(line["turns"])),
            *(line[name] for name in ("turn", "prompt_ids", "answer_ids", "answer", "is_ended")),
        )
        for line in read_json_lines(run / REPLAY_FILE)
    ]
