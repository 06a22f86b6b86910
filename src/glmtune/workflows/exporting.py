"""Export a trained model: draft, write under a temporary name, open in a fresh process, compare, rename."""

import platform
import shlex
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.store import CARD_FILE
from glmtune.conversation import encode_messages
from glmtune.errors import ConfigError
from glmtune.evaluation.metrics import with_scale
from glmtune.exports.folder import folder_bytes, require_space, small_bytes
from glmtune.exports.fresh import logits_of
from glmtune.exports.kinds import ExportDraft, ExportKind, ExportSettings, find_kind
from glmtune.exports.source import ExportSource, find_source
from glmtune.exports.tensors import parse_size
from glmtune.exports.verify import QUESTIONS, Answers, Expected, agreement, ask_fresh_process, compare_answers
from glmtune.families import require_template
from glmtune.files import show_size
from glmtune.load import choose_type, load_location, load_model
from glmtune.locations import resolve
from glmtune.log import quiet
from glmtune.models.dtype import DTYPES
from glmtune.models.protocol import CausalLM
from glmtune.quants import BITS
from glmtune.run_files import make_folder, replacing, require_new, write_json
from glmtune.templates import Taught
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.memory import MemoryMeter
from glmtune.training.stopping import Interrupted
from glmtune.workflows.events import ExportResult, Note
from glmtune.workflows.quality import HeldOut, held_out_rows, measure_quality

EXPORT_FILE = "export.json"
"""File of an export's folder with its source, its types and the figures of its proof."""
DEFAULT_ROWS = 200
"""Held-out rows that int8 and int4 are measured on, at most."""


@dataclass(frozen=True, slots=True)
class Order:
    """An export as the user asked for it: source, kind, target folder, and options of the kind."""

    path: str | Path
    to: str
    output: Path
    base: str | Path | None = None
    template: str | None = None
    dtype: str | None = None
    max_shard_size: str = "2GB"
    data: Path | None = None
    max_rows: int = DEFAULT_ROWS
    score_rows: int = 0
    device: str = "auto"
    strength: float = 1.0


def exporting(order: Order) -> Generator[Note, None, ExportResult]:
    """Export a model; yield a note for each thing a user should know, return the folder and its facts.

    The folder appears under its own name only once the export is proven. Raises `ConfigError`,
    `CheckpointError` and `OutputError`; `Interrupted` on Ctrl-C, which leaves nothing.
    """
    meter = MemoryMeter(torch.device("cpu"))  # on a card there is no more than what quality is measured with
    try:
        job = _prepare(order)
        source = job.source
        size = show_size(job.num_bytes)
        at = "" if source.strength == 1 else f" at strength {source.strength:g}"
        yield Note(f"{source.name}: {source.method or 'as it is'}{at}, on {source.base}; {size} to write")
        if source.unproven:
            yield Note(source.unproven, is_warning=True)
        make_folder(order.output.parent)
        with replacing(order.output) as folder:  # a temporary name, renamed when all below has passed
            folder.mkdir()
            job.draft.write(folder)
            facts = _export_facts(order, source, folder)  # after the draft is written: sizes of its files
            yield from _prove(job, folder, facts)
            if order.to in BITS:
                yield from _measure(job, folder, facts)
                if not (source.base / "quantization.py").exists():
                    yield Note(
                        "the base's folder has no quantization.py: glmtune opens this export, the official "
                        "code does not"
                    )
            # a card keeps the texts of training; other files have no place for them
            taught = Taught() if (folder / CARD_FILE).exists() else source.location.taught
            for name, text in (("system text", taught.system), ("source prefix", taught.source_prefix)):
                if text:
                    yield Note(
                        f"trained with a {name} that no file of this kind holds; send it yourself: {text!r}"
                    )
            facts["peak_memory_gib"] = meter.gib_of("export")[0]
            write_json(folder / EXPORT_FILE, facts)
        yield Note(
            f"{order.output}: done, {show_size(facts['bytes'])}, peak memory: {facts['peak_memory_gib']:.2f} "
            f"GiB; the figures are in {EXPORT_FILE}"
        )
        if job.kind.is_adapter and not (order.output / CARD_FILE).exists():
            words = (order.output, "--base", facts["base"], "--template", source.identity.template)
            yield Note(f"next: glmtune chat {shlex.join(map(str, words))}")
        return ExportResult(order.output, facts)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; nothing was written to {order.output}") from None


@dataclass(frozen=True, slots=True)
class _Job:
    """An order with everything that is found out before anything is written."""

    order: Order
    kind: ExportKind
    source: ExportSource
    tokenizer: Tokenizer
    held_out: HeldOut | str
    """The rows to measure quality on, or the reason there are none."""
    model: CausalLM
    """Base + adapter, weights mapped from the files."""
    draft: ExportDraft

    @property
    def num_bytes(self) -> int:
        return self.draft.num_bytes + small_bytes(self.source.base)


