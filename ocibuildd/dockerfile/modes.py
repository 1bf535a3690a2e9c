"""``--chmod``: octal, or symbolic as chmod(1) has it; and signals for STOPSIGNAL."""

from __future__ import annotations

import re

from .faults import Fault
from .gotext import parse_int

_CLAUSE = re.compile(r"[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+\Z")
_SIGNALS = frozenset({
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
})  # fmt: skip
_REAL_TIME = frozenset({*(f"RTMIN+{n}" for n in range(1, 16)), *(f"RTMAX-{n}" for n in range(1, 15))})


def check_chmod(text: str) -> str:
    """Give the mode back if it is one.  Raises Fault."""
    message = f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
    if text.isdigit() and text.isascii():
        try:
            if parse_int(text, 8, 32, signed=False) > 0o7777:
                raise Fault(message, mark=text)
        except ValueError:
            raise Fault(message, mark=text) from None
        return text
    if not text or not all(_CLAUSE.match(clause) for clause in text.split(",")):
        raise Fault(f"invalid chmod parameter: '{text}'. it should be octal or symbolic (u=rwX,go=rX)", mark=text)
    return text


def check_signal(text: str) -> str:
    """Give the signal back if it is one: any number but 0, or a name.  Raises Fault in Docker's words."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and int(text) != 0:
        return text
    if text.upper().removeprefix("SIG") not in _SIGNALS | _REAL_TIME:
        raise Fault(f"invalid signal: {text}", mark=text)
    return text
