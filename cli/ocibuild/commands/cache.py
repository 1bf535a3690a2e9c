"""``ocibuild cache``: cache mounts by their id."""

from __future__ import annotations

import sys

from ..errors import UsageError
from ..http import query
from ..text import ago, size, table
from . import arguments, client
from .transfer import copy, read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def mounts(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cache mounts [OPTIONS]

    List cache mounts (RUN --mount=type=cache).

    Options:
      -q, --quiet  Only ids
      -h, --help   Print this
    """
    args = arguments(mounts, argv, 0, 0)
    with client() as daemon:
        found = daemon.call("GET", "/v1/cache/mounts")["mounts"]
    if args.quiet:
        for item in found:
            print(item["id"])
        return
    rows = [
        [item["id"], size(item["size"]), ago(item["created"]), ago(item["last_used"]),
         str(item["uses"]), item["sharing"], "yes" if item["in_use"] else ""]
        for item in found
    ]
    print(table(["ID", "SIZE", "CREATED", "LAST USED", "USES", "SHARING", "IN USE"], rows))


def inspect(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cache inspect ID

    Show a cache mount, as JSON.

    Options:
      -h, --help  Print this
    """
    args = arguments(inspect, argv, 1, 1)
    with client() as daemon:
        found = daemon.call("GET", "/v1/cache/mounts" + query([("id", args.rest[0])]))["mounts"]
    import json

    print(json.dumps(found, indent=4))


def clear(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cache clear ID [ID...]

    Empty cache mounts; the next step that uses one begins with nothing.

    Options:
      -h, --help  Print this
    """
    args = arguments(clear, argv, 1)
    with client() as daemon:
        for ident in args.rest:
            done = daemon.call("DELETE", "/v1/cache/mounts" + query([("id", ident)]))
            print(f"{ident}: {size(done['space'])}")


def export(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cache export [OPTIONS] ID

    Write a cache mount to a tar, on standard output unless -o says otherwise.

    Options:
      -o, --output FILE  Write to a file
      -h, --help         Print this
    """
    args = arguments(export, argv, 1, 1)
    if not args.output and sys.stdout.isatty():
        raise UsageError("refusing to write a tar to a terminal: use -o FILE or redirect")
    with client() as daemon:
        target = "/v1/cache/mounts/tar" + query([("id", args.rest[0])])
        chunks = iter(daemon.send("GET", target))
        if args.output:
            write_file(args.output, chunks)
        else:
            copy(chunks, sys.stdout.buffer)


def import_(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cache import ID [FILE|-]

    Fill a cache mount from a tar (standard input by default); what it held before is gone.

    Options:
      -h, --help  Print this
    """
    args = arguments(import_, argv, 1, 2)
    source = args.rest[1] if len(args.rest) > 1 else "-"
    with client() as daemon:
        target = "/v1/cache/mounts/tar" + query([("id", args.rest[0])])
        answer = daemon.send(
            "PUT", target, data=read_file(source), headers={"Content-Type": "application/x-tar"}
        ).json()
    print(f"{args.rest[0]}: {answer['files']} files, {size(answer['bytes'])}")