def _prepare(order: Order) -> _Job:
    """Make every check that can refuse the order, open the model, draft the export; write nothing."""
    # cheapest first: the arguments, then the folders, then rows and weights
    kind = find_kind(order.to)
    if order.dtype is not None and order.dtype not in DTYPES:
        raise ConfigError(
            f"dtype: {order.dtype!r} is not a type for weights", hint="dtype=bf16, dtype=fp16 or dtype=fp32"
        )
    if order.dtype is not None and kind.is_adapter:
        raise ConfigError(
            f"dtype: {order.to} keeps its weights in fp32, as they were trained", hint="leave dtype out"
        )
    settings = ExportSettings(DTYPES[order.dtype] if order.dtype else None, parse_size(order.max_shard_size))
    require_new(order.output, hint="name another folder: output=FOLDER; an export never replaces anything")
    source = find_source(
        order.path,
        base=order.base,
        template=order.template,
        is_merging=not kind.is_adapter,
        strength=order.strength,
    )
    kind.require(source)
    require_template(source.identity.template, str(source.base))
    tokenizer = read_tokenizer(source.base, source.identity.template)
    held_out: HeldOut | str = "not asked for"
    if order.to in BITS:
        held_out = held_out_rows(
            source.location.run,
            tokenizer,
            data=order.data,
            max_rows=order.max_rows,
            score_rows=order.score_rows,
            data_settings=asdict(source.location.taught),
        )
    model = source.open()
    job = _Job(order, kind, source, tokenizer, held_out, model, kind.draft(source, model, settings))
    require_space(order.output, job.num_bytes)  # last: only the draft knows how large the export is
    return job


def _prove(job: _Job, folder: Path, facts: dict[str, Any]) -> Generator[Note, None, None]:
    """Open the export in a fresh process and compare logits and greedy ids; add the figures to `facts`.

    Raises `OutputError` if the export answers otherwise than base + adapter.
    """
    source, kind = job.source, job.kind
    messages = [{"role": "user", "content": question} for question in QUESTIONS]
    prompts = [encode_messages(job.tokenizer, [message]) for message in messages]
    answers = ask_fresh_process(
        folder,
        prompts,
        opener=kind.opener,
        base=source.base if kind.is_adapter else None,
        template=source.identity.template if kind.is_adapter else None,
        messages=messages[:1] if kind.has_chat else None,
    )
    # PEFT accepts adapters that glmtune refuses: glmtune is to load the folder too
    if kind.opener == "peft":
        with quiet():
            load_model(source.base, adapter=folder, template=source.identity.template, device="cpu")
    expected = _expected(source, job.model, job.draft, prompts, answers)
    facts["verified"] = {**compare_answers(answers, expected), "proven_weights": job.draft.num_defined}
    yield from _tell_verified(facts["verified"])
    if kind.has_chat:
        yield _tell_chat(facts, prompts[0])
    if source.quant and not kind.is_adapter:
        # trained on a quantised base, merged into the un-quantised one: the logits move by the rounding
        trained = source.open(quant=source.quant)
        as_trained = [logits_of(trained, prompt) for prompt in prompts]
        exact = [row[: len(prompt)] for row, prompt in zip(expected.exact, prompts, strict=True)]
        largest, same = agreement(as_trained, exact)
        facts["difference_to_quantised_base"] = {"max": largest, "same_top_token": same}
        yield Note(
            f"trained on the base in {source.quant}, merged onto the un-quantised one: logits differ by up "
            f"to {largest:.3g} from those in training, the most likely token is the same at {same:.1%} of "
            "the places"
        )


def _export_facts(order: Order, source: ExportSource, folder: Path) -> dict[str, Any]:
    """Return the facts for export.json that are known before the proof."""
    card = source.location.card
    return {
        "kind": order.to,
        "source": source.name,
        "base": source.location.name if not source.is_whole else str(source.base),
        "strength": source.strength,
        "method": card.method if card else {"name": source.method} if source.method else None,
        "family": source.identity.family,
        "template": source.identity.template,
        **asdict(source.location.taught),
        "trained_on_quant": source.quant,
        "base_is_unproven": source.unproven or None,
        "dtype": order.dtype or "as the base's files",
        "bytes": folder_bytes(folder),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "glmtune": version("glmtune"),
        "python": platform.python_version(),
    }


