"""The upload of one blob as a state machine without I/O: ask for :meth:`Upload.action`, carry it out,
tell :meth:`Upload.answered` or :meth:`Upload.interrupted`, until the action is ``Done``.

HEAD first; then the mounts that were offered; then one PUT with everything.  A registry that refuses
that (413, or no PUT with a body) gets PATCHes in chunks; a broken one is asked how much it has and gets
the rest.  Source: distribution-spec v1.1, "Pushing blobs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ocibuildd.errors import BuildError, Corrupt, RegistryError
from ocibuildd.model.digest import Digest

from .protocol import (
    RETRYABLE,
    blob_path,
    failure,
    parse_errors,
    parse_range_end,
    resolve_hop,
    uploads_path,
    with_param,
)

CHUNK = 32 << 20
"""Bytes of the first chunk tried after a 413; halved at each further 413."""
CHUNK_LEAST = 256 << 10
MAX_STALLS = 6
"""Interruptions in a row without a byte of progress."""
MAX_RESTARTS = 4
"""How often an upload is begun again from its first byte."""

Outcome = Literal["exists", "mounted", "pushed"]
State = Literal["head", "mount", "start", "status", "send", "finish", "done"]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.  ``length`` bytes from ``offset`` are its body (0 = none); ``ranged``: with Content-Range.

    ``url`` is absolute.  ``trusted``: the Authorization header may go along.
    """

    method: str
    url: str
    offset: int = 0
    length: int = 0
    ranged: bool = False
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """The blob is there.  ``source``: the repository that it was mounted from."""

    outcome: Outcome
    source: str = ""


