"""What can go wrong, one class per thing that a caller may want to treat apart.

Each class has a stable ``code`` (what clients match on) and the HTTP status that the API
answers with.  The message says what was tried, on what, what was found and what was wanted
(lower case, no full stop); ``hint`` is the next thing to do.
"""

from __future__ import annotations

from collections.abc import Mapping


class BuildError(Exception):
    """Any failure that is the request's, the image's or the environment's: never a bug of ours."""

    code = "build-error"
    status = 500

    def __init__(
        self, message: str, *, hint: str = "", details: Mapping[str, object] | None = None
    ):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, object] = dict(details or {})

    def to_dict(self) -> dict[str, object]:
        """The error as the API and the event log carry it."""
        body: dict[str, object] = {"code": self.code, "message": self.message}
        if self.hint:
            body["hint"] = self.hint
        if self.details:
            body["details"] = self.details
        return body


class InvalidArgument(BuildError):
    """A value that the caller gave can't be what was meant."""

    code = "invalid-argument"
    status = 400


class DockerfileError(BuildError):
    """A Dockerfile that can't be built.  ``details`` has ``file``, ``line``, ``end_line``,
    ``column`` (1-based, optional) and ``source`` (the lines themselves, ``[[number, text], …]``)."""

    code = "dockerfile"
    status = 400


class NotFound(BuildError):
    """What was named is not here."""

    code = "not-found"
    status = 404


class Conflict(BuildError):
    """It is there, and in use, or in the way."""

    code = "conflict"
    status = 409


class Denied(BuildError):
    """The daemon's configuration, or a registry, forbids it."""

    code = "denied"
    status = 403


class Unauthorized(BuildError):
    """A registry wants other credentials."""

    code = "unauthorized"
    status = 401


class StepFailed(BuildError):
    """A RUN ended badly.  ``details`` has ``exit_code`` (int) or ``signal`` (int), ``vertex``,
    ``reason`` (exit | signal | oom | timeout | disk-limit | log-limit) and ``tail`` (last lines)."""

    code = "step-failed"
    status = 500


class Cancelled(BuildError):
    """Somebody asked for the end of it."""

    code = "cancelled"
    status = 499


class RegistryError(BuildError):
    """A registry can't be reached, or answered what can't be used."""

    code = "registry"
    status = 502


class Corrupt(BuildError):
    """Bytes are not what their digest or size says."""

    code = "corrupt"
    status = 500


class TooLarge(BuildError):
    """A limit was passed; the message names it."""

    code = "too-large"
    status = 413


class NoSpace(BuildError):
    """The disk, or the ceiling that the configuration sets, is full."""

    code = "no-space"
    status = 507


class Unsupported(BuildError):
    """It can't be done here; the hint says what would make it possible."""

    code = "unsupported"
    status = 501


class Unavailable(BuildError):
    """Not now: the daemon is draining, or a part of it is being started again."""

    code = "unavailable"
    status = 503


CLASSES: dict[str, type[BuildError]] = {
    cls.code: cls
    for cls in (
        BuildError,
        InvalidArgument,
        DockerfileError,
        NotFound,
        Conflict,
        Denied,
        Unauthorized,
        StepFailed,
        Cancelled,
        RegistryError,
        Corrupt,
        TooLarge,
        NoSpace,
        Unsupported,
        Unavailable,
    )
}


def from_dict(body: Mapping[str, object]) -> BuildError:
    """The inverse of :meth:`BuildError.to_dict`; an unknown code gives a plain BuildError."""
    cls = CLASSES.get(str(body.get("code")), BuildError)
    details = body.get("details")
    return cls(
        str(body.get("message", "")),
        hint=str(body.get("hint", "")),
        details=details if isinstance(details, Mapping) else None,
    )
