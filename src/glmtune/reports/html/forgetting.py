"""The page's part on what a model has kept of its base, from forgetting.json."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.evaluation.forgetting import nats
from glmtune.reports.texts import Text, text, text_or_name

MOST_EXAMPLES = 3
"""Answers shown: those furthest from the base's."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The page's part on forgetting."""

    verdict: str
    head: Text
    kl: str
    figures: list[tuple[Text, str, str]]
    """A figure's name, its value of the base and of the tuned model."""
    groups: list[tuple[Text, str, float]]
    """Of each category and language: its name, its divergence, and that in percent of the largest."""
    examples: list[tuple[str, str, str]]
    """A question, the base's answer and the tuned model's."""


def describe_forgetting(facts: Mapping[str, Any]) -> Kept | None:
    """Return the page's part; None without a report."""
    if not facts:
        return None
    kl, bounds = facts["kl"], facts["thresholds"]
    groups = [*facts["by"]["category"].items(), *facts["by"]["language"].items()]
    most = max([bounds["drifted"], *(of["kl"] for _, of in groups)]) or 1
    changed = sorted(
        (each for each in facts["compared"] if each["base"] != each["tuned"]), key=lambda each: -each["kl"]
    )
    return Kept(
        verdict=facts["verdict"],
        head=text(
            "kept_head",
            verdict=facts["verdict"],
            kl=nats(kl["mean"]),
            low=nats(kl["low"]),
            high=nats(kl["high"]),
            prompts=facts["prompts"],
            drifted=f"{bounds['drifted']:g}",
            forgot=f"{bounds['forgot']:g}",
        ),
        kl=nats(kl["mean"]),
        figures=list(_figures(facts)),
        groups=[
            (text_or_name("general", name), nats(of["kl"]), max(0.0, 100 * of["kl"] / most))
            for name, of in groups
        ],
        examples=[(each["question"], each["base"], each["tuned"]) for each in changed[:MOST_EXAMPLES]],
    )


def _figures(facts: Mapping[str, Any]) -> Iterator[tuple[Text, str, str]]:
    def both(key: str, form: str) -> tuple[str, str]:
        return f"{facts[key]['base']:{form}}", f"{facts[key]['tuned']:{form}}"

    yield text("kept_loss"), *both("loss", ".3f")
    yield text("kept_changed"), "–", f"{facts['changed_share']:.0%}"
    for key in ("ended_share", "repeated_share"):
        yield text(f"kept_{key}"), *both(key, ".0%")
    yield text("kept_leaked"), *both("leaked", "d")
    if task := facts.get("task"):
        if loss := task.get("loss"):  # older runs have none
            base, tuned = (f"{loss[of]:.3f}" for of in ("base", "tuned"))
            yield text("kept_task_loss", rows=task["rows"]), base, tuned
        yield text("kept_task", rows=task["rows"]), "–", nats(task["kl"]["mean"])
    if (perplexity := facts.get("training_perplexity_of_base")) is not None:
        yield text("kept_perplexity"), f"{perplexity:.4g}", "–"
    if identity := facts.get("identity"):
        names = ", ".join(map(str, identity["names"]))
        yield text("kept_hits", names=names), "–", f"{identity['hits']} / {identity['asked']}"
        yield text("kept_leaks", names=names), "–", f"{identity['leaks']} / {identity['unrelated']}"
