"""The answers of samples.jsonl, question by question: before training and after it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a run: the user's turns, and the seed that its answers were drawn with."""

    turns: tuple[str, ...]
    seed: int | None
    """None: always the likeliest token."""


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """The model's answer to the last turn of a question."""

    text: str
    seconds: float | None
    """From the question to the last token, other questions answered meanwhile; None in older runs."""
    is_right: bool | None
    """None for a question that has no right answer."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """The untouched base's answer to a question, and that of the model at the end of its training."""

    asked: Asked
    before: SampleAnswer
    after: SampleAnswer

    def in_words(self) -> str:
        """Return question and answers as lines for a terminal."""
        drawn = "" if self.asked.seed is None else f" (drawn with seed {self.asked.seed})"
        lines = [f"asked: {' / '.join(self.asked.turns)}{drawn}"]
        for when, answer in (("before", self.before), ("after", self.after)):
            right = {True: ", right", False: ", wrong", None: ""}[answer.is_right]
            took = "" if answer.seconds is None else f" ({answer.seconds:.1f} s{right})"
            lines.append(f"    {when:6} {' '.join(answer.text.split())}{took}")
        return "\n".join(lines)


def group_answers(lines: Iterable[Mapping[str, Any]]) -> dict[Asked, dict[int, SampleAnswer]]:
    """Return the answers to each question by step; of a step that a resumed run repeated, the last."""
    answers: dict[Asked, dict[int, SampleAnswer]] = {}
    for line in lines:
        asked = Asked(tuple(line.get("turns") or [line["prompt"]]), line.get("seed"))
        answer = SampleAnswer(line["answer"], line.get("seconds"), line.get("is_right"))
        answers.setdefault(asked, {})[line["step"]] = answer
    return answers


def pair_answers(lines: Iterable[Mapping[str, Any]]) -> Iterator[AnswerPair]:
    """Yield the first and the last answer to each question that was asked before step 1 and later."""
    for asked, by_step in group_answers(lines).items():
        if (last := max(by_step)) and 0 in by_step:
            yield AnswerPair(asked, by_step[0], by_step[last])
