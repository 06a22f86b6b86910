"""The report of forgetting within a run: recorded before step 1, taken at the end, told in a few lines."""

import shlex
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.forgetting import FEWEST, SHARE, Forgetting, nats, worst
from glmtune.files import read_json_if_there
from glmtune.general import held_out_prompts
from glmtune.generate import Sampling, complete
from glmtune.log import is_main_process
from glmtune.models.protocol import CausalLM
from glmtune.recipe import Recipe
from glmtune.run_files import ENVIRONMENT_FILE, FORGETTING_FILE, write_json
from glmtune.templates import Taught
from glmtune.training.allocations import trim_heap
from glmtune.workflows import forgetting
from glmtune.workflows.base_answers import PromptTurns
from glmtune.workflows.events import Event, Note, Working
from glmtune.workflows.replay import allowed_seconds
from glmtune.workflows.retention import Reference, measure, record_reference

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

MOST_SHARE = 0.05
"""Share of a run's time that its report may take."""
TRIED, TRIED_TOKENS = 8, 8
"""Prompts, and tokens of their answers, that are timed."""
LITTLE_FALL, LITTLE_KL = 0.03, 0.01
"""Fall of the evaluation loss as a share of it, and divergence on the run's own rows, below which little was
learned."""
PROMPTS = "general_prompts"
"""Key in env.json: the number of prompts, kept when the run is resumed."""


def reference_of_run(plan: "Plan", base: CausalLM) -> Generator[Event, None, Reference | None]:
    """Record what the base of a run says; None if the run has no report, or has no time for it.

    The base is as it was loaded: nothing of the method has been applied to it.
    """
    if not forgetting.is_reported(plan.recipe):
        return None
    yield Working("timing answers to general prompts")
    settings, tokenizer = plan.recipe.retain, plan.tokenizer
    prompts = held_out_prompts()[: settings.report_prompts]
    number = _number_of_prompts(plan, base)
    if number < len(prompts):
        command = f"`glmtune evaluate {shlex.quote(str(plan.folder))} --general`"
        what = f"takes {number} of {len(prompts)} general prompts" if number else "is left out"
        yield Note(
            f"the report of forgetting {what}, by the time of {TRIED_TOKENS} tokens of an answer: it may "
            f"take {MOST_SHARE:.0%} of the run's time; {command} has all of it afterwards"
        )
    if not number:
        return None
    yield Working("asking the base")
    reference = record_reference(
        base,
        tokenizer,
        prompts[:number],
        folder=plan.location.folder,
        taught=Taught.of(plan.recipe.data),
        settings=settings,
        processes=plan.processes.sharing,
        train=plan.rows.train.rows,
        task=plan.rows.validation.rows[: settings.report_prompts],
        words=plan.recipe.data.words.values(),
    )
    trim_heap()
    return reference


def prompts_of(reference: Reference | None) -> dict[str, int]:
    """Return the number of general prompts as env.json keeps it; nothing without a report."""
    return {PROMPTS: len({answer.prompt.name for answer in reference.answers})} if reference else {}


def _number_of_prompts(plan: "Plan", base: CausalLM) -> int:
    """Return the number of prompts that there is time for; of a resumed run, as many as it began with."""
    wanted = len(held_out_prompts()[: plan.recipe.retain.report_prompts])
    if plan.is_resumed:
        begun = read_json_if_there(plan.folder / ENVIRONMENT_FILE, is_ours=True)
        return min(int(begun.get(PROMPTS) or 0), wanted)
    allowed = allowed_seconds(plan, base, MOST_SHARE)
    number = min(int(allowed / _seconds_of_prompt(plan, base)), wanted)
    # all ranks take rank 0's number: their clocks differ
    return int(plan.processes.firsts(number if number >= min(FEWEST, wanted) else 0))


