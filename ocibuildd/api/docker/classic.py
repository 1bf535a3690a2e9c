"""A build's events as the messages that Docker's classic builder streams (pure).

Our steps run side by side and end in any order; the classic builder has one line of history.  So
what a step says is held back until all steps before it have ended, and comes as it is said once the
step is the first that is still going on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ...model.reference import Reference
from .progress import PULL_WORDS, Transfers
from .words import describe

Message = dict[str, Any]

STDERR_START, STDERR_END = "\x1b[91m", "\x1b[0m"
"""How the classic builder marks what a step writes to its standard error."""
FILE_INSTRUCTIONS = frozenset({"FROM", "COPY", "ADD"})
"""They need no container: the classic builder says nothing of one."""
_PULLED = re.compile(r"\] FROM (\S+)@(sha256:[0-9a-f]{64})\Z")
HELD_LIMIT = 4 << 20
"""Characters of output that are held back for one step; more of it is dropped."""
MAX_STATUS = 10_000
"""Messages of a base image's transfer that are held back; more of them are dropped."""


@dataclass(slots=True)
class _Step:
    """An instruction on its way to the client."""

    number: int
    text: str
    vertex: str
    stage: str = ""
    line: int = 0
    trigger: bool = False
    """It comes from an ONBUILD of the image that the stage begins with."""
    started: bool = False
    working: bool = False
    """It is carried out: its result isn't known already."""
    headed: bool = False
    running: bool = False
    done: bool = False
    cached: bool = False
    image: str = ""
    pulled: tuple[str, str] = ("", "")
    """Name and digest of the image that a FROM stands on."""
    pulling: bool = False
    held: list[Message] = field(default_factory=list)
    held_size: int = 0

    @property
    def needs_container(self) -> bool:
        return self.text.split(None, 1)[0].upper() not in FILE_INSTRUCTIONS if self.text else False


