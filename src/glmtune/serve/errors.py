"""The errors that a client gets, in OpenAI's form."""

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from glmtune.errors import AnswerError, GlmtuneError

logger = logging.getLogger("glmtune")

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's type of an error by HTTP status; others below 500 are `invalid_request_error`."""


class ApiError(Exception):
    """An error with an HTTP status, as the client gets it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`param`: the field of the request that is wrong; `code`: a word for programs."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        return TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        return {
            "error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code},
        }


def api_error(error: BaseException) -> ApiError:
    """Return the error for a client: one of glmtune's as 400, any unknown one as 500 without its text.

    The log gets the place of an unknown one.
    """
    if isinstance(error, ApiError):
        return error
    # before its base class below: the client has done nothing wrong
    if isinstance(error, AnswerError):
        return ApiError(500, str(error), code="answer_failed")
    if isinstance(error, GlmtuneError):
        # a message begins with its place, such as 'messages[0].content' or temperature
        param = str(error).partition(" ")[0].strip("':")
        is_place = param.replace("_", "").replace(".", "").replace("[", "").replace("]", "").isalnum()
        hint = f" ({error.hint})" if error.hint else ""
        return ApiError(400, f"{error}{hint}", param=param if is_place else None, code="invalid_value")
    # not its text, which may quote a prompt
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error(
        "%s while answering; its text is left out, as it may quote a prompt\n%s", type(error), frames
    )
    return ApiError(500, "the server failed at this request; its log says where", code="internal_error")


def shutting_down() -> ApiError:
    """Return the error of requests that the server's end breaks off."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
