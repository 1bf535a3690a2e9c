"""The parent of a sandbox: makes its namespaces and mounts, watches it, and tells how it ended.

A supervisor is a child of nsd (user namespace U0).  It may wait for its plan with a sandbox already prepared:
``serve`` blocks on ``requests``.  It outlives nothing: when main closes the job's socket, or nsd dies, all
of the sandbox is killed.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .. import errors, syscalls
from . import guest, mounts, spec, trees, wire
from .network import NetnsLease
from .site import Site

POLL_UPPER = 0.5
"""Seconds between two looks at the size of the upper directory (more when a look takes long)."""

GRACE_AFTER_KILL = 10.0
"""A killed sandbox that isn't gone by then is stuck in the kernel: we give up waiting."""


@dataclass(slots=True)
class Sandbox:
    """A guest that was born: PID 1 of its namespaces, waiting for a plan on ``sock``."""

    pid: int
    pidfd: int
    sock: socket.socket


def serve(site: Site, lease: NetnsLease, requests: socket.socket) -> NoReturn:
    """Prepare a sandbox, take one job from ``requests``, run it, end.  (The body of the child.)"""
    status = 1
    try:
        os.setsid()
        _accept_oom()
        sandbox = birth(site, lease)
        got = wire.receive_raw(requests)
        if got is not None:
            data, fds = got
            requests.close()
            sock = socket.socket(fileno=fds[0])
            status = _run_job(site, lease, sandbox, sock, data, fds[1:])
    finally:
        os._exit(status)


def _accept_oom() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        with open(fd, "wb") as file:
            file.write(str(spec.OOM_SCORE_ADJ).encode())
    except OSError:
        pass  # a host that forbids it: the kernel then chooses by size alone


def birth(site: Site, lease: NetnsLease) -> Sandbox:
    """Fork the guest: root of U1 and PID 1 of fresh namespaces, and our own child.  Raises OSError.

    A process between joins U1 and unshares; its child becomes ours by CLONE_PARENT, so that the supervisor itself
    stays in U0, where it can reach the store."""
    ours, theirs = wire.pair()
    devices = {name: mounts.bind(fd) for name, fd in site.devices.items()}
    read_end, write_end = os.pipe()
    program = site.filter(insecure=False)
    between = syscalls.clone(0)
    if between == 0:
        ours.close()
        _between(site, lease, devices, theirs, write_end, program)
    theirs.close()
    os.close(write_end)
    for fd in devices.values():
        os.close(fd)
    answer = os.read(read_end, 256).decode()
    os.close(read_end)
    os.waitpid(between, 0)
    if not answer.isdecimal():
        raise errors.Unsupported(f"sandbox: {answer or 'its first process ended early'}")
    pid = int(answer)
    return Sandbox(pid, syscalls.pidfd_open(pid), ours)


def _between(
    site: Site, lease: NetnsLease, devices: dict[str, int], sock: socket.socket, pipe: int, program: bytes
) -> NoReturn:
    try:
        sys.meta_path.clear()  # nothing is ever imported from inside an image (CVE-2019-14271)
        syscalls.setns(lease.userns, syscalls.CLONE_NEWUSER)
        if lease.netns >= 0:
            syscalls.setns(lease.netns, syscalls.CLONE_NEWNET)
        if not site.squash:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC
        syscalls.unshare(flags | syscalls.CLONE_NEWUTS)
        pid = syscalls.clone(syscalls.CLONE_PARENT)
        if pid == 0:
            os.close(pipe)
            _guest(site, lease, devices, sock, program)
        os.write(pipe, str(pid).encode())
    except OSError as error:
        os.write(pipe, str(error).encode()[:256])
    finally:
        os._exit(0)


def _guest(
    site: Site, lease: NetnsLease, devices: dict[str, int], sock: socket.socket, program: bytes
) -> NoReturn:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        guest.prepare(
            devices, host_network=lease.netns < 0, proc=site.proc, single=site.squash
        )
        guest.main(sock, program, single=site.squash)
    except OSError as error:
        wire.send(sock, {"errno": error.errno or errno.EIO, "message": f"sandbox: {error}"})
    finally:
        os._exit(1)


