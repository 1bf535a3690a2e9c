"""The daemon's command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .. import __version__

HELP = """\
Usage:  ocibuildd [OPTIONS]

A rootless OCI image builder daemon.  Everything that can be set stands in the configuration
file; the options below win over it.

Options:
  --config FILE      Configuration (default: ~/.config/ocibuildd/ocibuildd.toml)
  --state-dir DIR    Where everything is kept (default: $XDG_DATA_HOME/ocibuildd)
  --socket PATH      The socket (default: $XDG_RUNTIME_DIR/ocibuildd/ocibuildd.sock)
  --idle-timeout SECONDS  End after being idle for so long (0 = never)
  --auto             Started by the CLI: end after the configured idle time
  --foreground       Log for people, not as JSON
  --log-level LEVEL  debug, info, warning or error
  --doctor           Print what this host has and lacks for rootless builds as JSON, and end
  --check-config     Read the configuration, print what is wrong with it, and end
  --version          Print the version and end
  --help             Print this and end"""
_VALUES = {
    "--config": "config", "--state-dir": "state_dir", "--socket": "socket",
    "--idle-timeout": "idle_timeout", "--log-level": "log_level",
}
_FLAGS = {
    "--auto": "auto", "--foreground": "foreground", "--check-config": "check_config",
    "--doctor": "doctor",
}
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; "" = not given."""

    config: str = ""
    state_dir: str = ""
    socket: str = ""
    idle_timeout: str = ""
    log_level: str = ""
    auto: bool = False
    foreground: bool = False
    check_config: bool = False
    doctor: bool = False


def _complain(message: str) -> int:
    print(f"ocibuildd: {message}\nsee 'ocibuildd --help'", file=sys.stderr)
    return 2


def parse(argv: Sequence[str]) -> Options | int:
    """Options, or the exit status when there is nothing more to do."""
    words = list(argv)
    flags: dict[str, bool] = {}
    values: dict[str, str] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--version", "-v"):
            print(f"ocibuildd {__version__}")
            return 0
        if name in ("--help", "-h"):
            print(HELP)
            return 0
        if name in _FLAGS and not equals:
            flags[_FLAGS[name]] = True
        elif name in _VALUES:
            if not equals:
                if not words:
                    return _complain(f"{name} needs a value")
                value = words.pop(0)
            values[_VALUES[name]] = value
        else:
            close = difflib.get_close_matches(name, [*_VALUES, *_FLAGS, "--version"], n=1)
            return _complain(f"unknown option {word}" + (f", did you mean {close[0]}?" if close else ""))
    options = Options(**values, **flags)  # type: ignore[arg-type]
    if options.log_level and options.log_level not in LEVELS:
        return _complain(f"--log-level {options.log_level!r}: expected one of {', '.join(LEVELS)}")
    if options.idle_timeout and not options.idle_timeout.isdecimal():
        return _complain(f"--idle-timeout {options.idle_timeout!r}: expected seconds")
    return options
