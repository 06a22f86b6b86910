"""The thread that owns the engine: requests come in from the event loop, tokens go back to it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from glmtune.errors import AnswerError, GlmtuneError
from glmtune.generate.lanes import Lanes
from glmtune.generate.requests import Request, Token
from glmtune.serve.errors import ApiError, api_error, shutting_down


class TokenStream:
    """The tokens of several requests, in the order in which they come: `async for index, token in stream`.

    It belongs to the event loop that made it. Ends after the last token of the last request.
    """

    def __init__(self, worker: "Worker", count: int) -> None:
        """`count`: the number of requests."""
        self._worker = worker
        self._events: asyncio.Queue[tuple[int, Token] | BaseException] = asyncio.Queue()
        self.open = set(range(count))
        """Indices of the requests that are not answered yet."""
        self.numbers: dict[int, int] = {}
        """The engine's number of each request; only the worker's thread reads and writes it."""
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the engine has taken the requests; an error if it refuses them."""

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> tuple[int, Token]:
        """Return the next token with the index of its request. Raises what broke the answer off."""
        if not self.open and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def put(self, events: Sequence[tuple[int, Token] | BaseException]) -> None:
        """Append tokens, or the error that ends the stream; called on the event loop."""
        for event in events:
            if isinstance(event, BaseException):
                self._forget(set(self.open))
            elif event[0] not in self.open:
                continue  # cancelled while its token was on the way
            elif event[1].is_last:
                self._forget({event[0]})
            self._events.put_nowait(event)
        if self.accepted.done():
            return
        # the first events of a stream say if the engine has taken its requests
        refused = next((event for event in events if isinstance(event, BaseException)), None)
        if refused is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(refused)

    def cancel(self, index: int | None = None) -> None:
        """Give up one request, or all: the engine drops them before its next step."""
        gone = set(self.open) if index is None else self.open & {index}
        if gone:
            self._forget(gone)
            self._worker.give_up(self, gone)

    def _forget(self, indices: set[int]) -> None:
        self.open -= indices
        self._worker.num_open -= len(indices)


class Worker:
    """Owns an engine and steps it, in a thread of its own, while there is anything to answer."""

    def __init__(self, engine: Lanes, *, max_open: int) -> None:
        """`max_open`: requests that are answered or wait; above it `submit` raises 429."""
        self.engine = engine
        self.max_open = max_open
        self.num_open = 0
        """Requests that are answered or wait, as the event loop knows them."""
        # the engine is touched in one thread alone: whatever others want of it is put here
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._owners: dict[int, tuple[TokenStream, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        # daemon: a step that hangs must not keep the program from its end
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """True while requests can be answered."""
        return self._thread.is_alive() and not self._is_closed

    def start(self) -> None:
        """Start the thread; called on the event loop that the tokens go back to."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Break off all answers with an error, and end the thread; may be called from any thread."""
        self._is_closed = True
        # wakes a thread that waits for its next request
        self._inbox.put(lambda: None)

    async def join(self) -> None:
        """Wait until the thread has ended."""
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> TokenStream:
        """Queue requests and return their tokens' stream. Raises `ApiError` if there is no place for them."""
        if not self.is_alive:
            raise shutting_down()
        if len(requests) > self.max_open:  # no wait would help
            raise ApiError(
                400, f"n: {len(requests)} answers at once, at most {self.max_open} here", param="n"
            )
        if self.num_open + len(requests) > self.max_open:
            raise ApiError(
                429,
                f"the server is busy: {self.num_open} answers are written or wait, {self.max_open} at most",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        stream = TokenStream(self, len(requests))
        # counted here, on the loop: two requests at once cannot both take the last place
        self.num_open += len(requests)
        self._inbox.put(lambda: self._take(stream, requests))
        return stream

    def give_up(self, stream: TokenStream, indices: set[int]) -> None:
        """Have the engine drop some of a stream's requests before its next step."""
        self._inbox.put(lambda: self._drop(stream, indices))

    # --- in the worker's thread ---

    def _run(self) -> None:
        while not self._is_closed:
            self._read_inbox()
            if not self.engine.is_idle and not self._is_closed:
                self._step()
        self._read_inbox()  # what came in while the last step ran
        self._fail(list(self._owners), shutting_down())

    def _read_inbox(self) -> None:
        """Do what the event loop has asked for; wait for it while the engine has nothing to answer."""
        try:
            # waits for one; all others that are there are taken before the next step
            if self.engine.is_idle and not self._is_closed:
                self._inbox.get()()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _take(self, stream: TokenStream, requests: Sequence[Request]) -> None:
        try:
            for index, request in enumerate(requests):
                number = self.engine.submit(request)
                self._owners[number] = (stream, index)
                stream.numbers[index] = number
        except GlmtuneError as error:
            self._drop(stream, set(stream.numbers))
            self._send({stream: [error]})
        except Exception as error:  # noqa: BLE001  # the server outlives any request
            self._drop(stream, set(stream.numbers))
            self._send({stream: [api_error(error)]})
        else:
            # no token yet, but the client's wait for `accepted` is over
            self._send({stream: []})

    def _drop(self, stream: TokenStream, indices: set[int]) -> None:
        for index in indices:
            number = stream.numbers.pop(index, None)
            # its last token may have come before the wish to give it up
            if number is not None and number in self._owners:
                del self._owners[number]
                self.engine.cancel(number)

    def _step(self) -> None:
        try:
            tokens = self.engine.step()
        except AnswerError as error:
            self._fail(error.requests, error)
            return
        except Exception as error:  # noqa: BLE001  # the server outlives any request
            numbers = list(self._owners)
            self._fail(numbers, api_error(error))
            for number in numbers:
                self.engine.cancel(number)
            return
        found: dict[TokenStream, list[tuple[int, Token] | BaseException]] = {}
        for token in tokens:
            stream, index = self._owners[token.request]
            found.setdefault(stream, []).append((index, token))
            if token.is_last:
                del self._owners[token.request]
                del stream.numbers[index]
        self._send(found)

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        """End the streams of these requests with an error; their other requests are given up."""
        streams = {self._owners[number][0] for number in numbers if number in self._owners}
        for number in numbers:
            self._owners.pop(number, None)
        for stream in streams:
            self._drop(stream, set(stream.numbers))
        self._send({stream: [error] for stream in streams})

    def _send(self, found: dict[TokenStream, list[tuple[int, Token] | BaseException]]) -> None:
        """Hand events to the event loop, all of a step at once."""

        def deliver() -> None:
            for stream, events in found.items():
                stream.put(events)

        # the loop may be gone when a program ends without waiting for this thread
        if found and self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
