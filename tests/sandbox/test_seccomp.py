"""The seccomp filter: simulated for every number, loaded for real, and compared with libseccomp."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import importlib.util
import itertools
import os
import socket
import tempfile
from pathlib import Path

import pytest

from ocibuildd.errors import Unsupported
from ocibuildd.sandbox import seccomp
from ocibuildd.sandbox.seccomp import AUDIT_ARCH, SIBLING, filter_bytes
from ocibuildd.sandbox.seccomp_numbers import numbers
from ocibuildd.sandbox.seccomp_policy import (
    ALWAYS,
    BY_CAPABILITY,
    Allow,
    Errno,
    InRanges,
    NoneOf,
    policy,
)

_spec = importlib.util.spec_from_file_location("bpf", Path(__file__).with_name("bpf.py"))
bpf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bpf)

_NAMES = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
    NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"""
DOCKER = frozenset("CAP_" + name for name in _NAMES.split())
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
ALL_ARCHES = [(native, arch) for native in SIBLING for arch in (native, SIBLING[native])]


def verdict(native: str, arch: str, name: str, *args: int, caps: frozenset[str] = DOCKER) -> int:
    program = bpf.parse(filter_bytes(native, caps))
    return bpf.run(program, numbers(arch)[name], AUDIT_ARCH[arch], args)


@pytest.mark.parametrize(("native", "arch"), ALL_ARCHES)
def test_every_number_answers_as_the_policy_says(native, arch):
    program, verdicts = bpf.parse(filter_bytes(native, DOCKER)), policy(native, DOCKER)
    by_number = {number: verdicts.get(name) for name, number in numbers(arch).items()}
    by_number.update({n: verdicts[name] for name, n in numbers(arch).items() if name in verdicts})
    for number in range(467):
        expected = by_number.get(number)
        found = bpf.run(program, number, AUDIT_ARCH[arch], (0x7E020001,))
        match expected:
            case Allow():
                assert found == ALLOW, number
            case Errno(value):
                assert found == 0x50000 | value, number
            case _:
                assert found == EPERM, number


@pytest.mark.parametrize(("native", "arch"), ALL_ARCHES)
@pytest.mark.parametrize("number", [467, 600, 100_000, 0x40000000, 0x40000001, 0x7FFFFFFF, -1])
def test_numbers_above_the_newest_known_do_not_exist(native, arch, number):
    assert bpf.run(bpf.parse(filter_bytes(native, DOCKER)), number, AUDIT_ARCH[arch]) == ENOSYS


@pytest.mark.parametrize("native", SIBLING)
def test_another_architecture_is_killed(native):
    program = bpf.parse(filter_bytes(native, DOCKER))
    for arch in {0, 1, 0xC00000F3, *AUDIT_ARCH.values()} - {AUDIT_ARCH[native], AUDIT_ARCH[SIBLING[native]]}:
        assert bpf.run(program, 0, arch) == KILL


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("clone", (0x01200011,), ALLOW),
        *[("clone", (1 << bit | 17,), EPERM) for bit in (17, 25, 26, 27, 28, 29, 30)],
        ("clone3", (), ENOSYS),
        *[("socket", (family,), ALLOW) for family in (1, 2, 10, 16, 17, 45)],
        *[("socket", (family,), EPERM) for family in (12, 19, 20, 23, 25, 34, 37, 38, 40, 46, 999)],
        ("socket", (1 << 32 | 2,), EPERM),
        *[("personality", (value,), ALLOW) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)],
        *[("personality", (value,), EPERM) for value in (1, 9, 0x40000, 0x0400000, 0xFFFFFFFE)],
        *[(name, (), EPERM) for name in (
            "unshare", "setns", "mount", "umount2", "pivot_root", "fsopen", "open_tree", "move_mount",
            "mount_setattr", "bpf", "keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd",
            "perf_event_open", "open_by_handle_at", "init_module", "kexec_load", "reboot", "swapon",
            "settimeofday", "sethostname", "syslog", "kcmp", "pidfd_getfd", "quotactl", "acct",
        )],
        ("chroot", (), ALLOW),
        ("ptrace", (), ALLOW),
        ("modify_ldt", (), ALLOW),
    ],
)
def test_docker_s_capabilities_leave_these_calls(name, args, expected):
    assert verdict("x86_64", "x86_64", name, *args) == expected


@pytest.mark.parametrize(("capability", "names"), BY_CAPABILITY.items())
def test_a_capability_brings_its_calls(capability, names):
    for name in set(names.split()) & set(numbers("x86_64")):
        assert verdict("x86_64", "x86_64", name, caps=frozenset({capability})) == ALLOW
        assert verdict("x86_64", "x86_64", name, 0x10000000, caps=frozenset()) != ALLOW


def test_each_name_of_the_policy_has_a_number_somewhere():
    known = set().union(*(numbers(arch) for arch in AUDIT_ARCH))
    assert not set(ALWAYS.split()) - known


def test_an_unknown_architecture_is_refused():
    with pytest.raises(Unsupported, match="riscv64"):
        filter_bytes("riscv64", DOCKER)


