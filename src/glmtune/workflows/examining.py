"""`glmtune doctor`: a report of the machine, of a self-test and of a model, to paste into an issue."""

import os
import textwrap
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.extras import is_installed
from glmtune.generate.compute import speed_up
from glmtune.load import load_model, load_tokenizer
from glmtune.locations import resolve
from glmtune.models.device import resolve_device
from glmtune.paths import examples_folder
from glmtune.quants import EXTRAS, QUANTS
from glmtune.recipe import load_recipe
from glmtune.workflows.events import Event, Note, Stepped, Working, drain
from glmtune.workflows.execute import training
from glmtune.workflows.findings import REPORT_IT, Finding, attempt
from glmtune.workflows.first_run import ask, try_model
from glmtune.workflows.machine import look_at_machine
from glmtune.workflows.verifying import proving_trained

MODEL = "glm-tiny"
QUESTION, NAME = "你叫什么名字？", "GLM-Tiny"
"""A question to glm-tiny, and a word of its answer."""
STEPS, ANSWER_TOKENS = 8, 32
NAME_WIDTH, WIDTH = 14, 100


def examining(
    path: str | Path | None = None,
    *,
    template: str | None = None,
    dtype: str = "auto",
    quant: str | None = None,
    device: str = "auto",
) -> Generator[Note | Working, None, list[Finding]]:
    """Examine machine and installation, and the model at `path` if it is given; yield the report's lines.

    What does not work is a finding with `has_failed`. Raises `CheckpointError` for a path to nothing,
    `ConfigError` for an adapter, a run or a device that is not there.
    """
    resolve_device(device)  # raises for one that is not there
    # the report is to be pasted where all can read it
    private = {str(Path.home()): "~"}
    if path is not None:
        location = resolve(path)
        if location.adapter or location.card:
            raise ConfigError(
                f"{path}: trained, and the doctor looks at models",
                hint=f"`glmtune verify {path}` proves it; `glmtune doctor {location.base}` looks at its base",
            )
        private = {f"{location.base.absolute().parent}{os.sep}": "", **private}
    findings = list[Finding]()
    wrap = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    parts = [look_at_machine(), test_itself(device)]
    if path is not None:
        parts.append(try_model(path, template=template, dtype=dtype, quant=quant, device=device))
    for event in chain.from_iterable(parts):
        if isinstance(event, Working):
            yield event
            continue
        found = event
        for start, shown in private.items():
            text, warning = (part.replace(start, shown) for part in (found.text, found.warning))
            found = replace(found, text=text, warning=warning)
        if not findings or findings[-1].part != found.part:
            yield Note(found.part)
        findings.append(found)
        begin = f"  {found.name:<{NAME_WIDTH}} "
        wrap.initial_indent, wrap.subsequent_indent = begin, " " * len(begin)
        yield Note(wrap.fill(found.text))
        if found.warning:
            yield Note(found.warning, is_warning=True)
    failed = [found.name for found in findings if found.has_failed]
    if failed:
        yield Note(f"failed: {', '.join(failed)}; {REPORT_IT}", is_warning=True)
    elif path is not None:
        yield Note(f"all of it worked; {REPORT_IT}")
    return findings


def test_itself(device: str) -> Iterator[Working | Finding]:
    """Train, save, verify and ask glm-tiny; yield a finding for each. No file stays; no network is used."""
    do = partial(attempt, "self-test")
    # Windows does not delete a file that is mapped: then the system cleans up
    with TemporaryDirectory(prefix="glmtune-doctor-", ignore_cleanup_errors=True) as folder:
        run = Path(folder) / "run"
        trained = yield from do("train", partial(train_a_little, run, device))
        if not trained.has_failed:
            checks = partial(proving_trained, run, template=None, dtype="auto", device=device)
            yield from do("verify", lambda: f"the adapter is what was saved, {len(drain(checks()))} checks")
    yield from do("decode", partial(_ask, device))
    if torch.backends.quantized.engine == "x86":
        yield from do("decode, W8A8", partial(_ask, "cpu", is_fast=True))
    for quant in QUANTS:
        # else the report says that it is not installed
        if quant not in EXTRAS or is_installed(EXTRAS[quant]):
            yield from do(f"decode, {quant}", partial(_ask, device, quant=quant))


def train_a_little(folder: Path, device: str) -> str:
    """Train glm-tiny some steps; return the figures in words. Raises `GlmtuneError` if the loss stays."""
    settings = {
        "model": MODEL,
        "device": device,
        "data": {"train": examples_folder() / "adverts.jsonl", "max_rows": 104, "holdout_rows": 8},
        # an evaluation draws pictures, and two are enough
        "train": {"steps": STEPS, "eval_every": STEPS, "batch_size": 8, "lr": 3e-3},
        "samples": {"prompts": []},
        "output": folder,
    }
    rates = list[float]()

    def see(event: Event) -> None:
        if isinstance(event, Stepped):
            rates.append(event.log.tokens_per_s)

    figures = drain(training(load_recipe(settings)), see).metrics
    before, after = figures["first_eval_loss"], figures["eval_loss"]
    if not after < before:
        raise GlmtuneError(f"the loss has not fallen: {before:.3f}, then {after:.3f}", hint=REPORT_IT)
    return f"{STEPS} steps of LoRA, loss {before:.3f} to {after:.3f}, {max(rates):,.0f} tokens/s"


def _ask(device: str, *, quant: str | None = None, is_fast: bool = False) -> str:
    model, tokenizer = load_model(MODEL, quant=quant, device=device), load_tokenizer(MODEL)
    answer, rate = ask(speed_up(model) if is_fast else model, tokenizer, QUESTION, tokens=ANSWER_TOKENS)
    if NAME not in answer:
        raise GlmtuneError(f"{MODEL} answers {answer!r}, which names no {NAME}", hint=REPORT_IT)
    return f"{rate:,.0f} tokens/s, {answer}"
