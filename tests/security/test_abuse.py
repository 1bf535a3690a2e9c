"""Section A, 36–42: steps that eat, hang, shout and pry; and what must be left when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from patience import eventually, until, within

from ocibuildd.errors import BuildError


def processes(marker: str) -> list[int]:
    """Processes of any user whose command line has the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def gone(marker: str) -> bool:
    """Whether no process is left within a second."""
    return within(1, lambda: not processes(marker))


def test_a36_a_fork_bomb_stops_at_its_limit_and_nsd_answers(box):
    number = f"70{os.getpid()}"
    bomb = box.spec(["/bin/sh", "-c", f"b() {{ b | b & }}; b; exec sleep {number}"], limits={"pids": 60})

    async def under_fire():
        running = asyncio.create_task(box.start(bomb))
        await eventually("the bomb", lambda: processes(f"sleep\0{number}"))
        answer = await box.start(box.spec(["/bin/sh", "-c", "echo alive"]))
        burning = not running.done()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return answer, burning

    answer, burning = box.wait(under_fire())
    assert answer.out == "alive\n"
    assert burning
    assert gone(number)


def test_a36_the_limit_holds_for_other_ids_too(box):
    seen = box.python("""
        import time
        def fill(uid):
            children = 0
            if uid:
                os.setuid(uid)
            try:
                while children < 200:
                    if not os.fork():
                        time.sleep(5); os._exit(0)
                    children += 1
            except OSError as error:
                return children
            return children
        tell(fill(1234))
    """, limits={"pids": 50, "timeout": 20}).json()
    assert seen <= 50


def test_a37_a_hungry_step_is_the_first_to_die(box):
    seen = box.run("cat /proc/self/oom_score_adj; echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj")
    scores = [int(word) for word in seen.out.split() if word.lstrip("-").isdigit()]
    assert scores[0] == 500
    assert min(scores) >= 0


@pytest.mark.skipif(not Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="a memory limit takes cgroup v2 with a delegated memory controller, which this host has not")
def test_a37_a_memory_limit_kills_and_says_so(box):
    if box.client.capabilities.cgroup != "v2":
        pytest.skip("no delegated cgroup v2 subtree: run under systemd with Delegate=yes")
    result = box.python("x = bytearray(300 << 20)", limits={"memory": 64 << 20})
    assert result.outcome["reason"] == "oom"


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_a38_a_disk_filler_is_stopped_and_its_space_comes_back(box):
    before = free(box.state)
    script = "dd if=/dev/zero of=/big bs=1M count=600 2>/dev/null; sleep 10"
    result = box.run(script, limits={"upper_bytes": 32 << 20, "timeout": 20})
    assert result.outcome["reason"] == "disk-limit"
    assert until("its space comes back", lambda: free(box.state) > before - (64 << 20))


def test_a38_preallocated_space_counts(box):
    result = box.python("""
        import time
        os.posix_fallocate(os.open("/big", os.O_CREAT | os.O_WRONLY), 0, 300 << 20); time.sleep(10)
    """, limits={"upper_bytes": 32 << 20, "timeout": 15})
    assert result.outcome["reason"] == "disk-limit"


def test_a38_a_flood_of_empty_files_counts(box):
    result = box.python("""
        import time
        for index in range(30_000):
            os.close(os.open(f"/tmp/{index}", os.O_CREAT))
        time.sleep(10)
    """, limits={"upper_bytes": 4 << 20, "timeout": 30})
    assert result.outcome["reason"] == "disk-limit"


def test_a38_space_of_deleted_files_counts(box):
    result = box.python("""
        import time
        fd = os.open("/big", os.O_CREAT | os.O_RDWR); os.unlink("/big")
        os.posix_fallocate(fd, 0, 300 << 20); time.sleep(10)
    """, limits={"upper_bytes": 32 << 20, "timeout": 15})
    assert result.outcome["reason"] == "disk-limit"


def test_a38_space_of_deleted_files_of_a_descendant_counts(box):
    script = "(setsid sh -c 'exec 9>/big; rm /big; dd if=/dev/zero bs=1M count=100 >&9 2>/dev/null; sleep 10' &); sleep 10"
    result = box.run(script, limits={"upper_bytes": 32 << 20, "timeout": 15})
    assert result.outcome["reason"] == "disk-limit"


DEEP = """
os.chdir("/tmp")
for _ in range({levels}):
    os.mkdir({name!r}); os.chdir({name!r})
with open("big", "wb") as file:
    for _ in range(100):
        file.write(bytes(1 << 20))
"""


