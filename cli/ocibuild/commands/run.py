"""``run`` and ``debug``: a process in a throw-away sandbox, with this terminal as its own."""

from __future__ import annotations

import os
import sys

from ..args import Args
from ..errors import ApiError, ClientError, UsageError
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def run(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild run [OPTIONS] IMAGE [COMMAND] [ARG...]

    Run a command in a throw-away sandbox of an image (intermediate ones too); what it writes is
    gone afterwards.

    Options:
      -i, --interactive       Pass standard input on
      -t, --tty               Give it a terminal
      --rm[=BOOL]             Accepted for docker's sake: nothing is ever kept
      -e, --env KEY[=VALUE]...  Set a variable
      -w, --workdir DIR       Working directory
      -u, --user USER[:GROUP]  User
      --entrypoint PROGRAM    In place of the image's entry point
      --network MODE          default, none or host
      --add-host HOST:IP...   A line for /etc/hosts
      --dns ADDRESS...        A name server
      --hostname NAME         Host name
      --memory SIZE           Memory limit
      --cpuset-cpus LIST      CPUs that it may use
      --timeout SECONDS       End it after so long
      --read-only             Accepted for docker's sake
      --pull POLICY           Accepted for docker's sake: missing images are not pulled
      --platform PLATFORM     Accepted for docker's sake
      -h, --help              Print this
    """
    args = arguments(run, argv, 1, interspersed=False)
    from .build_options import integer, network, size

    env = []
    for item in args.env:
        name, equals, value = item.partition("=")
        if equals or name in os.environ:
            env.append([name, value if equals else os.environ[name]])
    spec = {
        "image": args.rest[0], "args": args.rest[1:], "env": env, "cwd": args.workdir,
        "user": args.user, "network": "" if args.network == "bridge" else network(args.network),
        "add_hosts": args.add_host, "dns": args.dns, "hostname": args.hostname,
        "memory": size("--memory", args.memory), "cpuset_cpus": args.cpuset_cpus,
        "timeout": integer("--timeout", args.timeout),
    }
    if "entrypoint" in args.given:
        spec["entrypoint"] = args.entrypoint
    return _run("/v1/run", spec, args)


def debug(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild debug [OPTIONS] [BUILD] [-- COMMAND [ARG...]]

    Enter the sandbox of a build's failed step (the newest build by default): its files,
    environment, mounts and user, as they were when it failed.  Without a command, a shell.

    Options:
      -T, --no-tty  Don't take a terminal
      -h, --help    Print this
    """
    words = list(argv)
    command: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    args = arguments(debug, words, 0, 1)
    args.set_default("interactive", value=True)
    args.set_default("tty", value=not args.no_tty and sys.stdin.isatty())
    spec = {"build": args.rest[0] if args.rest else "", "args": command}
    return _run("/v1/debug", spec, args)


def _run(target: str, spec: dict[str, Any], args: Args) -> int:
    """Start it and be its terminal until it ends; its exit status."""
    if args.tty and not sys.stdin.isatty():
        raise UsageError("the input device is not a TTY")
    spec["tty"] = bool(args.tty)
    spec["stdin"] = bool(args.interactive)
    if args.tty:
        rows, columns = _window()
        spec.update(rows=rows, columns=columns, term=os.environ.get("TERM", "xterm"))
    spec = {key: value for key, value in spec.items() if value or key in ("entrypoint", "args")}
    from ..terminal import Session

    with client() as daemon:
        session = Session(daemon.connection(), target, spec)
        try:
            return session.run()
        except ApiError as error:
            # docker's: 125 = the sandbox could not be made, 127 = no such program
            error.exit_code = error.exit_code if error.code == "step-failed" else 125
            raise
        except ClientError as error:
            error.exit_code = 125
            raise


def _window() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(0)
    except OSError:
        return 24, 80
    return size.lines or 24, size.columns or 80
