"""What may go wrong with a call, in one class."""

from __future__ import annotations

NOT_FOUND, CONFLICT, FORBIDDEN, UNPROCESSABLE = 404, 409, 403, 422


class ApiError(Exception):
    """The API server refused, or did not answer (``status`` 0)."""

    def __init__(self, status: int, message: str, *, what: str) -> None:
        super().__init__(f"{what}: {f'{status} ' if status else ''}{message}")
        self.status = status
        self.message = message
