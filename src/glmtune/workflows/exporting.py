"""Export a trained model: draft, write under a temporary name, open in a fresh process, compare, rename."""

import platform
import shlex
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.store import CARD_FILE
from glmtune.conversation import encode_messages
from glmtune.errors import ConfigError
from glmtune.evaluation.metrics import with_scale
from glmtune.exports.folder import folder_bytes, require_space, show_size, small_bytes
from glmtune.exports.fresh import logits_of
from glmtune.exports.kinds import ExportDraft, ExportKind, ExportSettings, find_kind
from glmtune.exports.source import ExportSource, find_source
from glmtune.exports.tensors import parse_size
from glmtune.exports.verify import QUESTIONS, Answers, Expected, agreement, ask_fresh_process, compare_answers
from glmtune.families import require_template
from glmtune.load import load_model
from glmtune.log import quiet
from glmtune.models.dtype import DTYPES
from glmtune.models.protocol import CausalLM
from glmtune.quants import BITS
from glmtune.run_files import make_folder, replacing, require_new, write_json
from glmtune.templates import Taught
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.stopping import Interrupted
from glmtune.workflows.events import ExportResult, Note
from glmtune.workflows.quality import HeldOut, held_out_rows, measure_quality

EXPORT_FILE = "export.json"
"""Where an export keeps what it is and how it was proved."""
DEFAULT_ROWS = 200
"""Held-out rows that the loss of quality is measured on, at most."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

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


def exporting(order: Order) -> Generator[Note, None, ExportResult]:
    """Export; yield a note of each thing a user should know."""
    try:
        return (yield from _exporting(order))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; nothing was written to {order.output}") from None


def _exporting(order: Order) -> Generator[Note, None, ExportResult]:
    job = _prepare(order)
    source = job.source
    size = show_size(job.num_bytes)
    yield Note(f"{source.name}: {source.method or 'as it is'}, on {source.base}; {size} to write")
    if source.unproven:
        yield Note(source.unproven, is_warning=True)
    make_folder(order.output.parent)
    with replacing(order.output) as folder:
        folder.mkdir()
        job.draft.write(folder)
        facts = _facts(order, source, folder)
        yield from _prove(job, folder, facts)
        if order.to in BITS:
            yield from _measure(job, folder, facts)
        yield from _not_carried(source, order.to, folder)
        write_json(folder / EXPORT_FILE, facts)
    yield Note(f"{order.output}: done, {show_size(facts['bytes'])}; the figures are in {EXPORT_FILE}")
    if job.kind.is_adapter and not (order.output / CARD_FILE).exists():
        words = (order.output, "--base", facts["base"], "--template", source.identity.template)
        yield Note(f"next: glmtune chat {shlex.join(map(str, words))}")
    return ExportResult(order.output, facts)


@dataclass(frozen=True, slots=True)
class _Job:
    """An order, and all that was found out before anything is written."""

    order: Order
    kind: ExportKind
    source: ExportSource
    tokenizer: Tokenizer
    held: HeldOut | str
    """The rows to measure quality on, or why there are none."""
    model: CausalLM
    """Base + adapter, its weights mapped from the files."""
    draft: ExportDraft

    @property
    def num_bytes(self) -> int:
        return self.draft.num_bytes + small_bytes(self.source.base)


def _prepare(order: Order) -> _Job:
    """Everything that can be refused is refused here."""
    kind = find_kind(order.to)
    settings = _settings(order, kind)
    require_new(order.output, hint="name another folder: output=FOLDER; an export never replaces anything")
    source = find_source(order.path, base=order.base, template=order.template, is_merging=not kind.is_adapter)
    kind.require(source)
    require_template(source.identity.template, str(source.base))
    tokenizer = read_tokenizer(source.base, source.identity.template)
    held = _held_out(order, source, tokenizer) if order.to in BITS else "not asked for"
    model = source.open()
    job = _Job(order, kind, source, tokenizer, held, model, kind.draft(source, model, settings))
    require_space(order.output, job.num_bytes)
    return job


def _prove(job: _Job, folder: Path, facts: dict[str, Any]) -> Generator[Note, None, None]:
    """Open the export in a fresh process and compare it; raises `OutputError` if it differs."""
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
    if kind.opener == "peft":  # that process knows nothing of this program, whose loads refuse more
        with quiet():
            load_model(source.base, adapter=folder, template=source.identity.template, device="cpu")
    expected = _expected(source, job.model, job.draft, prompts, answers)
    facts["verified"] = {**compare_answers(answers, expected), "proven_weights": job.draft.num_defined}
    yield from _tell_verified(facts["verified"])
    if kind.has_chat:
        yield _tell_chat(facts, prompts[0])
    if source.quant and not kind.is_adapter:
        yield _note_quant(source, facts, prompts, expected)


def _settings(order: Order, kind: ExportKind) -> ExportSettings:
    if order.dtype is not None and order.dtype not in DTYPES:
        raise ConfigError(
            f"dtype: {order.dtype!r} is not a type for weights", hint="dtype=bf16, dtype=fp16 or dtype=fp32"
        )
    if order.dtype is not None and kind.is_adapter:
        raise ConfigError(
            f"dtype: {order.to} keeps its weights in fp32, as they were trained", hint="leave dtype out"
        )
    return ExportSettings(DTYPES[order.dtype] if order.dtype else None, parse_size(order.max_shard_size))


def _held_out(order: Order, source: ExportSource, tokenizer: Tokenizer) -> HeldOut | str:
    return held_out_rows(
        source.location.run,
        tokenizer,
        data=order.data,
        max_rows=order.max_rows,
        score_rows=order.score_rows,
        given=asdict(source.location.taught),
    )


def _facts(order: Order, source: ExportSource, folder: Path) -> dict[str, Any]:
    card = source.location.card
    return {
        "kind": order.to,
        "source": source.name,
        "base": source.location.name if not source.is_whole else str(source.base),
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
    """What the answers should be: once with the weights as written, once of base + adapter themselves."""
    rows = [prompt + new for prompt, new in zip(prompts, answers.greedy, strict=True)]
    exact = [logits_of(model, row, source.as_trained(model)) for row in rows]
    if draft.written_value is None:
        return Expected(exact, exact)
    skeleton = source.load_base()

    def with_weights(value_of: Callable[[str], Tensor]) -> list[Tensor]:
        def give(name: str, held: Tensor) -> Tensor:
            return value_of(name) if name in draft.names else held

        return [logits_of(skeleton, row, give) for row in rows]

    base = source.load_untrained() if source.is_whole else skeleton
    return Expected(
        with_weights(draft.written_value),
        exact,
        base=[logits_of(base, row) for row in rows],
        merged=with_weights(draft.unquantised) if draft.unquantised else None,
        dtype=draft.dtype,
    )


def _tell_verified(figures: dict[str, Any]) -> Generator[Note, None, None]:
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
    """Whether the export's own tokenizer can be used for chats; kept in the facts too."""
    is_same = facts["verified"].pop("chat_ids") == ids
    facts["verified"]["chat_ids_equal"] = is_same
    facts["chat"] = (
        "its tokenizer.json and chat_template.jinja make the same ids of a chat; unlike glmtune they "
        "turn control tokens spelled in a user's text, such as <|user|>, into those tokens"
        if is_same
        else "its tokenizer.json and chat_template.jinja make other ids of a chat: encode with glmtune"
    )
    return Note(facts["chat"], is_warning=not is_same)


