"""Conversations -> what an evaluation asks: the prompt of the last answer, and the answer to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glmtune.conversation import answer_text, encode_question
from glmtune.data.cut import Cutter, Limits, Piece, last_index
from glmtune.data.example import Example, naming
from glmtune.data.lengths import LengthReport
from glmtune.data.official import find_encoding
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, Segment, Taught
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """A prompt as ids, what it was cut from, and the answer to compare with."""

    ids: list[int]
    reference: str = ""
    uncut_tokens: int = 0
    cuts: tuple[str, ...] = ()
    """Kinds of cuts, as in a `LengthReport`."""


def encode_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], settings: Data, *, num_new: int = 0
) -> tuple[list[EvaluationPrompt], LengthReport]:
    """The prompt of each conversation's last answer, with that answer, and what was cut of the prompts.

    Where no setting names a limit, the model's context is to hold `num_new` tokens of an answer too. Raises
    DataError where there is no answer, or a prompt cannot be cut.
    """
    taught, limits = Taught.of(settings), Limits.of(settings, tokenizer.context, num_new=num_new)
    report = LengthReport(limit=f"{limits}, for the question part")
    prompts = []
    for example in examples:
        with naming(example.where):
            prompt = _prompt(tokenizer, taught.begin(example.messages), settings, limits)
        report.add(prompt.uncut_tokens, len(prompt.ids), prompt.cuts)
        prompts.append(prompt)
    return prompts, report


def _prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data, limits: Limits
) -> EvaluationPrompt:
    if settings.encoding != "chat":
        return _official_prompt(tokenizer, messages, settings)
    last = last_index(messages, lambda message: message.role == "assistant")
    if last is None:
        raise DataError("no answer to compare with", hint="give every test row an answer")
    prompt = _cut_prompt(tokenizer, messages[:last], settings, limits)
    return replace(prompt, reference=_reference(tokenizer, messages[: last + 1]))


def _cut_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data, limits: Limits
) -> EvaluationPrompt:
    """The prompt that asks for the next answer; its question part may fill the whole limit."""

    def encode(asked: Sequence[Message]) -> list[int]:
        return encode_question(tokenizer, asked, source_prefix=settings.source_prefix)

    source = limits.total if limits.total is not None else limits.source
    ids = encode(messages)
    if len(ids) <= source:
        return EvaluationPrompt(ids, uncut_tokens=len(ids))
    limits.refuse(len(ids), settings, part=" of the question part")
    cutter = Cutter(
        Limits(None, source, target=0),
        lambda unit: Piece(encode(unit[:-1]), [], 0),
        lambda text: len(tokenizer.encode_plain(text)),
    )
    found = cutter.cut([*messages, Message("assistant", "")])
    if found is None:
        raise DataError(
            f"the question part has {len(ids):,} tokens and cannot be cut to {source:,}",
            hint=f"{limits.raising}, or shorten the system message",
        )
    return EvaluationPrompt(found[0].ids, uncut_tokens=len(ids), cuts=tuple(found[1]))


def _reference(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The last turn as the model would say it without its thought; its calls as their format writes them.

    Encoded and decoded as an answer is: ChatGLM-6B's tokenizer makes full-width punctuation half width.
    """
    answer = messages[-1]
    segments = [Segment(answer.content)]
    if answer.is_call:
        before = tokenizer.segments(messages[:-1], add_generation_prompt=False)
        segments = tokenizer.segments(messages, add_generation_prompt=False)[len(before) + 1 :]
    return answer_text(tokenizer, tokenizer.encode_segments(segments))


def _official_prompt(tokenizer: Tokenizer, messages: Sequence[Message], settings: Data) -> EvaluationPrompt:
    # GLM-4's combined evaluation shows the model the answer, so its other form asks here
    uncombined = settings.model_copy(update={"combine": False})
    asked = find_encoding(settings.encoding, tokenizer).evaluate(tokenizer, messages, uncombined)
    num_answers = sum(message.role == "assistant" for message in messages)
    if not asked or (settings.encoding != "thudm" and len(asked) < num_answers):
        raise DataError(
            "the official evaluation leaves this row out: its question is empty or too long",
            hint="raise data.max_source_tokens, or take the row out",
        )
    last = asked[-1]
    reference = [index for index in last.reference if index != last.end]
    text = str(tokenizer.decode(reference, skip_special_tokens=True)).strip()
    cuts = ("question",) * (len(last.prompt) < last.uncut_tokens)
    return EvaluationPrompt(last.prompt, text, last.uncut_tokens, cuts)
