"""The decoder: token ids in, token ids out, any number of requests at once.

Used by chat, evaluation and the samples of a training run; `model.generate` is its oracle in the tests. Each
step answers every row that is held with one token, whatever its length; rows that have ended leave and those
that wait join between two steps. An answer does not depend on what else is being answered, except that
those of `compute=fast` may differ a little by it (see `fast`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count

import torch
from torch import Tensor

from glmtune.errors import AnswerError, ConfigError
from glmtune.generate.adapter_batch import AdapterBatch
from glmtune.generate.kv_cache import KvCache
from glmtune.generate.queue import MAX_PREFILL_TOKENS, MAX_ROWS, Line, check_size, held_by_default
from glmtune.generate.requests import Answer, Request, Token, check_prompt, check_request
from glmtune.generate.reuse import Reuse, mark_model
from glmtune.generate.runner import PrefillPrompt, build_runner
from glmtune.generate.sampling import NOTHING, Draw, draw_tokens
from glmtune.log import tell
from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of

MAX_CONTEXTS = 16
"""A prompt is read up to so many times the length that the model was made for: attention takes the square."""
MIN_MAX_PROMPT = 8192
"""Tokens of a prompt that are read however short that length is: 2 seconds of glm-tiny, on one core."""


class Engine:
    """Answers requests together. The model must be in evaluation mode and stay as it is meanwhile.

    An engine is one thread's: several must take turns, by a lock of theirs. Whatever a call raises, no other
    request is lost or answered otherwise: the next step goes on with one that was broken off.

    Of `Adapters` more may be added, and the active one switched, between two steps: both only make the engine
    forget the texts that it keeps.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        max_rows: int = MAX_ROWS,
        max_prefill_tokens: int = MAX_PREFILL_TOKENS,
        max_held_tokens: int | None = None,
        reused_tokens: int = 0,
        compile_step: bool = False,
    ) -> None:
        """`model`: a model, or `Adapters`, of which each request then names its own.

        `max_rows`: how many are answered at once; further requests wait. `max_held_tokens` bounds the memory
        of long ones: fewer are answered at once where their number times the longest text, prompt and
        `max_new_tokens`, is more (`Line`); one that is longer is answered alone.

        `reused_tokens`: of so many tokens, prompts and their answers, keys and values are kept for prompts
        that begin like them. `compile_step`, for our own families: on a CPU the first steps take a minute,
        and small exact models are faster then (needs a C++ compiler); on CUDA the step becomes a graph.
        Memory of ended answers is kept for the next ones. Raises `ConfigError` where the model cannot be run
        so.
        """
        self._adapters = model if isinstance(model, AdapterBatch) else None
        if self._adapters and compile_step:
            raise ConfigError(
                "compile_step: a compiled step has one adapter in it, and here each request has its own",
                hint="leave it off, or set one to work: Adapters.use(name), then Engine(adapters.model)",
            )
        most = held_by_default(max_rows) if max_held_tokens is None else max_held_tokens
        self._line = Line(max_rows, max_prefill_tokens, most)
        check_size("reused_tokens", reused_tokens, 0)
        base = self._adapters.model if self._adapters else model
        _refuse_prompt_learning(base)
        self.runner = build_runner(base, compile_step=compile_step)
        self.rows = KvCache(is_room_kept=compile_step)
        self.reuse = Reuse(reused_tokens)
        self.context = _context_of(base)
        """Tokens of the longest text that the model was made for, None where its config names none."""
        self.max_prompt = max(MAX_CONTEXTS * self.context, MIN_MAX_PROMPT) if self.context else None
        """Tokens of the longest prompt that is read, None where there is no such bound."""
        self.is_length_told = False
        self._kind = _kind_of(self.runner.model)
        self._numbers = count()
        self._held: list[Answer] = []  # as in `rows`
        self._drawn: list[Token] = []  # of the step that is under way
        self._positions = torch.empty(0)  # of the next token in each held row, (B, ..., 1)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to answer."""
        return not (self._held or self._line.waiting or self._drawn)

    def submit(self, request: Request) -> int:
        """Put a request in line; its number.

        Raises `DataError` for a prompt that nothing can follow or that is too long, `ConfigError` for stop
        ids that are none, an unknown adapter, and a model that is in training mode, or was cast or moved.
        """
        self._check_model()
        self._check_adapter(request.adapter)
        request = check_request(request, self._vocabulary, self.max_prompt)
        self.tell_length([len(request.prompt)])
        self.runner.count_positions(request.prompt)
        draw = Draw(request.sampling, request.prompt, device=self.runner.device)
        number = next(self._numbers)
        self._line.waiting.append(Answer(number, request, draw, self._num_tokens_of(request)))
        return number

    def tell_length(self, lengths: Sequence[int]) -> None:
        """Say, once, that texts of so many tokens are longer than those that the model was made for.

        Not of prompts that `submit` refuses.
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
        """Give a request up, waiting or half answered; its memory is free at once."""
        self._line.drop(number)
        self._drawn = [token for token in self._drawn if token.request != number]
        for row, answer in enumerate(self._held):
            if answer.number == number:
                self._leave(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One token for each row that is held, and the first of each that joins.

        Raises `AnswerError` where the model's numbers are not finite: the requests that it names are gone,
        and the next step gives the other rows' tokens.
        """
        if self._held and not self._drawn:  # else the step before was broken off after this
            self._advance()
        while joining := self._line.first(self._held):
            self._join(joining)
        for row in reversed(range(len(self._held))):
            if self._held[row].is_ended:
                self._leave(row)
        tokens, self._drawn = self._drawn, []
        return tokens

    @torch.inference_mode()
    def remember(self, ids: Sequence[int], *, adapter: str | None = None) -> None:
        """Compute a text that many prompts begin with, and keep it until a weight changes, or `forget`.

        `adapter` as in `Request`; errors as of `submit`.
        """
        self._check_model()
        self._check_adapter(adapter)
        text = check_prompt(ids, self._vocabulary, self.max_prompt)
        self.reuse.check(self.runner.model)
        if not self.reuse.is_pinned(text, adapter):
            self._remember(text, adapter)

    def forget(self) -> None:
        """Let go of what is kept for later prompts, remembered texts too."""
        self.reuse.forget()

    def _remember(self, text: Sequence[int], adapter: str | None) -> None:
        row, mark = len(self._held), mark_model(self.runner.model)
        try:
            self._read([Request(text, adapter=adapter)])
            layers = self.rows.read(row)
            self.reuse.keep(self.runner.model, text, layers, mark=mark, adapter=adapter, pin=True)
        finally:
            self.rows.keep_first(row)

    @property
    def _vocabulary(self) -> int:
        size: int = self.runner.model.get_input_embeddings().weight.shape[0]
        return size

    @property
    def goes_on(self) -> bool:
        """Whether what is kept of a text is of use for prompts that only begin like it.

        Not so for ChatGLM-6B: each token of its context sees the whole.
        """
        return self.runner.count_reusable((), 1) > 0

    def _check_model(self) -> None:
        """That it is as answers, and this engine, need it."""
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

    def _num_tokens_of(self, request: Request) -> int:
        """Columns that its row may come to need."""
        prefix = self._prefix_of(request.adapter)
        front = prefix.num_tokens if prefix else 0
        return front + len(request.prompt) + request.sampling.max_new_tokens

    def _mixing(
        self, adapters: Sequence[str | None], num_tokens: Sequence[int]
    ) -> AbstractContextManager[None]:
        """Inside, a pass reads so many tokens under each of these."""
        return self._adapters.mixing(adapters, num_tokens) if self._adapters else nullcontext()

    def _advance(self) -> None:
        last = torch.tensor([[answer.ids[-1]] for answer in self._held], device=self.runner.device)
        adapters = [answer.request.adapter for answer in self._held]
        lengths = list(self.rows.lengths)
        try:
            with self._mixing(adapters, [1] * len(adapters)):
                logits = self.runner.step(self.rows, last, self._positions)
            following = self.runner.advance_positions(self._positions)
            drawn = draw_tokens(logits, [answer.draw for answer in self._held])
        except BaseException:  # the step is done again: its column is written once more
            self.rows.lengths = lengths
            raise
        self._positions = following
        self._take(self._held, drawn)

    def _join(self, joining: Sequence[Answer]) -> None:
        """They wait until their first tokens are drawn, so that none is lost if that fails."""
        first = len(self._held)
        try:
            logits, following = self._read([answer.request for answer in joining])
            drawn = draw_tokens(logits, [answer.draw for answer in joining])
        except BaseException as error:
            self.rows.keep_first(first)
            error.add_note(f"while the prompts of requests {_numbers_of(joining)} were read")
            raise
        self._positions = torch.cat((self._positions, following)) if self._held else following
        self._held += joining
        for answer in joining:
            answer.mark = self.reuse.mark
            self._line.waiting.popleft()
        self._take(joining, drawn)

    def _take(self, answers: Sequence[Answer], drawn: Sequence[int]) -> None:
        """Give each answer its token, and give up those that there is none for."""
        spoiled = [answer for answer, token in zip(answers, drawn, strict=True) if token == NOTHING]
        for answer, token in zip(answers, drawn, strict=True):
            if token != NOTHING:
                answer.ids.append(token)
                self._drawn.append(Token(answer.number, token, answer.is_ended))
                self.tell_length([len(answer.request.prompt) + len(answer.ids)])
        if spoiled:
            self._give_up(spoiled)

    def _give_up(self, spoiled: Sequence[Answer]) -> None:
        for answer in spoiled:
            row = self._held.index(answer)
            self.rows.wipe(row)
            self._drop(row)
        raise AnswerError(
            f"request {_numbers_of(spoiled)}: the model's scores of the next token are not finite",
            requests=tuple(answer.number for answer in spoiled),
            hint="look for NaN in the weights; fp16 overflows where bf16 and fp32 do not",
        )

    def _read(self, asked: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Prompts into new rows: logits after each, and the positions that follow."""
        self.reuse.check(self.runner.model)
        first = len(self._held)
        self.rows.add(len(asked))
        return self._prefill([self._begin(first + i, request) for i, request in enumerate(asked)])

    def _begin(self, row: int, request: Request) -> PrefillPrompt:
        """Put what is known of a prompt into its row; the last id is always computed: logits come from it."""
        ids, adapter = request.prompt, request.adapter
        prefix = self._prefix_of(adapter)
        shared, layers = self.reuse.find(ids, adapter)
        known = min(self.runner.count_reusable(ids, shared), len(ids) - 1) if shared else 0
        if known:
            end = (prefix.num_tokens if prefix else 0) + known
            self.rows.write(row, 0, [tuple(part[:, :end] for part in layer) for layer in layers])
        elif prefix:
            self.runner.write_front(self.rows, row, prefix)
        return PrefillPrompt(row, ids, known, adapter)

    def _prefill(self, prompts: Sequence[PrefillPrompt]) -> tuple[Tensor, Tensor]:
        """As the runner's, pass by pass."""
        read = []
        for together in [prompts] if self.runner.is_packing else [[prompt] for prompt in prompts]:
            adapters = [prompt.adapter for prompt in together]
            with self._mixing(adapters, [len(prompt.ids) - prompt.cached for prompt in together]):
                read.append(self.runner.prefill(self.rows, together))
        logits, following = zip(*read, strict=True)
        return torch.cat(logits), torch.cat(following)

    def _leave(self, row: int) -> None:
        try:
            self._keep(row)
        finally:
            self._drop(row)

    def _keep(self, row: int) -> None:
        """Hold what was read for later prompts, all but the last token."""
        left = self._held[row]
        ids = [*left.request.prompt, *left.ids[:-1]]
        if len(ids) <= self.reuse.num_tokens:
            layers = self.rows.read(row)
            mark, adapter = left.mark, left.request.adapter
            self.reuse.keep(self.runner.model, ids, layers, mark=mark, adapter=adapter)

    def _drop(self, row: int) -> None:
        """The last row takes the place, as in `KvCache.remove`."""
        last = self._held.pop()
        if row < len(self._held):
            self._held[row] = last
            self._positions[row] = self._positions[-1]
        self._positions = self._positions[: len(self._held)]
        self.rows.remove(row)


def _refuse_prompt_learning(model: CausalLM) -> None:
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise ConfigError(
            f"model: PEFT's {config.peft_type.value} stands in front of the layers, where this engine begins",
            hint="answer with model.generate; LoRA and glmtune's own prefixes are answered here",
        )


def _context_of(model: CausalLM) -> int | None:
    length = getattr(causal_of(model).config, "max_position_embeddings", None)  # our own configs' too
    return length if isinstance(length, int) else None


def _kind_of(model: CausalLM) -> tuple[torch.dtype, torch.device]:
    weight = model.get_input_embeddings().weight
    return weight.dtype, weight.device


def _numbers_of(answers: Sequence[Answer]) -> str:
    return ", ".join(str(answer.number) for answer in answers)
