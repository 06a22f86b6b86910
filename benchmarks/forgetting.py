"""What tuning changes beside its task: one run, its task score, and what the model forgot meanwhile.

A run is `glmtune train` without its evaluations and files: `tune` plans, assembles and steps as it does.
What was forgotten is measured in two ways that know nothing of each other. `kl` is the divergence from the
base, over the whole vocabulary, on the base's own answers to general prompts; the verdict of a run rests on
it. `loss`, `hits` are those of held-out general rows with their true answers: the real drop. Both read row
after row, so they are the oracle of the report that a run makes itself.

benchmarks.forgetting_runs makes the runs, `python -m tools.forgetting_tables` the tables of docs/defaults.md.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.token_weights import weighting
from glmtune.adapters.strength import set_strength
from glmtune.conversation import encode_messages
from glmtune.data.encode import encode_examples
from glmtune.data.prompts import encode_prompts
from glmtune.data.reader import read_examples
from glmtune.data.row import TrainingRow
from glmtune.evaluation.metrics import score
from glmtune.general import held_out_prompts, replay_prompts
from glmtune.generate import Sampling
from glmtune.generate.decoding import complete
from glmtune.load import load_model, load_tokenizer
from glmtune.locations import resolve
from glmtune.recipe import Data, load_recipe
from glmtune.templates import Taught
from glmtune.workflows.assemble import assemble
from glmtune.workflows.base_answers import OWN_DISTRIBUTION, answer_prompts, cache_file
from glmtune.workflows.events import drain
from glmtune.workflows.execute import make_steps
from glmtune.workflows.plan import planning

Facts = dict[str, Any]
LIKELIEST = 20
NUM_PROMPTS, LONGEST_ANSWER = 32, 48
NUM_ROWS, NUM_TOKENS = 160, 8000
"""Held-out general rows, at most, and their tokens: as many as make no more."""
NUM_TEST = 40
"""Test rows of a task, at most."""
AT_ONCE = 16


@dataclass(frozen=True)
class Base:
    """A base, and the files of rows beside it."""

    name: str
    model: str
    """A name or folder."""
    general: Path
    """Held-out general rows with their true answers."""
    tasks: Mapping[str, tuple[Path, Path]]
    """Training and test rows by the task's name."""


@dataclass(frozen=True)
class Reference:
    """What is known of a base before it is tuned."""

    tokenizer: Any
    prompts: list[TrainingRow]
    """General prompts with the base's own answers."""
    log_probs: list[Tensor]
    """The base's distribution at each token of them, (L, V)."""
    rows: list[TrainingRow]
    """Held-out general rows."""
    loss: float
    hits: float


def read_rows(tokenizer: Any, path: Path) -> list[TrainingRow]:
    """The rows of a file, encoded as for training."""
    return encode_examples(tokenizer, read_examples(path, Data()), Data(overlong="cut_any")).rows


@torch.no_grad()
def learned(model: Any, rows: Sequence[TrainingRow]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities (L, V) in fp32 and labels (L,) of each row's learned tokens."""
    model.eval()
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        width = max(len(row.input_ids) for row in part)
        # padded behind: no token sees what comes after it
        ids = torch.zeros((len(part), width), dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row.input_ids)] = torch.from_numpy(row.input_ids).long()
        logits = model(input_ids=ids).logits
        for i, row in enumerate(part):
            labels = torch.from_numpy(row.labels).long()
            where = (labels[1:] != -100).nonzero()[:, 0]
            yield logits[i, where].float().log_softmax(-1), labels[where + 1]


def loss_and_hits(model: Any, rows: Sequence[TrainingRow]) -> tuple[float, float]:
    """Mean loss per token, and share of tokens that are the likeliest, in percent."""
    losses, hits = [], []
    for log_probs, labels in learned(model, rows):
        losses.append(-log_probs.gather(1, labels[:, None])[:, 0])
        hits.append(log_probs.argmax(-1) == labels)
    return float(torch.cat(losses).mean()), 100.0 * float(torch.cat(hits).float().mean())


def divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """KL(base || tuned) of each token, (L,), of log probabilities (L, V)."""
    return (base.exp() * (base - tuned)).sum(-1)


def divergence_of_likeliest(base: Tensor, tuned: Tensor, number: int = LIKELIEST) -> Tensor:
    """The same of the base's likeliest tokens, and of all others as one."""
    known, ids = base.topk(number, dim=-1)
    found = tuned.gather(1, ids)
    rest, left = ((1 - part.exp().sum(-1)).clamp(min=1e-9) for part in (known, found))
    return (known.exp() * (known - found)).sum(-1) + rest * (rest.log() - left.log())


