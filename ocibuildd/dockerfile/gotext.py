"""Text as Go treats it: white space, quoting, booleans, durations, sizes.

BuildKit's Dockerfile language is defined by what Go's library does; where Python's differs, it stands here.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What ``unicode.IsSpace`` holds for (str.isspace also takes U+001C to U+001F)."""
_SPLIT = re.compile(f"[{SPACES}]+")
SURROGATES = re.compile("[\ud800-\udfff]")
_QUOTED = {char: "\\" + name for char, name in zip("\a\b\f\n\r\t\v\"\\", "abfnrtv\"\\", strict=True)}
_PLAIN = re.compile(r'[ !#-\[\]-~]*\Z')
_UNICODE_15 = re.compile(
    "[\u0cf3\u0ece\U0001b132\U0001b155\U0001df25-\U0001df2a\U0001e030-\U0001e06d\U0001e08f"
    "\U0001e4d0-\U0001e4f9\U0001d2c0-\U0001d2d3\U0001f6dc\U0001f774-\U0001f776\U0001f77b-\U0001f77f\U0001f7d9"
    "\U0001fa75-\U0001fa77\U0001fa87\U0001fa88\U0001faad-\U0001faaf\U0001fabb-\U0001fabd\U0001fabf"
    "\U0001face\U0001facf\U0001fada\U0001fadb\U0001fae8\U0001faf7\U0001faf8\U00031350-\U000323af]"
)
"""Printable since Unicode 15, which Go knows and Python 3.11 doesn't."""
_SECOND = 10**9
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": _SECOND}
_UNITS |= {"m": 60 * _SECOND, "h": 3600 * _SECOND}
_DURATION = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h|[^0-9.]*)")
_RAM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([kKmMgGtTpP]?)(?:i?[bB])?\Z")
MAX_INT64 = 2**63 - 1


def trim(text: str) -> str:
    """``strings.TrimSpace``."""
    return text.strip(SPACES)


def words(text: str) -> list[str]:
    """Split around runs of white space; no empty words."""
    return [word for word in _SPLIT.split(text) if word]


def to_utf8(text: str) -> str:
    """Undecodable bytes (surrogate escapes) as U+FFFD, as JSON has them."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def quote(text: str) -> str:
    """``strconv.Quote``."""
    if _PLAIN.match(text):
        return f'"{text}"'
    out: list[str] = []
    for char in text:
        code = ord(char)
        if char in _QUOTED:
            out.append(_QUOTED[char])
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char == " " or (char.isprintable() and not 0xD800 <= code <= 0xDFFF) or _UNICODE_15.match(char):
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def quote_list(items: tuple[str, ...] | list[str] | None) -> str:
    """``fmt.Sprintf("%q", []string)``."""
    return "[" + " ".join(quote(item) for item in items or ()) + "]"


def plain_list(items: tuple[str, ...] | list[str] | None) -> str:
    """``fmt.Sprintf("%v", []string)``."""
    return "[" + " ".join(items or ()) + "]"


def parse_bool(text: str) -> bool:
    """``strconv.ParseBool``.  Raises ValueError."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


def parse_int(text: str, base: int, bits: int, *, signed: bool = True) -> int:
    """``strconv.ParseInt`` or ``ParseUint``.  Raises ValueError."""
    name = "ParseInt" if signed else "ParseUint"
    digits = {8: r"[0-7]{1,64}", 10: r"[0-9]{1,64}"}[base]
    if not re.fullmatch(("[+-]?" if signed else "") + digits, text):
        raise ValueError(f"strconv.{name}: parsing {quote(text[:100])}: invalid syntax")
    number = int(text, base)
    limit = 1 << (bits - 1 if signed else bits)
    if number >= limit or number < -limit:
        raise ValueError(f"strconv.{name}: parsing {quote(text)}: value out of range")
    return number


def parse_duration(text: str) -> int:
    """``time.ParseDuration``, in nanoseconds.  Raises ValueError."""
    rest, negative = text, False
    if rest[:1] in ("-", "+"):
        negative, rest = rest[0] == "-", rest[1:]
    if rest == "0":
        return 0
    if not rest or len(rest) > 200:
        raise ValueError(f"time: invalid duration {quote(text[:100])}")
    total = 0
    while rest:
        found = _DURATION.match(rest)
        if found is None or not (found[1] or found[2]):
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not found[3]:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if found[3] not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(found[3])} in duration {quote(text)}")
        unit = _UNITS[found[3]]
        total += int(found[1] or "0") * unit
        if found[2]:
            total += int(found[2]) * unit // 10 ** len(found[2])
        rest = rest[found.end() :]
    if total > MAX_INT64:
        raise ValueError(f"time: invalid duration {quote(text)}")
    return -total if negative else total


def format_duration(nanoseconds: int) -> str:
    """``time.Duration.String``: "1h0m0s", "1.5s", "300ms", "0s"."""
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if value == 0:
        return "0s"
    if value < 10**9:
        for unit, scale in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
            if value < scale * 1_000:
                return f"{sign}{_fraction(value, scale)}{unit}"
    minutes, rest = divmod(value, 60 * 10**9)
    text = f"{_fraction(rest, 10**9)}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = (f"{hours}h" if hours else "") + f"{minutes}m" + text
    return sign + text


def _fraction(value: int, scale: int) -> str:
    whole, part = divmod(value, scale)
    if not part:
        return str(whole)
    return f"{whole}.{str(part).rjust(len(str(scale)) - 1, '0').rstrip('0')}"


def parse_size(text: str) -> int:
    """``units.RAMInBytes``: bytes, with a binary suffix (``64m``, ``1GiB``).  Raises ValueError."""
    found = _RAM.match(text) if len(text) <= 64 else None
    if found is None:
        raise ValueError(f"invalid size: {quote(text[:64])}")
    power = " kmgtp".index(found[2].lower() or " ")
    try:
        size = int(Decimal(found[1]) * 1024**power)
    except InvalidOperation:
        raise ValueError(f"invalid size: {quote(text)}") from None
    if size > MAX_INT64:
        raise ValueError(f"invalid size: {quote(text)}")
    return size