def test_a38_what_lies_deeper_than_a_path_can_name_counts(box):
    program = DEEP.format(levels=30, name="x" * 250) + "import time; time.sleep(10)"
    result = box.python(program, limits={"upper_bytes": 32 << 20, "timeout": 60})
    assert result.outcome["reason"] == "disk-limit"


def test_a38_a_tree_deeper_than_recursion_goes_gives_its_space_back(box):
    assert box.python(DEEP.format(levels=1500, name="d")).code == 0
    until("its directories are gone", lambda: not list((box.state / "tmp").glob("run-*")))


def test_a38_what_is_deleted_and_closed_does_not_count(box):
    script = "for i in 1 2 3 4; do dd if=/dev/zero of=/big bs=1M count=10 2>/dev/null; rm /big; sleep 0.2; done"
    assert box.run(script, limits={"upper_bytes": 32 << 20, "timeout": 15}).code == 0


def test_a38_a_step_can_not_outrun_the_limit_by_ending(box):
    result = box.run("dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null", limits={"upper_bytes": 32 << 20})
    assert result.outcome["reason"] == "disk-limit"


DAEMONISE = "(setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep {n}; sleep {n}' >/dev/null 2>&1 &) ; (setsid sleep {n} &)"


def test_a39_nothing_that_a_step_left_behind_outlives_it(box):
    number = f"71{os.getpid()}"
    result = box.run(DAEMONISE.format(n=number))
    assert result.code == 0
    assert gone(number)


def test_a39_nothing_outlives_a_cancelled_step(box):
    number = f"72{os.getpid()}"
    spec = box.spec(["/bin/sh", "-c", DAEMONISE.format(n=number) + f"; sleep {number}"])

    async def cancel():
        task = asyncio.create_task(box.start(spec))
        while not processes(number):
            await asyncio.sleep(0.02)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    box.wait(cancel())
    assert gone(number)


NSD = """
import asyncio, json, sys, tempfile
sys.path[:] = {path!r}
from pathlib import Path
from ocibuildd.sandbox import launch
async def main():
    nsd = await launch.start(Path({state!r}))
    print(nsd.pid, flush=True)
    with tempfile.TemporaryFile() as file:
        file.write(Path({layer!r}).read_bytes()); file.seek(0)
        await nsd.call("apply", dict(tree="base", lowers=[], expect_diff_id="", limits={{}}), [file.fileno()])
    spec = json.loads(Path({spec!r}).read_text())
    spec["lowers"] = ["base"]
    while True:
        try:
            outcome = await nsd.call("run", spec, [1, 2])
            print("ended", outcome["reason"], flush=True)
        except BaseException as error:
            print("failed", type(error).__name__, flush=True)
            spec["args"] = ["/bin/true"]
        if spec["args"] == ["/bin/true"] and outcome_is_good(locals()):
            return
def outcome_is_good(scope):
    return scope.get("outcome", {{}}).get("exit_code") == 0
asyncio.run(main())
"""


@pytest.fixture
def daemon_process(box):
    """A process that stands for main, with a step that runs for ever."""
    number = f"73{os.getpid()}"
    directory = tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True)
    layer = Path(directory.name, "layer.tar")
    layer.write_bytes(box.base_layer())
    spec = Path(directory.name, "spec.json")
    spec.write_text(json.dumps(box.spec(["/bin/sh", "-c", DAEMONISE.format(n=number) + f"; sleep {number}"])))
    program = NSD.format(path=sys.path, state=f"{directory.name}/state", layer=str(layer), spec=str(spec))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        nsd = int(process.stdout.readline())
        until("its step runs", lambda: len(processes(number)) >= 2)
        yield process, nsd, number
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        box.call("remove", {"paths": [adopt(box, Path(directory.name, "state"))]})
        directory.cleanup()


def adopt(box, path: Path) -> str:
    """Move a state directory below the box's own, whose nsd may remove it."""
    target = box.state / "tmp" / f"adopted-{time.monotonic_ns()}"
    path.rename(target)
    return str(target)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a39_nothing_outlives_main_killed_with_nine(daemon_process):
    process, nsd, number = daemon_process
    assert len(processes(number)) >= 2
    process.kill()
    process.wait()
    assert gone(number)
    assert within(1, lambda: not alive(nsd))


