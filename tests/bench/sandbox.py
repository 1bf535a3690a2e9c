"""What a step's sandbox costs: ``true`` over an overlay, by us, by crun (or runc) and by bubblewrap.

All three mount the same overlay and unmount it; crun gets the same namespaces, capabilities, seccomp policy,
masks and ids as our sandbox; bubblewrap gets namespaces only.  Rounds are interleaved, so that the machine's
moods fall on all alike.  Run as an ordinary user with subordinate ids:

    python tests/bench/sandbox.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from ocibuildd import syscalls
from ocibuildd.sandbox import launch, spec
from ocibuildd.sandbox.seccomp_policy import Allow, InRanges, NoneOf, policy

WARM_UP = 5
DIRECTORIES = ("bin", "etc", "proc", "sys", "dev", "tmp")
BUSYBOX = os.path.realpath(shutil.which("busybox") or "/bin/busybox")
MASKED = ["/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
          "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def image() -> bytes:
    """busybox and nothing else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in DIRECTORIES:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        tar.add(BUSYBOX, "bin/busybox", filter=_as_root)
        link = tarfile.TarInfo("bin/true")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    return buffer.getvalue()


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    return info


# --- the others, inside a user namespace like U0 ------------------------------------------------------


def seccomp_json() -> dict[str, Any]:
    """Our policy in the words of the OCI runtime specification."""
    calls: list[dict[str, Any]] = []
    plain = []
    for name, verdict in policy("x86_64", frozenset(spec.CAPABILITIES)).items():
        match verdict:
            case Allow():
                plain.append(name)
            case NoneOf(index, mask):
                rule = {"index": index, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
                calls.append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [rule]})
            case InRanges(index, ranges):
                for value in (value for low, high in ranges for value in range(low, high)):
                    rule = {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
                    calls.append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [rule]})
            case _:
                calls.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    calls.append({"names": plain, "action": "SCMP_ACT_ALLOW"})
    return {
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": calls,
    }


