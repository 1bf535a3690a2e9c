"""A daemon's life that is cut short, and the proof that nothing committed was lost.

``Victim`` is a real daemon over a state directory of its own.  ``live`` lets it build, push, pull and
collect until somebody kills it; what it had answered by then is a promise.  ``prove`` starts it again and
holds it against the promises.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from fixtures import BIN, Daemon
from patience import PATIENCE, within

DOCKERFILE = """\
FROM busybox AS made
COPY large /large
ARG N
RUN --mount=type=cache,target=/cache echo $N > /made && echo $N >> /cache/seen
FROM busybox
ARG N
COPY files /files
RUN cat /files/one > /cat
COPY --from=made /made /
RUN echo $N > /last
"""
VARIANTS = 3
START = 2 * PATIENCE
LARGE = 400_000
"""Bytes of a file that stays as large in a layer: such blobs go through the trash."""
GONE = 3.0
REST = PATIENCE
"""Seconds after which maintenance has had its turn (``store.maintenance.SYNC_DELAY``, and work); whoever is to die meanwhile doesn't take them."""


class Died(Exception):
    """The daemon went away amid a request."""


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


class Victim:
    """A daemon to be killed.  promised: name → image id, as answered; digests: variant → the image id that
    its build always gives."""

    def __init__(self, daemon: Daemon, context: Path, registry: str = ""):
        self.daemon, self.context, self.registry = daemon, context, registry
        self.arming = daemon.root / "failpoint"
        daemon.env["OCIBUILD_FAILPOINT"] = f"@{self.arming}"
        self.promised: dict[str, str] = {}
        self.digests: dict[int, str] = {}
        self.children: set[int] = set()
        (context / "files").mkdir(parents=True)
        (context / "files" / "one").write_text("one\n" * 1000)
        (context / "large").write_bytes(random.Random(1).randbytes(LARGE))
        for name in ("files/one", "large"):
            os.utime(context / name, (1, 1))
        (context / "Dockerfile").write_text(DOCKERFILE)

    # --- start and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Until it answers; quicker than asking with the CLI."""
        daemon = self.daemon
        (daemon.root / "run").mkdir(exist_ok=True, mode=0o700)
        config = daemon.root / "ocibuildd.toml"
        config.write_text(daemon.config)
        self.arming.unlink(missing_ok=True)
        with (daemon.root / "daemon.log").open("ab") as log:
            daemon.process = subprocess.Popen(
                [str(BIN / "ocibuildd"), "--config", str(config), "--state-dir",
                 str(daemon.root / "state"), "--socket", str(daemon.socket), *daemon.args],
                env=daemon.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START
        while True:
            assert daemon.process.poll() is None, daemon.log[-3000:]
            assert time.monotonic() < end, f"it does not answer: {daemon.log[-3000:]}"
            try:
                self.call("GET", "/v1/health")
                break
            except (Died, OSError):
                time.sleep(0.01)
        self.children = descendants(daemon.process.pid)

    def kill(self) -> None:
        """As the kernel does it when memory is out."""
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGKILL)
        self.dead()

    def dead(self) -> None:
        """It was killed: nothing of it may be left, neither process nor mount."""
        assert self.daemon.process is not None
        assert self.daemon.process.wait(PATIENCE) == -signal.SIGKILL, self.daemon.log[-3000:]
        self.daemon.process = None
        over = within(GONE, lambda: not any(map(alive, self.children)))
        assert over, f"left behind: {[command(pid) for pid in self.children if alive(pid)]}"
        assert str(self.daemon.root) not in Path("/proc/self/mountinfo").read_text()

    # --- requests -------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request: its JSON, or the last event of a stream.  Raises Died."""
        connection = Connection(self.daemon.socket)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Died(str(error)) from None
        finally:
            connection.close()
        if answer.headers.get_content_type() == "application/x-ndjson":
            return json.loads(text.splitlines()[-1])
        assert answer.status < 300, text
        return json.loads(text) if text else None

    def build(self, variant: int, **fields: Any) -> dict[str, Any]:
        """The build's last event."""
        request = {
            "context": {"kind": "local", "path": str(self.context)}, "reproducible": True,
            "build_args": {"N": str(variant)}, **fields,
        }  # fmt: skip
        event: dict[str, Any] = self.call("POST", "/v1/builds?follow=1", request)
        if event["type"] not in ("build.done", "build.failed"):
            raise Died("the stream ended early")
        return event

    def built(self, variant: int, name: str, **fields: Any) -> dict[str, Any]:
        """A build that must succeed, and keep its promises."""
        event = self.build(variant, tags=[name], **fields)
        assert event["type"] == "build.done", event
        assert self.digests.setdefault(variant, event["image"]) == event["image"]
        self.promised[name] = event["image"]
        return event

    # --- a life ---------------------------------------------------------------------------------

    def life(self, rounds: int, seed: int = 0) -> None:
        """Builds, pushes, pulls and collections.  Raises Died as soon as it does."""
        for number in range(seed, seed + rounds):
            variant = number % VARIANTS
            name = f"{self.registry}/crash/app:{variant}" if self.registry else f"app:{variant}"
            self.built(variant, name, push=bool(self.registry))
            self.unname(name)
            self.call("POST", "/v1/prune", {"what": "builds", "all": True})
            if self.registry:
                self.built(variant, f"kept:{variant}")
                self.unname(f"kept:{variant}")
                self.call("POST", "/v1/prune", {"what": "builds", "all": True})
                pulled = self.call("POST", "/v1/images/pull", {"reference": name})
                assert pulled["type"] != "error", pulled
                if pulled["type"] != "done":
                    raise Died("the stream ended early")
                self.promised[name] = self.digests[variant]
            self.built(variant, f"app:{variant}")

    def unname(self, name: str) -> None:
        """Take a name away; from the moment of asking nothing is promised."""
        self.promised.pop(name, None)
        self.call("DELETE", f"/v1/images?name={name}&force=1")

    def until_dead(self, rounds: int = 20, seed: int = 0) -> bool:
        """Live, then rest until what goes on in the background is done; did it die meanwhile?"""
        assert self.daemon.process is not None
        try:
            self.life(rounds, seed)
            self.daemon.process.wait(REST)
        except subprocess.TimeoutExpired:
            return False
        except Died:
            pass
        self.dead()
        return True

    def cut_after(self, seconds: float, seed: int) -> None:
        """Live, and be killed after so long."""
        assert self.daemon.process is not None
        timer = threading.Timer(seconds, self.daemon.process.send_signal, [signal.SIGKILL])
        timer.start()
        try:
            assert self.until_dead(1000, seed)
        finally:
            timer.cancel()

    def prove(self, again: int) -> None:
        """Everything whole, every promise kept, a variant built again is the same; it runs afterwards."""
        report = self.call("POST", "/v1/system/check", {})
        assert report["findings"] == [], report
        held = {
            name: image["id"]
            for image in self.call("GET", "/v1/images")["images"] for name in image["names"]
        }  # fmt: skip
        for name, image in self.promised.items():
            assert held.get(name) == image, f"{name} is lost: {held}"
        self.built(again, f"app:{again}")


def descendants(pid: int) -> set[int]:
    """A process's children, theirs, and so on."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        task = Path(f"/proc/{todo.pop()}/task")
        for children in task.glob("*/children"):
            try:
                fresh = {int(child) for child in children.read_text().split()} - found
            except OSError:
                continue
            found |= fresh
            todo += fresh
    return found


def alive(pid: int) -> bool:
    """Is it there, and no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command(pid: int) -> str:
    """What it is, for people."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}"
    except OSError:
        return str(pid)