class Upload:
    """One blob on its way to one repository.

    base: ``https://host:port``.  mount_from: repositories on the same registry that may have the blob.
    location: where an earlier upload of the same blob was left (the journal).
    ``location`` and ``offset`` are current after each answer; a journal keeps the first.
    """

    def __init__(
        self,
        base: str,
        repository: str,
        digest: Digest,
        size: int,
        *,
        mount_from: Sequence[str] = (),
        location: str = "",
    ) -> None:
        self.base, self.repository, self.digest, self.size = base, repository, digest, size
        self.location, self.trusted, self.offset = location, True, 0
        self.done: Done | None = None
        self._mounts = [name for name in dict.fromkeys(mount_from) if name != repository]
        self._mount = ""
        self._state: State = "head"
        self._chunk = 0
        self._least = 0
        self._resumed = False
        self._stalls = self._restarts = 0
        self._furthest = 0
        if location:
            hop = resolve_hop(base, base, location)
            self.location, self.trusted = hop.url, hop.trusted

    @property
    def what(self) -> str:
        return f"push of {self.digest} to {self.base.partition('://')[2]}/{self.repository}"

    def action(self) -> Ask | Done:
        """What to do next."""
        match self._state:
            case "head":
                return Ask("HEAD", self.base + blob_path(self.repository, self.digest))
            case "mount":
                path = uploads_path(self.repository, mount=self.digest, **{"from": self._mount})
                return Ask("POST", self.base + path)
            case "start":
                return Ask("POST", self.base + uploads_path(self.repository))
            case "status":
                return Ask("GET", self.location, trusted=self.trusted)
            case "send":
                return self._send()
            case "finish":
                return Ask("PUT", self._final(), trusted=self.trusted)
            case "done":
                assert self.done is not None
                return self.done

    def _send(self) -> Ask:
        rest = self.size - self.offset
        if self.offset == 0 and not self._chunk:
            return Ask("PUT", self._final(), 0, self.size, trusted=self.trusted)
        length = min(rest, self._chunk) if self._chunk else rest
        return Ask("PATCH", self.location, self.offset, length, ranged=True, trusted=self.trusted)

    def _final(self) -> str:
        return with_param(self.location, "digest", self.digest)

    # --- answers -----------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """The answer to the last action.  Raises what ends the upload; a status in RETRYABLE must be given
        to :meth:`interrupted` instead, after the wait."""
        match self._state:
            case "head":
                if status == 200:
                    self._end(Done("exists"))
                else:
                    self._after_head()
            case "mount":
                self._mounted(status, headers)
            case "start":
                if status not in (200, 201, 202):
                    raise failure(self.what, status, body)
                self._begin(headers)
            case "status":
                self._status(status, headers)
            case "send":
                self._sent(status, headers, body)
            case "finish":
                self._finished(status, headers, body)
            case "done":
                raise AssertionError("no action was asked for")

    def interrupted(self) -> None:
        """The connection broke, or the registry said "later".  Raises RegistryError when it leads nowhere."""
        self._stalls += 1
        if self._stalls > MAX_STALLS:
            raise RegistryError(
                f"{self.what}: broken off {self._stalls} times at byte {self.offset:,} of {self.size:,}",
                details={"unreachable": True},
            )
        if self._state in ("send", "finish"):
            self._resumed = True
            self._state = "status"

    def _after_head(self) -> None:
        if self.location:
            self._resumed = True
            self._state = "status"
        else:
            self._next_mount()

    def _next_mount(self) -> None:
        self._mount = self._mounts.pop(0) if self._mounts else ""
        self._state = "mount" if self._mount else "start"

    def _mounted(self, status: int, headers: Mapping[str, str]) -> None:
        if status == 201:
            self._end(Done("mounted", self._mount))
        elif status == 202 and headers.get("Location"):
            # distribution-spec: a refused mount "MUST return a 202 … as a normal upload would"; that
            # upload is used, unless another repository may still have the blob.
            if self._mounts:
                self._next_mount()
            else:
                self._begin(headers)
        else:
            self._next_mount()

    def _begin(self, headers: Mapping[str, str]) -> None:
        self._move(headers)
        least = headers.get("OCI-Chunk-Min-Length", "")
        self._least = int(least) if least.isdigit() and len(least) < 12 else 0
        self.offset = 0
        self._state = "send"

    def _move(self, headers: Mapping[str, str], *, needed: bool = True) -> None:
        if needed or headers.get("Location"):
            hop = resolve_hop(self.base, self.location or self.base, headers.get("Location", ""))
            self.location, self.trusted = hop.url, hop.trusted

    def _status(self, status: int, headers: Mapping[str, str]) -> None:
        have = parse_range_end(headers.get("Range")) if status in (200, 202, 204) else None
        if have is None or have > self.size:
            self._restart(f"the upload is gone (HTTP {status})")
            return
        self._move(headers, needed=False)
        self._progress(have)

    def _progress(self, have: int) -> None:
        self.offset = have
        if have > self._furthest:
            self._furthest, self._stalls = have, 0
        self._state = "finish" if have == self.size and self.size else "send"

    def _restart(self, why: str) -> None:
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise RegistryError(f"{self.what}: begun {self._restarts} times without an end: {why}")
        self.location, self.trusted, self.offset, self._state = "", True, 0, "start"
        self._resumed = False

    def _sent(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        whole = self.offset == 0 and not self._chunk
        if whole and status in (201, 204):
            self._finished(status, headers, body)
        elif not whole and status in (201, 202, 204):
            length = (
                min(self.size - self.offset, self._chunk)
                if self._chunk
                else self.size - self.offset
            )
            have = parse_range_end(headers.get("Range"))
            reached = self.offset + length if have is None else have
            if reached < self.offset or reached > self.size:
                raise RegistryError(f"{self.what}: the registry says it has {reached:,} bytes")
            if reached == self.offset:
                self.interrupted()
            self._move(headers, needed=False)
            self._progress(reached)
        elif status == 413:
            self._smaller(body)
        elif whole and status in (202, 405, 411, 501):
            # It takes no body with PUT: chunks, of the largest size.
            self._move(headers, needed=False)
            self._chunk = max(CHUNK, self._least)
            self._state = "status" if status == 202 else "send"
        elif status == 416:
            self.interrupted()
        elif status == 404:
            self._restart("the upload is unknown to the registry")
        else:
            raise self._refused(status, body)

    def _smaller(self, body: bytes) -> None:
        smaller = max(min(CHUNK, self.size) if not self._chunk else self._chunk // 2, self._least)
        if smaller < CHUNK_LEAST or smaller == self._chunk:
            raise failure(self.what, 413, body)
        self._chunk = smaller
        self._state = "status"

    def _finished(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if status in (201, 204):
            told = headers.get("Docker-Content-Digest", "")
            if told and told.startswith(self.digest.algorithm) and told != self.digest:
                raise Corrupt(f"{self.what}: the registry stored {told[:100]}")
            self._end(Done("pushed"))
        elif status == 404:
            self._restart("the upload is unknown to the registry")
        elif status == 416:
            self.interrupted()
        else:
            raise_unless_resumed = self._refused(status, body)
            if not (self._resumed and isinstance(raise_unless_resumed, Corrupt)):
                raise raise_unless_resumed
            # What an earlier upload left there was not our bytes: once more from the first byte.
            self._restart("the bytes that it kept were wrong")

    def _refused(self, status: int, body: bytes) -> BuildError:
        codes = {item.code for item in parse_errors(body)}
        error = failure(self.what, status, body)
        if codes & {"DIGEST_INVALID", "SIZE_INVALID"}:
            return Corrupt(error.message, details=error.details)
        return error

    def _end(self, done: Done) -> None:
        self.done, self._state = done, "done"


__all__ = ["CHUNK", "RETRYABLE", "Ask", "Done", "Outcome", "Upload"]
