"""Sandboxes as nsd holds them: a guest is born, is given a step, is watched, and its end is told.

Nothing here blocks for long: nsd calls a :class:`Step` when one of its descriptors is readable or a deadline has come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .. import errors, syscalls
from . import guest, mounts, roots, sources, spec, trees, wire
from .cgroup import Leaf, Usage
from .network import NetnsLease
from .site import Site


@dataclass(slots=True)
class Sandbox:
    """A guest that was born: PID 1 of its namespaces and our child, waiting for a plan on ``sock``."""

    pid: int
    pidfd: int
    sock: socket.socket
    lease: NetnsLease
    group: Leaf | None = None

    def kill(self) -> None:
        """SIGKILL to PID 1: the kernel ends everything in its pid namespace with it."""
        try:
            syscalls.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def release(self) -> None:
        """Close what belongs to it.  It must have been reaped."""
        self.sock.close()
        os.close(self.pidfd)
        if self.group is not None:
            self.group.remove()


def birth(site: Site, lease: NetnsLease) -> Sandbox:
    """Make a guest: root of U1 and PID 1 of fresh namespaces.  Raises OSError, Unsupported.

    A short-lived process between joins U1 and unshares; the guest is its child and, by CLONE_PARENT, ours: so we
    stay in U0.  The lease's descriptors are closed: the guest keeps the namespaces alive."""
    ours, theirs = wire.pair()
    devices = {name: mounts.bind(fd) for name, fd in site.devices.items()}
    program = site.filter(insecure=False)
    born = [0]

    def between() -> int:
        try:
            _accept_oom()
            _join(site, lease)
            born[0] = syscalls.clone(syscalls.CLONE_PARENT)
        except OSError as error:
            return error.errno or errno.EIO
        if born[0] == 0:
            _guest(site, lease, devices, theirs, program)
        return 0

    try:
        pid = syscalls.call_in_child(between)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            ours.close()
            raise OSError(status, f"namespaces of a sandbox: {os.strerror(abs(status))}")
    finally:
        theirs.close()
        wire.close_all([fd for fd in (lease.userns, lease.netns, *devices.values()) if fd >= 0])
        # Its change of credentials made our memory undumpable: our own /proc files would be root's.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    return Sandbox(born[0], syscalls.pidfd_open(born[0]), ours, lease, _group(site, born[0]))


def _group(site: Site, pid: int) -> Leaf | None:
    if site.cgroups is None:
        return None
    try:
        leaf = site.cgroups.leaf("run")
        leaf.add(pid)
    except OSError:  # the subtree was taken away: steps run without limits, as on hosts that have none
        return None
    return leaf


def _accept_oom() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a host that forbids it: the kernel then chooses by size alone
    os.write(fd, str(spec.OOM_SCORE_ADJ).encode())
    os.close(fd)


def _join(site: Site, lease: NetnsLease) -> None:
    syscalls.setns(lease.userns, syscalls.CLONE_NEWUSER)
    if lease.netns >= 0:
        syscalls.setns(lease.netns, syscalls.CLONE_NEWNET)
    if not site.squash:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC
    syscalls.unshare(flags | syscalls.CLONE_NEWUTS)


def _guest(
    site: Site, lease: NetnsLease, devices: dict[str, int], sock: socket.socket, program: bytes
) -> NoReturn:
    try:
        sys.meta_path.clear()  # nothing is ever imported from inside an image (CVE-2019-14271)
        keep_only({0, 1, 2, sock.fileno(), *devices.values()})
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        guest.prepare(devices, host_network=lease.netns < 0, proc=site.proc, single=site.squash)
        guest.main(sock, program, single=site.squash)
    except OSError as error:
        wire.send(sock, {"errno": error.errno or errno.EIO, "message": f"sandbox: {error}"})
    finally:
        os._exit(1)


def keep_only(keep: set[int]) -> None:
    """Close all descriptors but these: other jobs' sockets must not stay open in a guest that waits."""
    first = 0
    for fd in sorted(keep):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first)