# --- one job ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """What is observed while a step runs."""

    sock: socket.socket
    sandbox: Sandbox
    made: list[mounts.Made] = field(default_factory=list)
    failure: dict[str, Any] | None = None
    reason: str = ""
    guest_closed: bool = False
    killed_at: float = 0.0


def _run_job(
    site: Site, lease: NetnsLease, sandbox: Sandbox, sock: socket.socket, data: bytes, fds: list[int]
) -> int:
    started = time.monotonic()
    trash: list[bytes] = []
    try:
        args = json.loads(data.partition(b"\n")[2])
        outcome = _run(site, lease, sandbox, sock, args, fds, trash, started)
        wire.send(sock, {"result": outcome})
    except errors.BuildError as error:
        _tell(sock, {"error": error.to_dict()})
    except OSError as error:
        _tell(sock, {"errno": error.errno or errno.EIO, "message": str(error)})
    except Exception as error:  # noqa: BLE001 - the job's end is told whatever it was
        _tell(sock, {"error": {"code": "build-error", "message": f"sandbox: {error!r}"}})
    finally:
        _kill(sandbox)
        for path in trash:
            trees.discard(path)
    return 0


def _tell(sock: socket.socket, message: dict[str, Any]) -> None:
    try:
        wire.send(sock, message)
    except OSError:
        pass  # main is gone: nobody to tell


