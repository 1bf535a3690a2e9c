"""PID 1 of a sandbox before it becomes the command: mounts, then hardening, then execve.

It is born (see ``supervisor``) in fresh user, mount, pid, ipc, uts and network namespaces as root of U1, *before*
it is known what will run: :func:`prepare` makes /proc, /sys and /dev aside, :func:`main` then waits for a
plan.  So a ready sandbox can wait in a pool.  Nothing of it is left inside: the command is PID 1.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import termios
from typing import Any, NoReturn

from .. import errors, syscalls
from ..syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from . import mounts, programs, spec, users, wire
from .mounts import PRIVATE

STAGE = "/tmp"  # covered by a tmpfs of our own in our own mount namespace
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441
TTY_GROUP = 5
UNPRIVILEGED = MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
PATH_FD = os.O_PATH | os.O_CLOEXEC
LIBC_SIGNALS = (32, 33)
"""Ignored in what posix_spawn(3) made (make does), and unknown to Python."""
IGNORED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM, signal.SIGXFSZ,
)
"""Signals that nsd or the interpreter ignores: a command must find all at their defaults."""


def prepare(devices: dict[str, int], *, host_network: bool, proc: str, single: bool) -> None:
    """Build /proc, /sys and /dev under STAGE, masked as a container has them.

    devices: detached mounts of the host's nodes, by name.  Raises OSError.
    """
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    # A private tmpfs as the bench: its path can be reached whatever the state directory's modes are.
    _put(mounts.filesystem("tmpfs", {"mode": "755"}, UNPRIVILEGED), STAGE)
    for name in ("proc", "sys", "dev", "root", "files", "mask", "mounts"):
        os.mkdir(f"{STAGE}/{name}", 0o755)
    _prepare_dev(devices, single=single)
    if proc == "new":
        _put(mounts.filesystem("proc", {}, PRIVATE), f"{STAGE}/proc")
    elif proc == "bind":
        _put(_bind_path("/proc", PRIVATE | MOUNT_ATTR_RDONLY, recursive=True), f"{STAGE}/proc")
    _put(_sysfs(host_network=host_network), f"{STAGE}/sys")
    _mask(devices_null=f"{STAGE}/dev/null")


def _sysfs(*, host_network: bool) -> int:
    """A sysfs of our own; the one that is there where ours could not show our network namespace, or where that one
    is masked (a container's: the kernel then gives no new one, mount_too_revealing())."""
    if not host_network:
        try:
            return mounts.filesystem("sysfs", {}, PRIVATE | MOUNT_ATTR_RDONLY)
        except PermissionError:
            pass
    return _bind_path("/sys", PRIVATE | MOUNT_ATTR_RDONLY, recursive=True)


def _put(mount_fd: int, path: str) -> None:
    target = os.open(path, PATH_FD)
    try:
        mounts.attach(mount_fd, target)
    finally:
        os.close(target)


def _bind_path(path: str, attributes: int = 0, *, recursive: bool = False) -> int:
    fd = os.open(path, PATH_FD)
    try:
        return mounts.bind(fd, attributes, recursive=recursive)
    finally:
        os.close(fd)


def _prepare_dev(devices: dict[str, int], *, single: bool) -> None:
    dev = f"{STAGE}/dev"
    _put(mounts.filesystem("tmpfs", {"mode": "755", "size": "65536k"}, MOUNT_ATTR_NOSUID), dev)
    for name, mount_fd in devices.items():
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        _put(mount_fd, f"{dev}/{name}")
    for name, text in spec.LINKS.items():
        os.symlink(text, f"{dev}/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{dev}/{name}", 0o755)
    options = {"ptmxmode": "0666", "mode": "0620"} | ({} if single else {"gid": str(TTY_GROUP)})
    noexec = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
    _put(mounts.filesystem("devpts", options, noexec, "newinstance"), f"{dev}/pts")
    shm = {"mode": "1777", "size": str(spec.DEFAULT_SHM)}
    _put(mounts.filesystem("tmpfs", shm, PRIVATE), f"{dev}/shm")
    _put(mounts.filesystem("mqueue", {}, PRIVATE), f"{dev}/mqueue")


def _mask(devices_null: str) -> None:
    mask = f"{STAGE}/mask"
    _put(mounts.filesystem("tmpfs", {"mode": "755", "nr_inodes": "2"}, PRIVATE | MOUNT_ATTR_RDONLY), mask)
    stage = os.open(STAGE, PATH_FD)
    try:
        for path in (*spec.MASKED, *_throttles()):
            target = _existing(stage, path)
            if target >= 0:
                is_dir = stat.S_ISDIR(os.fstat(target).st_mode)
                source = _bind_path(mask if is_dir else devices_null)
                _attach_and_close(source, target)
        for path in spec.READ_ONLY:
            target = _existing(stage, path)
            if target >= 0:
                _attach_and_close(mounts.bind(target, PRIVATE | MOUNT_ATTR_RDONLY), target)
    finally:
        os.close(stage)


def _attach_and_close(mount_fd: int, target: int) -> None:
    try:
        mounts.attach(mount_fd, target)
    finally:
        os.close(target)


def _existing(stage: int, path: str) -> int:
    # The file system is ours, but the rule costs nothing: no symlinks on the way to a mask.
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    try:
        return syscalls.openat2(stage, path, os.O_PATH, 0, resolve)
    except OSError:
        return -1


def _throttles() -> list[str]:
    cpus = range(os.cpu_count() or 1)
    return [f"sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in cpus]


# --- a plan arrives ---------------------------------------------------------------------------------


class Failure(Exception):
    """The command can't be started: (message, exit code that a shell would give)."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def main(sock: socket.socket, program: bytes, *, single: bool) -> NoReturn:
    """Wait for a plan on ``sock``, become it.  Reports failures there; ends only by execve or _exit."""
    try:
        got = wire.receive(sock)
        if got is None:
            os._exit(0)
        message, fds = got
        become(sock, message, fds, program, single=single)
    except Failure as error:
        wire.send(sock, {"failed": str(error), "exit_code": error.exit_code})
    except errors.BuildError as error:
        wire.send(sock, {"error": error.to_dict()})
    except OSError as error:
        wire.send(sock, {"errno": error.errno or errno.EIO, "message": f"sandbox: {error}"})
    finally:
        os._exit(127)


def become(
    sock: socket.socket, message: dict[str, Any], fds: list[int], program: bytes, *, single: bool
) -> NoReturn:
    """Carry out a plan.  fds: root, stdin, stdout, stderr, then one for each mount that has a source."""
    plan = spec.plan(message["spec"])
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # only now: the step's own group is to be its root
    root_mount, stdio, sources = fds[0], fds[1:4], fds[4:]
    _put(root_mount, f"{STAGE}/root")
    root = os.open(f"{STAGE}/root", PATH_FD | os.O_DIRECTORY)
    resolver = mounts.Resolver(root)
    for name in ("proc", "sys", "dev"):
        _move(f"{STAGE}/{name}", _own_directory(resolver, name.encode()))
    resolver.virtual = {os.stat(f"{STAGE}/root/{name}").st_dev for name in ("proc", "sys")}
    _inject(resolver, message["files"])
    _mount_all(resolver, plan, sources)
    identity = _identity(resolver, plan.user, single=single)
    cwd = _working_directory(resolver, plan.cwd)
    if plan.tty:
        stdio = _terminal(sock, identity)
    if resolver.made:
        _report(sock, resolver.made)
    if "shm_size" in plan.limits:
        _grow_shm(plan.limits["shm_size"])
    os.fchdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    with contextlib.suppress(PermissionError):  # an outer container's seccomp filter: its name stays then
        syscalls.sethostname(plan.hostname.encode())
    os.fchdir(cwd)
    if not os.getcwdb().startswith(b"/"):  # "(unreachable)/…": CVE-2024-21626
        raise Failure(f"cwd {plan.cwd}: not inside the root file system", 126)
    _stdio(stdio, tty=plan.tty)
    _set_limits(plan)
    _harden(sock, plan, identity, None if plan.insecure else program, single=single)
    _execute(plan, identity)


def _grow_shm(size: int) -> None:
    options = {"mode": "1777", "size": str(size)}
    _put(mounts.filesystem("tmpfs", options, PRIVATE), f"{STAGE}/root/dev/shm")


def _working_directory(resolver: mounts.Resolver, path: str) -> int:
    try:
        return resolver.ensure(path.encode("utf-8", "surrogateescape"), is_dir=True, keep=True)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(f"working directory {error.message}") from None


def _own_directory(resolver: mounts.Resolver, name: bytes) -> int:
    """A directory of the image itself for our mounts: a symlink there is refused (CVE-2026-41579).

    One that is missing (an image from scratch) is made and stays in the layer, as with BuildKit."""
    try:
        info = os.stat(name, dir_fd=resolver.root, follow_symlinks=False)
    except FileNotFoundError:
        return resolver.ensure(name, is_dir=True, keep=True)
    if not stat.S_ISDIR(info.st_mode):
        raise errors.InvalidArgument(f"/{name.decode()}: not a directory in the image, one is wanted")
    return os.open(name, PATH_FD | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=resolver.root)


def _move(path: str, target: int) -> None:
    source = os.open(path, PATH_FD)
    try:
        syscalls.move_mount(source, target)
    finally:
        os.close(source)
        os.close(target)


def _inject(resolver: mounts.Resolver, files: dict[str, str]) -> None:
    for index, (path, text) in enumerate(files.items()):
        name = f"{STAGE}/files/{index}"
        _write(name, text.encode("utf-8", "surrogateescape"), 0o644)
        target = resolver.ensure(path.encode(), is_dir=False)
        _attach_and_close(_bind_path(name, PRIVATE | MOUNT_ATTR_RDONLY), target)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)


def _mount_all(resolver: mounts.Resolver, plan: spec.Plan, sources: list[int]) -> None:
    waiting = iter(sources)
    with_source = {
        index: next(waiting) for index, mount in enumerate(plan.mounts) if has_source(mount)
    }
    order = sorted(range(len(plan.mounts)), key=lambda i: plan.mounts[i].target.count("/"))
    for index in order:
        mount = plan.mounts[index]
        stage = f"{STAGE}/mounts/{index}"
        place = mount.target.encode("utf-8", "surrogateescape")
        if index in with_source:
            fd = _sourced(mount, with_source[index], stage)
        elif mount.kind == "tmpfs":
            fd = _tmpfs(mount, _mode(resolver, place))
        else:
            fd = _made(mount, stage)
        try:
            is_dir = stat.S_ISDIR(os.fstat(fd).st_mode)
            target = resolver.ensure(place, is_dir=is_dir)
            if not mount.target.startswith(spec.ALLOWED_BELOW):
                _refuse_virtual(target, mount.target)
            syscalls.move_mount(fd, target)
            os.close(target)
        finally:
            os.close(fd)


def has_source(mount: spec.Mount) -> bool:
    """Does the supervisor pass a descriptor for this mount?"""
    return mount.kind in {"chain", "cache", "socket"}


def _refuse_virtual(target: int, path: str) -> None:
    # A symlink of the image may have led into /proc, /sys or /dev: their root devices tell.
    device = os.fstat(target).st_dev
    for name in ("proc", "sys", "dev"):
        if device == os.stat(f"{STAGE}/root/{name}").st_dev:
            raise errors.InvalidArgument(f"mount target {path}: leads into /{name}")


def _sourced(mount: spec.Mount, fd: int, stage: str) -> int:
    attributes = UNPRIVILEGED if mount.kind != "chain" else 0
    attributes |= MOUNT_ATTR_RDONLY if mount.readonly else 0
    of_base = mount.kind == "cache" and mount.lowers  # then the cache was filled from its source
    if mount.source in {"", "."} or of_base:
        if attributes:
            syscalls.mount_setattr(fd, attributes)
        return fd
    # A part of it: attach the whole aside, find the part inside it, mount a copy of that.
    os.mkdir(stage, 0o700)
    _put(fd, stage)
    base = os.open(stage, PATH_FD)
    try:
        source = mount.source.encode("utf-8", "surrogateescape")
        part = syscalls.open_in_root(base, source, os.O_PATH)
    except OSError as error:
        raise errors.NotFound(f"mount {mount.target}: source /{mount.source}: {error.strerror}") from None
    finally:
        os.close(base)
    try:
        return mounts.bind(part, attributes)
    finally:
        os.close(part)


def _mode(resolver: mounts.Resolver, place: bytes) -> int | None:
    """The mode of a directory of the image; None where there is none."""
    try:
        fd = syscalls.open_in_root(resolver.root, place, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _tmpfs(mount: spec.Mount, covered: int | None) -> int:
    """covered: the mode of the directory that it covers, which it then has, as with runc."""
    mode = mount.mode if covered is None else covered
    options = {"mode": f"{mode:o}", "uid": str(mount.uid), "gid": str(mount.gid)}
    if mount.size:
        options["size"] = str(mount.size)
    return mounts.filesystem(
        "tmpfs", options, UNPRIVILEGED | (MOUNT_ATTR_RDONLY if mount.readonly else 0)
    )


def _made(mount: spec.Mount, stage: str) -> int:
    os.mkdir(stage, 0o755)
    for content in mount.contents:
        path = f"{stage}/{content.name}"
        _write(path, content.data, content.mode)
        os.chown(path, mount.uid, mount.gid)
    readonly = MOUNT_ATTR_RDONLY if mount.readonly else 0
    if mount.kind == "secret":
        return _bind_path(f"{stage}/{mount.contents[0].name}", PRIVATE | readonly)
    return _bind_path(stage, UNPRIVILEGED | readonly)


def _identity(resolver: mounts.Resolver, user: str, *, single: bool) -> users.Identity:
    passwd = _image_file(resolver, b"etc/passwd")
    group = _image_file(resolver, b"etc/group")
    return users.identify(user, passwd, group, max_id=0 if single else users.MAX_ID)


def _image_file(resolver: mounts.Resolver, path: bytes) -> bytes:
    """A small regular file of the image, b"" when it isn't there.  Never blocks on a FIFO."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = syscalls.open_in_root(resolver.root, path, flags)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_dev in resolver.virtual:
            raise errors.InvalidArgument(f"/{path.decode()}: not a regular file in the image")
        if info.st_size > users.MAX_FILE:
            raise errors.TooLarge(f"/{path.decode()}: {info.st_size} bytes, at most {users.MAX_FILE}")
        return file.read(users.MAX_FILE)


def _terminal(sock: socket.socket, identity: users.Identity) -> list[int]:
    """A pseudo-terminal of the sandbox's own devpts; its master goes to main."""
    dev = f"{STAGE}/root/dev"
    master = os.open(f"{dev}/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    os.fchown(slave, identity.uid, -1)
    os.close(os.open(f"{dev}/console", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    _put(mounts.bind(slave), f"{dev}/console")
    wire.send(sock, {"tty": True}, [master])
    os.close(master)
    return [slave, slave, slave]


def _report(sock: socket.socket, made: list[mounts.Made]) -> None:
    for start in range(0, len(made), wire.MAX_FDS):
        part = made[start : start + wire.MAX_FDS]
        items = [[os.fsdecode(m.name), *m.inode, m.is_dir, m.before, m.after] for m in part]
        wire.send(sock, {"made": items}, [m.parent for m in part])


def _stdio(stdio: list[int], *, tty: bool) -> None:
    os.setsid()
    for number, fd in enumerate(stdio):
        os.dup2(fd, number, inheritable=True)
    if tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_limits(plan: spec.Plan) -> None:
    soft, hard = spec.DEFAULT_NOFILE
    if "nofile" in plan.limits:
        soft = hard = plan.limits["nofile"]
    ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard = min(hard, ceiling)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pids = min(plan.limits.get("pids", spec.DEFAULT_PIDS), _hard(resource.RLIMIT_NPROC))
    resource.setrlimit(resource.RLIMIT_NPROC, (pids, pids))
    if "fsize" in plan.limits:
        fsize = min(plan.limits["fsize"], _hard(resource.RLIMIT_FSIZE))
        resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, fsize))


def _hard(limit: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return 1 << 62 if hard == resource.RLIM_INFINITY else hard


def _harden(
    sock: socket.socket, plan: spec.Plan, identity: users.Identity, program: bytes | None, *, single: bool
) -> None:
    """Give everything up, in the one order that works without no_new_privs."""
    if not single:
        os.setgroups(identity.groups)
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    for internal in LIBC_SIGNALS:
        syscalls.default_signal(internal)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    try:
        syscalls.join_session_keyring()
    except OSError:
        pass  # a kernel without keys, or an outer seccomp filter: then RUN's filter denies keyctl too
    syscalls.close_range(3, flags=syscalls.CLOSE_RANGE_CLOEXEC)
    allowed = plan.capabilities
    for capability in range(64):
        if capability not in allowed:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            except OSError:
                break  # past the last capability that this kernel knows
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    if plan.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if program:
        syscalls.seccomp_filter(program)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if not plan.insecure:
        held = plan.capabilities if identity.uid == 0 else frozenset()
        syscalls.capset(held, held)
    # A change of credentials clears it, so it comes last; then look whether we were too late.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    sock.setblocking(False)
    try:
        if not sock.recv(1, socket.MSG_PEEK):
            os._exit(1)
    except BlockingIOError:
        pass


def _execute(plan: spec.Plan, identity: users.Identity) -> NoReturn:
    env = dict(plan.env)
    env.setdefault(b"HOME", identity.home.encode("utf-8", "surrogateescape"))
    name = plan.args[0]
    if b"/" in name:
        candidates = [name]
    else:
        path = env.get(b"PATH") or spec.DEFAULT_PATH.encode()
        candidates = [os.path.join(part or b".", name) for part in path.split(b":")]
    denied = None
    for candidate in candidates:
        try:
            os.execve(candidate, plan.args, env)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.lexists(candidate):
                raise Failure(programs.missing(candidate), 127) from None
        except OSError as error:
            why = programs.not_executable(candidate) if error.errno == errno.ENOEXEC else error.strerror
            denied = denied or Failure(f"exec {os.fsdecode(candidate)}: {why}", 126)
    raise denied or Failure(
        f"exec {os.fsdecode(name)}: no such file or directory"
        if b"/" in name else f"exec {os.fsdecode(name)}: not found in PATH", 127
    )
