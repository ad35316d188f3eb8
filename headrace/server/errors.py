"""What a client is told when something cannot be: OpenAI's error body, with a status and a stable code.

Only messages that were written for a client reach it. The text of an unexpected exception goes to the log.
"""

from __future__ import annotations

from typing import Any

from headrace.errors import ConfigError, HeadraceError
from headrace.server.client import EngineDied, QueueFull, Unavailable

MAX_CHARS = 1000
"""Of a message: one that quotes what was sent could be as long as that."""
RETRY_S = 2
"""What Retry-After says."""
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class ApiError(HeadraceError):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def body(self, request_id: str) -> dict[str, Any]:
        """{"error": {...}} as OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message if len(self.message) <= MAX_CHARS else f"{self.message[:MAX_CHARS]}..."
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {**error, "request_id": request_id}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body."""
        return {"Retry-After": str(RETRY_S)} if self.status in (429, 503) else {}


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The request is at fault."""
    return ApiError(400, code, message, param=param)


def of(error: BaseException) -> ApiError:
    """What a client is told of an error."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(429, "queue_full", str(error))
        case Unavailable():
            return ApiError(503, "engine_unavailable", str(error))
        case EngineDied():
            return ApiError(503, "engine_dead", str(error))
        case ConfigError():
            return bad(str(error))
    return ApiError(500, "internal_error", "the server failed: its log says why, by this request's id")
