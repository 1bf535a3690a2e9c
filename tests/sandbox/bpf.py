"""A BPF interpreter for seccomp filters (what the kernel's sk_run_filter does with those opcodes)."""

from __future__ import annotations

import struct

Program = list[tuple[int, int, int, int]]


def parse(data: bytes) -> Program:
    return [struct.unpack_from("<HBBI", data, at) for at in range(0, len(data), 8)]


def run(program: Program, nr: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """The filter's return value (SECCOMP_RET_*) for one call; raises on a program that runs away."""
    padded = (*args, *(0,) * (6 - len(args)))
    data = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *padded)
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, k = program[at]
        at += 1
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:  # and #k
                accumulator &= k
            case 0x05:  # ja
                at += k
            case 0x06:  # ret
                return k
            case 0x15 | 0x25 | 0x35 | 0x45:
                taken = {
                    0x15: accumulator == k, 0x25: accumulator > k,
                    0x35: accumulator >= k, 0x45: bool(accumulator & k),
                }[code]
                at += jump_true if taken else jump_false
            case _:
                raise AssertionError(f"opcode {code:#x}")
