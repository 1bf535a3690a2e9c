"""Numbers in tar headers and pax records, and what archive bytes are read from.  Pure."""

from __future__ import annotations

from typing import Final, Protocol

from ..errors import InvalidArgument

BLOCK: Final = 512
_GIGA = 1_000_000_000


class Source(Protocol):
    """Where archive bytes come from."""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end."""
        ...


def number(field: bytes) -> int:
    """Octal text, or GNU base-256 (the first bit set; two's complement).  Raises InvalidArgument."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if text.isdigit() and not text.strip(b"01234567"):
        return int(text, 8)
    raise InvalidArgument(f"tar: {field!r} where an octal number was expected")


def decimal(value: bytes) -> int:
    """Decimal digits, as in pax records.  Raises InvalidArgument."""
    if not value.isdigit() or len(value) > 19:
        raise InvalidArgument(f"tar: {value[:32]!r} where a number was expected")
    return int(value)


def parse_time(value: bytes) -> int:
    """A pax time ("1700000000.123456789", perhaps negative) as whole nanoseconds, exactly."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 15 or (fraction and not fraction.isdigit()):
        raise InvalidArgument(f"tar: {value[:64]!r} where a time was expected")
    nanoseconds = int(digits) * _GIGA + int(fraction[:9].ljust(9, b"0"))
    return -nanoseconds if whole.startswith(b"-") else nanoseconds


def format_time(mtime_ns: int) -> bytes:
    """Nanoseconds as the decimal seconds of a pax time record."""
    seconds, fraction = divmod(abs(mtime_ns), _GIGA)
    sign = b"-" if mtime_ns < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)
