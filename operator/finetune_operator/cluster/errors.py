"""What may go wrong with a call, in one class."""

from __future__ import annotations

NOT_FOUND, CONFLICT, FORBIDDEN, UNPROCESSABLE, TOO_MANY = 404, 409, 403, 422, 429
GATEWAY_TIMEOUT = 504
"""Also said of a resourceVersion that the API server's cache has not come to yet."""


class ApiError(Exception):
    """The API server refused, or did not answer (``status`` 0)."""

    def __init__(self, status: int, message: str, *, what: str) -> None:
        super().__init__(f"{what}: {f'{status} ' if status else ''}{message}")
        self.status = status
        self.message = message

    @property
    def may_pass(self) -> bool:
        """Whether the API server is down or too busy, rather than against it."""
        return self.status in (0, TOO_MANY) or self.status >= 500