# --- one step ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """A run job: the sandbox it has, the socket of its caller, and what was observed."""

    site: Site
    sandbox: Sandbox
    sock: socket.socket
    started: float
    plan: spec.Plan | None = None
    upper: bytes = b""
    trash: list[bytes] = field(default_factory=list)
    made: list[mounts.Made] = field(default_factory=list)
    failure: dict[str, Any] | None = None
    reason: str = ""
    guest_closed: bool = False
    deadline: float = 0.0
    copied: int = 0
    """Bytes that were in the upper directory before it began."""
    root: int = -1
    """Keeps a mount that a program serves until all that was written has come to it."""
    told: bool = False
    measured: bool = False
    """It has ended, and what it wrote is added up for the last time."""

    def begin(self, data: bytes, fds: list[int]) -> None:
        """Make the root file system, hand all to the guest.  Raises BuildError, OSError."""
        args = json.loads(data)
        plan = self.plan = spec.plan(args)
        if self.site.cgroups is not None and self.sandbox.group is not None:
            self.site.cgroups.limit(self.sandbox.group, plan.limits)
        self.upper, work = sources.upper_of(self.site, plan, self.trash)
        self.trash.append(work)
        given: list[int] = []
        try:
            given.append(self.site.overlaid(
                self.site.stack(plan.lowers), self.trash, upper=self.upper, work=work,
                attributes=syscalls.MOUNT_ATTR_NODEV,
            ))
            if self.site.overlay == "copy":
                self.copied = trees.size(self.upper, sys.maxsize)
            elif self.site.overlay == "fuse":
                self.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=given[0])
            given += sources.stdio(self.site.null, plan, fds)
            behind = [
                sources.source_of(self.site, mount, self.trash)
                for mount in plan.mounts if guest.has_source(mount)
            ]
            given += behind
            files = sources.files(self.site, self.sandbox.lease, plan)
            message = {"spec": args, "files": files}
            wire.send(self.sandbox.sock, message, given)
        finally:
            wire.close_all([given[0], *given[4:]] if given else [])
        if "timeout" in plan.limits:
            self.deadline = self.started + plan.limits["timeout"]

    def stop(self, reason: str) -> None:
        """Kill the sandbox; the first reason counts."""
        self.reason = self.reason or reason
        self.deadline = 0.0
        self.sandbox.kill()

    def from_guest(self) -> None:
        """Take one message of the guest; its socket closes when the command starts."""
        try:
            got = wire.receive(self.sandbox.sock)
        except ConnectionResetError:
            got = None
        if got is None:
            self.guest_closed = True
            return
        message, fds = got
        if "made" in message:
            for fd, (name, device, inode, *rest) in zip(fds, message["made"], strict=True):
                self.made.append(mounts.Made(fd, os.fsencode(name), (device, inode), *rest))
        elif message.get("tty"):
            self._tell({"event": {"event": "tty"}}, fds)
            wire.close_all(fds)
        else:
            self.failure = message

    def ended(self) -> int:
        """PID 1 is gone: reap it, remove placeholders, tell the caller.  Returns the wait status."""
        _, status, usage = os.wait4(self.sandbox.pid, 0)
        while not self.guest_closed:
            self.from_guest()
        mounts.remove_placeholders(self.made)
        wire.close_all([item.parent for item in self.made])
        # Before the caller hears: it may remove the tree at once, and would find ``work`` going away under it.
        self.trash = [path for path in self.trash if not _remove_work(path)]
        if self.root >= 0:
            syscalls.syncfs(self.root)
            os.close(self.root)
            roots.translate(self.upper)
        if self.told or self.plan is None:
            return status
        try:
            wall = time.monotonic() - self.started
            group = self.sandbox.group.usage() if self.sandbox.group is not None else Usage()
            self._tell({"result": outcome(self, self.plan, status, usage, wall, group)})
        except errors.BuildError as error:
            self._tell({"error": error.to_dict()})
        except OSError as error:
            self._tell({"errno": error.errno or errno.EIO, "message": str(error)})
        return status

    def fail(self, error: Exception) -> None:
        """It could not begin."""
        if isinstance(error, errors.BuildError):
            self._tell({"error": error.to_dict()})
        elif isinstance(error, OSError):
            self._tell({"errno": error.errno or errno.EIO, "message": str(error)})
        else:
            text = f"sandbox: internal error: {error!r}"
            self._tell({"error": {"code": "build-error", "message": text}})
        self.told = True
        self.stop("failed")

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            wire.send(self.sock, message, fds or [])
        except OSError:
            return  # main is gone: nobody to tell

    def release(self) -> list[bytes]:
        """Close everything.  Returns directories that are still to be deleted."""
        self.sock.close()
        self.sandbox.release()
        return self.trash


def _remove_work(path: bytes) -> bool:
    """Overlayfs leaves a few directories in ``work``, and a mark of a volatile mount (``ovl_create_volatile_dirty``);
    six system calls are cheaper than a process."""
    if not path.endswith(b"/work"):
        return False
    with contextlib.suppress(OSError):
        os.unlink(path + b"/work/incompat/volatile/dirty")
    for below in (b"/work/incompat/volatile", b"/work/incompat", b"/work", b""):
        try:
            os.rmdir(path + below)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def outcome(
    step: Step, plan: spec.Plan, status: int, usage: resource.struct_rusage, wall: float, group: Usage
) -> dict[str, Any]:
    """The RunOutcome of a step.  Raises what the guest reported when it could not start."""
    failure = step.failure
    if failure is not None and "error" in failure:
        raise errors.from_dict(failure["error"])
    if failure is not None and "errno" in failure:
        raise OSError(failure["errno"], failure["message"])
    code = os.waitstatus_to_exitcode(status)
    reason, message = step.reason, ""
    if not reason:
        reason = "signal" if code < 0 else "exit"
    if group.oom_kills and code in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        reason = "oom"
        message = _out_of_memory(plan.limits.get("memory", 0), group.memory_peak)
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
            "wall": wall, "user": group.cpu_user or usage.ru_utime,
            "system": group.cpu_system or usage.ru_stime,
            "max_rss": group.memory_peak or usage.ru_maxrss * 1024,
            "read": group.read or usage.ru_inblock * 512,
            "written": group.written or usage.ru_oublock * 512,
        },
    }


def _out_of_memory(limit: int, peak: int) -> str:
    if limit:
        return f"OOM-killed at {limit >> 20} MiB, its memory limit"
    return f"OOM-killed at {peak >> 20} MiB: this host's memory, or that of the daemon's control group, is full"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