def _note_quant(
    source: ExportSource, facts: dict[str, Any], prompts: list[list[int]], expected: Expected
) -> Note:
    """The weights go onto the un-quantised base, whatever it was trained on: that makes a difference."""
    trained = source.open(quant=source.quant)
    as_trained = [logits_of(trained, prompt) for prompt in prompts]
    exact = [row[: len(prompt)] for row, prompt in zip(expected.exact, prompts, strict=True)]
    largest, same = agreement(as_trained, exact)
    facts["difference_to_quantised_base"] = {"max": largest, "same_top_token": same}
    return Note(
        f"trained on the base in {source.quant}, merged onto the un-quantised one: logits differ by up to "
        f"{largest:.3g} from those in training, the most likely token is the same at {same:.1%} of the places"
    )


def _measure(job: _Job, folder: Path, facts: dict[str, Any]) -> Generator[Note, None, None]:
    """Perplexity and scores of base + adapter and of the export, as they run on the device."""
    order, held = job.order, job.held
    facts["quality"] = None
    if isinstance(held, str):
        yield Note(
            f"the loss of quality is not known: {held}; name rows like the training ones: --data FILE",
            is_warning=True,
        )
        return
    trained = job.source.open(dtype="auto", device=order.device)
    before, kind = measure_quality(trained, job.tokenizer, held), trained.dtype
    del trained
    with quiet():
        reopened = load_model(folder, dtype=kind, device=order.device)
    after = measure_quality(reopened, job.tokenizer, held)
    dtype = str(kind).removeprefix("torch.")
    facts["quality"] = {
        "rows": len(held.rows),
        "scored_rows": len(held.questions),
        "from": held.where,
        "computed_in": dtype,
        "before": before,
        "after": after,
    }
    yield Note(
        f"perplexity on {len(held.rows)} rows ({held.where}), in {dtype}: {before['perplexity']:.4f} before, "
        f"{after['perplexity']:.4f} in {order.to}"
    )
    if held.questions:
        yield Note(_scores_line(before["scores"], after["scores"], order.to, len(held.questions)))


def _scores_line(before: dict[str, Any], after: dict[str, Any], name: str, count: int) -> str:
    def at(scores: dict[str, Any], key: str) -> str:
        return with_scale(scores["thudm"][key], key)

    parts = [f"{key} {at(before, key)} before, {at(after, key)} in {name}" for key in ("rouge-l", "bleu-4")]
    return f"scores of {count} answers: {'; '.join(parts)}"


def _not_carried(source: ExportSource, to: str, folder: Path) -> Generator[Note, None, None]:
    """What was part of training and is in no weight; and code that the base does not have."""
    if to in BITS and not (source.base / "quantization.py").exists():
        yield Note(
            "the base's folder has no quantization.py: glmtune opens this export, the official code does not"
        )
    taught = Taught() if (folder / CARD_FILE).exists() else source.location.taught
    for what, text in (("system text", taught.system), ("source prefix", taught.source_prefix)):
        if text:
            yield Note(f"trained with a {what} that no file of this kind holds; send it yourself: {text!r}")
