"""The answers of a base to general prompts, before training changes it; kept, so that each is given once."""

import functools
import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from glmtune.adapters.proof import name_computing, name_dtype
from glmtune.conversation import answer_text, encode_messages
from glmtune.data.row import TrainingRow
from glmtune.folder import ModelFolder
from glmtune.general import GeneralPrompt
from glmtune.generate.beside import engine_beside
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling
from glmtune.log import tell
from glmtune.models.fingerprint import fingerprint
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.strict import parse_json
from glmtune.templates import Message, Taught
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.processes import Alone, Processes

PART = 32
"""Prompts that each process answers before they are kept."""
OWN_DISTRIBUTION = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=0)
"""The draw of answers that lie on a model's own distribution."""


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """An answer of the base to one turn of a prompt."""

    prompt: GeneralPrompt
    turn: int
    """The number of the turn, from 1."""
    prompt_ids: list[int]
    """The ids of the conversation up to the answer, earlier answers included."""
    answer_ids: list[int]
    """The ids of the answer; the last one is its end token if it ended."""
    text: str
    is_ended: bool
    """False for an answer that was cut at the most tokens."""

    def row(self, where: str, source: int = 0) -> TrainingRow:
        """Return the answer as a training row."""
        ids = np.array([*self.prompt_ids, *self.answer_ids], np.int32)
        labels = ids.copy()
        labels[: len(self.prompt_ids)] = -100  # ignored by the loss
        return TrainingRow(ids, labels, where, source)


def answer_prompts(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[GeneralPrompt],
    *,
    taught: Taught,
    max_new_tokens: int,
    cache: Path | None,
    sampling: Sampling = OWN_DISTRIBUTION,
    processes: Processes | Alone | None = None,
) -> list[BaseAnswer]:
    """Return the model's answer to each turn of the prompts, in their order.

    `cache`: file of answers that are known, which new ones are added to; see `cache_file`. Other arguments
    as of `Answering`.
    """
    sampling = replace(sampling, max_new_tokens=max_new_tokens)
    answering = Answering(model, tokenizer, taught, sampling, cache=cache, processes=processes)
    for _ in answering.parts(prompts):
        pass
    return answering.of(prompts)


class Answering:
    """Answers prompts with a model, a part after the other, and keeps what is answered."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        taught: Taught,
        sampling: Sampling,
        *,
        cache: Path | None = None,
        processes: Processes | Alone | None = None,
    ) -> None:
        """Take a model without an adapter. `taught`: texts in front of each prompt, as in a chat.

        Each answer has a seed of its own, made of its prompt, so it is the same whatever else is answered.
        Several processes share the prompts, and all get all answers.
        """
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._questions = PromptTurns(tokenizer, taught)
        self._processes = processes
        self._cache = cache if processes is None or processes.is_main else None
        known = read_answers(self._cache) if self._cache else {}
        self._known = processes.firsts(known) if processes else known

    def unanswered(self, prompts: Sequence[GeneralPrompt]) -> list[GeneralPrompt]:
        """Return the prompts that have a turn whose answer is not known."""
        return [prompt for prompt in prompts if self._questions.following(prompt, self._known)]

    def of(self, prompts: Sequence[GeneralPrompt]) -> list[BaseAnswer]:
        """Return the known answers of the prompts."""
        return [answer for prompt in prompts for answer in self._questions.answers(prompt, self._known)]

    def parts(self, prompts: Sequence[GeneralPrompt]) -> Generator[int, None, None]:
        """Answer the prompts that are not known; yield the number of known ones after each part of them."""
        left = self.unanswered(prompts)
        number, rank = (self._processes.number, self._processes.rank) if self._processes else (1, 0)
        done = len(prompts) - len(left)
        for start in range(0, len(left), PART * number):
            part = left[start : start + PART * number]
            own = self._answer(part[rank::number])
            gathered = self._processes.gather(own) if self._processes else [own]
            new = {ids: answer for each in gathered for ids, answer in each.items()}
            self._known |= new
            if self._cache:
                keep_answers(self._cache, new)
            done += len(part)
            yield done

    def _answer(self, prompts: Sequence[GeneralPrompt]) -> dict[tuple[int, ...], list[int]]:
        """Return the answers of some prompts by the ids of what they answer, turn by turn."""
        known, new = dict(self._known), dict[tuple[int, ...], list[int]]()
        if not prompts:
            return new
        was_training, stop_ids = self._model.training, frozenset(self._tokenizer.stop_ids)
        self._model.eval()
        engine = engine_beside(self._model)
        asked: dict[int, tuple[int, ...]] = {}
        waiting: dict[tuple[int, ...], list[GeneralPrompt]] = {}
        """The prompts that go on from an answer which is being given; several may begin alike."""

        def ask(prompt: GeneralPrompt) -> None:
            ids = self._questions.following(prompt, known)
            if ids in waiting:
                waiting[ids].append(prompt)
            elif ids:
                waiting[ids], new[ids] = [prompt], []
                sampling = replace(self._sampling, seed=seed_of(ids))
                asked[engine.submit(Request(ids, sampling, stop_ids))] = ids

        try:
            for prompt in prompts:
                ask(prompt)
            while not engine.is_idle:
                for token in engine.step():
                    ids = asked[token.request]
                    new[ids].append(token.id)
                    if token.is_last:
                        known[ids] = new[ids]
                        for prompt in waiting.pop(ids):
                            ask(prompt)
        finally:
            self._model.train(was_training)
        return new


class PromptTurns:
    """The ids of the turns of prompts, as a chat with the model would send them."""

    def __init__(self, tokenizer: Tokenizer, taught: Taught) -> None:
        self._tokenizer, self._taught = tokenizer, taught

    def following(
        self, prompt: GeneralPrompt, known: Mapping[tuple[int, ...], list[int]]
    ) -> tuple[int, ...] | None:
        """Return the ids of the first turn whose answer is not known; None if all are."""
        answers = self.answers(prompt, known)
        return None if len(answers) == len(prompt.turns) else self._encode(prompt, [a.text for a in answers])

    def answers(self, prompt: GeneralPrompt, known: Mapping[tuple[int, ...], list[int]]) -> list[BaseAnswer]:
        """Return the known answers of a prompt's first turns."""
        stop_ids, answers = frozenset(self._tokenizer.stop_ids), list[BaseAnswer]()
        for turn in range(1, len(prompt.turns) + 1):
            ids = self._encode(prompt, [answer.text for answer in answers])
            answer = known.get(ids)
            if answer is None:
                break
            is_ended = answer[-1] in stop_ids
            text = answer_text(self._tokenizer, answer[:-1] if is_ended else answer)
            answers.append(BaseAnswer(prompt, turn, list(ids), answer, text, is_ended))
        return answers

    def longest(self, prompt: GeneralPrompt, max_new_tokens: int, filler: int) -> list[list[int]]:
        """Return ids as long as the conversation up to each turn's answer may become, with a filler's."""
        return [
            [*self._encode(prompt, ["."] * turn), *[filler] * (turn * max_new_tokens)]
            for turn in range(len(prompt.turns))
        ]

    def _encode(self, prompt: GeneralPrompt, answers: Sequence[str]) -> tuple[int, ...]:
        messages = [Message("user", prompt.turns[0])]
        for answer, question in zip(answers, prompt.turns[1:], strict=False):
            messages += [Message("assistant", answer), Message("user", question)]
        return tuple(encode_messages(self._tokenizer, messages, taught=self._taught))


