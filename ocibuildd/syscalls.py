"""One function per system call that Python 3.11 lacks, over ctypes: errno becomes OSError.

Imports only ctypes, mmap, os, struct and sys, since the zygote forks with it.  Paths are ``str``, ``bytes`` or
PathLike; descriptors made here are close-on-exec.  Numbers: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h (aarch64).  Constants keep the kernel's names.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterable

StrPath = str | bytes | os.PathLike[str]

# name: (x86_64, aarch64); calls newer than Linux 5.0 have one number everywhere
_NUMBERS = {
    "unshare": (272, 97), "setns": (308, 268), "clone": (56, 220), "mount": (165, 40),
    "umount2": (166, 39), "rt_sigaction": (13, 134), "pivot_root": (155, 41), "prctl": (157, 167), "capget": (125, 90),
    "capset": (126, 91), "seccomp": (317, 277), "keyctl": (250, 219), "sethostname": (170, 161),
    "syncfs": (306, 267), "sync_file_range": (277, 84), "renameat2": (316, 276),
    "personality": (135, 92), "ioprio_set": (251, 30),
    "pidfd_send_signal": (424, 424), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "pidfd_open": (434, 434),
    "close_range": (436, 436), "openat2": (437, 437), "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_ARCH = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine, -1)
_LIBC = ctypes.CDLL(None, use_errno=True)
_INT, _UINT, _LONG, _ULONG = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_STR, _PTR = ctypes.c_char_p, ctypes.c_void_p


def number(name: str) -> int:
    """The number of a system call here.  Raises OSError(ENOSYS) on an architecture we don't know."""
    if _ARCH < 0:
        raise OSError(38, f"no system call numbers for {os.uname().machine}")
    return _NUMBERS[name][_ARCH]


def _prototype(name: str, *types: type) -> Callable[..., int]:
    # Indexing makes a function object of its own each time, so that argtypes don't clash: without them
    # ctypes would cut integers to 32 bits.
    function = _LIBC["syscall"]
    function.restype = _LONG
    function.argtypes = (_LONG, *types)
    code = number(name) if _ARCH >= 0 else -1

    def call(*args: object) -> int:
        result: int = function(code, *args)
        if result == -1:
            errno = ctypes.get_errno()
            raise OSError(errno, f"{name}: {os.strerror(errno)}")
        return result

    return call


def _path(path: StrPath) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte in a path")
    return encoded


# --- namespaces and processes -------------------------------------------------------------------------

CLONE_NEWTIME = 0x00000080
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_unshare = _prototype("unshare", _ULONG)
_setns = _prototype("setns", _INT, _INT)
_rt_sigaction = _prototype("rt_sigaction", _INT, _PTR, _PTR, _ULONG)
_clone = _prototype("clone", _ULONG, _ULONG, _PTR, _PTR, _ULONG)
_pidfd_open = _prototype("pidfd_open", _INT, _UINT)
_pidfd_send_signal = _prototype("pidfd_send_signal", _INT, _INT, _PTR, _UINT)
_close_range = _prototype("close_range", _UINT, _UINT, _UINT)


def unshare(flags: int) -> None:
    """Move to new namespaces (unshare(2))."""
    _unshare(flags)


def setns(fd: int, nstype: int = 0) -> None:
    """Join the namespace (or those of the pidfd) behind ``fd`` (setns(2))."""
    _setns(fd, nstype)


def clone(flags: int) -> int:
    """A plain copy of this process, as fork(2), with clone(2)'s flags; the signal is SIGCHLD (17).

    Python's fork hooks don't run: only for a single-threaded process whose child soon calls execve or
    os._exit, and never imports a module that forks.
    """
    return _clone(flags | 17, 0, None, None, 0)


_STACK = 1 << 20
_stacks: list[mmap.mmap] = []
_CALLBACK = ctypes.CFUNCTYPE(_INT, _PTR)
_clone_call = ctypes.PyDLL(None, use_errno=True)["clone"]
_clone_call.restype = _INT
_clone_call.argtypes = (_CALLBACK, _PTR, _INT, _PTR)
_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000


