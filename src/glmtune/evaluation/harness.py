"""A model of ours as lm-eval asks one: likelihoods of texts, and texts that go on.

Texts are encoded as plain text behind the chat format's first tokens; a text never becomes a control token.
Source: github.com/EleutherAI/lm-evaluation-harness v0.4.13, lm_eval/api/model.py (what the functions get
and give) and lm_eval/models/huggingface.py (cut from the left, windows of a long text, 256 new tokens).
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from glmtune.conversation import answer_text
from glmtune.data.row import TrainingRow
from glmtune.errors import ConfigError
from glmtune.generate import Sampling, complete
from glmtune.models.protocol import CausalLM
from glmtune.objectives.teacher import record_likeliest
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.processes import Processes, deal_out

NEW_TOKENS = 256
"""Longest text that goes on, in tokens, where a task sets none."""

Pair = tuple[list[int], list[int]]


class HarnessModel(LM):  # type: ignore[misc]  # lm-eval has no types
    """A loaded model and its tokenizer behind lm-eval's interface.

    Several processes are asked the same, and share the work on it.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, processes: Processes) -> None:
        """Raises `ConfigError` for a chat format whose texts do not begin with tokens of its own."""
        super().__init__()
        self._model, self._tokenizer, self._processes = model, tokenizer, processes
        self._first = tokenizer.get_prefix_tokens()
        if not self._first:
            raise ConfigError(
                f"tasks: {tokenizer.template} puts its marks between a question and an answer, so it cannot "
                "score texts that go on",
                hint="ChatGLM2 and later can; of this one `glmtune evaluate PATH --data FILE` scores answers",
            )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and if it is the greedy one."""
        return self._score([self._encode(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text; of a long one the windows are summed."""
        totals = []
        for request in requests:
            ids, size = self._tokenizer.encode_plain(request.args[0]), self._room
            windows = [(self._first, ids[start : start + size]) for start in range(0, len(ids), size)]
            totals.append(sum(value for value, _ in self._score(windows)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that goes on after each context, up to the first of its stop texts."""
        texts: dict[int, str] = {}
        numbered = sorted(enumerate(requests), key=lambda pair: repr(pair[1].args[1]))
        for _, group in groupby(numbered, key=lambda pair: repr(pair[1].args[1])):
            members = list(group)
            settings = dict(members[0][1].args[1])
            until = settings.pop("until", None) or []
            sampling = _sampling(settings)
            room = max(self._room - sampling.max_new_tokens, 1)
            texts_before = (request.args[0] for _, request in members)
            prompts = [self._first + self._tokenizer.encode_plain(text)[-room:] for text in texts_before]
            stop_ids = frozenset(self._tokenizer.stop_ids)
            answer = partial(complete, self._model, sampling=sampling, stop_ids=stop_ids)
            answers = deal_out(self._processes, prompts, answer)
            for (number, _), ids in zip(members, answers, strict=True):
                text = answer_text(self._tokenizer, [i for i in ids if i not in stop_ids])
                for stop in [until] if isinstance(until, str) else until:
                    text = text.split(stop)[0] if stop else text
                texts[number] = text
        return [texts[number] for number in range(len(requests))]

    @property
    def _room(self) -> int:
        """Tokens that fit behind the first ones."""
        return (self._tokenizer.context or 2**20) - len(self._first)

    def _encode(self, context: str, continuation: str) -> Pair:
        """Encode both together, so that no token ends where the context does by force."""
        kept = context.rstrip()  # spaces belong to the word that follows them
        whole = self._tokenizer.encode_plain(context + continuation)
        start = len(self._tokenizer.encode_plain(kept)) if kept else 0
        ids, scored = whole[:start], whole[start:]
        return self._first + ids[max(0, len(whole) - self._room) :], scored[-self._room :]

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = []
        for number, (context, scored) in enumerate(pairs):
            ids = np.array([*context, *scored], np.int32)
            labels = ids.copy()
            labels[: len(context)] = -100  # ignored by the loss
            rows.append(TrainingRow(ids, labels, f"request {number}"))
        pad_id = self._tokenizer.pad_token_id
        found = record_likeliest(self._model, rows, processes=self._processes, pad_id=pad_id)
        scores = []
        for row in found:
            assert row.target_log_probs is not None
            of_labels, of_others = row.target_log_probs[:, 0], row.target_log_probs[:, 1:]
            is_greedy = bool((of_labels[:, None] >= of_others).all())
            scores.append((float(of_labels.sum(dtype=np.float64)), is_greedy))
        return scores


def _sampling(settings: dict[str, Any]) -> Sampling:
    """Return the sampling that a task's `generation_kwargs` ask for: greedy, unless they ask to draw."""
    num_new = settings.get("max_gen_toks") or settings.get("max_new_tokens") or NEW_TOKENS
    temperature = float(settings.get("temperature") or 0.0)
    if not settings.get("do_sample") or not temperature:
        return Sampling(do_sample=False, max_new_tokens=int(num_new))
    return Sampling(
        max_new_tokens=int(num_new), temperature=temperature, top_p=float(settings.get("top_p") or 1.0)
    )
