"""Encode conversations for evaluation: the prompt of the last answer, and the answer to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glmtune.conversation import answer_text, encode_question
from glmtune.data.counts import TokenCounts
from glmtune.data.cut import Cutter, Limits, Size, last_index
from glmtune.data.example import Example, naming_row
from glmtune.data.lengths import LengthReport
from glmtune.data.official import find_encoding
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, Segment, Taught
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A prompt as ids, its length before any cut, and the answer to compare with."""

    ids: list[int]
    reference: str = ""
    """Text of the answer to compare with."""
    uncut_tokens: int = 0
    """Tokens of the prompt before any cut."""
    cuts: tuple[str, ...] = ()
    """Kinds of cuts, as in a `LengthReport`."""
    turn: int = 1
    """Number of the user's message that is answered, 1 for the first of a conversation."""


def encode_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], settings: Data, *, num_new: int = 0
) -> tuple[list[EvaluationPrompt], LengthReport]:
    """Return the prompt of each conversation's last answer with that answer, and the report of their lengths.

    If no setting names a limit, room for `num_new` generated tokens is left in the model's context. Raises
    DataError for a conversation without an answer, and for a prompt that no cut makes short enough.
    """
    taught, limits = Taught.of(settings), Limits.of(settings, tokenizer.context, num_new=num_new)
    report = LengthReport(limit=f"{limits}, for the question part")
    prompts = []
    for example in examples:
        with naming_row(example.where):
            messages = taught.begin(example.messages)
            if settings.encoding == "chat":
                prompt = _chat_prompt(tokenizer, messages, settings, limits)
            else:
                prompt = _official_prompt(tokenizer, messages, settings)
        report.lengths.append(prompt.uncut_tokens)
        if prompt.cuts:
            report.add_cut(prompt.uncut_tokens - len(prompt.ids), prompt.cuts)
        asked = sum(message.role == "user" for message in messages[: _last_answer(messages)])
        prompts.append(replace(prompt, turn=max(asked, 1)))
    return prompts, report


def _last_answer(messages: Sequence[Message]) -> int | None:
    """Return the index of the answer that an evaluation asks for; None for a conversation without one."""
    return last_index(messages, lambda message: message.role == "assistant")


def _chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data, limits: Limits
) -> EvaluationPrompt:
    last = _last_answer(messages)
    if last is None:
        raise DataError("no answer to compare with", hint="give every test row an answer")
    before, answer = messages[:last], messages[last]

    def encode(question: Sequence[Message]) -> list[int]:
        return encode_question(tokenizer, question, source_prefix=settings.source_prefix)

    # the limit holds for the prompt alone: no room in it is kept for the answer
    source = limits.total if limits.total is not None else limits.source
    ids = encode(before)
    cuts: tuple[str, ...] = ()
    uncut_tokens = len(ids)
    if uncut_tokens > source:
        limits.refuse(uncut_tokens, settings, part=" of the question part")

        def render(conversation: Sequence[Message]) -> Sequence[Segment]:
            return tokenizer.segments(conversation[:-1], source_prefix=settings.source_prefix)

        # the cutter works on whole examples: an empty answer, never encoded, stands for the one asked for
        asked, size = [*before, Message("assistant", "")], Size(uncut_tokens, 0)
        cutter = Cutter(Limits(None, source, target=0), render, TokenCounts(tokenizer), asked, size)
        if not cutter.fit():
            raise DataError(
                f"the question part has {uncut_tokens:,} tokens and cannot be cut to {source:,}",
                hint=f"{limits.raising}, or shorten the system message",
            )
        ids, cuts = encode(cutter.conversation[:-1]), tuple(cutter.cuts)
    # the reference is the answer without its thought, its calls as the chat format writes them; encoded and
    # decoded like a generated answer: ChatGLM-6B's tokenizer turns full-width punctuation into half-width
    segments = [Segment(answer.content)]
    if answer.is_call:
        num_before = len(tokenizer.segments(before, add_generation_prompt=False))
        whole = tokenizer.segments([*before, answer], add_generation_prompt=False)
        segments = whole[num_before + 1 :]  # + 1: the assistant's role token
    reference = answer_text(tokenizer, tokenizer.encode_segments(segments))
    return EvaluationPrompt(ids, reference, uncut_tokens, cuts)


def _official_prompt(tokenizer: Tokenizer, messages: Sequence[Message], settings: Data) -> EvaluationPrompt:
    # GLM-4's combined evaluation shows the model the answer: the prompt is made by its other form
    uncombined = settings.model_copy(update={"combine": False})
    prompts = find_encoding(settings.encoding, tokenizer).evaluate(tokenizer, messages, uncombined)
    num_answers = sum(message.role == "assistant" for message in messages)
    # thudm's script asks for the last answer only, the other scripts for every answer
    if not prompts or (settings.encoding != "thudm" and len(prompts) < num_answers):
        raise DataError(
            "the official evaluation leaves this row out: its question is empty or too long",
            hint="raise data.max_source_tokens, or take the row out: if it is empty, data.empty=skip does",
        )
    last = prompts[-1]
    reference = [index for index in last.reference if index != last.end]
    text = str(tokenizer.decode(reference, skip_special_tokens=True)).strip()
    cuts = ("question",) * (len(last.prompt) < last.uncut_tokens)
    return EvaluationPrompt(last.prompt, text, last.uncut_tokens, cuts)
