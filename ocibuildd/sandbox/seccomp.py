"""The seccomp filter of a sandbox, compiled to BPF by ourselves (no libseccomp at run time).

A program looks at the architecture, then finds the system call's number in a balanced tree of ranges:
some nine jumps in place of the hundreds that a chain of comparisons takes.  Numbers above the newest
one that the policy knows answer ENOSYS, so that programs fall back to older calls in place of failing
(x32 numbers, from 0x40000000, come under that rule too).

Linux: Documentation/userspace-api/seccomp_filter.rst, include/uapi/linux/{bpf_common,seccomp,audit}.h.
"""

from __future__ import annotations

import functools
import struct

from ocibuildd.errors import Unsupported

from .seccomp_numbers import numbers
from .seccomp_policy import ENOSYS, EPERM, Allow, Errno, InRanges, NoneOf, Verdict, policy

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel refuses longer programs."""

LOAD, JUMP, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16

AUDIT_ARCH = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
SIBLING = {"x86_64": "i386", "aarch64": "arm"}
"""The 32-bit architecture whose programs a kernel runs as well."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, k (struct sock_filter)."""
Leaf = tuple[int, Verdict]
"""First number of a range, and what holds from there on."""


def _ret(verdict: Allow | Errno) -> Instruction:
    match verdict:
        case Allow():
            return RETURN, 0, 0, RET_ALLOW
        case Errno(number):
            return RETURN, 0, 0, RET_ERRNO | number


def _leaf(verdict: Verdict, wide: bool) -> list[Instruction]:
    """Instructions that end in a RETURN; ``wide``: arguments have 64 bits (little endian)."""
    match verdict:
        case Allow() | Errno():
            return [_ret(verdict)]
        case NoneOf(index, mask):
            low = (LOAD, 0, 0, OFFSET_ARGS + 8 * index)
            return [low, (JUMP_SET, 0, 1, mask), _ret(EPERM), _ret(Allow())]
        case InRanges(index, ranges):
            code: list[Instruction] = []
            if wide:
                high = (LOAD, 0, 0, OFFSET_ARGS + 8 * index + 4)
                code = [high, (JUMP_EQ, 1, 0, 0), _ret(EPERM)]
            code.append((LOAD, 0, 0, OFFSET_ARGS + 8 * index))
            return code + _tree(_cover(ranges), wide)


def _cover(ranges: tuple[tuple[int, int], ...]) -> list[Leaf]:
    """Allow inside the half-open ranges, EPERM outside, over 0..2**32-1."""
    leaves: list[Leaf] = [] if ranges[0][0] == 0 else [(0, EPERM)]
    for start, end in ranges:
        leaves.append((start, Allow()))
        if end < 1 << 32:
            leaves.append((end, EPERM))
    return leaves


def _tree(leaves: list[Leaf], wide: bool) -> list[Instruction]:
    """Binary search for the accumulator among ranges; jumps are relative, so parts just concatenate."""
    if len(leaves) == 1:
        return _leaf(leaves[0][1], wide)
    middle = len(leaves) // 2
    below, above = _tree(leaves[:middle], wide), _tree(leaves[middle:], wide)
    pivot = leaves[middle][0]
    if len(below) <= 255:  # conditional jumps have eight bits
        return [(JUMP_GE, len(below), 0, pivot), *below, *above]
    return [(JUMP_GE, 0, 1, pivot), (JUMP, 0, 0, len(below)), *below, *above]


def _leaves(table: dict[str, int], verdicts: dict[str, Verdict]) -> list[Leaf]:
    """The verdict of each number, neighbours with the same verdict merged."""
    known = {table[name]: verdict for name, verdict in verdicts.items() if name in table}
    newest = max(number for number in known if number < 0x1000)
    leaves: list[Leaf] = [(0, known.get(0, EPERM))]
    marks = {number + step for number in known for step in (0, 1)}
    for number in sorted(marks | {newest + 1}):
        verdict = known.get(number, EPERM if number <= newest else ENOSYS)
        if verdict != leaves[-1][1]:
            leaves.append((number, verdict))
    return leaves


def program(arch: str, verdicts: dict[str, Verdict]) -> list[Instruction]:
    """The whole filter for native ``arch`` ("x86_64" or "aarch64") and its sibling."""
    native = [(LOAD, 0, 0, OFFSET_NR), *_tree(_leaves(numbers(arch), verdicts), wide=True)]
    sibling = SIBLING[arch]
    second = [(LOAD, 0, 0, OFFSET_NR), *_tree(_leaves(numbers(sibling), verdicts), wide=False)]
    return [
        (LOAD, 0, 0, OFFSET_ARCH),
        (JUMP_EQ, 0, 1, AUDIT_ARCH[arch]),
        (JUMP, 0, 0, 2 + len(second)),
        (JUMP_EQ, 1, 0, AUDIT_ARCH[sibling]),
        (RETURN, 0, 0, RET_KILL_PROCESS),
        *second,
        *native,
    ]


@functools.lru_cache(maxsize=8)
def filter_bytes(arch: str, capabilities: frozenset[str]) -> bytes:
    """An array of ``struct sock_filter`` for ``seccomp(SECCOMP_SET_MODE_FILTER)``.

    arch: "x86_64" (also lets i386 programs run) or "aarch64" (also arm), as os.uname().machine.
    capabilities: the bounding set's names, such as "CAP_SYS_CHROOT".  Cached per argument pair.
    Raises Unsupported for another architecture.
    """
    if arch not in SIBLING:
        raise Unsupported(
            f"seccomp filter for architecture {arch!r}: expected one of {', '.join(SIBLING)}",
            hint="build on x86_64 or aarch64",
        )
    code = program(arch, policy(arch, capabilities))
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"seccomp filter: {len(code)} instructions, at most {MAX_INSTRUCTIONS}")
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
