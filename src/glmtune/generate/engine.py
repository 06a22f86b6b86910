"""The generation engine: token ids in, token ids out, any number of requests at once.

Chat, evaluation, the API and the samples of a training run answer with it; `model.generate` is its oracle
in the tests. Each `step` decodes one token for every row of the batch, whatever the rows' lengths; rows
that have ended leave the batch and waiting requests join it between two steps (continuous batching).

An answer stops at one of its request's `stop_ids`, which is its last token, or after `max_new_tokens`: see
`Answer.is_ended`. Before that only `cancel` ends it, or logits that are not finite (`AnswerError`). The
model's context is no limit: `tell_length` warns beyond it.

An answer does not depend on the other rows of the batch; only with `compute=fast` it may differ a little by
them (see `fast`).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count

import torch
from torch import Tensor

from glmtune.errors import AnswerError, ConfigError
from glmtune.generate.adapter_set import AdapterSet
from glmtune.generate.kv_cache import KvCache
from glmtune.generate.queue import (
    MAX_PREFILL_TOKENS,
    MAX_ROWS,
    WaitingLine,
    check_size,
    default_max_held_tokens,
)
from glmtune.generate.requests import Answer, Request, Token, check_prompt, check_request, require_request
from glmtune.generate.reuse import Reuse, mark_model
from glmtune.generate.runner import PrefillPrompt, build_runner
from glmtune.generate.sampling import LOOK_FOR_NAN, NOT_FINITE, NOTHING, Draw, draw_tokens, find_likely
from glmtune.log import tell
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of

MAX_CONTEXTS = 16
"""Longest prompt that is read, in lengths of the model's context: attention costs the square of it."""
MIN_MAX_PROMPT = 8192
"""Prompt tokens that are read even if the context is short: 2 seconds of glm-tiny, on one core."""


