"""Ask a run's model its sample prompts, and the built-in questions before step 1 and at the end."""

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.conversation import answer_text, encode_messages
from glmtune.generate.beside import engine_beside
from glmtune.generate.engine import Engine
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Samples
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class SampleQuestion:
    """A prompt, or a conversation of several whose last answer counts."""

    turns: tuple[str, ...]
    """The user's turns, in order."""
    seed: int | None = None
    """Seed to draw the answer with, as families draw theirs; None: always the likeliest token."""
    number: int | None = None
    """The last number of a right answer; None if there is no right and wrong."""
    is_built_in: bool = True

    def sampling(self, max_new_tokens: int) -> Sampling:
        """Return the sampling settings of an answer of at most this many tokens."""
        if self.seed is None:
            return Sampling(do_sample=False, max_new_tokens=max_new_tokens)
        return Sampling(seed=self.seed, max_new_tokens=max_new_tokens)

    def describe(self, answer: str, seconds: float) -> dict[str, Any]:
        """Return the answer's line of samples.jsonl, without its step."""
        line: dict[str, Any] = {"prompt": self.turns[-1], "answer": answer, "seconds": round(seconds, 3)}
        if self.is_built_in:
            line |= {"built_in": True, "turns": list(self.turns), "seed": self.seed}
        if self.number is not None:
            numbers = NUMBER.findall(answer.replace(",", ""))
            line["is_right"] = numbers[-1:] == [str(self.number)]
        return line


QUESTIONS = (
    SampleQuestion(("你好，你是谁？",)),
    SampleQuestion(("What is your name, and who made you?",)),
    *(SampleQuestion(("请以“我打碎了夕阳”造句。",), seed=seed) for seed in (1, 2, 3)),
    SampleQuestion(
        ("从 1 到 980 的整数里，既不是偶数也不是 5 的倍数的有多少个？只回答一个数。",),
        number=392,
    ),
    SampleQuestion(("类型#裙*颜色#蓝色*风格#文艺*裙长#长裙",)),
    SampleQuestion(("请给我留三盒白茶。", "周日下午来拿，可以吗？")),
)
"""The built-in questions. Source: the before and after sets of the write-ups on tuning ChatGLM-6B, with a
contest problem of our own that has the same answer."""


def sample_questions(settings: Samples) -> list[SampleQuestion]:
    """Return the user's sample prompts."""
    return [SampleQuestion((prompt,), is_built_in=False) for prompt in settings.prompts]


def built_in_questions(settings: Samples) -> tuple[SampleQuestion, ...]:
    """Return the built-in questions; none if they or all samples are turned off."""
    return QUESTIONS if settings.built_in and settings.prompts else ()


def ask_questions(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Sequence[SampleQuestion],
    *,
    taught: Taught,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Answer all questions together; return their lines of samples.jsonl, without the step.

    Every process of a run has to call this: each may hold only a part of the weights.
    """
    if not questions:
        return []
    was_training = model.training
    model.eval()
    try:
        engine = engine_beside(model)
        messages: list[list[dict[str, str]]] = [[] for _ in questions]
        answers: list[tuple[str, float]] = [("", 0.0) for _ in questions]
        for turn in range(max((len(question.turns) for question in questions), default=0)):
            begun, asked = time.perf_counter(), {}
            for i, question in enumerate(questions):
                if turn < len(question.turns):
                    messages[i].append({"role": "user", "content": question.turns[turn]})
                    ids = encode_messages(tokenizer, messages[i], taught=taught)
                    request = Request(ids, question.sampling(max_new_tokens), tokenizer.stop_ids)
                    asked[engine.submit(request)] = i
            for number, ids in _finished(engine):
                text = answer_text(tokenizer, [token for token in ids if token not in tokenizer.stop_ids])
                i, format_ = asked[number], tokenizer.chat_format
                messages[i].append({"role": "assistant", "content": format_.remembered(text)})
                answers[i] = (format_.shown(text), time.perf_counter() - begun)
    finally:
        if was_training:
            model.train()
    return [question.describe(*answer) for question, answer in zip(questions, answers, strict=True)]


def _finished(engine: Engine) -> Iterator[tuple[int, list[int]]]:
    """Run the engine until it is idle; yield each request's number with the ids of its answer, once whole."""
    ids: dict[int, list[int]] = defaultdict(list)
    while not engine.is_idle:
        for token in engine.step():
            ids[token.request].append(token.id)
            if token.is_last:
                yield token.request, ids.pop(token.request)
