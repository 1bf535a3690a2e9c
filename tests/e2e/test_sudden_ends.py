"""A step's end that nobody planned: nothing of its sandbox stays, the build says why, the next one works."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_life import alive, command, descendants
from fixtures import Daemon
from patience import PATIENCE, until

KINDS = ("mnt", "net", "pid", "user")
numbers = itertools.count(101)


def namespaces(pids: set[int]) -> set[str]:
    """Those that processes are in; of processes that can't be looked at, none."""
    found = set()
    for pid, kind in itertools.product(pids, KINDS):
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
        except OSError:
            continue
    return found


def opened(pids: set[int]) -> set[str]:
    """What processes have open."""
    found = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                found.add(os.readlink(fd))
            except OSError:
                continue
    return found


def everybody() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


class Step:
    """A build whose one step sleeps with a child that ignores what can be ignored, seen from outside.

    pids: processes inside.  inside: namespaces that only they are in."""

    def __init__(self, daemon: Daemon, directory: Path, *options: str):
        self.daemon = daemon
        self.mark = f"31{next(numbers)}.{os.getpid()}"
        script = f"trap '' TERM INT HUP; (setsid sleep {self.mark} &); echo begun; sleep {self.mark}; true"
        directory.mkdir()
        (directory / "Dockerfile").write_text(f"FROM busybox\nRUN {script}\n")
        self.client = daemon.background("build", "--progress=plain", "--no-cache", *options, directory)
        self.pids = until("a step runs", lambda: len(found := self.running()) >= 2 and found)
        outside = {os.getpid(), nsd_of(daemon)}
        self.inside = namespaces(self.pids) - namespaces(outside)
        # Held, or their numbers were given to the next ones.
        self.held = [os.open(f"/proc/{min(self.pids)}/ns/{kind}", os.O_RDONLY) for kind in KINDS]
        assert {name.partition(":")[0] for name in self.inside} == set(KINDS)

    def running(self) -> set[int]:
        """Processes of the sandbox: nobody else has the mark in a command "sleep"."""
        words = f"sleep\0{self.mark}\0".encode()
        return {pid for pid in everybody() if _cmdline(pid) == words}

    def gone(self) -> None:
        """No process is left, and nobody is in its namespaces (a mount needs one: they go together)."""
        until(f"the end of {self.mark}", lambda: not self.running() and not any(map(alive, self.pids)))
        until("its namespaces are empty", lambda: not self.inside & namespaces(everybody()))
        until("its namespaces are let go", lambda: not self.inside & opened(self.family()))
        for fd in self.held:
            os.close(fd)
        assert str(self.daemon.root) not in Path("/proc/self/mountinfo").read_text()

    def family(self) -> set[int]:
        process = self.daemon.process
        return {process.pid, *descendants(process.pid)} if process is not None else set()

    def said(self) -> str:
        """All that its client printed; the client has ended, and not well."""
        text = self.client.communicate(timeout=PATIENCE)[0]
        assert self.client.returncode != 0, text
        return text


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def nsd_of(daemon: Daemon) -> int:
    """Main's own child of that name; sandboxes that wait for a step are called so too."""
    assert daemon.process is not None
    children = Path(f"/proc/{daemon.process.pid}/task").glob("*/children")
    (found,) = {int(pid) for each in children for pid in each.read_text().split()} & of(daemon, "ocibuild-nsd")
    return found


def of(daemon: Daemon, *names: str) -> set[int]:
    """The daemon's processes by their names, without what follows a dot (passt.avx2 calls itself so)."""
    assert daemon.process is not None
    return {pid for pid in descendants(daemon.process.pid) if _name(pid).partition(".")[0] in names}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def victim(make_daemon: Callable[..., Daemon], busybox_tar: Path) -> Daemon:
    daemon = make_daemon()
    daemon.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    return daemon


@pytest.fixture
def begin(victim: Daemon, tmp_path: Path) -> Iterator[Callable[..., Step]]:
    """Begin a step, with options of the build; its client ends with the test."""
    begun: list[Step] = []

    def start(*options: str) -> Step:
        begun.append(Step(victim, tmp_path / "context", *options))
        return begun[-1]

    yield start
    for each in begun:
        if each.client.poll() is None:
            each.client.kill()
        each.client.communicate(timeout=PATIENCE)


@pytest.fixture
def step(begin: Callable[..., Step]) -> Step:
    return begin("--network=none")


@pytest.fixture
def next_build(victim: Daemon, tmp_path: Path) -> Iterator[None]:
    """Whatever the test did: the next build works."""
    yield
    context = tmp_path / "next"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {next(numbers)} and on\n")
    assert "and on" in victim.ok("build", "--progress=plain", "--no-cache", "--network=none", context).text


@pytest.mark.usefixtures("next_build")
def test_a_cancelled_build_leaves_nothing(victim: Daemon, step: Step) -> None:
    victim.ok("cancel", victim.ok("ps", "-q").out.split()[0])
    step.gone()
    assert "cancel" in step.said()


@pytest.mark.usefixtures("next_build")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_client_that_goes_away_takes_its_build_with_it(step: Step, how: signal.Signals) -> None:
    step.client.send_signal(how)
    step.gone()
    assert step.client.wait(PATIENCE) != 0


@pytest.mark.usefixtures("next_build")
def test_a_killed_daemon_takes_its_steps_with_it(victim: Daemon, step: Step) -> None:
    build = victim.ok("ps", "-q").out.split()[0]
    assert victim.process is not None
    family = descendants(victim.process.pid)
    victim.stop(signal.SIGKILL)
    step.gone()
    until("the end of the daemon's family", lambda: not (left := [command(pid) for pid in family if alive(pid)]) or print(left))
    step.said()
    victim.start()
    assert "daemon" in victim("logs", build).text


@pytest.mark.usefixtures("next_build")
def test_when_nsd_is_killed_the_build_says_so(victim: Daemon, step: Step) -> None:
    os.kill(nsd_of(victim), signal.SIGKILL)
    step.gone()
    assert "nsd, which runs the steps, ended" in step.said()


@pytest.fixture
def uplink(victim: Daemon, tmp_path: Path) -> Callable[[], set[int]]:
    """The processes of the uplink; skips where a step gets no network here."""
    context = tmp_path / "network"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    if victim("build", "--no-cache", context).code:
        pytest.skip("no network for steps on this host")
    return lambda: of(victim, "pasta", "passt", "slirp4netns")


@pytest.mark.usefixtures("next_build")
def test_a_killed_uplink_is_started_again_and_steps_go_on(
    victim: Daemon, uplink: Callable[[], set[int]], begin: Callable[..., Step], tmp_path: Path
) -> None:
    step = begin()
    before = until("an uplink runs", uplink)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until("it is started again", lambda: uplink() - before)
    assert step.running() == step.pids
    step.client.kill()
    step.gone()
    (tmp_path / "network/Dockerfile").write_text("FROM busybox\nRUN ip route | grep default\n")
    assert "default via" in victim.ok("build", "--progress=plain", "--no-cache", tmp_path / "network").text


@pytest.mark.usefixtures("next_build", "uplink")
def test_a_killed_network_is_made_again(victim: Daemon, tmp_path: Path) -> None:
    before = until("a network", lambda: of(victim, "ocibuildd-net"))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until("its processes end", lambda: not any(map(alive, before)))
    (tmp_path / "network/Dockerfile").write_text("FROM busybox\nRUN ip route | grep default\n")
    until("a build works", lambda: victim("build", "--no-cache", tmp_path / "network").code == 0)
    assert of(victim, "ocibuildd-net").isdisjoint(before)