class Engine:
    """Answers requests together. Until it is done, the model must stay unchanged and in evaluation mode.

        engine = glmtune.Engine(glmtune.load_model("glm-tiny"))
        tokenizer = glmtune.load_tokenizer("glm-tiny")
        prompt = glmtune.encode_messages(tokenizer, [{"role": "user", "content": "你好"}])
        sampling = glmtune.Sampling(max_new_tokens=8)
        number = engine.submit(glmtune.Request(prompt, sampling, tokenizer.stop_ids))
        ids = []
        while not engine.is_idle:
            ids += [token.id for token in engine.step() if token.request == number]
        print(glmtune.answer_text(tokenizer, ids))

    An engine belongs to one thread; several threads must share a lock. If a call raises, no other request is
    lost or changed: the next step repeats the one that was broken off.

    `Adapters` may be added, and the active one switched, between two steps: the engine then only forgets the
    keys and values it keeps for reuse.
    """

    def __init__(
        self,
        model: CausalLM | AdapterSet,
        *,
        max_rows: int = MAX_ROWS,
        max_prefill_tokens: int = MAX_PREFILL_TOKENS,
        max_held_tokens: int | None = None,
        reused_tokens: int = 0,
        compile_step: bool = False,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """`model`: a model, or `Adapters`; with those each request names its own adapter.

        `max_rows`: requests answered at once; others wait. `max_held_tokens` bounds the KV cache: rows times
        the longest row's prompt and `max_new_tokens` (`WaitingLine`); a request above the bound is answered
        alone.

        `reused_tokens`: tokens of ended prompts and answers whose keys and values are kept, for prompts that
        begin like them. `compile_step`, for our own families: on a CPU the first steps take a minute, and
        small exact models are faster afterwards (needs a C++ compiler); on CUDA the step becomes a graph, and
        the KV cache of ended answers stays allocated. `numbers`: gives requests their numbers; engines that
        share it have none twice. Raises `ConfigError` if the model cannot be run so.
        """
        self._adapters = model if isinstance(model, AdapterSet) else None
        if self._adapters and compile_step:
            raise ConfigError(
                "compile_step: a compiled step has one adapter in it, and here each request has its own",
                hint="leave it off, or set one to work: Adapters.use(name), then Engine(adapters.model)",
            )
        most = default_max_held_tokens(max_rows) if max_held_tokens is None else max_held_tokens
        self._line = WaitingLine(max_rows, max_prefill_tokens, most)
        check_size("reused_tokens", reused_tokens, 0)
        base = model.model if isinstance(model, AdapterSet) else model
        # PEFT's prompt learning wraps the forward pass, and the runner calls the layers inside it
        config = getattr(base, "active_peft_config", None)
        if config is not None and config.is_prompt_learning:
            raise ConfigError(
                f"model: PEFT's {config.peft_type.value} stands in front of the layers, "
                "where this engine begins",
                hint="answer with model.generate; LoRA and glmtune's own prefixes are answered here",
            )
        self.runner = build_runner(base, compile_step=compile_step)
        self.rows = KvCache(is_room_kept=compile_step)
        """Keys and values of the rows of the batch, in its order."""
        self.reuse = Reuse(reused_tokens)
        context = getattr(causal_of(base).config, "max_position_embeddings", None)  # our own configs' too
        self.context: int | None = context if isinstance(context, int) else None
        """Context length of the model in tokens; None if its config names none."""
        self.max_prompt = max(MAX_CONTEXTS * self.context, MIN_MAX_PROMPT) if self.context else None
        """Longest prompt that is read, in tokens; None: no bound."""
        self.is_length_told = False
        self._kind = _kind_of(self.runner.model)
        self._numbers = numbers or count()
        self._batch: list[Answer] = []  # rows of the batch, in the order of `rows`
        self._drawn: list[Token] = []  # of the step under way: a step that broke off has not returned them
        self._positions = torch.empty(0)  # of the next token in each row, (B, ..., 1)

    @property
    def is_idle(self) -> bool:
        """True if nothing is left to answer."""
        return not (self._batch or self._line.waiting or self._drawn)

    @property
    def num_rows(self) -> int:
        """Number of requests that are being answered; the others wait."""
        return len(self._batch)

    @property
    def num_held_tokens(self) -> int:
        """Tokens that the KV cache has room for."""
        rows, columns = self.rows.room
        return rows * columns

    def submit(self, request: Request) -> int:
        """Queue a request; return its number. Raises as `check`."""
        request = self.check(request)
        self.tell_length([len(request.prompt)])
        self.runner.count_positions(request.prompt)  # raises now what would break the prefill of others
        draw = Draw(request.sampling, request.prompt, device=self.runner.device, limit=request.limit)
        number = next(self._numbers)
        self._line.waiting.append(Answer(number, request, draw, self.count_tokens(request)))
        return number

    def check(self, request: Request) -> Request:
        """Return a request with copies of its ids, if it can be answered.

        Raises `DataError` for a prompt that is empty, too long or holds ids outside the vocabulary,
        `ConfigError` for arguments of other types, stop ids that are not integers, an unknown adapter, and a
        model that is in training mode or was cast or moved.
        """
        require_request(request)
        self._check_model()
        self._check_adapter(request.adapter)
        return check_request(request, self._vocab_size, self.max_prompt)

    def count_tokens(self, request: Request) -> int:
        """Return the columns of the KV cache that a request may need: prefix, prompt and longest answer."""
        prefix = self._prefix_of(request.adapter)
        num_prefix_tokens = prefix.num_tokens if prefix else 0
        return num_prefix_tokens + len(request.prompt) + request.sampling.max_new_tokens

    def tell_length(self, lengths: Sequence[int]) -> None:
        """Warn, once, about texts of these lengths in tokens that are longer than the model's context.

        Prompts above `max_prompt` do not count: `submit` refuses them.
        """
        read = [length for length in lengths if length <= (self.max_prompt or length)]
        longer = [length for length in read if length > (self.context or length)]
        if longer and not self.is_length_told:
            self.is_length_told = True
            what = f"{len(longer):,} of {len(lengths):,} prompts are" if len(lengths) > 1 else "this text is"
            tell(
                f"warning: {what} longer than the {self.context:,} tokens that the model was made for "
                f"({max(longer):,} tokens): expect worse answers there"
            )

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Drop a request, waiting or half answered, and free its memory at once."""
        self._line.drop(number)
        self._drawn = [token for token in self._drawn if token.request != number]
        for row, answer in enumerate(self._batch):
            if answer.number == number:
                self._leave(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Decode one token for each row of the batch, prefill joining requests; return their new tokens.

        Of many that join, those of one packed prefill do so in each step.

        Raises `AnswerError` if the model's logits are not finite: the requests it names are gone, and the
        next step returns the other rows' tokens.
        """
        # `_drawn` is not empty if the step before broke off behind this line: its rows have their token
        if self._batch and not self._drawn:
            self._decode()
        # one prefill a step: the first of many that wait have their tokens before the last are read, and the
        # rows of the batch do not wait for all of them
        if joining := self._line.first(self._batch):
            self._join(joining)
        # backwards: the last row moves to the place of one that leaves, and has been looked at by then
        for row in reversed(range(len(self._batch))):
            if self._batch[row].is_ended:
                self._leave(row)
        tokens, self._drawn = self._drawn, []
        return tokens

    @torch.inference_mode()
    def remember(self, ids: Sequence[int], *, adapter: str | None = None) -> None:
        """Prefill a text that many prompts begin with; keep it until a weight changes, or `forget`.

        `adapter` as in `Request`; errors as of `submit`.
        """
        self._check_model()
        self._check_adapter(adapter)
        text = check_prompt(ids, self._vocab_size, self.max_prompt)
        self.reuse.check(self.runner.model)
        if self.reuse.is_pinned(text, adapter):
            return
        row, mark = len(self._batch), mark_model(self.runner.model)
        try:
            self._read([Request(text, adapter=adapter)])
            layers = self.rows.read(row)
            self.reuse.keep(self.runner.model, text, layers, mark=mark, adapter=adapter, pin=True)
        finally:
            self.rows.keep_first(row)

    def forget(self) -> None:
        """Drop all keys and values kept for later prompts, remembered texts too."""
        self.reuse.forget()

    @property
    def _vocab_size(self) -> int:
        size: int = self.runner.model.get_input_embeddings().weight.shape[0]
        return size

    @property
    def goes_on(self) -> bool:
        """True if kept keys and values also serve prompts that only begin like the kept text.

        False for ChatGLM-6B: its prompt tokens see each other both ways, so a longer prompt changes them all.
        """
        return self.runner.count_reusable((), 1) > 0

    def _check_model(self) -> None:
        if self.runner.model.training:
            raise ConfigError(
                "model: in training mode, where dropout makes every answer a random one", hint="model.eval()"
            )
        if _kind_of(self.runner.model) != self._kind:
            raise ConfigError(
                "model: cast or moved since this engine was made", hint="make a new Engine or Chat after that"
            )

    def _check_adapter(self, name: str | None) -> None:
        if self._adapters:
            self._adapters.check_mixable(name)
        elif name is not None:
            raise ConfigError(
                f"adapter: {name}, but this engine has a model without names for adapters",
                hint="Engine(adapters), where adapters = glmtune.Adapters(base)",
            )

    def _prefix_of(self, adapter: str | None) -> PrefixEncoder | None:
        return self._adapters.prefix_of(adapter) if self._adapters else self.runner.prefix

    def _adapter_rows(
        self, adapters: Sequence[str | None], num_tokens: Sequence[int]
    ) -> AbstractContextManager[None]:
        """Inside, a forward pass applies each adapter to its row's tokens, `num_tokens` of each row."""
        return self._adapters.mixing(adapters, num_tokens) if self._adapters else nullcontext()

    def _decode(self) -> None:
        """Draw one more token for each row of the batch."""
        last = torch.tensor([[answer.ids[-1]] for answer in self._batch], device=self.runner.device)
        adapters = [answer.request.adapter for answer in self._batch]
        lengths = list(self.rows.lengths)
        try:
            with self._adapter_rows(adapters, [1] * len(adapters)):
                logits = self.runner.step(self.rows, last, self._positions)
            following = self.runner.advance_positions(self._positions)
            drawn = draw_tokens(logits, [answer.draw for answer in self._batch])
        except BaseException:  # also Ctrl-C: the next step decodes again and overwrites the same columns
            self.rows.lengths = lengths
            raise
        self._positions = following
        self._take(self._batch, drawn, logits)

    def _join(self, joining: Sequence[Answer]) -> None:
        """Prefill waiting requests and draw their first tokens; until then they stay in line."""
        first = len(self._batch)
        try:
            logits, following, cached = self._read([answer.request for answer in joining])
            drawn = draw_tokens(logits, [answer.draw for answer in joining])
        except BaseException as error:
            self.rows.keep_first(first)
            error.add_note(f"while the prompts of requests {_numbers_of(joining)} were read")
            raise
        self._positions = torch.cat((self._positions, following)) if self._batch else following
        self._batch += joining
        for answer, num_cached in zip(joining, cached, strict=True):
            answer.mark, answer.num_cached = self.reuse.mark, num_cached
            self._line.waiting.popleft()
        self._take(joining, drawn, logits)

    def _take(self, answers: Sequence[Answer], drawn: Sequence[int], logits: Tensor) -> None:
        """Append the tokens drawn from logits (B, V); raise `AnswerError` for rows that got `NOTHING`."""
        spoiled = [answer for answer, token in zip(answers, drawn, strict=True) if token == NOTHING]
        for row, (answer, token) in enumerate(zip(answers, drawn, strict=True)):
            if token != NOTHING:
                answer.ids.append(token)
                if answer.draw.limit:
                    answer.draw.limit.take(token)
                count = answer.request.num_likeliest
                likely = None if count is None else find_likely(logits[row], token, count)
                self._drawn.append(Token(answer.number, token, answer.is_ended, likely, answer.num_cached))
                self.tell_length([len(answer.request.prompt) + len(answer.ids)])
        if not spoiled:
            return
        for answer in spoiled:
            row = self._batch.index(answer)
            self.rows.wipe(row)  # or its NaN would reach the row that comes here next
            self._drop(row)
        problem = "".join(answer.draw.limit.problem for answer in spoiled if answer.draw.limit)
        raise AnswerError(
            f"request {_numbers_of(spoiled)}: {problem or NOT_FINITE}",
            requests=tuple(answer.number for answer in spoiled),
            hint="a simpler schema" if problem else LOOK_FOR_NAN,
        )

    def _read(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, list[int]]:
        """Prefill prompts into new rows: logits (B, V) after each, positions (B, ..., 1) of what follows.

        Of each prompt also the number of ids that were known already.
        """
        self.reuse.check(self.runner.model)
        first = len(self._batch)
        self.rows.add(len(requests))
        prompts = [self._begin(first + i, request) for i, request in enumerate(requests)]
        logits, following = [], []
        for batch in [prompts] if self.runner.is_packing else [[prompt] for prompt in prompts]:
            num_new = [len(prompt.ids) - prompt.cached for prompt in batch]
            with self._adapter_rows([prompt.adapter for prompt in batch], num_new):
                batch_logits, batch_following = self.runner.prefill(self.rows, batch)
            logits.append(batch_logits)
            following.append(batch_following)
        return torch.cat(logits), torch.cat(following), [prompt.cached for prompt in prompts]

    def _begin(self, row: int, request: Request) -> PrefillPrompt:
        """Copy into a row the keys and values that are known of its prompt: a kept text, or the prefix."""
        ids, adapter = request.prompt, request.adapter
        prefix = self._prefix_of(adapter)
        shared, layers = self.reuse.find(ids, adapter)
        # the last id is computed even if it is known: its logits give the first token
        known = min(self.runner.count_reusable(ids, shared), len(ids) - 1) if shared else 0
        if known:
            end = (prefix.num_tokens if prefix else 0) + known  # a kept text has its prefix in front
            self.rows.write(row, 0, [tuple(part[:, :end] for part in layer) for layer in layers])
        elif prefix:
            self.runner.write_front(self.rows, row, prefix)
        return PrefillPrompt(row, ids, known, adapter)

    def _leave(self, row: int) -> None:
        """Take a row out of the batch; keep its keys and values for later prompts if the budget allows it."""
        answer = self._batch[row]
        ids = [*answer.request.prompt, *answer.ids[:-1]]  # the last token was drawn, but never computed
        try:
            if len(ids) <= self.reuse.num_tokens:
                layers = self.rows.read(row)
                mark, adapter = answer.mark, answer.request.adapter
                self.reuse.keep(self.runner.model, ids, layers, mark=mark, adapter=adapter)
        finally:
            self._drop(row)

    def _drop(self, row: int) -> None:
        """Delete a row; the last row moves to its index, as in `KvCache.remove`."""
        last = self._batch.pop()
        if row < len(self._batch):
            self._batch[row] = last
            self._positions[row] = self._positions[-1]
        self._positions = self._positions[: len(self._batch)]
        self.rows.remove(row)


def _kind_of(model: CausalLM) -> tuple[torch.dtype, torch.device]:
    weight = model.get_input_embeddings().weight
    return weight.dtype, weight.device


def _numbers_of(answers: Sequence[Answer]) -> str:
    return ", ".join(str(answer.number) for answer in answers)