def test_a39_after_nsd_was_killed_with_nine_the_step_fails_and_the_next_one_works(daemon_process):
    process, nsd, number = daemon_process
    os.kill(nsd, signal.SIGKILL)
    assert gone(number)
    assert process.stdout.readline().split()[0] == "failed"
    assert process.stdout.readline() == "ended exit\n"


def test_a40_a_step_that_ignores_signals_ends_at_its_timeout(box):
    number = f"74{os.getpid()}"
    script = f"trap '' TERM INT HUP QUIT; (sleep {number} &); while :; do sleep 1; done"
    result = box.run(script, limits={"timeout": 1})
    assert result.outcome["reason"] == "timeout"
    assert "timed out after 1 s" in result.outcome["message"]
    assert gone(number)


def test_a40_a_stopped_step_ends_at_its_timeout(box):
    result = box.run("sh -c 'kill -STOP $$' & kill -STOP 1; sh -c 'kill -STOP $$'; sleep 9", limits={"timeout": 1})
    assert result.outcome["reason"] == "timeout"


def test_a41_a_step_that_shouts_blocks_on_its_pipe_and_nothing_grows(box):
    """What is read of it is bounded by the log's writer (tests/executor); here: nsd holds none of it."""
    read, write = os.pipe()
    spec = box.spec(["/bin/sh", "-c", "dd if=/dev/zero bs=1M count=1024 2>/dev/null"], limits={"timeout": 1})
    before = rss(box.client.pid)

    async def shout():
        return await box.client.call("run", spec, [write, write])

    outcome = box.wait(shout())
    os.close(read)
    os.close(write)
    assert outcome["reason"] == "timeout"
    assert rss(box.client.pid) < before + (8 << 20)


def rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.fixture
def host_services(box):
    """Servers of the host: TCP on loopback and on every address, abstract, and a path."""
    tcp = socket.create_server(("127.0.0.1", 0))
    everywhere = socket.create_server(("0.0.0.0", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0ocibuildd-security-test")
    path = socket.socket(socket.AF_UNIX)
    name = box.state / "api.sock"
    path.bind(str(name))
    for sock in (abstract, path):
        sock.listen()
    yield tcp.getsockname()[1], everywhere.getsockname()[1], name
    for sock in (tcp, everywhere, abstract, path):
        sock.close()
    name.unlink()


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return sock.getsockname()[0]


@pytest.mark.parametrize("network", ["default", "none"])
def test_a42_a_step_reaches_nothing_of_the_host(box, host_services, network):
    if network == "default" and box.client.capabilities.network == "none":
        pytest.skip("no build network here")
    tcp, everywhere, path = host_services
    seen = box.python(f"""
        import socket
        def connect(family, address):
            with socket.socket(family) as sock:
                sock.settimeout(2)
                return attempt(lambda: sock.connect(address) or "CONNECTED")
        inet, unix = socket.AF_INET, socket.AF_UNIX
        tell({{
            "loopback": connect(inet, ("127.0.0.1", {tcp})), "all": connect(inet, ("127.0.0.1", {everywhere})),
            "address": connect(inet, ("{own_address()}", {everywhere})),
            "metadata": connect(inet, ("169.254.169.254", 80)),
            "abstract": connect(unix, "\\0ocibuildd-security-test"), "path": connect(unix, "{path}"),
            "proc root": attempt(lambda: os.stat("/proc/1/root{path}") and "SEEN"),
            "kallsyms": sum(int(line.split()[0], 16) for line in open("/proc/kallsyms")) if os.access("/proc/kallsyms", os.R_OK) else 0,
            "kcore": attempt(lambda: len(open("/proc/kcore", "rb").read(64))),
            "dmesg": attempt(lambda: bool(os.open("/dev/kmsg", os.O_RDONLY))),
            "sysrq": attempt(lambda: bool(os.open("/proc/sysrq-trigger", os.O_WRONLY))),
            "uevent": attempt(lambda: bool(os.open("/sys/kernel/uevent_helper", os.O_WRONLY))),
            "debug": attempt(lambda: os.listdir("/sys/kernel/debug")),
            "firmware": attempt(lambda: os.listdir("/sys/firmware")),
        }})
    """, network=network).json()
    for name in ("loopback", "all", "address", "metadata", "abstract", "path"):
        assert seen[name] != "CONNECTED", seen
    assert seen["proc root"] == "ENOENT"
    assert seen["kallsyms"] == 0
    for name in ("dmesg", "sysrq", "uevent"):
        assert seen[name] in {"ENOENT", "EACCES", "EPERM", "EROFS"}, (name, seen[name])
    assert seen["kcore"] in {0, "EACCES", "EPERM", "ENOENT"}
    assert seen["debug"] in (["..."], [], "EACCES", "ENOENT")
    assert seen["firmware"] in ([], "ENOENT")


def test_a42_sandboxes_do_not_reach_each_other(box):
    if box.client.capabilities.network == "none":
        pytest.skip("no build network here")
    serve = box.spec(["/bin/sh", "-c", "ip -4 -o addr show dev eth0 > /shared/address; nc -l -p 80 -e /bin/echo reached & i=0; while [ ! -e /shared/asked ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; ls /shared"], network="default")
    directory = box.state / "cache" / "meet"
    directory.parent.mkdir(exist_ok=True)
    mount = {"kind": "cache", "target": "/shared", "path": str(directory), "readonly": False, "mode": 0o777}
    probe = """
        i=0; while [ ! -s /shared/address ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done
        address=$(sed 's,.*inet \\([0-9.]*\\)/.*,\\1,' /shared/address); echo "trying $address"
        nc -w 1 $address 80 </dev/null || echo refused; : > /shared/asked
    """
    ask = box.spec(["/bin/sh", "-c", probe], network="default", mounts=[mount])
    first, second = box.parallel({**serve, "mounts": [mount]}, ask)
    assert first.out == "address\nasked\n"
    assert "trying 10." in second.out or "trying 172." in second.out or "trying 198." in second.out
    assert "refused" in second.out
    assert "reached" not in second.out


def test_a25_host_network_and_insecure_are_for_main_to_allow():
    """nsd does as it is told; who may tell it is decided from the daemon's and the request's
    entitlements together (tests/build, tests/api).  Here: that the decision has a place."""
    from ocibuildd.model import request

    fields = request.BuildRequest.__struct_fields__ if hasattr(request, "BuildRequest") else ()
    assert "entitlements" in fields or "allow" in fields, fields


def descendants(pid: int) -> list[int]:
    """All processes below one, itself left out."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_steps_leave_nothing_behind(box, rounds):
    def counts():
        descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (box.client.pid, os.getpid())]
        mounts = Path(f"/proc/{box.client.pid}/mountinfo").read_text().count("\n")
        return [*descriptors, len(descendants(box.client.pid)), mounts]

    def steady():
        """The counts, when they have been the same for a second."""
        seen = [counts()]
        while len(seen) < 20 or len(set(map(tuple, seen[-20:]))) > 1:
            time.sleep(0.05)
            seen.append(counts())
        return seen[-1]

    box.parallel(*[box.spec(["/bin/true"], network=kind) for kind in ("none", "default") * 4])
    before, memory, own = steady(), rss(box.client.pid), rss(os.getpid())
    for number in range(rounds):
        box.run("true", network="default" if number % 2 else "none")
    box.parallel(*[box.spec(["/bin/true"], network="default") for _ in range(50)])
    assert until("the counts are what they were", lambda: counts() == before)
    assert rss(box.client.pid) < memory * 1.1 + (1 << 20)
    assert rss(os.getpid()) < own * 1.1 + (1 << 20)


def named(pid: int, name: str) -> list[int]:
    """Descendants of a process by their name."""
    return [child for child in descendants(pid) if Path(f"/proc/{child}/comm").read_text().strip() == name[:15]]


@pytest.mark.parametrize("victim", ["ocibuildd-net", "ocibuildd-netns"])
def test_after_the_network_s_processes_were_killed_the_next_step_has_a_network(box, victim):
    if box.client.capabilities.network == "none":
        pytest.skip("no build network here")
    look = "cat /sys/class/net/eth0/carrier /sys/class/net/eth0/operstate"
    assert box.run(look, network="default").out == "1\nup\n"
    time.sleep(0.3)  # one more is being prepared
    for pid in named(box.client.pid, victim):
        os.kill(pid, signal.SIGKILL)

    def looks() -> str:
        with contextlib.suppress(BuildError):
            return box.run(look, network="default").out
        return ""

    assert until("a network again", lambda: looks() == "1\nup\n")


def test_a_failed_start_says_what_was_wanted(box):
    with pytest.raises((BuildError, OSError)) as caught:
        box.wait(box.start(box.spec(["/no/such/program"])))
        raise BuildError("it ran")
    assert caught.value