class ClassicStream:
    """Feed it events, it answers with messages, in the order in which Docker would send them.

    ``build``: the build's id (made into container ids, which clients print and forget).
    ``quiet``: only the id at the end.  ``remove``: say that intermediate containers are removed.
    ``no_cache``: an image that turns out to be one that was there before is no use of the cache.
    """

    def __init__(
        self, build: str, *, quiet: bool = False, remove: bool = True, no_cache: bool = False
    ):
        self._build = build
        self._quiet = quiet
        self._remove = remove
        self._no_cache = no_cache
        self._steps: list[_Step] = []
        self._current = 0
        self._total = 0
        self._before: tuple[str, ...] = ()
        """The ARGs before the first FROM that weren't told yet."""
        self._shown: dict[int, int] = {}
        """The number that a step is shown under; the steps of triggers have none."""
        self._transfers = Transfers(PULL_WORDS)
        self._warnings: list[Message] = []
        self._told = ""
        """The last image that was told as ``aux``."""

    def feed(self, event: dict[str, Any]) -> list[Message]:
        """The messages that become due with this event."""
        kind = event["type"]
        if kind == "build.started":
            return self._arguments(event.get("arguments") or ())
        if kind == "build.step":
            self._announce(event)
            return []
        if kind == "build.done":
            return self._finish(event)
        if kind == "build.failed":
            return self._fail(event)
        if kind == "message" and event.get("level") == "warning":
            text = re.sub(
                r"^one or more build-args were not consumed: (\[.*\])",
                r"One or more build-args \1 were not consumed", str(event.get("text", "")),
            )
            self._warnings.append({"stream": f"[Warning] {text}\n"})
        elif kind == "vertex.started":
            for step in self._of(event):
                step.started = True
                step.working = step.working or not event.get("cached")
                found = _PULLED.search(str(event.get("name", "")))
                step.pulled = (found[1], found[2]) if found else step.pulled
        elif kind == "vertex.log":
            self._log(event)
        elif kind == "vertex.status":
            self._status(event)
        elif kind == "warning" and event.get("rule") == "NoEmptyContinuation" and not self._quiet:
            return self._empty_continuation(int(event.get("line") or 0))
        elif kind == "step.done":
            self._done(event)
        return [] if self._quiet else self._advance()

    def _arguments(self, texts: Sequence[str]) -> list[Message]:
        """The ARGs before the first FROM: steps that leave nothing."""
        self._before = tuple(texts)
        self._total = len(texts)
        return []

    def _announce(self, event: dict[str, Any]) -> None:
        step = _Step(
            int(event["step"]), str(event.get("text", "")), str(event.get("vertex", "")),
            str(event.get("stage", "")), int(event.get("line") or 0),
        )
        last = self._steps[-1] if self._steps else None
        # What an ONBUILD brings in stands where the FROM stands.
        step.trigger = last is not None and last.line == step.line > 0 and last.stage == step.stage
        self._steps.append(step)
        if not step.trigger:
            self._total += 1
            self._shown[step.number] = self._total

    def _of(self, event: dict[str, Any]) -> list[_Step]:
        """The first step that isn't done yet of the event's vertex: it is the one that runs."""
        vertex = str(event.get("vertex", ""))
        return [step for step in self._steps if step.vertex == vertex and not step.done][:1]

    def _log(self, event: dict[str, Any]) -> None:
        text = str(event.get("data", ""))
        if event.get("stream") == 2:
            text = f"{STDERR_START}{text}{STDERR_END}"
        for step in self._of(event):
            if step.held_size < HELD_LIMIT:
                step.held.append({"stream": text})
                step.held_size += len(text)

    def _empty_continuation(self, line: int) -> list[Message]:
        """What is told before the first step."""
        found = [step.text for step in self._steps if step.line <= line]
        start = "[WARNING]: Empty continuation line"
        text = (
            f"{start} found in:\n    {found[-1] if found else ''}\n"
            f"{start}s will become errors in a future release.\n"
        )
        return [{"stream": f"{STDERR_START}{text}{STDERR_END}"}]

    def _status(self, event: dict[str, Any]) -> None:
        """The layers of a base image on their way in."""
        for step in self._of(event):
            message = self._transfers.message(event)
            if message is not None and step.text and not step.needs_container and len(step.held) < MAX_STATUS:
                if step.pulled[0] and not step.pulling:
                    step.pulling = True
                    reference = Reference.parse(step.pulled[0]).with_default_tag()
                    name = reference.tag or str(reference.digest)
                    step.held.append({"status": f"Pulling from {reference.path}", "id": name})
                step.held.append(message)

    def _done(self, event: dict[str, Any]) -> None:
        for step in self._steps:
            if step.number == event.get("step"):
                step.done = True
                step.cached = bool(event.get("cached")) and not self._no_cache
                step.image = str(event.get("image", ""))
                if step.pulling:
                    name = Reference.parse(step.pulled[0]).with_default_tag().familiar
                    step.held.append({"status": f"Digest: {step.pulled[1]}"})
                    step.held.append({"status": f"Status: Downloaded newer image for {name}"})

    def _container(self, step: _Step) -> str:
        return hashlib.sha256(f"{self._build} {step.number}".encode()).hexdigest()[:12]

    def _advance(self) -> list[Message]:
        """All that can be said now."""
        out: list[Message] = []
        while self._current < len(self._steps):
            step = self._steps[self._current]
            if not (step.started or step.done):
                break
            out += self._head(step)
            out += step.held
            step.held, step.held_size = [], 0
            if not step.done:
                break
            out += self._tail(step)
            self._current += 1
            following = self._steps[self._current : self._current + 1]
            if not following or following[0].stage != step.stage:
                self._told = step.image
                out.append({"aux": {"ID": step.image}})  # each stage tells of its image
        return out

    def _head(self, step: _Step) -> list[Message]:
        out: list[Message] = []
        for number, text in enumerate(self._before, 1):
            out += step_head(number, self._total, text)
        self._before = ()
        if not step.headed:
            step.headed = True
            if not step.trigger:
                out += step_head(self._shown[step.number], self._total, step.text)
        known = step.done or step.held or step.working
        if known and step.needs_container and not step.cached and not step.running:
            step.running = True
            out.append({"stream": f" ---> Running in {self._container(step)}\n"})
        return out

    def _tail(self, step: _Step) -> list[Message]:
        out: list[Message] = []
        if step.cached and not step.text.upper().startswith("FROM"):
            out.append({"stream": " ---> Using cache\n"})
        elif step.running and self._remove:
            out.append({"stream": f"Removing intermediate container {self._container(step)}\n"})
        triggers = self._triggers_after(step)
        if triggers and not step.trigger:
            plural = "s" if triggers > 1 else ""
            out.append({"stream": f"# Executing {triggers} build trigger{plural}\n"})
        elif step.image and not triggers:
            nothing = step.text.upper().split()[:2] == ["FROM", "SCRATCH"]
            out.append({"stream": f" ---> {'' if nothing else step.image.partition(':')[2][:12]}\n"})
        return out

    def _triggers_after(self, step: _Step) -> int:
        after = self._steps[self._steps.index(step) + 1 :]
        return len(list(takewhile(lambda each: each.trigger, after)))

    def _finish(self, event: dict[str, Any]) -> list[Message]:
        image = str(event.get("image", ""))
        if self._quiet:
            return [{"stream": f"{image}\n"}]
        out = self._advance()
        if image and image != self._told:  # squashed
            out.append({"aux": {"ID": image}})
        out += self._warnings
        if image:
            out.append({"stream": f"Successfully built {image.partition(':')[2][:12]}\n"})
        out += [{"stream": f"Successfully tagged {name}\n"} for name in event.get("names", ())]
        return out

    def _fail(self, event: dict[str, Any]) -> list[Message]:
        """The error's message last; ``errorDetail.code`` is what the CLI exits with."""
        error = event.get("error") or {}
        details = error.get("details") or {}
        failed = self._failed(error)
        detail: dict[str, Any] = {"message": describe(error, failed.text if failed else "")}
        if error.get("code") == "step-failed":
            detail["code"] = int(details.get("exit_code") or 1)
        if failed is not None:
            failed.started = True
        out = self._advance() + self._failed_logs(details)  # a quiet build that fails tells all
        return [*out, {"errorDetail": detail, "error": detail["message"]}]

    def _failed(self, error: dict[str, Any]) -> _Step | None:
        """The step that failed; that of a download that failed is the ADD that wants it."""
        vertex = str((error.get("details") or {}).get("vertex", ""))
        left = [step for step in self._steps if not step.done]
        found = [step for step in left if vertex and step.vertex == vertex]
        place = re.search(r"(?:GET https?://|registry )([^/:\s]+)", str(error.get("message", "")))
        if not found and place:
            found = [step for step in left if step.text[:3].upper() == "ADD" and f"//{place[1]}" in step.text]
        return found[0] if found else None

    def _failed_logs(self, details: dict[str, Any]) -> list[Message]:
        """The failing step's output, where an earlier step still holds it back."""
        vertex = str(details.get("vertex", ""))
        out: list[Message] = []
        for step in self._steps[self._current :]:
            if step.vertex == vertex and (step.held or not step.headed):
                out += self._head(step) + step.held
                step.held = []
        return out


def step_head(number: int, total: int, text: str) -> list[Message]:
    """What the classic builder says as it comes to an instruction."""
    return [{"stream": f"Step {number}/{total} : {text}"}, {"stream": "\n"}]
