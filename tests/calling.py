"""A real server whose model says one written answer: a thought, a text and two tool calls."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glmtune.generate.lanes import Lanes
from glmtune.serve.api import build_app
from glmtune.serve.guard import Access
from glmtune.serve.limits import ServerLimits
from glmtune.serve.running import AnswerServer, listen
from glmtune.serve.service import ServedModel, Service
from glmtune.serve.worker import Worker
from glmtune.templates import Call, Message, Segment, render
from glmtune.tokenizers.protocol import Tokenizer
from models import Scripted
from serving import Served, patiently
from tiny import tiny_tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
NOW = {"type": "object", "properties": {}}
ANSWER = Message(
    "assistant",
    "好，我查 <b>.",
    thought="要查天气。",
    calls=(Call("weather", {"city": "北京", "days": 2}), Call("now", {})),
)


@dataclass
class Saying:
    """A server, and the model in it that says the same each time."""

    served: Served
    tokenizer: Tokenizer
    model: Scripted

    def again(self) -> None:
        """Let the model begin its answer anew."""
        self.model.said = 0


@contextmanager
def saying(folder: Path, template: str = "glm45", answer: Message = ANSWER) -> Iterator[Saying]:
    """Run a server whose model is called `says` and says the answer."""
    tokenizer = tiny_tokenizer(folder, template)
    question = Message("user", "?")
    asked = render(template, [question], True)
    said = render(template, [question, answer], False)[len(asked) :]
    ids = tokenizer.encode_segments([*said, Segment("<|observation|>", is_control=True)])
    model = Scripted(ids, len(tokenizer) + 64).eval()
    model.scores.data *= 1000  # said at any temperature
    worker = Worker(Lanes(model), max_open=8)
    service = Service(worker, [ServedModel("says", tokenizer, None, model.generation_config)], ServerLimits())
    app = build_app(service, Access(host="127.0.0.1"))
    listening = listen("127.0.0.1", 0)
    server = AnswerServer(app, worker)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    patiently(lambda: server.started)
    served = Served(listening.getsockname()[1], worker, app, folder)
    try:
        yield Saying(served, tokenizer, model)
    finally:
        if served.client:
            served.client.close()
        server.handle_exit(15, None)
        thread.join(60)