def call_in_child(function: Callable[[], int]) -> int:
    """Run ``function`` in a child that borrows our memory while we are stopped; its pid.

    As cheap as vfork(2): nothing is copied.  What the child does to the kernel's view of itself (namespaces,
    credentials, descriptors) ends with it, what it does to memory stays.  It ends with the number that
    ``function`` returns, or 1.  Its own children are full copies.  Reap it with waitpid.
    """
    status = 1

    def body(_: object) -> int:
        nonlocal status
        try:
            status = function()
        except OSError:
            status = 1
        return status

    if not _stacks:
        # Private: a grandchild must have its own copy of the stack it came to life on.
        _stacks.append(mmap.mmap(-1, _STACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    top = ctypes.addressof(ctypes.c_char.from_buffer(_stacks[0])) + _STACK
    flags = _CLONE_VM | _CLONE_VFORK | 17
    pid: int = _clone_call(_CALLBACK(body), top, flags, None)
    if pid < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"clone: {os.strerror(errno)}")
    return pid


def pidfd_open(pid: int) -> int:
    """A descriptor of a process; readable when it has ended."""
    return _pidfd_open(pid, 0)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """kill(2) without the race of numbers that are used again."""
    _pidfd_send_signal(pidfd, signal, None, 0)


CLOSE_RANGE_CLOEXEC = 4


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close, or mark close-on-exec, all descriptors of a range (ends included)."""
    _close_range(first, last, flags)


# --- mounts -------------------------------------------------------------------------------------------

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
MS_PRIVATE, MS_SLAVE = 1 << 18, 1 << 19
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_NOSYMFOLLOW = 0x10, 0x200000
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
OPEN_TREE_CLONE = 1
AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW = 0x1000, 0x8000, 0x100
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC

_mount = _prototype("mount", _STR, _STR, _STR, _ULONG, _STR)
_umount2 = _prototype("umount2", _STR, _INT)
_pivot_root = _prototype("pivot_root", _STR, _STR)
_fsopen = _prototype("fsopen", _STR, _UINT)
_fsconfig = _prototype("fsconfig", _INT, _UINT, _STR, _STR, _INT)
_fsmount = _prototype("fsmount", _INT, _UINT, _UINT)
_open_tree = _prototype("open_tree", _INT, _STR, _UINT)
_move_mount = _prototype("move_mount", _INT, _STR, _INT, _STR, _UINT)
_mount_setattr = _prototype("mount_setattr", _INT, _STR, _UINT, _STR, ctypes.c_size_t)


def mount(source: StrPath, target: StrPath, fstype: str, flags: int = 0, data: bytes = b"") -> None:
    """mount(2).  The kernel cuts ``data`` at 4,095 bytes silently: more raises ValueError here."""
    if len(data) > 4095:
        raise ValueError(f"mount options of {len(data)} bytes: the kernel takes 4095")
    _mount(_path(source), _path(target), fstype.encode(), flags, data or None)


def umount2(target: StrPath, flags: int = 0) -> None:
    """umount2(2)."""
    _umount2(_path(target), flags)


def pivot_root(new_root: StrPath, put_old: StrPath) -> None:
    """pivot_root(2); (".", ".") stacks the old root over the new one."""
    _pivot_root(_path(new_root), _path(put_old))


def fsopen(fstype: str) -> int:
    """A context for a new file system (fsopen(2))."""
    return _fsopen(fstype.encode(), _CLOEXEC)


def fsconfig_string(fd: int, key: str, value: StrPath) -> None:
    """Set ``key=value`` (at most 255 bytes of value)."""
    _fsconfig(fd, FSCONFIG_SET_STRING, key.encode(), _path(value), 0)


def fsconfig_flag(fd: int, key: str) -> None:
    """Set a flag, such as "userxattr" or "ro"."""
    _fsconfig(fd, FSCONFIG_SET_FLAG, key.encode(), None, 0)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """Set a parameter that takes a descriptor."""
    _fsconfig(fd, FSCONFIG_SET_FD, key.encode(), None, value)


def fsconfig_create(fd: int) -> None:
    """Make the superblock.  The OSError has what the kernel logged to the context."""
    try:
        _fsconfig(fd, FSCONFIG_CMD_CREATE, None, None, 0)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({fs_log(fd)})") from None


def fs_log(fd: int) -> str:
    """The messages that wait on a file system context, joined; "" when there are none."""
    lines: list[str] = []
    while len(lines) < 8:
        try:
            lines.append(os.read(fd, 1024).decode(errors="replace").strip())
        except OSError:
            break
    return "; ".join(lines)


def fsmount(fd: int, attributes: int = 0) -> int:
    """The detached mount of a created context."""
    return _fsmount(fd, _CLOEXEC, attributes)


def open_tree(dirfd: int, path: StrPath = b"", flags: int = OPEN_TREE_CLONE) -> int:
    """A detached copy of a mount (with OPEN_TREE_CLONE); "" means ``dirfd`` itself."""
    encoded = _path(path)
    extra = 0 if encoded else AT_EMPTY_PATH
    return _open_tree(dirfd, encoded, flags | extra | os.O_CLOEXEC)


def move_mount(fd: int, target_fd: int, target: StrPath = b"") -> None:
    """Attach the mount ``fd`` at ``target`` below ``target_fd``, or at ``target_fd`` itself."""
    encoded = _path(target)
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if encoded else MOVE_MOUNT_T_EMPTY_PATH)
    _move_mount(fd, b"", target_fd, encoded, flags)


def mount_setattr(
    fd: int, set_: int, clear: int = 0, *, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of the mount ``fd`` (Linux 5.12)."""
    attr = struct.pack("=QQQQ", set_, clear, propagation, 0)
    _mount_setattr(fd, b"", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), attr, len(attr))


# --- files --------------------------------------------------------------------------------------------

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

_openat2 = _prototype("openat2", _INT, _STR, _STR, ctypes.c_size_t)
def default_signal(signum: int) -> None:
    """Let a signal have its default action, also those that libc keeps for itself (32, 33) and may have left
    ignored in a process that posix_spawn(3) made (rt_sigaction(2))."""
    action = ctypes.create_string_buffer(32)  # struct kernel_sigaction of zeros: SIG_DFL
    _rt_sigaction(signum, ctypes.addressof(action), None, 8)


