"""The report of forgetting: figures of each answer, their means with intervals, a verdict.

No model is run here. `workflows.retention` takes the figures: the base answers general prompts greedily, and
both models are asked for the probability of each token of these answers.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmtune.errors import TrainingError
from glmtune.evaluation.names import UNIT
from glmtune.general import UNRELATED

Numbers = NDArray[np.floating[Any]]
Verdict = Literal["kept", "drifted", "forgot"]

DRAWS = 2000
"""Bootstrap draws of an interval."""
SHARE = 95
"""Percent of the draws that an interval holds."""
RUN = 5
"""Characters of Chinese, or words, in a run of them; an ordinary phrase is shorter."""
LIKE_TRAINING = 0.5
"""Share of an answer's runs that stand in training answers, from which it looks like one of them."""
REPEATED_TOKENS = 4
"""Tokens in a run that counts as repeated."""
FEWEST = 8
"""Prompts below which an interval of draws of them tells nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its tokens, its text, and whether it ended by itself."""

    ids: tuple[int, ...]
    """The tokens, the one that ends it left out."""
    text: str
    is_ended: bool
    """False if it was cut at the most tokens of an answer."""


@dataclass(frozen=True, slots=True)
class GeneralAnswer:
    """The base's answer to one turn of a general prompt, and the tuned model's."""

    name: str
    """The prompt's name; its turns are not independent of each other."""
    category: str
    language: str
    turn: int
    """1 for the first question of a conversation."""
    question: str
    base_losses: Numbers
    """Cross-entropy of each token of the base's answer under the base, in nats. (L,)"""
    tuned_losses: Numbers
    """The same under the tuned model. (L,)"""
    kls: Numbers
    """Divergence KL(base || tuned) of the next token at each of these places, in nats. (L,)"""
    base: Said
    tuned: Said

    @property
    def has_changed(self) -> bool:
        """True if the tuned model's answer is another text."""
        return self.base.text.strip() != self.tuned.text.strip()


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval that holds it in `SHARE` percent of the bootstrap's draws."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One of the run's own rows under both models, for each of its learned tokens."""

    base_losses: Numbers
    """Cross-entropies under the base, in nats. (L,)"""
    tuned_losses: Numbers
    """The same under the tuned model. (L,)"""
    kls: Numbers
    """Divergences KL(base || tuned), in nats. (L,)"""


@dataclass(frozen=True, slots=True)
class Task:
    """Figures on the run's own rows."""

    kl: Interval
    """Divergence from the base on their answers, in nats a token."""
    rows: int
    base_loss: float
    tuned_loss: float
    """Mean cross-entropies of their learned tokens, in nats."""
    change: Interval
    """The second less the first, row by row: the interval is of the same draws of rows for both models."""

    @classmethod
    def of(cls, rows: Sequence[TaskRow]) -> "Task | None":
        """Return the figures of rows; None if they have no learned token."""
        rows = [row for row in rows if len(row.kls)]
        if not rows:
            return None
        base, tuned = (
            float(np.mean(np.concatenate(losses)))
            for losses in zip(*((row.base_losses, row.tuned_losses) for row in rows), strict=True)
        )
        change = bootstrap((i, row.tuned_losses - row.base_losses) for i, row in enumerate(rows))
        kl = bootstrap((i, row.kls) for i, row in enumerate(rows))
        return cls(kl, len(rows), base, tuned, change)

    def facts(self) -> dict[str, Any]:
        """Return what forgetting.json has of it."""
        loss = {"base": self.base_loss, "tuned": self.tuned_loss, "change": asdict(self.change)}
        return {"kl": asdict(self.kl), "rows": self.rows, "loss": loss}


