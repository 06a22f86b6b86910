"""Replies, read without the server around them."""

import asyncio
from pathlib import Path

from glmtune.serve.limits import ServerLimits
from glmtune.serve.opening import open_models
from glmtune.serve.service import Question, Service
from glmtune.serve.worker import Worker


def test_nothing_comes_behind_a_stop_text_however_far_the_engine_is_ahead() -> None:
    limits = ServerLimits()
    engine, [model] = open_models(Path("glm-tiny"), {}, limits, dtype="fp32", device="cpu", quant=None)

    async def read_late(*stops: str) -> tuple[str, list[str | None], int]:
        worker = Worker(engine, max_open=limits.max_open)
        worker.start()
        hello = {"role": "user", "content": "你好"}
        reply = await Service(worker, [model], limits).ask(
            Question(model=model.name, messages=[hello], stops=stops, max_new_tokens=16)
        )
        while worker.num_open:  # until the last token has come, unread
            await asyncio.sleep(0.01)
        text = "".join(piece.text for added in [each async for each in reply] for piece in added.pieces)
        worker.close()
        await worker.join()
        return text, reply.reasons, reply.num_tokens

    whole, _, num_tokens = asyncio.run(read_late())
    text, reasons, num_read = asyncio.run(read_late("我"))
    assert text == whole.partition("我")[0] != whole
    assert reasons == ["stop"]
    assert num_read < num_tokens