_syncfs = _prototype("syncfs", _INT)
_sync_file_range = _prototype(
    "sync_file_range", _INT, ctypes.c_longlong, ctypes.c_longlong, _UINT
)
_renameat2 = _prototype("renameat2", _INT, _STR, _INT, _STR, _UINT)


def openat2(dirfd: int, path: StrPath, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open with limits on how the path may resolve (openat2(2), Linux 5.6).  O_CLOEXEC is added.

    EAGAIN (a rename raced with ``..``) is tried again, 32 times at most.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    encoded = _path(path)
    for _ in range(32):
        try:
            return _openat2(dirfd, encoded, how, len(how))
        except BlockingIOError:
            continue
    return _openat2(dirfd, encoded, how, len(how))


def open_in_root(rootfd: int, path: StrPath, flags: int, mode: int = 0) -> int:
    """Open as if ``rootfd`` were the root directory: no symlink, ``..`` or magic link leads out."""
    return openat2(rootfd, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def begin_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to write a stretch of a file to the disk, without waiting (sync_file_range(2)).

    No guarantee of anything: it only leaves less to do for a later fsync.  ESPIPE for a pipe."""
    _sync_file_range(fd, offset, size, 2)  # SYNC_FILE_RANGE_WRITE


def syncfs(fd: int) -> None:
    """Write back the file system that holds ``fd``."""
    _syncfs(fd)


def renameat2(dirfd: int, old: StrPath, new_dirfd: int, new: StrPath, flags: int = 0) -> None:
    """rename(2) with flags."""
    _renameat2(dirfd, _path(old), new_dirfd, _path(new), flags)


# --- credentials and hardening ------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME = 1, 4, 8, 15
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
SECCOMP_SET_MODE_FILTER = 1
KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522

_prctl = _prototype("prctl", _INT, _ULONG, _ULONG, _ULONG, _ULONG)
_prctl_string = _prototype("prctl", _INT, _STR, _ULONG, _ULONG, _ULONG)
_capget = _prototype("capget", _STR, _PTR)
_capset = _prototype("capset", _STR, _STR)
_seccomp = _prototype("seccomp", _UINT, _UINT, _PTR)
_keyctl = _prototype("keyctl", _INT, _ULONG, _ULONG, _ULONG, _ULONG)
_sethostname = _prototype("sethostname", _STR, ctypes.c_size_t)
_landlock_create_ruleset = _prototype("landlock_create_ruleset", _STR, ctypes.c_size_t, _UINT)
_landlock_add_rule = _prototype("landlock_add_rule", _INT, _INT, _STR, _UINT)
_landlock_restrict_self = _prototype("landlock_restrict_self", _INT, _UINT)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    return _prctl(option, arg2, arg3, arg4, arg5)


def set_name(name: str) -> None:
    """The thread's name as ps shows it (15 bytes)."""
    _prctl_string(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _mask(capabilities: Iterable[int]) -> int:
    mask = 0
    for capability in capabilities:
        mask |= 1 << capability
    return mask


def capset(
    effective: Iterable[int], permitted: Iterable[int], inheritable: Iterable[int] = ()
) -> None:
    """Set this thread's capabilities, given as numbers (capset(2), version 3)."""
    masks = [_mask(effective), _mask(permitted), _mask(inheritable)]
    low = [mask & 0xFFFFFFFF for mask in masks]
    high = [mask >> 32 for mask in masks]
    _capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *low, *high))


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this thread, as bit masks."""
    data = ctypes.create_string_buffer(24)
    _capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), ctypes.addressof(data))
    words = struct.unpack("=6I", data.raw)
    return (words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_filter(program: bytes, flags: int = 0) -> None:
    """Load an array of ``struct sock_filter``; wants no_new_privs or CAP_SYS_ADMIN."""
    fprog = _SockFprog(len(program) // 8, program)
    _seccomp(SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(fprog))


def join_session_keyring() -> None:
    """A fresh anonymous session keyring: the daemon's isn't inherited."""
    _keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)


def sethostname(name: bytes) -> None:
    """Name this uts namespace (64 bytes at most)."""
    _sethostname(name, len(name))


def landlock_create_ruleset(handled_fs: int) -> int:
    """A ruleset for file system rights (landlock(7), ABI 1)."""
    attr = struct.pack("=Q", handled_fs)
    return _landlock_create_ruleset(attr, len(attr), 0)


def landlock_add_path(ruleset: int, allowed: int, fd: int) -> None:
    """Allow ``allowed`` beneath the directory ``fd``."""
    _landlock_add_rule(ruleset, 1, struct.pack("=Qi", allowed, fd), 0)


def landlock_restrict_self(ruleset: int) -> None:
    """Enforce a ruleset on this thread; wants no_new_privs or CAP_SYS_ADMIN."""
    _landlock_restrict_self(ruleset, 0)


if sys.byteorder != "little":  # struct layouts above are for little endian 64 bit
    raise ImportError("ocibuildd runs on little-endian Linux only")