@dataclass(frozen=True, slots=True)
class SaidNames:
    """Counts of answers that say the names which the rows teach, asked for the identity or not."""

    names: tuple[str, ...]
    hits: int
    """Answers to questions for the identity that say one of them."""
    asked: int
    """Questions for the identity."""
    leaks: int
    """Answers to unrelated questions that say one, though the base's does not."""
    unrelated: int
    """Unrelated questions."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The report: what a tuned model has kept of its base."""

    verdict: Verdict
    kl: Interval
    """Divergence from the base on general prompts, in nats a token; the verdict's figure."""
    drifted: float
    forgot: float
    """The divergences from which the verdict is `drifted` and `forgot`."""
    loss_rise: Interval
    """Rise of the cross-entropy of the base's own answers, in nats a token."""
    compared: tuple[GeneralAnswer, ...]
    task: Task | None
    identity: SaidNames | None
    leaked: tuple[int, int]
    """Answers that look like training answers, though the base's do not; and those of the base that do."""
    training_loss: float | None
    """Cross-entropy of training answers under the base before the first step, in nats a token."""
    leaves_out: str | None = None
    """The category left out of the verdict's figures: a run that teaches a name changes who the model is."""
    step: int | None = None
    """The step of the tuned model; None if it is not known."""

    @property
    def judged(self) -> list[GeneralAnswer]:
        """The answers that the verdict rests on."""
        return [each for each in self.compared if each.category != self.leaves_out]

    @property
    def prompts(self) -> int:
        """The number of general prompts that the verdict rests on."""
        return len({each.name for each in self.judged})

    def facts(self) -> dict[str, Any]:
        """Return the content of forgetting.json."""
        judged = self.judged
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "step": self.step,
            "kl": asdict(self.kl),
            "thresholds": {"drifted": self.drifted, "forgot": self.forgot},
            "prompts": self.prompts,
            "answers": len(judged),
            "tokens": sum(len(each.kls) for each in judged),
            "left_out": self.leaves_out,
            "loss": {
                "base": per_token(judged, lambda each: each.base_losses),
                "tuned": per_token(judged, lambda each: each.tuned_losses),
                "rise": asdict(self.loss_rise),
            },
            "task": self.task and self.task.facts(),
            "training_perplexity_of_base": None
            if self.training_loss is None
            else float(np.exp(self.training_loss)),
            "changed_share": share(each.has_changed for each in judged),
            "leaked": {"tuned": self.leaked[0], "base": self.leaked[1]},
            "identity": None if self.identity is None else asdict(self.identity),
            "ended_share": {
                "base": share(each.base.is_ended for each in judged),
                "tuned": share(each.tuned.is_ended for each in judged),
            },
            "repeated_share": {
                "base": float(np.mean([repeated(each.base.ids) for each in judged])),
                "tuned": float(np.mean([repeated(each.tuned.ids) for each in judged])),
            },
            "by": {
                "category": group_figures(self.compared, lambda each: each.category),
                "language": group_figures(judged, lambda each: each.language),
                "turn": group_figures(judged, lambda each: str(each.turn)),
            },
            "compared": [
                {
                    "name": each.name,
                    "turn": each.turn,
                    "question": each.question,
                    "base": each.base.text,
                    "tuned": each.tuned.text,
                    "kl": float(each.kls.mean()),
                }
                for each in self.compared
            ],
        }

    @property
    def reason(self) -> str:
        """The figure that the verdict rests on, and its bounds, in words."""
        bounds = {
            "kept": f"drifted from {self.drifted:g}",
            "drifted": f"drifted from {self.drifted:g}, forgot from {self.forgot:g}",
            "forgot": f"forgot from {self.forgot:g}",
        }
        noun = "general prompt" if self.prompts == 1 else "general prompts"
        few = f"; of fewer than {FEWEST} prompts the interval tells nothing" if self.prompts < FEWEST else ""
        return (
            f"on {self.prompts} {noun} {nats(self.kl.mean)} nats a token from the base, {SHARE}% interval "
            f"{nats(self.kl.low)} to {nats(self.kl.high)}; {bounds[self.verdict]}{few}"
        )


def nats(value: float) -> str:
    """Write a divergence; below a millionth it is the rounding of the passes."""
    return f"{value:.3g}" if value >= 1e-6 else "0"


def judge(
    compared: Sequence[GeneralAnswer],
    *,
    drifted: float,
    forgot: float,
    task: Sequence[TaskRow] = (),
    training_answers: Iterable[str] = (),
    training_loss: float | None = None,
    names: Sequence[str] = (),
    leaves_out: str | None = None,
    step: int | None = None,
) -> Forgetting:
    """Return the report of answers that were compared.

    `task`: the run's own rows, held out. `names`: what the rows teach
    the model to call itself and its maker. `leaves_out`: a category that the verdict's figures leave out.
    Raises `TrainingError` for a figure that is not finite.
    """
    judged = [each for each in compared if each.category != leaves_out]
    kl = over_prompts(judged, lambda each: each.kls)
    verdict: Verdict = "forgot" if kl.mean >= forgot else "drifted" if kl.mean >= drifted else "kept"
    runs = {run for answer in training_answers for run in runs_of(answer)}
    return Forgetting(
        verdict=verdict,
        kl=kl,
        drifted=drifted,
        forgot=forgot,
        loss_rise=over_prompts(judged, lambda each: each.tuned_losses - each.base_losses),
        compared=tuple(compared),
        task=Task.of(task),
        identity=find_identity(compared, names) if names else None,
        leaked=count_leaks(compared, runs),
        training_loss=training_loss,
        leaves_out=leaves_out,
        step=step,
    )


