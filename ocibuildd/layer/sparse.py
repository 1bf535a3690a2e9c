"""Sparse files in tars: the old GNU header, and pax formats 0.0, 0.1 and 1.0.  Pure.

Source: GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import InvalidArgument, TooLarge
from .fields import BLOCK, Source, decimal, number

MAX_SPARSE: Final = 1 << 16
"""Parts of one sparse file."""

Parts = list[tuple[int, int]]
"""(offset, length) of what the stored data fills, in order."""


def is_sparse(block: bytes, pax: Mapping[bytes, bytes], parts: Parts) -> bool:
    if block[156:157] == b"S" or parts:
        return True
    return bool(pax) and (b"GNU.sparse.map" in pax or b"GNU.sparse.major" in pax)


def read_map(
    source: Source, name: bytes, block: bytes, pax: Mapping[bytes, bytes], parts: Parts, size: int
) -> tuple[Parts, int, int]:
    """(parts, size of the file, bytes of data that follow) for a header whose data field says ``size``.

    ``parts``: those of format 0.0, from the pax header.  What a map in front of the data takes is read.
    Raises InvalidArgument for a map that overlaps, goes backwards or doesn't fit, TooLarge."""
    if block[156:157] == b"S":
        real = number(block[483:495])
        parts = _old_map(source, block)
    elif pax.get(b"GNU.sparse.major") == b"1":
        real = decimal(pax.get(b"GNU.sparse.realsize", b"0"))
        parts, size = _map_in_data(source, size)
    else:
        real = decimal(pax.get(b"GNU.sparse.size", pax.get(b"GNU.sparse.realsize", b"0")))
        text = pax.get(b"GNU.sparse.map")
        if text is not None:
            parts = _map_in_text(text)
    end = stored = 0
    for offset, length in parts:
        if offset < end or length < 0:
            raise InvalidArgument(f"tar: {name!r}: its sparse parts overlap or go backwards")
        end = offset + length
        stored += length
    if end > real or stored != size:
        raise InvalidArgument(f"tar: {name!r}: its sparse parts don't fit its size")
    return [part for part in parts if part[1]], real, size


def _map_in_text(text: bytes) -> Parts:
    if text.count(b",") > 2 * MAX_SPARSE:
        raise TooLarge(f"tar: a sparse file of more than {MAX_SPARSE} parts")
    numbers = [decimal(word) for word in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise InvalidArgument("tar: a sparse map of an odd number of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _old_map(source: Source, block: bytes) -> Parts:
    parts: Parts = []
    at, count, more = 386, 4, block[482]
    while True:
        for index in range(count):
            field = block[at + 24 * index : at + 24 * index + 24]
            if not field[0]:
                break
            parts.append((number(field[:12]), number(field[12:])))
        if not more:
            return parts
        if len(parts) > MAX_SPARSE:
            raise TooLarge(f"tar: a sparse file of more than {MAX_SPARSE} parts")
        block = source.read(BLOCK)
        if len(block) != BLOCK:
            raise InvalidArgument("tar: a sparse map is cut off")
        at, count, more = 0, 21, block[504]


def _map_in_data(source: Source, size: int) -> tuple[Parts, int]:
    """Sparse format 1.0: decimal lines in front of the data, padded to a block."""
    numbers: list[int] = []
    wanted = 1
    rest = b""
    while len(numbers) < wanted:
        block = source.read(BLOCK)
        if len(block) != BLOCK or size < BLOCK:
            raise InvalidArgument("tar: a sparse map is cut off")
        size -= BLOCK
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > BLOCK:
            raise InvalidArgument("tar: a malformed sparse map")
        for line in lines:
            if len(numbers) < wanted:
                numbers.append(decimal(line))
                if len(numbers) == 1:
                    wanted += 2 * numbers[0]
                    if numbers[0] > MAX_SPARSE:
                        raise TooLarge(f"tar: a sparse file of more than {MAX_SPARSE} parts")
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), size
