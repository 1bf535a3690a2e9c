"""``version``, ``info``, ``doctor``, ``system check``, ``start``, ``stop``, ``context docker``."""

from __future__ import annotations

import os
import sys

from .. import __version__
from ..client import Client
from ..errors import ClientError, ConnectionFailed
from ..start import socket_path
from ..text import escape, escape_lines, size
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def _print(text: str, found: Any) -> None:
    from ..template import Template

    print(Template(text).render(found))


def version(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild version [OPTIONS]

    Show the versions of client and daemon.  A daemon that doesn't run is not started.

    Options:
      -f, --format TEMPLATE  A Go template, or "json"
      -h, --help             Print this
    """
    args = arguments(version, argv, 0, 0)
    server: dict[str, Any] | None = None
    problem = ""
    try:
        with Client(start=False) as daemon:
            server = daemon.version()
    except ConnectionFailed as error:
        problem = error.message
    if args.format:
        _print(args.format, {"Client": {"Version": __version__}, "Server": server})
        return 0 if server else 1
    print(f"Client:\n Version:     {__version__}")
    if server is None:
        print(f"no daemon: {problem}", file=sys.stderr)
        return 1
    print("\nDaemon:")
    for name, key in (
        ("Version", "version"), ("API version", "api_version"), ("Docker API", "docker_api_version"),
        ("Python", "python"), ("OS/Arch", "platform"), ("Kernel", "kernel"), ("PID", "pid"),
    ):
        if server.get(key):
            print(f" {name + ':':<13}{escape(str(server[key]))}")
    return 0


def info(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild info [OPTIONS]

    Show the daemon's settings and state.

    Options:
      -f, --format TEMPLATE  A Go template, or "json"
      -h, --help             Print this
    """
    args = arguments(info, argv, 0, 0)
    with client() as daemon:
        found = daemon.info()
    if args.format:
        _print(args.format, found)
        return
    _show(found, "")


def _show(found: dict[str, Any], indent: str) -> None:
    for key, value in found.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _show(value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{name}: {escape(', '.join(map(str, value)))}")
        else:
            print(f"{indent}{name}: {escape(str(value))}")


def doctor(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild doctor [OPTIONS]

    Check what this host offers to rootless builds: each requirement, what was found, what it costs
    to lack it, and the exact command that mends it.  Ends with 1 when something is missing.

    Options:
      --format FORMAT  text (default) or json
      -h, --help       Print this
    """
    args = arguments(doctor, argv, 0, 0)
    try:
        with client() as daemon:
            found = daemon.doctor()
    except ConnectionFailed as error:
        # A daemon that doesn't start is what this command is for.
        print(f"no daemon: {escape_lines(error.message)}\n", file=sys.stderr)
        found = _without_daemon(error)
    if args.format == "json":
        import json

        print(json.dumps(found, indent=2))
    else:
        marks = {"ok": "ok      ", "degraded": "degraded", "missing": "MISSING "}
        for item in found:
            level = item["level"]
            print(f"{marks.get(level, level)}  {escape(item['name'])}: {escape(item['found'])}")
            if level != "ok":
                if item.get("cost"):
                    print(f"            without it: {escape(item['cost'])}")
                if item.get("fix"):
                    print(f"            to mend it: {escape(item['fix'])}")
    return 1 if any(item["level"] == "missing" for item in found) else 0


def _without_daemon(error: ConnectionFailed) -> list[dict[str, str]]:
    """What the daemon's program finds by itself.  Raises the error when it can't be run."""
    import json
    import subprocess

    from ..start import command

    try:
        done = subprocess.run(
            [*command(), "--doctor"], capture_output=True, text=True, check=False, timeout=60
        )
        found: list[dict[str, str]] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise error from None
    return found


def check(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild system check [OPTIONS]

    Verify every blob and row of the store.  Ends with 1 when something is wrong.

    Options:
      --quick          Rows and sizes only, no digests
      --trees          Also compare unpacked layers with their blobs, file by file
      --repair         Mend it: what is damaged is put aside, and built or pulled again when wanted
      --format FORMAT  text (default) or json
      -h, --help       Print this
    """
    args = arguments(check, argv, 0, 0)
    asked = {"quick": bool(args.quick), "repair": bool(args.repair)}
    if args.trees:
        asked["trees"] = True
    with client() as daemon:
        found = daemon.call("POST", "/v1/system/check", asked)
    if args.format == "json":
        import json

        print(json.dumps(found, indent=2))
    else:
        for problem in found["problems"]:
            print(f"problem: {escape(problem)}")
        print(f"{found.get('blobs', 0)} blobs, {size(found.get('bytes', 0))}: " + (
            "all is well" if not found["problems"] else f"{len(found['problems'])} problems"
        ))
        if found["problems"]:
            print(f"{found['repaired']} repaired" if args.repair else "hint: ocibuild system check --repair")
    return 1 if len(found["problems"]) > found.get("repaired", 0) else 0


def start(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild start

    Start the daemon, if it isn't running.  (Every command does that by itself.)

    Options:
      -h, --help  Print this
    """
    arguments(start, argv, 0, 0)
    with client() as daemon:
        print(f"ocibuildd {daemon.version()['version']} at {socket_path()[0]}")


def stop(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild stop [OPTIONS]

    Ask the daemon to end: running builds may finish, new ones are refused.

    Options:
      -h, --help  Print this
    """
    arguments(stop, argv, 0, 0)
    import os
    import signal

    try:
        with Client(start=False) as daemon:
            pid = int(daemon.version()["pid"])
    except ConnectionFailed:
        print("no daemon is running")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise ClientError(f"can't signal process {pid}: {error.strerror}") from None
    print(f"asked ocibuildd ({pid}) to end")


def context_docker(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild context docker

    Print the line that points docker, docker-py and Compose at this daemon, for a shell profile.

    Options:
      -h, --help  Print this
    """
    arguments(context_docker, argv, 0, 0)
    path = socket_path()[0]
    print(f"export DOCKER_HOST=unix://{escape_lines(path)}")
    if not os.path.exists(path):  # docker's clients can't start a daemon, as ours does
        hint = "no daemon is there yet: `ocibuild start` starts one, a socket unit does whenever it is wanted"
        print(f"hint: {hint}", file=sys.stderr)