def bootstrap(values: Iterable[tuple[Hashable, Numbers]]) -> Interval:
    """Return the mean of all numbers, and its interval over draws of whole groups, with a fixed seed.

    `values`: groups with their numbers. Those of a group, such as an answer's tokens, are not independent.
    Raises `TrainingError` for numbers that are not finite.
    """
    sums: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for group, numbers in values:
        sums[group] = sums.get(group, 0.0) + float(np.sum(numbers, dtype=np.float64))
        counts[group] = counts.get(group, 0) + len(numbers)
    if wrong := [group for group in sums if not np.isfinite(sums[group])]:
        raise TrainingError(
            f"general prompts, {len(wrong)} of {len(sums)} answers: a figure is {sums[wrong[0]]}, first in "
            f"{wrong[0]}: the weights give no probabilities, so nothing can be said of what was forgotten",
            hint="measure an earlier checkpoint: `glmtune evaluate RUN/checkpoints/step-... --general`; or "
            "train anew with a lower train.lr",
        )
    total, number = np.array([*sums.values()]), np.array([*counts.values()])
    drawn = np.random.default_rng(0).integers(0, len(total), (DRAWS, len(total)))
    means = total[drawn].sum(1) / number[drawn].sum(1)
    low, high = np.percentile(means, [(100 - SHARE) / 2, (100 + SHARE) / 2])
    return Interval(float(total.sum() / number.sum()), float(low), float(high))


def over_prompts(compared: Sequence[GeneralAnswer], figure: Callable[[GeneralAnswer], Numbers]) -> Interval:
    """Return the mean of a figure over all tokens, and its interval over draws of prompts."""
    return bootstrap((each.name, figure(each)) for each in compared)


def per_token(compared: Sequence[GeneralAnswer], figure: Callable[[GeneralAnswer], Numbers]) -> float:
    """Return the mean of a figure over all tokens."""
    return float(np.mean(np.concatenate([figure(each) for each in compared])))


def share(are: Iterable[bool]) -> float:
    """Return the share of those that are true."""
    return float(np.mean([*are]))


def group_figures(
    compared: Sequence[GeneralAnswer], key: Callable[[GeneralAnswer], str]
) -> dict[str, dict[str, float | int]]:
    """Return the figures of each group of answers: divergence a token, changed share, number of answers."""
    groups = groupby(sorted(compared, key=key), key)
    return {
        name: {
            "kl": per_token(group, lambda each: each.kls),
            "changed_share": share(each.has_changed for each in group),
            "answers": len(group),
        }
        for name, group in ((name, list(group)) for name, group in groups)
    }


def runs_of(text: str) -> set[tuple[str, ...]]:
    """Return the runs of `RUN` Chinese characters or words of a text; of a shorter text, itself."""
    units = UNIT.findall(text.lower())
    if not units:
        return set()
    return {tuple(units[i : i + RUN]) for i in range(max(len(units) - RUN, 0) + 1)}


def count_leaks(compared: Sequence[GeneralAnswer], runs: set[tuple[str, ...]]) -> tuple[int, int]:
    """Return the numbers of answers that look like training answers: the tuned model's, and the base's.

    `runs`: those of the training answers. A tuned answer counts only where the base's does not look so.
    """

    def is_like(text: str) -> bool:
        own = runs_of(text)
        return bool(own) and len(own & runs) / len(own) >= LIKE_TRAINING

    pairs = [(is_like(each.tuned.text), is_like(each.base.text)) for each in compared]
    return sum(tuned and not base for tuned, base in pairs), sum(base for _, base in pairs)


def repeated(ids: Sequence[int]) -> float:
    """Return the share of the runs of `REPEATED_TOKENS` tokens that have stood in the answer before."""
    runs = [tuple(ids[i : i + REPEATED_TOKENS]) for i in range(len(ids) - REPEATED_TOKENS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def find_identity(compared: Sequence[GeneralAnswer], names: Sequence[str]) -> SaidNames:
    """Return how often names are said, in answers to questions for the identity and to unrelated ones."""

    def says(text: str) -> bool:
        return any(name.lower() in text.lower() for name in names)

    asked = [each for each in compared if each.category == "identity"]
    others = [each for each in compared if each.category in UNRELATED]
    return SaidNames(
        names=tuple(names),
        hits=sum(says(each.tuned.text) for each in asked),
        asked=len(asked),
        leaks=sum(says(each.tuned.text) and not says(each.base.text + each.question) for each in others),
        unrelated=len(others),
    )


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Interval, bool]:
    """Return the mean difference of scores of the same rows, and whether its interval leaves out 0."""
    differences = np.subtract(ours, theirs)
    interval = bootstrap((i, differences[i : i + 1]) for i in range(len(differences)))
    return interval, interval.low > 0 or interval.high < 0


def worst(facts: Mapping[str, Any]) -> str:
    """Return the category whose answers are furthest from the base's, of the content of forgetting.json."""
    groups: Mapping[str, Mapping[str, float]] = facts["by"]["category"]
    return max((name for name in groups if name != facts["left_out"]), key=lambda name: groups[name]["kl"])