def _seconds_of_prompt(plan: "Plan", base: CausalLM) -> float:
    """Return the time in which both models answer a prompt at full length, of a few timed tokens."""
    questions, seconds = PromptTurns(plan.tokenizer, Taught.of(plan.recipe.data)), list[float]()
    prompts = [ids for prompt in held_out_prompts()[:TRIED] if (ids := questions.following(prompt, {}))]
    complete(base, prompts[:1], Sampling(do_sample=False, max_new_tokens=1), stop_ids=())  # chooses kernels
    for tokens in (2, 2 + TRIED_TOKENS):
        sampling, start = Sampling(do_sample=False, max_new_tokens=tokens), time.perf_counter()
        complete(base, prompts, sampling, stop_ids=())
        seconds.append(time.perf_counter() - start)
    a_token = max(seconds[1] - seconds[0], 0.0) / TRIED_TOKENS
    return 2 * (seconds[0] + a_token * plan.recipe.retain.max_new_tokens) / len(prompts)


def report_of_run(
    model: CausalLM, reference: Reference | None, plan: "Plan", step: int
) -> Generator[Event, None, Forgetting | None]:
    """Take the report of a run's model at a step, and write forgetting.json; None without a reference."""
    if reference is None:
        return None
    yield Working("measuring what is forgotten")
    trim_heap()  # of the steps
    start = time.perf_counter()
    found = measure(model, plan.tokenizer, reference, step=step)
    if is_main_process():
        write_json(plan.folder / FORGETTING_FILE, found.facts())
    taken = time.perf_counter() - start
    yield Note(
        f"report of forgetting: taken in {taken:.1f} s; answers side by side: {plan.folder / FORGETTING_FILE}"
    )
    return found


def told(found: Forgetting) -> Iterator[Note]:
    """Yield the report in a few lines, the verdict first."""
    facts = found.facts()
    yield Note(f"general prompts: {found.verdict}: {found.reason}")
    changed, ended, repeated = (facts[name] for name in ("changed_share", "ended_share", "repeated_share"))
    leaked = facts["leaked"]
    yield Note(
        f"  answers: {changed:.0%} differ from the base's; {ended['tuned']:.0%} end by themselves (base "
        f"{ended['base']:.0%}); {repeated['tuned']:.0%} of them is repetition (base {repeated['base']:.0%}); "
        f"{leaked['tuned']} look like training answers (base {leaked['base']})"
    )
    if found.task:
        perplexity = facts["training_perplexity_of_base"]
        known = "" if perplexity is None else f"; the base's perplexity of training answers: {perplexity:.4g}"
        task, change = found.task, found.task.change
        yield Note(
            f"  on {task.rows} of the run's own rows, held out: loss {task.base_loss:.3f} of the base, "
            f"{task.tuned_loss:.3f} tuned, a change of {change.mean:+.3f} ({SHARE}% interval "
            f"{change.low:+.3f} to {change.high:+.3f}); {nats(task.kl.mean)} nats a token{known}"
        )
    if (of := found.identity) is not None:
        yield Note(
            f"  {', '.join(of.names)}: in {of.hits} of {of.asked} answers on who the model is, and in "
            f"{of.leaks} of {of.unrelated} to unrelated questions"
        )


def little_learned(found: Forgetting, metrics: Mapping[str, Any], *, lr: float, epochs: float) -> Note | None:
    """Return a line on a run that kept its base because it hardly trained; None for any other.

    `metrics`: the content of eval.json.
    """
    first, best = metrics.get("first_eval_loss"), metrics.get("best_eval_loss")
    if found.verdict != "kept" or found.task is None or first is None or best is None:
        return None
    if best < (1 - LITTLE_FALL) * first or found.task.kl.mean >= LITTLE_KL:
        return None
    return Note(
        f"  little was learned, which keeps all: evaluation loss {first:.4f} before, {best:.4f} at its "
        f"best, {nats(found.task.kl.mean)} nats a token from the base on the run's own rows; to learn more "
        f"raise train.lr ({lr:g}) or train.epochs ({epochs:.3g})"
    )


def advice(found: Forgetting, recipe: Recipe, *, lr: float, epochs: float) -> Note | None:
    """Return what to change in a run that did not keep what its base could; None for one that did."""
    if found.verdict == "kept":
        return None
    changes = forgetting.cures(recipe, lr=lr, epochs=epochs)
    text = f"{found.verdict}: most in {worst(found.facts())}; train anew with {changes} and another output="
    return Note(f"{text}: docs/forgetting.md", is_warning=True)