def greedy(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Answers, their end tokens included."""
    sampling = Sampling(do_sample=False, max_new_tokens=most)
    return complete(model, prompts, sampling, stop_ids=tokenizer.stop_ids)


def answered(model: Any, tokenizer: Any) -> list[TrainingRow]:
    """General prompts, each turn with the base's own answers before it, as rows that learn its answer.

    Those that ask who the model is are left out: a task may teach just that.
    """
    prompts = [p for p in held_out_prompts() if p.category != "identity"][:NUM_PROMPTS]
    talks: list[list[Facts]] = [[] for _ in prompts]
    rows = []
    for turn in range(max(len(p.turns) for p in prompts)):
        asked = [i for i, p in enumerate(prompts) if turn < len(p.turns)]
        for i in asked:
            talks[i].append({"role": "user", "content": prompts[i].turns[turn]})
        ids = [encode_messages(tokenizer, talks[i]) for i in asked]
        for i, prompt, answer in zip(asked, ids, greedy(model, tokenizer, ids, LONGEST_ANSWER), strict=True):
            talks[i].append({"role": "assistant", "content": tokenizer.decode(answer)})
            rows.append(row_of(prompt, answer, prompts[i].name))
    return rows


def row_of(prompt: Sequence[int], answer: Sequence[int], name: str) -> TrainingRow:
    """A row that learns an answer."""
    ids = torch.tensor([*prompt, *answer], dtype=torch.int32)
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return TrainingRow(ids.numpy(), labels.numpy(), name)


def answer_for_replay(base: Base, most: int) -> None:
    """Let a base answer all prompts that a replay may draw; runs of it find them in $GLMTUNE_CACHE.

    Without that, a run of a minute has fewer of them than one of an hour.
    """
    model, tokenizer = load_model(base.model, dtype="fp32", device="cpu"), load_tokenizer(base.model)
    sampling = replace(OWN_DISTRIBUTION, max_new_tokens=most)
    cache = cache_file(resolve(base.model).folder, model, tokenizer, sampling)
    taught = Taught.of(Data())
    answer_prompts(
        model, tokenizer, replay_prompts(), taught=taught, max_new_tokens=most, cache=cache, sampling=sampling
    )


@cache
def _reference(name: str, general: Path) -> Reference:
    model, tokenizer = load_model(name, dtype="fp32", device="cpu"), load_tokenizer(name)
    prompts, rows = answered(model, tokenizer), read_rows(tokenizer, general)[:NUM_ROWS]
    ends = itertools.accumulate(len(row.input_ids) for row in rows)
    rows = [row for row, end in zip(rows, ends, strict=True) if end <= NUM_TOKENS]
    log_probs = [found for found, _ in learned(model, prompts)]
    return Reference(tokenizer, prompts, log_probs, rows, *loss_and_hits(model, rows))


def reference(base: Base) -> Reference:
    """Of a base, made once."""
    return _reference(base.model, base.general)


def tune(settings: Facts) -> tuple[Any, Facts]:
    """Train; the model, its steps and their loss at the end, processor seconds of preparation and steps."""
    begin = time.process_time()
    run = drain(assemble(drain(planning(load_recipe(settings)))))
    middle = time.process_time()
    losses = [log.loss for log in make_steps(run, range(1, run.plan.num_steps + 1))]
    last = losses[-max(1, len(losses) // 10) :]
    facts = {"steps": len(losses), "train_loss": sum(last) / len(last)}
    return run.model, {**facts, "prepare_s": middle - begin, "steps_s": time.process_time() - middle}


def general_figures(model: Any, known: Reference) -> Facts:
    """`kl` with that of each category, and the real drop: `loss`, `hits` and their change."""
    whole, likeliest, names = [], [], []
    for row, base, (tuned, _) in zip(
        known.prompts, known.log_probs, learned(model, known.prompts), strict=True
    ):
        whole.append(divergence(base, tuned))
        likeliest.append(divergence_of_likeliest(base, tuned))
        names.append(row.where.split("-")[1])
    categories = {
        name: float(torch.cat([kl for kl, of in zip(whole, names, strict=True) if of == name]).mean())
        for name in sorted(set(names))
    }
    loss, hits = loss_and_hits(model, known.rows)
    return {
        "kl": float(torch.cat(whole).mean()),
        "kl_likeliest": float(torch.cat(likeliest).mean()),
        "kl_by_category": categories,
        "general_loss": [known.loss, loss],
        "general_hits": [known.hits, hits],
    }


def task_figures(model: Any, known: Reference, test: Path) -> Facts:
    """Loss and ROUGE-L of the task's test rows."""
    tokenizer, examples = known.tokenizer, read_examples(test, Data())[:NUM_TEST]
    prompts, _ = encode_prompts(tokenizer, examples, Data(), num_new=LONGEST_ANSWER)
    answers = greedy(model, tokenizer, [prompt.ids for prompt in prompts], LONGEST_ANSWER)
    scores = score([tokenizer.decode(ids) for ids in answers], [prompt.reference for prompt in prompts])
    loss, _ = loss_and_hits(model, encode_examples(tokenizer, examples, Data(overlong="cut_any")).rows)
    return {"task_loss": loss, "task_rouge_l": scores["rouge-l"]}


def run(base: Base, task: str, settings: Facts, work: Path) -> Facts:
    """Tune a base for a task; all figures.

    `settings` are a recipe's, and may have `max_rows` of the task, the `strength` of the update and
    `token_weights`, a kind of token_weights.py.
    """
    train, test = base.tasks[task]
    known = reference(base)
    fixed: Facts = {
        "model": base.model,
        "device": "cpu",
        "dtype": "fp32",
        "output": str(work / "never-written"),
        "data": {
            "train": str(train),
            "validation": str(test),
            "max_tokens": 384,
            "max_rows": settings.get("max_rows"),
        },
        "samples": {"prompts": []},
    }
    batch = {"batch_size": 8, "micro_batch_size": 8, "gradient_checkpointing": False, "precision": "fp32"}
    train_settings = {**batch, **settings.get("train", {})}
    of_recipe = {name: value for name, value in settings.items() if name not in OF_RUNS}
    with weighting(settings["token_weights"]) if "token_weights" in settings else nullcontext():
        model, figures = tune({**fixed, **of_recipe, "train": train_settings})
    if "strength" in settings:
        set_strength(model, settings["strength"])
    return {**figures, **task_figures(model, known, test), **general_figures(model, known)}


OF_RUNS = ("max_rows", "strength", "token_weights")
"""Settings of `run` that no recipe has."""


def untuned(base: Base) -> Facts:
    """Scores of the base itself on its tasks."""
    known, model = reference(base), load_model(base.model, dtype="fp32", device="cpu")
    return {task: task_figures(model, known, test) for task, (_, test) in base.tasks.items()}


RESULT = measure.RESULTS / "forgetting" / "runs.jsonl"
