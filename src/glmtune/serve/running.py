"""Runs the server until Ctrl-C or SIGTERM, and then ends the open streams with an error of their own."""

import socket
from types import FrameType
from typing import Any

import uvicorn

from glmtune.errors import ConfigError
from glmtune.serve.worker import Worker

BACKLOG = 2048
GRACE_S = 5
"""Seconds that answers have for their last events when the server ends."""


class AnswerServer(uvicorn.Server):
    """uvicorn's server; a signal first ends the answers, for which uvicorn would wait."""

    def __init__(self, app: Any, worker: Worker) -> None:  # Any: ASGI's own
        """`worker`: closed by the signal."""
        config = uvicorn.Config(
            app,
            # uvicorn would set up loggers of its own, beside those of the command line
            log_config=None,
            # "auto" would go on without the worker if its start fails
            lifespan="on",
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
            # no name of a program for those who look for holes
            server_header=False,
            ws="none",
        )
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the open answers, then the server."""
        self._worker.close()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises `ConfigError` for an address or port that cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # bound here and not by uvicorn, which logs a taken port and exits by itself
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"port: {host}:{port} cannot be had: {getattr(error, 'strerror', None) or error}",
            hint="port=0 takes a free one",
        ) from None
