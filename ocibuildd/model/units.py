"""Sizes and durations as people write them.  Sizes are bytes, durations seconds."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?)(b?)\s*\Z", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d|w)")
_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0,
    "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0,
}
MAX_SIZE = 1 << 62
MAX_DURATION = 1e10


def parse_size(value: object) -> int:
    """An int, or "20GB" (10⁹), "20GiB" and Docker's "20g" (2³⁰).  Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.match(value)):
        number, prefix, binary, letter_b = match.groups()
        base = 1000 if letter_b and not binary else 1024
        size = int(float(number) * base ** ("kmgtp".index(prefix.lower()) + 1 if prefix else 0))
    else:
        raise ValueError(f"size {value!r}: expected bytes or a string such as 20GB")
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"size {value!r}: out of range")
    return size


def parse_duration(value: object) -> float:
    """A number of seconds, or Go's "1h30m" (with d and w added).  Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and value.strip() == "0":
        seconds = 0.0
    elif isinstance(value, str) and value.strip() and not _DURATION.sub("", value.strip()):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value))
    else:
        raise ValueError(f"duration {value!r}: expected seconds or a string such as 1h30m")
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"duration {value!r}: out of range")
    return seconds


def human_size(size: float) -> str:
    """Docker's short form: three significant digits, powers of 1,000 (``1.23MB``)."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            break
        size /= 1000
    return f"{size:.4g}{unit}" if unit == "B" else f"{size:.3g}{unit}"
