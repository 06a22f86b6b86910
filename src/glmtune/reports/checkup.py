"""The checkup of a tuned model: answers to the questions that a user has of anyone's adapter or model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import hypot, sqrt
from typing import Any, Literal

from glmtune.reports.html.forgetting import describe_forgetting
from glmtune.reports.texts import Text, in_percent, text

FEWER_END = 0.1
"""Share of answers by which the tuned model may end fewer by itself than its base before it is told."""
QUESTIONS = ("does", "stops", "leaks", "forgot", "format", "opens")
RECORDED, GIVEN = "recorded", "given"
_RULES = {RECORDED: "checkup_rule_recorded", GIVEN: "checkup_rule_given"}
State = Literal["good", "odd", "bad", "plain"]

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one weight of the base."""

    name: str
    length: float
    """Length (Frobenius norm) of the difference."""
    of: float
    """Length of the base's weight."""

    @property
    def share(self) -> float:
        """Length of the difference as a share of the weight's."""
        return self.length / self.of if self.of else float(self.length > 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one of `QUESTIONS`."""

    question: str
    state: State
    words: Text


@dataclass(frozen=True, slots=True)
class Checkup:
    """The findings about a tuned model."""

    path: str
    base: str
    kind: str
    """Method, or `model`, and the program that made it."""
    template: str
    rule: str
    """Source of the chat format: `RECORDED`, `GIVEN`, or the rule by which the folder's files tell it."""
    system: str | None
    source_prefix: str
    command: str
    """The command that opens it for a chat."""
    changes: tuple[Change, ...]
    """Changed weights; empty for a prefix."""
    num_weights: int
    """Number of weights that could have changed: of an adapter those of its files, of a model all."""
    prefix_tokens: int
    """Length of a prefix in front of every layer's keys and values; 0 for the others."""
    unproven: tuple[str, ...]
    """Facts that nothing recorded could prove."""
    forgetting: Mapping[str, Any]
    """The content of forgetting.json (`evaluation.forgetting`)."""
    has_rows: bool
    """True if its training rows are at hand, so that their likeness can be looked for."""

    def replies(self) -> list[Reply]:
        """Return the reply to each of `QUESTIONS`."""
        answered = (*_does(self), *_stops(self.forgetting), *_leaks(self), *_forgot(self.forgetting))
        sent = {"system": self.system, "prefix": self.source_prefix}
        key = "checkup_format_taught" if any(sent.values()) else "checkup_format"
        words = {"template": self.template, **{name: repr(value or "") for name, value in sent.items()}}
        rule = text(_RULES.get(self.rule, "checkup_rule_files"))
        form = Text(text(key, rule=rule.en, **words).en, text(key, rule=rule.zh, **words).zh)
        return [*answered, Reply("format", "plain", form), Reply("opens", "plain", Text.of(self.command))]

    def layers(self) -> list[tuple[str, float]]:
        """Return how much of each layer has changed, as a share of its weights' length."""
        return [
            (name, sqrt(sum(each.length**2 for each in group)) / (hypot(*(each.of for each in group)) or 1.0))
            for name, group in _by_layer(self.changes)
        ]

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        replies = {
            reply.question: {"state": reply.state, "words": reply.words.en} for reply in self.replies()
        }
        return {"answers": replies, **asdict(self), "layers": dict(self.layers())}


def _by_layer(changes: Sequence[Change]) -> list[tuple[str, list[Change]]]:
    """Group changes by the number of their layer; those outside of layers by their own name."""

    def key(change: Change) -> tuple[int, str]:
        match = _LAYER.search(change.name)
        return (int(match[1]), f"{int(match[1])}") if match else (-1, change.name)

    return [(name, list(group)) for (_, name), group in groupby(sorted(changes, key=key), key)]


def _does(of: Checkup) -> list[Reply]:
    counts = {name: of.forgetting[name] for name in ("answers", "prompts")}
    answers = {"changed": f"{of.forgetting['changed_share']:.0%}", **counts}
    if of.prefix_tokens:
        return [Reply("does", "good", text("checkup_prefix", tokens=of.prefix_tokens, **answers))]
    changed = [each for each in of.changes if each.length]
    if not changed:  # of parts that are no weight of the base's files
        return [Reply("does", "plain", text("checkup_answers", **answers))]
    shares = [each.share for each in changed]
    words = text(
        "checkup_does",
        weights=len(changed),
        all=of.num_weights,
        low=in_percent(min(shares)),
        high=in_percent(max(shares)),
        **answers,
    )
    return [Reply("does", "good" if of.forgetting["kl"]["mean"] > 0 else "odd", words)]


def _stops(found: Mapping[str, Any]) -> list[Reply]:
    ended, repeated = found["ended_share"], found["repeated_share"]
    words = text(
        "checkup_stops",
        tuned=f"{ended['tuned']:.0%}",
        base=f"{ended['base']:.0%}",
        repeated=f"{repeated['tuned']:.0%}",
        of_base=f"{repeated['base']:.0%}",
    )
    return [Reply("stops", "bad" if ended["tuned"] < ended["base"] - FEWER_END else "good", words)]


def _leaks(of: Checkup) -> list[Reply]:
    if not of.has_rows:
        return [Reply("leaks", "plain", text("checkup_no_rows"))]
    leaked, answers = of.forgetting["leaked"], of.forgetting["answers"]
    words = text("checkup_leaks", tuned=leaked["tuned"], base=leaked["base"], answers=answers)
    return [Reply("leaks", "bad" if leaked["tuned"] > leaked["base"] else "good", words)]


def _forgot(found: Mapping[str, Any]) -> list[Reply]:
    states: Mapping[str, State] = {"kept": "good", "drifted": "odd", "forgot": "bad"}
    kept = describe_forgetting(found)
    assert kept is not None
    return [Reply("forgot", states[kept.verdict], kept.head)]
