"""The models of a page: one thread that owns them, engines that answer all visitors together."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from glmtune.adapters.store import own_method
from glmtune.chat import REUSED_TOKENS
from glmtune.conversation import encode_latest
from glmtune.errors import AnswerError
from glmtune.generate.engine import Engine
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling, read_sampling, usual_sampling
from glmtune.generate.text import begins_thought, find_thoughts, shown_pieces
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import Location, find_base, resolve
from glmtune.models.protocol import CausalLM
from glmtune.recipe.method import TrainedPart
from glmtune.several import Adapters
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer

Value = TypeVar("Value")
Key = tuple[Path, str | None]
"""The folder of a loaded model and its quantisation."""


@dataclass(slots=True, eq=False)
class Stream:
    """An answer on its way: the tokens that were decoded and not yet read."""

    engine: Engine
    number: int
    owner: str
    """The visitor who asked."""
    tokens: deque[int] = field(default_factory=deque)
    is_over: bool = False
    is_stopped: bool = False
    error: AnswerError | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, run or adapter that can answer."""

    location: Location
    name: str
    tokenizer: Tokenizer
    sampling: Sampling
    """The settings that a chat with it has of itself."""
    key: Key
    adapter: str | None
    """Name of its adapter among those of the loaded base."""

    @property
    def taught(self) -> Taught:
        """The system message and the source prefix that it was tuned with."""
        return self.location.taught

    @property
    def is_tuned(self) -> bool:
        """True for a run or an adapter, which can be compared with its base."""
        return self.location.adapter is not None or self.location.card is not None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A base with the adapters put on it so far, or a whole tuned model, and its engine."""

    engine: Engine
    model: CausalLM
    adapters: Adapters | None


class Desk:
    """Opens models and answers with them; every call may come from any thread.

    A base is in memory once, whatever number of its adapters are talked to, and its engine answers all
    visitors in one batch. A model that nobody needs any longer goes when another one is opened.
    """

    def __init__(
        self,
        *,
        dtype: str = "auto",
        device: str = "auto",
        quant: str | None = None,
        bases: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """`bases`: by an adapter's path, the base to put it on instead of the recorded one.

        The others are those of `load_model`.
        """
        self._bases = bases
        self._dtype, self._device, self._quant = dtype, device, quant
        # torch starts its threads anew for each thread that calls it, and an engine belongs to one
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="desk")
        self._loaded: dict[Key, _Loaded] = {}
        self._streams: list[Stream] = []

    def open(self, path: str | Path, *, untuned: bool = False, keep: Sequence[Key] = ()) -> Opened:
        """Open a model, run or adapter; return what is known of it.

        `untuned`: open its base instead. `keep`: keys of models that stay open beside it. Raises
        `CheckpointError` and `ConfigError`.
        """
        return self._do(lambda: self._open(path, untuned, keep))

    def ask(
        self,
        opened: Opened,
        messages: Sequence[dict[str, Any]],
        sampling: dict[str, Any],
        *,
        owner: str,
    ) -> "Asking":
        """Begin an answer to a conversation; its pieces come as they are read.

        `sampling`: fields of `Sampling`; `owner`: the visitor, for `stop`. Raises `GlmtuneError`.
        """
        # a caller who sets a temperature wants tokens drawn, whatever the model's file says
        settings = {**asdict(opened.sampling), "do_sample": True, **sampling}
        return Asking(self, opened, messages, read_sampling(settings), owner)

    def stop(self, owner: str) -> None:
        """End every answer of a visitor; what was read of it stays."""

        def cancel() -> None:
            # a copy: the list shrinks within the loop
            for stream in [each for each in self._streams if each.owner == owner]:
                stream.is_stopped = stream.is_over = True
                stream.engine.cancel(stream.number)
                self._streams.remove(stream)

        self._do(cancel)

    @property
    def num_loaded(self) -> int:
        """The number of models in memory; adapters on one base count once."""
        return len(self._loaded)

    def close(self) -> None:
        """Let the models go."""
        self._worker.shutdown(cancel_futures=True)

    def _do(self, work: Callable[[], Value]) -> Value:
        return self._worker.submit(work).result()

    # --- in the worker's thread ---

    def _open(self, path: str | Path, untuned: bool, keep: Sequence[Key]) -> Opened:
        location = resolve(path, base=self._bases.get(str(path)))
        name = (location.run or Path(path)).name
        if untuned and not _is_shared(location):
            location = find_base(location, wanted_by="side by side")
        if untuned:
            name = Path(location.under.name).name
        shared = _is_shared(location)
        key = (location.base if shared else location.trained), self._quant or location.quant
        if key not in self._loaded:
            # before the load: two models might not fit at once
            self._let_go(keep)
            self._loaded[key] = self._load(location, key[1])
        loaded = self._loaded[key]
        adapter = str(location.adapter) if loaded.adapters and location.adapter and not untuned else None
        if loaded.adapters and adapter and adapter not in loaded.adapters.names:
            loaded.adapters.add(adapter, adapter)
        tokenizer = tokenizer_of(location, template=None)
        usual = usual_sampling(tokenizer.chat_format.chat, loaded.model.generation_config, ())
        return Opened(location, name, tokenizer, read_sampling(usual), key, adapter)

    def _load(self, location: Location, quant: str | None) -> _Loaded:
        if _is_shared(location):
            adapters = Adapters(
                location.base,
                quant=quant,
                template=location.template,
                dtype=self._dtype,
                device=self._device,
            )
            return _Loaded(Engine(adapters, reused_tokens=REUSED_TOKENS), adapters.model, adapters)
        model = load_location(
            location, template=None, quant=quant, dtype=self._dtype, device=self._device
        ).eval()
        return _Loaded(Engine(model, reused_tokens=REUSED_TOKENS), model, None)

    def _let_go(self, keep: Sequence[Key]) -> None:
        """Drop the models that are neither kept nor answering."""
        busy = {id(stream.engine) for stream in self._streams}
        # by identity of the engine: a model with answers on the way must stay under them
        self._loaded = {
            key: loaded for key, loaded in self._loaded.items() if key in keep or id(loaded.engine) in busy
        }

    def begin(
        self, opened: Opened, messages: Sequence[dict[str, Any]], sampling: Sampling, owner: str
    ) -> Stream:
        """Hand a conversation to the engine of an opened model."""

        def submit() -> Stream:
            loaded = self._loaded.get(opened.key)
            if loaded is None:  # another visitor's model took its place meanwhile
                self._let_go(())
                loaded = self._loaded[opened.key] = self._load(opened.location, opened.key[1])
            if loaded.adapters and opened.adapter and opened.adapter not in loaded.adapters.names:
                loaded.adapters.add(opened.adapter, opened.adapter)
            ids, _ = encode_latest(
                opened.tokenizer,
                messages,
                context=loaded.engine.context,
                max_new_tokens=sampling.max_new_tokens,
                source_prefix=opened.taught.source_prefix,
            )
            request = Request(ids, sampling, opened.tokenizer.stop_ids, opened.adapter)
            stream = Stream(loaded.engine, loaded.engine.submit(request), owner)
            self._streams.append(stream)
            return stream

        return self._do(submit)

    def next_tokens(self, stream: Stream) -> list[int]:
        """Return the next tokens of an answer, one at least; none when it is over. Raises `AnswerError`."""

        def pull() -> list[int]:
            # another reader's step may have brought the token already: all rows grow together
            while not (stream.tokens or stream.is_over):
                self._step(stream.engine)
            tokens = list(stream.tokens)
            stream.tokens.clear()
            return tokens

        tokens = self._do(pull)
        # what came before the error is read first
        if not tokens and stream.error:
            raise stream.error
        return tokens

    def _step(self, engine: Engine) -> None:
        """Decode one token for each answer of an engine, whoever reads it."""
        by_number = {each.number: each for each in self._streams if each.engine is engine}
        try:
            for token in engine.step():
                by_number[token.request].tokens.append(token.id)
                by_number[token.request].is_over = token.is_last
        except AnswerError as err:
            for number in err.requests:
                by_number[number].error, by_number[number].is_over = err, True
        self._streams = [each for each in self._streams if not each.is_over]


class Asking:
    """An answer that is being written: iterate over its pieces; `thought`, `text` hold what has come."""

    def __init__(
        self,
        desk: Desk,
        opened: Opened,
        messages: Sequence[dict[str, Any]],
        sampling: Sampling,
        owner: str,
    ) -> None:
        """The arguments are `Desk.begin`'s, to which they go at once."""
        self._desk, self._opened = desk, opened
        self.longest = sampling.max_new_tokens
        self._start = time.perf_counter()
        self._stream = desk.begin(opened, messages, sampling, owner)
        self.thought = ""
        self.text = ""
        self.is_cut = False
        """True if the answer was ended by its longest length."""
        self.seconds = 0.0
        self.remembered = ""
        """The answer as later questions are asked with it."""

    @property
    def is_stopped(self) -> bool:
        """True if the visitor ended it."""
        return self._stream.is_stopped

    def __iter__(self) -> Iterator[None]:
        """Go on piece by piece. Raises `AnswerError`."""
        tokenizer = self._opened.tokenizer
        for piece, is_thought in find_thoughts(self._pieces(), is_open=begins_thought(tokenizer)):
            if is_thought:
                self.thought += piece
            else:
                self.text += piece
            self.seconds = time.perf_counter() - self._start
            yield

    def _pieces(self) -> Iterator[str]:
        parts = iter(partial(self._desk.next_tokens, self._stream), [])
        tokens = chain.from_iterable(parts)
        written, is_ended = yield from shown_pieces(tokens, self._opened.tokenizer)
        self.is_cut = not (is_ended or self._stream.is_stopped)
        self.remembered = self._opened.tokenizer.chat_format.remembered(written.strip())


def _is_shared(location: Location) -> bool:
    """True if a location is answered by its base with an adapter put on: others may share that base.

    Weights of a layer that were trained themselves replace the base's, so such a model stands alone.
    """
    if location.adapter is None:
        return location.card is None
    method = own_method(location.adapter)
    return method is None or method.kept is not TrainedPart.WEIGHTS