def _kill(sandbox: Sandbox) -> None:
    try:
        syscalls.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)
        os.waitpid(sandbox.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _run(
    site: Site, lease: NetnsLease, sandbox: Sandbox, sock: socket.socket, args: Mapping[str, Any],
    fds: list[int], trash: list[bytes], started: float,
) -> dict[str, Any]:
    plan = spec.plan(args, len(fds))
    upper, work = _upper_of(site, plan, trash)
    trash.append(work)
    stack = [site.tree(name) for name in plan.lowers] or [site.empty]
    root = mounts.overlay(stack, upper=upper, work=work, attributes=syscalls.MOUNT_ATTR_NODEV)
    sources = [
        _source(site, mount, fds, trash) for mount in plan.mounts if guest.has_source(mount)
    ]
    stdio = _stdio(plan, fds)
    message = {"spec": args, "fd_count": len(fds), "files": _files(site, lease, plan)}
    wire.send(sandbox.sock, message, [root, *stdio, *sources])
    wire.close_all([root, *sources])
    watch = Watch(sock, sandbox)
    status, usage = _watch(watch, plan, upper, started)
    mounts.remove_placeholders(watch.made)
    wire.close_all([item.parent for item in watch.made])
    return _outcome(watch, plan, status, usage, time.monotonic() - started)


def _upper_of(site: Site, plan: spec.Plan, trash: list[bytes]) -> tuple[bytes, bytes]:
    """Make the upper directory, with the root directory's attributes as the chain has them."""
    if plan.tree:
        base = os.path.dirname(site.tree(plan.tree))
    else:
        base = os.path.join(site.state, b"tmp", b"run-" + uuid.uuid4().hex.encode())
        trash.append(base)
    upper, work = os.path.join(base, b"fs"), os.path.join(base, b"work")
    os.makedirs(base, 0o700, exist_ok=True)
    os.mkdir(upper, 0o755)
    os.mkdir(work, 0o700)
    below = os.stat(site.tree(plan.lowers[-1]) if plan.lowers else site.empty)
    os.chown(upper, below.st_uid, below.st_gid)
    os.chmod(upper, below.st_mode & 0o7777)
    os.utime(upper, ns=(below.st_atime_ns, below.st_mtime_ns))
    return upper, work


def _source(site: Site, mount: spec.Mount, fds: list[int], trash: list[bytes]) -> int:
    """The detached mount that a mount of the plan shows.  Raises NotFound, OSError."""
    if mount.kind == "chain":
        stack = [site.tree(name) for name in mount.lowers] or [site.empty]
        if mount.readonly:
            return mounts.overlay(stack if len(stack) > 1 else [site.empty, *stack])
        base = os.path.join(site.state, b"tmp", b"mount-" + uuid.uuid4().hex.encode())
        trash.append(base)
        upper, work = os.path.join(base, b"fs"), os.path.join(base, b"work")
        os.makedirs(upper, 0o755)
        os.mkdir(work, 0o700)
        os.chown(upper, site.shift, site.shift)
        return mounts.overlay(stack, upper=upper, work=work)
    if mount.kind == "cache":
        return _cache(site, mount)
    if mount.kind == "socket":
        path = _socket(site, mount)
    else:
        path = _reopen(fds[mount.fd])
    try:
        return mounts.bind(path)
    finally:
        os.close(path)


def _cache(site: Site, mount: spec.Mount) -> int:
    """A cache's directory; on first use it gets its owner, its mode, and a copy of its base if it has one."""
    path = os.fsencode(mount.path)
    try:
        os.mkdir(path, mount.mode)
        fresh = True
    except FileExistsError:
        # One that main has made belongs to the daemon's user, which no sandbox has when ids are shifted.
        fresh = site.shift > 0 and os.stat(path, follow_symlinks=False).st_uid == 0
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fresh:
            if mount.lowers:
                _copy_base(site, mount, fd)
            if not site.squash:
                os.fchown(fd, mount.uid + site.shift, mount.gid + site.shift)
            os.fchmod(fd, mount.mode)
        return mounts.bind(fd)
    finally:
        os.close(fd)


def _copy_base(site: Site, mount: spec.Mount, fd: int) -> None:
    with site.mounted(mount.lowers) as root:
        if root is None:
            return
        source = mount.source.encode("utf-8", "surrogateescape") or b"."
        base = syscalls.open_in_root(root, source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            trees.copy_below(base, fd)
        finally:
            os.close(base)


def _socket(site: Site, mount: spec.Mount) -> int:
    """A path descriptor of a socket of ours, given to the one who is to use it."""
    fd = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.InvalidArgument(f"mount {mount.target}: {mount.path} is no socket")
    if not site.squash:
        os.chown(mount.path, mount.uid + site.shift, mount.gid + site.shift, follow_symlinks=False)
    os.chmod(mount.path, mount.mode)
    return fd


def _reopen(fd: int) -> int:
    """The same directory through a mount of our own namespace: main's can't be copied from here."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    again = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not os.path.samestat(os.fstat(fd), os.fstat(again)):
        os.close(again)
        raise errors.NotFound(f"mount source {path}: moved while it was being mounted")
    return again


def _stdio(plan: spec.Plan, fds: list[int]) -> list[int]:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if plan.tty:
        return [null, null, null]
    if len(fds) < 2:
        raise errors.InvalidArgument("run: descriptors for stdout and stderr wanted")
    taken = {mount.fd for mount in plan.mounts}
    stdin = fds[2] if len(fds) > 2 and 2 not in taken else null
    return [stdin, fds[0], fds[1]]


def _files(site: Site, lease: NetnsLease, plan: spec.Plan) -> dict[str, str]:
    """What is shown over the image's own /etc/resolv.conf, /etc/hosts and /etc/hostname."""
    network = site.network
    if network is None:
        return {"/etc/hostname": f"{plan.hostname}\n"}
    hosts = network.hosts(lease, plan.hostname, plan.hosts)
    resolv = network.resolv_conf(lease.kind, plan.dns)
    return {
        "/etc/resolv.conf": resolv.decode("utf-8", "surrogateescape"),
        "/etc/hosts": hosts.decode("utf-8", "surrogateescape"),
        "/etc/hostname": f"{plan.hostname}\n",
    }


def _watch(
    watch: Watch, plan: spec.Plan, upper: bytes, started: float
) -> tuple[int, resource.struct_rusage]:
    """Wait until the guest has ended; kill it when main leaves or a limit is passed."""
    poll = select.poll()
    poll.register(watch.sandbox.pidfd, select.POLLIN)
    poll.register(watch.sandbox.sock, select.POLLIN)
    poll.register(watch.sock, select.POLLIN | select.POLLRDHUP)
    deadline = started + plan.limits["timeout"] if "timeout" in plan.limits else 0.0
    upper_limit = plan.limits.get("upper_bytes", 0)
    look_at = started + POLL_UPPER if upper_limit else 0.0
    while True:
        events = dict(poll.poll(_wait_ms(watch, deadline, look_at)))
        now = time.monotonic()
        if watch.sandbox.sock.fileno() in events and not watch.guest_closed:
            _from_guest(watch)
            if watch.guest_closed:
                poll.unregister(watch.sandbox.sock)
        if watch.sandbox.pidfd in events:
            _, status, usage = os.wait4(watch.sandbox.pid, 0)
            while not watch.guest_closed:
                _from_guest(watch)
            return status, usage
        if watch.sock.fileno() in events and not watch.killed_at:
            poll.unregister(watch.sock)
            _stop(watch, "cancelled", now)
        elif deadline and now >= deadline and not watch.killed_at:
            _stop(watch, "timeout", now)
        elif look_at and now >= look_at and not watch.killed_at:
            if directory_bytes(upper, upper_limit) > upper_limit:
                _stop(watch, "disk-limit", now)
            look_at = now + max(POLL_UPPER, 20 * (time.monotonic() - now))
        if watch.killed_at and now - watch.killed_at > GRACE_AFTER_KILL:
            raise errors.BuildError("sandbox: killed, but it does not end: stuck in the kernel")


def _wait_ms(watch: Watch, deadline: float, look_at: float) -> int | None:
    if watch.killed_at:
        return 1000
    times = [moment for moment in (deadline, look_at) if moment]
    return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None


def _stop(watch: Watch, reason: str, now: float) -> None:
    watch.reason, watch.killed_at = reason, now
    try:
        syscalls.pidfd_send_signal(watch.sandbox.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return


def _from_guest(watch: Watch) -> None:
    try:
        got = wire.receive(watch.sandbox.sock)
    except ConnectionResetError:
        got = None
    if got is None:
        watch.guest_closed = True
        return
    message, fds = got
    if "made" in message:
        for fd, (name, device, inode, is_dir, before, after) in zip(fds, message["made"], strict=True):
            item = mounts.Made(fd, os.fsencode(name), (device, inode), is_dir, before, after)
            watch.made.append(item)
    elif message.get("tty"):
        wire.send(watch.sock, {"event": {"event": "tty"}}, fds)
        wire.close_all(fds)
    else:
        watch.failure = message


def directory_bytes(path: bytes, stop_at: int) -> int:
    """Bytes on disk below ``path``; counting ends soon after ``stop_at`` is passed."""
    total, todo = 0, [path]
    while todo and total <= stop_at:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(os.fsencode(entry.path))
        except OSError:
            continue
    return total


def _outcome(
    watch: Watch, plan: spec.Plan, status: int, usage: resource.struct_rusage, wall: float
) -> dict[str, Any]:
    failure = watch.failure
    if failure is not None and "error" in failure:
        raise errors.from_dict(failure["error"])
    if failure is not None and "errno" in failure:
        raise OSError(failure["errno"], failure["message"])
    code = os.waitstatus_to_exitcode(status)
    reason, message = watch.reason, ""
    if not reason:
        reason = "signal" if code < 0 else "exit"
    if failure is not None:
        code, message = failure["exit_code"], failure["failed"]
    elif reason == "timeout":
        message = f"timed out after {plan.limits['timeout']} s"
    elif reason == "disk-limit":
        message = f"wrote more than {plan.limits['upper_bytes']} bytes"
    elif reason == "signal":
        message = f"killed by {_signal_name(-code)}"
    return {
        "exit_code": code if code >= 0 else 128 - code,
        "signal": -code if code < 0 else 0,
        "reason": reason,
        "message": message,
        "usage": {
            "wall": wall, "user": usage.ru_utime, "system": usage.ru_stime,
            "max_rss": usage.ru_maxrss * 1024, "read": usage.ru_inblock * 512,
            "written": usage.ru_oublock * 512,
        },
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