def _expected(
    source: ExportSource, model: CausalLM, draft: ExportDraft, prompts: list[list[int]], answers: Answers
) -> Expected:
    """Return the logits to expect on the fresh process's own ids: of the written weights, of base + adapter.

    One skeleton of the base serves for all of them, its weights replaced one by one while they are used.
    """
    # the other process's greedy ids, not new ones: after a tie, two texts could not be compared
    rows = [prompt + new for prompt, new in zip(prompts, answers.greedy, strict=True)]
    exact = [logits_of(model, row, source.as_trained(model)) for row in rows]
    if draft.written_value is None:
        return Expected(exact, exact)
    skeleton = source.load_base()

    def with_weights(value_of: Callable[[str], Tensor]) -> list[Tensor]:
        def replaced(name: str, value: Tensor) -> Tensor:
            return value_of(name) if name in draft.names else value

        return [logits_of(skeleton, row, replaced) for row in rows]

    # the logits of the untrained base show whether rounding to the export's type outweighs the training
    base = source.load_untrained() if source.is_whole else skeleton
    return Expected(
        with_weights(draft.written_value),
        exact,
        base=[logits_of(base, row) for row in rows],
        merged=with_weights(draft.unquantised) if draft.unquantised else None,
        dtype=draft.dtype,
    )


def _tell_verified(figures: dict[str, Any]) -> Generator[Note, None, None]:
    """Yield the figures of a proof in words; warn if training changed less than rounding does."""
    if figures["proven_weights"]:
        yield Note(
            f"{figures['proven_weights']} merged weights are those of base + adapter by definition, to "
            "the last bit of their type; the files read back as they were written"
        )
    yield Note(
        f"opened in a fresh process ({figures['class']}): logits differ by at most "
        f"{figures['max_difference']:.2g} (allowed {figures['tolerance']:.2g}, largest logit "
        f"{figures['max_logit']:.3g}); greedy ids equal"
    )
    same = "the same" if figures["greedy_equal_to_trained"] else "but for ties the same"
    same = same if figures["is_exact"] or figures["greedy_equal_to_trained"] else "other"
    yield Note(
        f"against base + adapter, unrounded: at most {figures['max_difference_to_trained']:.2g}, {same} "
        "greedy ids"
    )
    learned = figures.get("trained_difference_to_base")
    if learned and not figures["nearer_to_trained_than_to_base"]:
        yield Note(
            f"training changed the probe's logits by {learned:.2g} only, and rounding can change as much: "
            "--dtype fp32 keeps all of what was learned",
            is_warning=True,
        )


def _tell_chat(facts: dict[str, Any], ids: list[int]) -> Note:
    """Return a note on the export's own tokenizer: are its ids of a chat glmtune's? `facts` keep it too."""
    is_same = facts["verified"].pop("chat_ids") == ids
    facts["verified"]["chat_ids_equal"] = is_same
    facts["chat"] = (
        "its tokenizer.json and chat_template.jinja make the same ids of a chat; unlike glmtune they "
        "turn control tokens spelled in a user's text, such as <|user|>, into those tokens"
        if is_same
        else "its tokenizer.json and chat_template.jinja make other ids of a chat: encode with glmtune"
    )
    return Note(facts["chat"], is_warning=not is_same)


def _measure(job: _Job, folder: Path, facts: dict[str, Any]) -> Generator[Note, None, None]:
    """Measure perplexity and scores of base + adapter and of the export; add them to `facts`."""
    order, held_out = job.order, job.held_out
    facts["quality"] = None
    if isinstance(held_out, str):
        yield Note(
            f"the loss of quality is not known: {held_out}; name rows like the training ones: --data FILE",
            is_warning=True,
        )
        return
    types = choose_type(job.source.location, "auto", order.device)  # for both, lest rounding be compared
    trained = job.source.open(dtype=types, device=order.device)
    before = measure_quality(trained, job.tokenizer, held_out)
    del trained  # before the export is opened: a card may have room for one of the two only
    with quiet():
        reopened = load_location(resolve(folder), template=None, dtype=types, device=order.device).eval()
    after = measure_quality(reopened, job.tokenizer, held_out)
    dtype_name = str(types.computing).removeprefix("torch.")
    facts["quality"] = {
        "rows": len(held_out.rows),
        "scored_rows": len(held_out.scored_rows),
        "from": held_out.where,
        "computed_in": dtype_name,
        "before": before,
        "after": after,
    }
    yield Note(
        f"perplexity on {len(held_out.rows)} rows ({held_out.where}), in {dtype_name}: "
        f"{before['perplexity']:.4f} before, {after['perplexity']:.4f} in {order.to}"
    )
    if held_out.scored_rows:
        parts = []
        for key in ("rouge-l", "bleu-4"):
            score, score_after = (with_scale(side["scores"]["thudm"][key], key) for side in (before, after))
            parts.append(f"{key} {score} before, {score_after} in {order.to}")
        yield Note(f"scores of {len(held_out.scored_rows)} answers: {'; '.join(parts)}")
