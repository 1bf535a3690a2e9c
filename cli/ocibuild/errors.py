"""What the client raises."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class ClientError(Exception):
    """Any failure; ``hint`` is the next thing to do, ``exit_code`` what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", exit_code: int = 1):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class UsageError(ClientError):
    """The command line can't be what was meant (exit status 125, as docker has it)."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint, 125)


class ConnectionFailed(ClientError):
    """No daemon answers, or what answers speaks no HTTP."""


class ApiError(ClientError):
    """The daemon said no.  ``code`` is stable; ``details`` depends on it; ``status`` is HTTP's."""

    def __init__(self, body: Mapping[str, Any], status: int = 0):
        details = body.get("details")
        self.details: dict[str, Any] = details if isinstance(details, dict) else {}
        self.code = str(body.get("code", "error"))
        self.status = status
        super().__init__(str(body.get("message", "no message")), str(body.get("hint", "")))
        self.exit_code = self._exit_code()

    def _exit_code(self) -> int:
        """A failing step's own code; 128 + n for a signal; 130 for what was cancelled."""
        code, signal = self.details.get("exit_code"), self.details.get("signal")
        if isinstance(code, int) and 0 < code < 256:
            return code
        if isinstance(signal, int) and 0 < signal < 128:
            return 128 + signal
        return 130 if self.code == "cancelled" else 1
