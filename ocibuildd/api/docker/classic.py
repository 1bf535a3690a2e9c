"""A build's events as the messages that Docker's classic builder streams (pure).

Our steps run side by side and end in any order; the classic builder has one line of history.  So
what a step says is held back until all steps before it have ended, and comes as it is said once the
step is the first that is still going on.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ...model.reference import Reference

Message = dict[str, Any]

STDERR_START, STDERR_END = "\x1b[91m", "\x1b[0m"
"""How the classic builder marks what a step writes to its standard error."""
FILE_INSTRUCTIONS = frozenset({"FROM", "COPY", "ADD"})
"""They need no container: the classic builder says nothing of one."""
_UNCONSUMED = re.compile(r"one or more build-args were not consumed: (\[.*\])", re.IGNORECASE)
_NO_USER = re.compile(r"user '([^']*)': not in the image's /etc/passwd")
_IMAGE = re.compile(r"[a-z0-9.-]+(:\d+)?/[\w./-]+([:@][\w.:-]+)?\Z")
PULL_CODES = frozenset({"not-found", "unauthorized", "denied"})
HELD_LIMIT = 4 << 20
"""Characters of output that are held back for one step; more of it is dropped."""


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
        self._shown: dict[int, int] = {}
        """The number that a step is shown under; the steps of triggers have none."""
        self._warnings: list[Message] = []
        self._told = ""
        """The last image that was told as ``aux``."""

    def feed(self, event: dict[str, Any]) -> list[Message]:
        """The messages that become due with this event."""
        kind = event["type"]
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
        elif kind == "vertex.log":
            self._log(event)
        elif kind == "step.done":
            self._done(event)
        return [] if self._quiet else self._advance()

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

    def _done(self, event: dict[str, Any]) -> None:
        for step in self._steps:
            if step.number == event.get("step"):
                step.done = True
                step.cached = bool(event.get("cached")) and not self._no_cache
                step.image = str(event.get("image", ""))

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
        if not step.headed:
            step.headed = True
            if not step.trigger:
                number = self._shown[step.number]
                out.append({"stream": f"Step {number}/{self._total} : {step.text}"})
                out.append({"stream": "\n"})
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
        detail: dict[str, Any] = {"message": describe(error)}
        if error.get("code") == "step-failed":
            detail["code"] = int(details.get("exit_code") or 1)
        out = self._advance() + self._failed_logs(details)  # a quiet build that fails tells all
        return [*out, {"errorDetail": detail, "error": detail["message"]}]

    def _failed_logs(self, details: dict[str, Any]) -> list[Message]:
        """The failing step's output, where an earlier step still holds it back."""
        vertex = str(details.get("vertex", ""))
        out: list[Message] = []
        for step in self._steps[self._current :]:
            if step.vertex == vertex and (step.held or not step.headed):
                out += self._head(step) + step.held
                step.held = []
        return out


def warning_text(event: dict[str, Any]) -> str:
    """A warning in the classic builder's words, where it has words for it."""
    text = str(event.get("text", ""))
    match = _UNCONSUMED.fullmatch(text)
    return f"One or more build-args {match[1]} were not consumed" if match else text


def describe(error: dict[str, Any]) -> str:
    """An error in the classic builder's words, where it has words for it."""
    details = error.get("details") or {}
    message, code = str(error.get("message", "")), error.get("code")
    if code == "step-failed" and details.get("command") and "exit_code" in details:
        return f"The command '{details['command']}' returned a non-zero code: {details['exit_code']}"
    if match := _NO_USER.match(message):
        return f"unable to find user {match[1]}: no matching entries in passwd file"
    name, _, rest = message.partition(": ")
    if code in PULL_CODES and _IMAGE.match(name):
        return pull_refused(str(code), name, rest)
    return message


def of_image(error: dict[str, Any]) -> bool:
    """Is the error about an image that a Dockerfile names?  Such messages begin with its name."""
    return bool(_IMAGE.match(str(error.get("message", "")).partition(": ")[0]))


def pull_refused(code: str, name: str, why: str) -> str:
    """Why an image can't be pulled, as Docker says it.  code: of the error; name: of the image."""
    try:
        reference = Reference.parse(name).with_default_tag()
    except ValueError:
        return f"{name}: {why}"
    if code == "not-found":
        return f"manifest for {reference.familiar} not found: manifest unknown: {why}"
    if code in PULL_CODES:
        return (
            f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
            f"'docker login': {why}"
        )
    return why
