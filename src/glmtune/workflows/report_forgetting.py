"""The report of forgetting within a run: recorded before step 1, taken at the end, told in a few lines."""

import shlex
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from glmtune.evaluation.forgetting import Forgetting, nats, worst
from glmtune.files import read_json_if_there
from glmtune.general import held_out_prompts
from glmtune.generate import Sampling, complete
from glmtune.log import is_main_process
from glmtune.models.protocol import CausalLM
from glmtune.run_files import ENVIRONMENT_FILE, FORGETTING_FILE, write_json
from glmtune.templates import Taught
from glmtune.training.allocations import trim_heap
from glmtune.workflows import forgetting
from glmtune.workflows.events import Event, Note, Working
from glmtune.workflows.replay import expected_seconds
from glmtune.workflows.retention import Reference, ask_base, measure, record_reference

if TYPE_CHECKING:
    from glmtune.workflows.plan import Plan

MOST_SHARE = 0.05
"""Share of a run's time that its report may take."""
SHORT_S = 60.0
"""Seconds that it may take in any run."""
FEWEST = 8
"""Prompts below which the report tells nothing."""
TRIED, TRIED_TOKENS = 8, 8
"""Prompts, and tokens of their answers, that are timed."""
PROMPTS = "general_prompts"
"""Key in env.json: the number of prompts, kept when the run is resumed."""


def reference_of_run(plan: "Plan", base: CausalLM) -> Generator[Event, None, Reference | None]:
    """Record what the base of a run says; None if the run has no report, or has no time for it.

    The base is as it was loaded: nothing of the method has been applied to it.
    """
    if not forgetting.is_reported(plan.recipe):
        return None
    yield Working("asking the base")
    settings, tokenizer = plan.recipe.retain, plan.tokenizer
    prompts = held_out_prompts()[: settings.report_prompts]
    number = _number_of_prompts(plan, base)
    if number < len(prompts):
        command = f"`glmtune evaluate {shlex.quote(str(plan.folder))} --general`"
        what = f"takes {number} of {len(prompts)} general prompts" if number else "is left out"
        yield Note(
            f"the report of forgetting {what}, for it may take {MOST_SHARE:.0%} of the run's time; "
            f"{command} has all of it afterwards"
        )
    if not number:
        return None
    reference = record_reference(
        base,
        tokenizer,
        prompts[:number],
        folder=plan.location.folder,
        taught=Taught.of(plan.recipe.data),
        settings=settings,
        processes=plan.processes,
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
    allowed = max(SHORT_S, MOST_SHARE * expected_seconds(plan, base))
    number = min(int(allowed / _seconds_of_prompt(plan, base)), wanted)
    # all ranks take rank 0's number: their clocks differ
    return int(plan.processes.firsts(number if number >= min(FEWEST, wanted) else 0))


def _seconds_of_prompt(plan: "Plan", base: CausalLM) -> float:
    """Return the time in which both models answer a prompt: of a few timed tokens, and the first answers."""
    answers = ask_base(
        base,
        plan.tokenizer,
        held_out_prompts()[:TRIED],
        folder=plan.location.folder,
        taught=Taught.of(plan.recipe.data),
        settings=plan.recipe.retain,
        processes=plan.processes,
    )
    prompts, seconds = [answer.prompt_ids for answer in answers], []
    for tokens in (2, 2 + TRIED_TOKENS):
        sampling, start = Sampling(do_sample=False, max_new_tokens=tokens), time.perf_counter()
        complete(base, prompts, sampling, stop_ids=())
        seconds.append(time.perf_counter() - start)
    a_token = max(seconds[1] - seconds[0], 0.0) / TRIED_TOKENS
    length = sum(len(answer.answer_ids) for answer in answers) / len(answers)
    return 2 * (seconds[0] + a_token * length) / TRIED


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
        yield Note(
            f"  on {found.task.rows} of the run's own rows: {nats(found.task.kl.mean)} nats a token{known}"
        )
    if (of := found.identity) is not None:
        yield Note(
            f"  {', '.join(of.names)}: in {of.hits} of {of.asked} answers on who the model is, and in "
            f"{of.leaks} of {of.unrelated} others"
        )


def advice(found: Forgetting, plan: "Plan") -> Note | None:
    """Return what to change in a run that did not keep what its base could; None for one that did."""
    if found.verdict == "kept":
        return None
    changes = forgetting.cures(plan.recipe, lr=plan.lr, epochs=plan.num_steps / plan.steps.per_epoch)
    text = f"{found.verdict}: most in {worst(found.facts())}; train anew with {changes} and another output="
    return Note(f"{text}: docs/forgetting.md", is_warning=True)
