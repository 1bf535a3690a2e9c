"""Control groups: the values, and, as root, the real thing on whatever cgroup2 is mounted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import PATIENCE, until

from ocibuildd.sandbox import cgroup, step
from ocibuildd.sandbox.cgroup import Cgroups, settings


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, []),
        ({"memory": 0, "pids": 0}, []),
        ({"pids": 7}, [("pids", "pids.max", "7")]),
        ({"cpu_quota": 50_000}, [("cpu", "cpu.max", "50000 100000")]),
        ({"cpu_quota": 10, "cpu_period": 5}, [("cpu", "cpu.max", "1000 1000")]),
        ({"cpu_shares": 2}, [("cpu", "cpu.weight", "1")]),
        ({"cpu_shares": 1024}, [("cpu", "cpu.weight", "39")]),
        ({"cpu_shares": 262144}, [("cpu", "cpu.weight", "10000")]),
        ({"io_weight": 50}, [("io", "io.weight", "50")]),
        ({"io_weight": 20_000}, [("io", "io.weight", "10000")]),
        ({"cpuset_cpus": 0b1101}, [("cpuset", "cpuset.cpus", "0,2,3")]),
        ({"cpuset_mems": 0b1}, [("cpuset", "cpuset.mems", "0")]),
    ],
)
def test_limits_become_files(limits, expected):
    assert settings(limits) == expected


@pytest.mark.parametrize(
    ("limits", "controllers", "told"),
    [
        ({}, (), []),
        ({"pids": 9, "upper_bytes": 9, "nofile": 9}, (), []),
        ({"memory": 9}, ("memory",), []),
        ({"memory": 9}, ("cpu", "pids"), ["--memory"]),
        ({"memory": 9, "cpu_quota": 9, "cpuset_cpus": 1}, (), ["--memory", "--cpu-quota", "--cpuset-cpus"]),
        ({"cpu_shares": 9}, (), ["--cpu-quota"]),
        ({"io_weight": 9}, ("cpu",), ["io_weight"]),
    ],
)
def test_limits_that_nobody_holds_are_told(limits, controllers, told):
    assert [text.split()[0] for text in cgroup.unenforced(limits, controllers)] == told


@pytest.mark.parametrize(("text", "mask"), [("0", 1), ("0-2,5", 0b100111), ("3,3", 8), ("61", 1 << 61)])
def test_a_list_of_cpus_becomes_a_mask(text, mask):
    assert cgroup.mask_of(text) == mask


@pytest.mark.parametrize("text", ["", "a", "1-", "2-1", "62", "0,", "0\n", "-1"])
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="list"):
        cgroup.mask_of(text)


@pytest.mark.parametrize(
    ("swap", "expected"), [(0, "100"), (100, "0"), (150, "50"), (50, "0"), (-1, None)]
)
def test_memory_and_swap_are_docker_s_words(swap, expected):
    files = {file: value for _, file, value in settings({"memory": 100, "memory_swap": swap})}
    assert files["memory.max"] == "100"
    assert files["memory.oom.group"] == "1"
    assert files.get("memory.swap.max") == expected


@pytest.mark.parametrize(
    ("status", "limits", "kills", "reason", "message"),
    [
        (9, {"memory": 64 << 20}, 1, "oom", "OOM-killed at 64 MiB, its memory limit"),
        (137 << 8, {"memory": 64 << 20}, 1, "oom", "OOM-killed at 64 MiB, its memory limit"),
        (9, {}, 1, "oom", "OOM-killed at 70 MiB: this host's memory"),
        (9, {"memory": 64 << 20}, 0, "signal", "killed by SIGKILL"),
        (1 << 8, {"memory": 64 << 20}, 1, "exit", ""),
        (0, {}, 0, "exit", ""),
    ],
)
def test_the_verdict_names_the_limit_that_killed(status, limits, kills, reason, message):
    told = SimpleNamespace(failure=None, reason="")
    usage = cgroup.Usage(memory_peak=70 << 20, oom_kills=kills)
    rusage = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = step.outcome(told, SimpleNamespace(limits=limits), status, rusage, 1.0, usage)
    assert found["reason"] == reason
    assert found["message"].startswith(message)
    assert found["usage"]["max_rss"] == 70 << 20


def test_the_mount_is_found_among_others():
    text = (
        "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 30 0:28 /sub /elsewhere rw - cgroup2 cgroup2 rw\n"
        "33 30 0:28 / /sys/fs/cgroup/un\\040ified rw shared:9 - cgroup2 cgroup2 rw\n"
    )
    assert cgroup.mount_point(text) == "/sys/fs/cgroup/un ified"
    assert cgroup.mount_point("") == ""


def test_our_group_is_the_line_of_hierarchy_zero():
    assert cgroup.own_path("4:memory:/x\n0::/user.slice/a.service\n") == "/user.slice/a.service"
    assert cgroup.own_path("4:memory:/x\n") == ""


def test_the_root_group_is_never_taken_for_delegated(monkeypatch):
    files = {"/proc/self/mountinfo": "1 2 0:3 / /cg rw - cgroup2 none rw\n", "/proc/self/cgroup": "0::/\n"}
    monkeypatch.setattr(cgroup, "_read", lambda path: files.get(path, ""))
    assert Cgroups.detect() is None


def test_counters_are_read_as_they_are_written(tmp_path):
    (tmp_path / "cpu.stat").write_text("usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n")
    (tmp_path / "memory.peak").write_text("4096\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (tmp_path / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n")
    assert cgroup.Leaf(str(tmp_path)).usage() == cgroup.Usage(2.0, 1.0, 4096, 11, 22, 1)


def test_a_group_without_files_has_used_nothing(tmp_path):
    assert cgroup.Leaf(str(tmp_path)).usage() == cgroup.Usage()


@pytest.fixture
def group():
    mount = cgroup.mount_point(Path("/proc/self/mountinfo").read_text())
    path = Path(mount or "/nowhere") / f"ocibuildd-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup2 that this user may make groups in: {error}")
    try:
        yield path
    finally:
        for leaf in [*path.glob("*/"), path]:
            (leaf / "cgroup.kill").write_text("1")
            until("it can be removed", lambda leaf=leaf: cgroup.Leaf(str(leaf)).remove())


def test_a_whole_tree_of_processes_is_killed_at_once(group):
    groups = Cgroups.at(str(group))
    leaf = groups.leaf("a")
    child = subprocess.Popen(["sh", "-c", "read x; (setsid sleep 60 &); sleep 60"], stdin=subprocess.PIPE)
    leaf.add(child.pid)
    child.stdin.write(b"\n")
    child.stdin.close()
    assert leaf.populated()
    assert not leaf.remove()
    leaf.kill()
    assert child.wait(PATIENCE) == -signal.SIGKILL
    until("it is empty", lambda: not leaf.populated())
    assert leaf.remove()
    assert leaf.remove()


def test_limits_without_a_controller_are_told(group):
    groups = Cgroups.at(str(group))
    leaf = groups.leaf("a")
    groups.limit(leaf, {"memory": 1 << 20, "pids": 5})
    wanted = {"memory": "memory.max", "pids": "pids.max"}
    missing = {file for controller, file in wanted.items() if controller not in groups.controllers}
    assert set(leaf.unenforced) == missing


def test_our_processes_move_out_of_a_group_that_gets_children(group):
    child = subprocess.Popen(["sleep", "60"])
    try:
        (group / "cgroup.procs").write_text(str(child.pid))
        assert Cgroups.at(str(group)) is not None
        assert (group / "daemon" / "cgroup.procs").read_text().split() == [str(child.pid)]
        assert not (group / "cgroup.procs").read_text()
    finally:
        child.kill()
        child.wait()


def test_steps_of_an_earlier_life_are_swept(group):
    groups = Cgroups.at(str(group))
    child = subprocess.Popen(["sleep", "60"])
    groups.leaf("old").add(child.pid)
    assert Cgroups.at(str(group)).sweep() == 1
    assert child.wait(PATIENCE) == -signal.SIGKILL


def test_names_that_are_no_names_are_refused(group):
    groups = Cgroups.at(str(group))
    for name in ("", "../x", "a/b", "A", "-x"):
        with pytest.raises(ValueError, match="group name"):
            groups.leaf(name)


STEP = """
import asyncio, json, os, sys, tarfile, io, tempfile
from pathlib import Path
from ocibuildd.sandbox import launch
async def main():
    nsd = await launch.start(Path(sys.argv[1]))
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
                info = tarfile.TarInfo(name); info.type = tarfile.DIRTYPE; info.mode = 0o755; tar.addfile(info)
            tar.add(os.path.realpath("/bin/busybox"), "bin/busybox")
        file.seek(0)
        arguments = {"tree": "base", "lowers": [], "expect_diff_id": "", "limits": {}}
        await nsd.call("apply", arguments, [file.fileno()])
    script = "cat /proc/self/cgroup; sleep 1"
    spec = {"lowers": ["base"], "tree": "", "args": ["/bin/busybox", "sh", "-c", script], "env": [],
            "cwd": "/", "user": "", "hostname": "h", "network": "none", "security": "sandbox", "mounts": [],
            "hosts": [], "dns": {}, "limits": {"pids": 50}, "tty": False, "no_new_privileges": False, "step": "s"}
    outcome = await nsd.call("run", spec, [1, 1])
    own = [line for line in open("/proc/self/cgroup") if line.startswith("0::")][0].strip()
    print(json.dumps([nsd.capabilities.cgroup, own, outcome["exit_code"]]), flush=True)
    await nsd.call("remove", {"paths": [sys.argv[1] + "/trees", sys.argv[1] + "/tmp"]})
    await nsd.close()
asyncio.run(main())
"""


def test_a_step_runs_in_a_group_of_its_own_and_the_group_goes_with_it(group, tmp_path):
    if not Path("/bin/busybox").exists():
        pytest.skip("busybox isn't installed")
    enter = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c \"$1\" {tmp_path}/state"
    running = subprocess.Popen(["sh", "-c", enter, "sh", STEP], stdout=subprocess.PIPE, text=True)
    first = running.stdout.readline()
    steps = list(group.glob("step-run-*"))
    assert any((path / "cgroup.procs").read_text().strip() for path in steps)
    out, _ = running.communicate(timeout=60)
    mode, own, code = json.loads(out.splitlines()[-1])
    assert (mode, code) == ("v2", 0)
    assert own.endswith(f"/{group.name}/daemon")
    assert not any(group.name in line for line in [first, *out.splitlines()[:-1]])  # its name isn't told
    assert [path.name for path in group.glob("*/")] == ["daemon"]