def config(root: str) -> dict[str, Any]:
    """An OCI bundle's config.json that matches our sandbox."""
    names = sorted(spec.CAPABILITIES)
    mounts = [
        ("/proc", "proc", ["nosuid", "noexec", "nodev"]), ("/dev", "tmpfs", ["nosuid", "mode=755"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/shm", "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777"]),
        ("/dev/mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ]
    ids = [{"containerID": 0, "hostID": 1, "size": 65535}]
    return {
        "ociVersion": "1.0.2", "hostname": "box", "root": {"path": root},
        "process": {
            "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
            "noNewPrivileges": False,
        },
        "mounts": [
            {"destination": where, "type": kind, "source": kind, "options": options}
            for where, kind, options in mounts
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("user", "mount", "pid", "network", "ipc", "uts")],
            "uidMappings": ids, "gidMappings": ids, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
            "seccomp": seccomp_json(),
        },
    }


class Overlay:
    """The overlay that a runtime gets, fresh for each run."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.lower, self.root = f"{base}/lower", f"{base}/root"
        os.makedirs(self.lower)
        os.makedirs(self.root)
        for name in DIRECTORIES:
            os.mkdir(f"{self.lower}/{name}")
        shutil.copy(BUSYBOX, f"{self.lower}/bin/busybox")
        os.symlink("busybox", f"{self.lower}/bin/true")
        for path in Path(self.lower).rglob("*"):
            os.chown(path, 1, 1, follow_symlinks=False)
        os.chown(self.lower, 1, 1)

    def __enter__(self) -> str:
        self.upper = tempfile.mkdtemp(dir=self.base)
        os.chown(self.upper, 1, 1)
        for name in ("fs", "work"):
            os.mkdir(f"{self.upper}/{name}")
        os.chown(f"{self.upper}/fs", 1, 1)
        options = f"lowerdir={self.lower},upperdir={self.upper}/fs,workdir={self.upper}/work,userxattr,volatile"
        syscalls.mount("overlay", self.root, "overlay", 0, options.encode())
        return self.root

    def __exit__(self, *_: object) -> None:
        syscalls.umount2(self.root, 0)


def bwrap(root: str) -> list[str]:
    return [
        "bwrap", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--unshare-user", "--unshare-pid",
        "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "/bin/true",
    ]


def runtime(base: str, root: str) -> tuple[str, list[str]]:
    """The first of crun and runc that runs here, and its command."""
    bundle = f"{base}/bundle"
    os.makedirs(bundle)
    Path(bundle, "config.json").write_text(json.dumps(config(root)))
    (Path(base) / "state").mkdir()
    for name, flags in (("crun", ["--cgroup-manager=disabled"]), ("runc", ["--rootless", "true"])):
        command = [name, "--root", f"{base}/state", *flags, "run", "--bundle", bundle, "box"]
        if shutil.which(name) is None:
            continue
        tried = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if tried.returncode == 0:
            return name, command
        print(f"{name} does not run here: {(tried.stderr or tried.stdout).strip()[-300:]}", file=sys.stderr)
    return "", []


def peer() -> None:
    """The process in the user namespace: for each line ("crun", "bwrap") answers the seconds it took."""
    base = tempfile.mkdtemp(dir="/var/tmp")
    os.chmod(base, 0o755)
    # crun before 1.27 refuses hosts with a hybrid hierarchy even when told to leave cgroups alone
    syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs")
    overlay = Overlay(base)
    with overlay as root:
        name, command = runtime(base, root)
    print(json.dumps(name), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        with overlay as root:
            argv = bwrap(root) if line.strip() == "bwrap" else command
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print(json.dumps(time.perf_counter() - begun), flush=True)
    subprocess.run(["rm", "-rf", base], check=False)


# --- ours -------------------------------------------------------------------------------------------


async def ours(client: launch.NsdClient, network: str, null: int) -> float:
    step = {
        "lowers": ["base"], "tree": "", "args": ["/bin/true"], "env": [["PATH", "/bin"]], "cwd": "/",
        "user": "", "hostname": "box", "network": network, "security": "sandbox", "mounts": [],
        "hosts": [], "dns": {}, "limits": {}, "tty": False, "no_new_privileges": False, "step": "bench",
    }
    begun = time.perf_counter()
    outcome = await client.call("run", step, [null, null])
    took = time.perf_counter() - begun
    assert outcome["exit_code"] == 0, outcome
    return took


async def measure(rounds: int) -> dict[str, list[float]]:
    state = Path(tempfile.mkdtemp(dir="/var/tmp"))
    client = await launch.start(state)
    with tempfile.TemporaryFile() as file:
        file.write(image())
        file.seek(0)
        await client.call(
            "apply", {"tree": "base", "lowers": [], "expect_diff_id": "", "limits": {}}, [file.fileno()]
        )
    command = ["unshare", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--mount-proc",
               sys.executable, __file__, "--peer"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    runtime_name = json.loads(other.stdout.readline())
    null = os.open("/dev/null", os.O_RDWR)
    ask = functools.partial(_ask, other.stdin, other.stdout)
    contenders: dict[str, Any] = {
        "ocibuildd, network none": lambda: ours(client, "none", null),
        "ocibuildd, network": lambda: ours(client, "default", null),
        "bwrap (no seccomp, no masks)": lambda: ask("bwrap"),
    }
    if runtime_name:
        contenders[runtime_name] = lambda: ask(runtime_name)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + WARM_UP):
        for name, run in contenders.items():
            took = await run()
            await asyncio.sleep(0.01)
            if number >= WARM_UP:
                times[name].append(took * 1000)
    other.stdin.close()
    other.wait()
    os.close(null)
    await client.call("remove", {"paths": [str(state / name) for name in ("trees", "tmp", "empty")]})
    await client.close()
    shutil.rmtree(state, ignore_errors=True)
    return times


async def _ask(stdin: Any, stdout: Any, what: str) -> float:
    stdin.write(what + "\n")
    stdin.flush()
    return float(json.loads(stdout.readline()))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    times = asyncio.run(measure(rounds))
    print(f"{'true over an overlay, ms':32} {'min':>7} {'median':>7} {'p95':>7}   ratio of medians")
    base = statistics.median(times["ocibuildd, network none"])
    for name, values in times.items():
        median = statistics.median(values)
        p95 = sorted(values)[int(len(values) * 0.95)]
        print(f"{name:32} {min(values):7.1f} {median:7.1f} {p95:7.1f}   ocibuildd = {base / median:.2f} ×")


if __name__ == "__main__":
    if sys.argv[1:] == ["--peer"]:
        peer()
    else:
        main()
