"""``ps``, ``logs``, ``cancel``, ``explain``, ``verify`` and ``builds inspect``."""

from __future__ import annotations

import sys

from ..args import Args
from ..errors import ApiError, ClientError, UsageError
from ..text import ago, escape, seconds, table
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..client import Client
    from ..types import Build


def list_(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild ps [OPTIONS]

    List builds, newest first: running ones, or with -a those that have ended too.

    Options:
      -a, --all          Ended builds too
      -q, --quiet        Only ids
      --format TEMPLATE  A Go template, "table …" or "json"
      -h, --help         Print this
    """
    _list(arguments(list_, argv, 0, 0))


def history(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild builds ls [OPTIONS]

    List builds, newest first, those that have ended among them.

    Options:
      -a, --all          As ever
      -q, --quiet        Only ids
      --format TEMPLATE  A Go template, "table …" or "json"
      -h, --help         Print this
    """
    _list(arguments(history, argv, 0, 0), everything=True)


def _list(args: Args, *, everything: bool = False) -> None:
    with client() as daemon:
        found = daemon.builds()
    if not args.all and not everything:
        found = [build for build in found if build["state"] in ("queued", "running")]
    if args.quiet:
        for build in found:
            print(build["id"])
        return
    if args.format:
        from ..template import Row
        from .images import print_formatted

        print_formatted(args.format, [
            Row({"".join(w.title() for w in key.split("_")): v for key, v in build.items()})
            for build in found
        ])
        return
    rows = [
        [
            build["id"], build.get("name", ""), build["state"], ago(build["created"]), _took(build),
            f"{build.get('cached', 0)}/{build.get('steps', 0)}",
        ]
        for build in found
    ]
    print(table(["BUILD ID", "NAME", "STATE", "CREATED", "TIME", "CACHED"], rows))


def _took(build: Build) -> str:
    started, ended = build.get("started") or 0.0, build.get("ended") or 0.0
    return seconds(max(0.0, ended - started)) if started and ended else "-"


def logs(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild logs [OPTIONS] [BUILD]

    Show a build's progress again (the newest by default); with -f follow it to its end.

    Options:
      -f, --follow     Go on until the build ends
      --progress MODE  plain (default), tty, json
      -h, --help       Print this
    """
    args = arguments(logs, argv, 0, 1)
    from ..failure import report
    from ..progress import display
    from ..progress.plain import PlainDisplay

    shown = display(args.progress or "plain", sys.stdout)
    with client() as daemon:
        try:
            for event in daemon.events(args.rest[0] if args.rest else "", follow=args.follow):
                shown.feed(event)
        finally:
            shown.close()
    state = getattr(shown, "build", None)
    if state is not None and state.failure is not None:
        sys.stdout.flush()
        report(state, sys.stderr, show_log=not isinstance(shown, PlainDisplay))
        return ApiError(state.failure.get("error") or {}).exit_code if args.follow else 0
    return 0


def cancel(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild cancel BUILD [BUILD...]

    End running builds.

    Options:
      -h, --help  Print this
    """
    args = arguments(cancel, argv, 1)
    with client() as daemon:
        for build in args.rest:
            daemon.cancel(build)
            print(build)


def inspect(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild builds inspect [BUILD]

    Show everything about a build, as JSON (the newest by default).

    Options:
      -f, --format TEMPLATE  A Go template, or "json"
      -h, --help             Print this
    """
    args = arguments(inspect, argv, 0, 1)
    with client() as daemon:
        found = of_build(daemon, args.rest[0] if args.rest else "")
    if args.format:
        from ..template import Template

        print(Template(args.format).render(found))
        return
    import json

    print(json.dumps(found, indent=4, ensure_ascii=False))


def of_build(daemon: Client, build: str) -> dict[str, Any]:
    """A build with ``profile``: what each of its steps used.  Raises ClientError."""
    from ..trace import used

    info = daemon.build_info(build)
    return {**info, "profile": used(list(daemon.events(info["id"], follow=False)))}


def explain(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild explain [OPTIONS] [BUILD|IMAGE] [STEP]

    Say why each step of a build ran, or which build made what it was taken from.  The newest
    build by default; IMAGE stands for the build that made it; STEP is a step's number or a part
    of its text.

    Options:
      --format FORMAT  text (default) or json
      -v, --verbose    Show every difference, not the first few
      -h, --help       Print this
    """
    args = arguments(explain, argv, 0, 2)
    if args.format not in ("", "text", "json"):
        raise UsageError(f"invalid format {args.format!r}: expected text or json")
    build, step = [*args.rest, "", ""][:2]
    if not step and build.isdecimal() and len(build) <= STEP_DIGITS:
        build, step = "", build
    with client() as daemon:
        try:
            found = daemon.explain(build, step)
        except ClientError:
            if step or not build:
                raise
            try:
                found = daemon.explain("", build)  # a step of the newest build
            except ClientError as error:
                hint = "ocibuild ps -a lists builds, ocibuild images images, ocibuild explain the newest build's steps"
                raise ClientError(f"{build}: no build, no image and no step: {error.message}", hint) from None
    if args.format == "json":
        import json

        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for item in found:
        print(_explanation(item, everything=args.verbose))


SHOWN_REASONS = 10
STEP_DIGITS = 3
"""A number of so many digits alone is a step's of the newest build, not the beginning of an id."""


def _explanation(item: dict[str, Any], *, everything: bool) -> str:
    """One step: its name, what happened, and each reason."""
    name = item.get("name") or item.get("text") or item.get("vertex", "")
    state = "CACHED" if item.get("cached") else str(item.get("state", "RAN")).upper()
    lines = [f"{state:<7}{escape(str(name))}"]
    reasons = [str(reason.get("text", reason)) for reason in item.get("reasons") or []]
    shown = reasons if everything else reasons[:SHOWN_REASONS]
    lines += [f"       {escape(reason)}" for reason in shown]
    if len(shown) < len(reasons):
        lines.append(f"       … and {len(reasons) - len(shown)} more (-v shows them)")
    return "\n".join(lines)


def verify(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild verify [OPTIONS] IMAGE|BUILD

    Build again without cache and compare: where the bytes differ, name the instruction, the file
    and what differs.

    Options:
      --progress MODE  auto, plain, tty, json or quiet
      -h, --help       Print this
    """
    args = arguments(verify, argv, 1, 1)
    from ..progress import display

    shown = display(args.progress or "auto")
    answer: dict[str, Any] = {}
    with client() as daemon:
        body = {"target": args.rest[0]}
        try:
            for event in daemon.stream("POST", "/v1/verify", body, tick=shown.interval):
                if not event:
                    shown.tick()
                elif event["type"] == "verified":
                    answer = event
                else:
                    shown.feed(event)
        finally:
            shown.close()
    state = getattr(shown, "build", None)
    if state is not None and state.failure is not None:
        raise ApiError(state.failure.get("error") or {})
    if answer.get("same"):
        print(f"{args.rest[0]}: reproduced, {answer.get('image', '')}")
        return 0
    print(f"{args.rest[0]}: differs")
    for item in answer.get("differences", []):
        print(f"  {escape(str(item.get('instruction', '')))}")
        for kind, path, _, what in item.get("files", []):
            print(f"    {kind} {escape(path)}{f' ({what})' if what else ''}")
    if all(_of_time(file) for item in answer.get("differences", []) for file in item["files"]):
        print("hint: only times differ: build it with --reproducible")
    return 1


def _of_time(file: Sequence[Any]) -> bool:
    kind, path, _, what = file
    in_config = kind == "config" and str(path).startswith(("created:", "history:"))
    return what == "time" or kind == "times" or in_config