def seed_of(ids: Sequence[int]) -> int:
    """Return a seed that only the ids decide on."""
    return int.from_bytes(hashlib.sha256(np.array(ids, np.int64).tobytes()).digest()[:7])


def cache_file(folder: ModelFolder, model: CausalLM, tokenizer: Tokenizer, sampling: Sampling) -> Path:
    """Return the file of the answers of a base, held and computed in its types, that are drawn so."""
    identity = fingerprint(folder)
    facts = {
        "family": identity.kind,
        "config": dict(identity.config),
        "weights": identity.weights,
        "held": held_quant(model) or name_dtype(model),
        "computing": name_computing(model),
        "sampling": asdict(sampling),
        "stop_ids": sorted(tokenizer.stop_ids),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "answers" / f"{key}.jsonl"


def cache_folder() -> Path:
    """Return the folder of what is kept from run to run: `$GLMTUNE_CACHE`, or ~/.cache/glmtune."""
    return Path(os.environ.get("GLMTUNE_CACHE") or Path.home() / ".cache" / "glmtune")


def read_answers(path: Path) -> dict[tuple[int, ...], list[int]]:
    """Return the answers of a file by the ids of what they answer; none if there is no file.

    A damaged line is left out: what it held is answered anew.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as err:
        _warn_unkept(path.parent, str(err.strerror))
        return {}
    *lines, _ = content.split(b"\n")  # without a last line that is being written, or was cut
    written = [line for line in lines if line]
    answers = [answer for line in written if (answer := _parse_answer(line))]
    if damaged := len(written) - len(answers):
        tell(f"{path}: lines that are damaged, and left out: {damaged:,}; a deleted file is made anew")
    return dict(answers)


def _parse_answer(line: bytes) -> tuple[tuple[int, ...], list[int]] | None:
    try:
        content = parse_json(line.decode())
        asked, answer = content["prompt_ids"], content["answer_ids"]
    except (ValueError, KeyError, TypeError):
        return None
    return (tuple(asked), answer) if _are_ids(asked) and _are_ids(answer) else None


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)


def keep_answers(path: Path, new: Mapping[tuple[int, ...], list[int]]) -> None:
    """Add answers to a file, which other runs may add to at the same time; where that fails, say so."""
    answers = ({"prompt_ids": ids, "answer_ids": answer} for ids, answer in new.items())
    # the first line break ends a line that a killed run has cut
    lines = "\n".join(["", *map(json.dumps, answers), ""])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(lines.encode())  # all in one call, which the system puts behind what is there
    except OSError as err:
        _warn_unkept(path.parent, str(err.strerror))


@functools.cache
def _warn_unkept(folder: Path, reason: str) -> None:
    """Warn that a folder takes no answers; once, however many are to be kept there."""
    tell(
        f"warning: {folder}: {reason}: the base's answers are not kept for other runs; set GLMTUNE_CACHE to "
        "a folder that can be written"
    )