def test_the_filter_of_a_set_of_capabilities_is_built_once():
    seccomp.filter_bytes.cache_clear()
    first = filter_bytes("x86_64", DOCKER)
    assert first is filter_bytes("x86_64", DOCKER)
    assert seccomp.filter_bytes.cache_info().misses == 1


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are those of x86_64")
def test_the_kernel_takes_the_filter_and_obeys_it():
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os._exit(_load_and_probe(write))
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        report = stream.read().decode()
    assert os.waitpid(pid, 0)[1] == 0, report
    assert report.split() == ["1", str(errno.EPERM), str(errno.ENOSYS), str(errno.EPERM), "ok"]


def _load_and_probe(write: int) -> int:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    code = filter_bytes("x86_64", DOCKER)
    libc.prctl(38, 1, 0, 0, 0)
    loaded = libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
    out = [str(int(loaded))]
    for number, argument in ((272, 0x10000000), (435, 0), (41, socket.AF_ALG)):
        libc.syscall(number, argument, 5, 0)
        out.append(str(ctypes.get_errno()))
    socket.socket(socket.AF_INET).close()
    os.write(write, " ".join([*out, "ok"]).encode())
    return 0


class Libseccomp:
    """The same policy through libseccomp, as runc would load it."""

    class Compare(ctypes.Structure):
        _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libseccomp.so.2")
        self.lib.seccomp_init.restype = ctypes.c_void_p

    def number(self, arch: str, name: str) -> int:
        return self.lib.seccomp_syscall_resolve_name_arch(AUDIT_ARCH[arch], name.encode())

    def name(self, arch: str, number: int) -> str:
        resolve = self.lib.seccomp_syscall_resolve_num_arch
        resolve.restype = ctypes.c_char_p
        found = resolve(AUDIT_ARCH[arch], number)
        return found.decode() if found else ""

    def program(self, native: str):
        context = ctypes.c_void_p(self.lib.seccomp_init(EPERM))
        for arch in (native, SIBLING[native]):
            self.lib.seccomp_arch_add(context, AUDIT_ARCH[arch])
        if os.uname().machine != native:
            self.lib.seccomp_arch_remove(context, AUDIT_ARCH[os.uname().machine])
        for name, rule in policy(native, DOCKER).items():
            number = self.lib.seccomp_syscall_resolve_name(name.encode())
            if number != -1:
                self.add(context, number, rule)
        with tempfile.TemporaryFile() as file:
            assert self.lib.seccomp_export_bpf(context, file.fileno()) == 0
            self.lib.seccomp_release(context)
            file.seek(0)
            return bpf.parse(file.read())

    def add(self, context, number: int, rule) -> None:
        match rule:
            case Allow():
                self.rule(context, ALLOW, number)
            case Errno(value):
                self.rule(context, 0x50000 | value, number)
            case NoneOf(index, mask):
                self.rule(context, ALLOW, number, (index, 7, mask, 0))
            case InRanges(index, ranges):
                for value in itertools.chain(*(range(*span) for span in ranges)):
                    self.rule(context, ALLOW, number, (index, 4, value, 0))

    def rule(self, context, action: int, number: int, *compare: tuple[int, int, int, int]) -> None:
        array = (self.Compare * max(1, len(compare)))(*compare)
        self.lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(compare), array)


@pytest.fixture(scope="module")
def libseccomp():
    try:
        return Libseccomp()
    except OSError:
        pytest.skip("libseccomp.so.2 isn't installed")


@pytest.mark.parametrize("arch", AUDIT_ARCH)
def test_libseccomp_has_the_same_numbers(libseccomp, arch):
    table = numbers(arch)
    for name, number in table.items():
        theirs = libseccomp.number(arch, name)
        assert theirs < 0 or theirs == number, name


@pytest.mark.parametrize("arch", AUDIT_ARCH)
def test_no_call_that_libseccomp_knows_is_missing(libseccomp, arch):
    ours = set(numbers(arch).values())
    missing = {n: name for n in range(600) if (name := libseccomp.name(arch, n)) and n not in ours}
    # x32's own numbers, the OABI's, and calls that were never implemented
    assert not {n: name for n, name in missing.items() if n < 512 and name not in OLD}, missing


OLD = {
    "alarm", "getrlimit", "ipc", "mmap", "nfsservctl", "readdir", "select", "socketcall", "stime",
    "syscall", "time", "umount", "utime",
}


@pytest.mark.parametrize(("native", "arch"), ALL_ARCHES)
def test_libseccomp_decides_the_same_for_every_number(libseccomp, native, arch):
    ours, theirs = bpf.parse(filter_bytes(native, DOCKER)), libseccomp.program(native)
    newer = {number for name, number in numbers(arch).items() if libseccomp.number(arch, name) < 0}
    for number in {*range(467), 0xF0001, 0xF0002, 0xF0005} - newer:
        for argument in (0, 1, 17, 38, 40, 0x20008, 0x10000011, 0xFFFFFFFF):
            expected = bpf.run(theirs, number, AUDIT_ARCH[arch], (argument,))
            if number > 466 and not libseccomp.name(arch, number):
                expected = ENOSYS  # libseccomp has no notion of "newer than all that I know"
            found = bpf.run(ours, number, AUDIT_ARCH[arch], (argument,))
            assert found == expected, (number, libseccomp.name(arch, number), argument)
