"""``system df``, and all the prunes."""

from __future__ import annotations

import sys

from ..args import Args
from ..errors import ClientError
from ..text import ago, escape, size, table
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def _confirmed(args: Args, warning: str) -> bool:
    """Ask, unless --force or --dry-run; on no terminal nothing is asked and nothing done."""
    if args.force or args.dry_run:
        return True
    if not sys.stdin.isatty():
        raise ClientError("refusing to prune without being asked on a terminal", "add -f")
    print(warning, end=" [y/N] ", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _prune(args: Args, what: str, warning: str) -> int:
    from .build_options import size as parse_size

    if not _confirmed(args, warning):
        return 1
    keep = parse_size("--keep-storage", getattr(args, "keep_storage", ""))
    with client() as daemon:
        done = daemon.prune(
            what, all=args.all, filters=args.filter, keep_storage=keep, dry_run=args.dry_run
        )
    verb = "Would delete" if args.dry_run else "Deleted"
    silent = 0
    for item in done["deleted"]:
        if item["kind"] == "record" and not item.get("bytes"):
            silent += 1
            continue
        names = f" ({', '.join(item['names'])})" if item.get("names") else ""
        why = f": {item['why']}" if args.dry_run and item.get("why") else ""
        text = item.get("description") or ""
        line = f"{verb} {item['kind']} {item['id'][:19]}{names} {size(item.get('bytes', 0))} {text}"
        if args.dry_run or args.verbose:
            print(escape(line.rstrip() + why))
    if args.dry_run or args.verbose:
        _rest(verb, silent, int(str(done.get("garbage", 0))))
    if not args.dry_run and not args.verbose and done["deleted"]:
        counts: dict[str, int] = {}
        for item in done["deleted"]:
            counts[item["kind"]] = counts.get(item["kind"], 0) + 1
        print("Deleted: " + ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in sorted(counts.items())))
    print(f"Total reclaimed space: {size(done['space'])}")
    if pending := int(str(done.get("pending", 0))):
        print(f"{size(pending)} of it are still being deleted")
    return 0


def _rest(verb: str, silent: int, garbage: int) -> None:
    """What needs no line each: records whose layers others have too, and what belonged to nothing."""
    if silent:
        print(f"{verb} {silent} records that take no room of their own")
    if garbage:
        print(f"{verb} {size(garbage)} that nothing refers to any more")


def system_prune(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild system prune [OPTIONS]

    Remove dangling images and unused cache; with -a everything that no running build needs.

    Options:
      -a, --all               All unused images (also those with names) and the whole cache
      -f, --force             Don't ask
      --filter FILTER...      until=TIME or AGE, label=KEY[=VALUE], label!=…
      --dry-run               Say what would go, and why
      --keep-storage SIZE     Keep so much of the cache
      --volumes               Accepted for docker's sake
      -v, --verbose           List what went
      -h, --help              Print this
    """
    args = arguments(system_prune, argv, 0, 0)
    return _prune(args, "system", "This removes dangling images and unused cache. Go on?")


def prune(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild prune [OPTIONS]

    Remove dangling images and unused cache; with -a everything that no running build needs.

    Options:
      -a, --all               All unused images (also those with names) and the whole cache
      -f, --force             Don't ask
      --filter FILTER...      until=TIME or AGE, label=KEY[=VALUE], label!=…
      --dry-run               Say what would go, and why
      --keep-storage SIZE     Keep so much of the cache
      -v, --verbose           List what went
      -h, --help              Print this
    """
    args = arguments(prune, argv, 0, 0)
    return _prune(args, "system", "This removes dangling images and unused cache. Go on?")


def image_prune(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild image prune [OPTIONS]

    Remove dangling images; with -a all that no running build needs.

    Options:
      -a, --all           All unused images, also those with names
      -f, --force         Don't ask
      --filter FILTER...  until=TIME or AGE, label=KEY[=VALUE], label!=…, dangling=BOOL
      --dry-run           Say what would go, and why
      -v, --verbose       List what went
      -h, --help          Print this
    """
    args = arguments(image_prune, argv, 0, 0)
    which = "all images that nothing uses" if args.all else "dangling images"
    return _prune(args, "images", f"This removes {which}. Go on?")


def builder_prune(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild builder prune [OPTIONS]

    Remove build cache that no image needs; with -a all of it, cache mounts too.

    Options:
      -a, --all                    All records, and cache mounts
      -f, --force                  Don't ask
      --filter FILTER...           until=TIME or AGE, type=…, id=…, description=…
      --keep-storage SIZE          Keep so much
      --dry-run                    Say what would go, and why
      -v, --verbose                List what went
      -h, --help                   Print this
    """
    args = arguments(builder_prune, argv, 0, 0)
    return _prune(args, "builds", "This removes unused build cache. Go on?")


def gc(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild gc [OPTIONS]

    Collect garbage by the configured policies now.

    Options:
      --explain          Say what would go, in which order and why, and remove nothing
      -h, --help         Print this
    """
    args = arguments(gc, argv, 0, 0)
    with client() as daemon:
        done = daemon.call("POST", "/v1/gc", {"dry_run": bool(args.explain)})
    rows = [
        [item["kind"], item["id"][:19], size(item.get("bytes", 0)), item.get("rule", ""),
         item.get("why", ""), item.get("description", "")[:60]]
        for item in done["deleted"]
    ]
    if args.explain:
        if rows:
            print(table(["KIND", "ID", "SIZE", "RULE", "WHY", "WHAT"], rows))
        else:
            print("the policies take nothing")
        _rest("Would delete", 0, done.get("garbage", 0))
    word = "would be freed" if args.explain else "freed"
    print(f"used {size(done.get('used', 0))}, {word} {size(done['space'])}")


def df(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild system df [OPTIONS]

    Show disk usage: images, layers that they share, build cache, cache mounts.

    Options:
      -v, --verbose      Each image, record and cache mount
      --format TEMPLATE  A Go template, or "json"
      -h, --help         Print this
    """
    args = arguments(df, argv, 0, 0)
    with client() as daemon:
        found = daemon.call("GET", f"/v1/df{'?verbose=1' if args.verbose else ''}")
    if args.format:
        from ..template import Template

        print(Template(args.format).render(found))
        return
    rows = [
        [
            str(row["type"]), str(row.get("count", 0)), str(row.get("active", 0)),
            size(row.get("size", 0)), size(row.get("reclaimable", 0)),
        ]
        for row in found["summary"]
    ]
    print(table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows))
    free = size(found["disk"]["free"])
    print(f"\n{size(found['total'])} in all, what is shared counted once; {free} free on the disk")
    if args.verbose:
        _verbose(found)


def _verbose(found: dict[str, Any]) -> None:
    rows = [
        [
            ", ".join(item.get("names", [])) or item["id"][7:19], size(item["size"]),
            size(item.get("shared", 0)), size(item.get("unique", 0)), ago(item.get("created", 0)),
        ]
        for item in found.get("images", [])
    ]
    print("\nImages:\n\n" + table(["IMAGE", "SIZE", "SHARED", "UNIQUE", "CREATED"], rows))
    # Internal ones say where the same layers came from: nothing that takes room of its own.
    records = [item for item in found.get("records", []) if item.get("kind") != "internal"]
    rows = [
        [
            item["id"][:12], item.get("kind", ""), size(item.get("size", 0)),
            ago(item.get("created", 0)), ago(item.get("last_used", 0)), str(item.get("uses", 0)),
            f"{item.get('cost', 0):.1f}s", item.get("description", "")[:60],
        ]
        for item in records
    ]
    columns = ["CACHE ID", "TYPE", "SIZE", "CREATED", "LAST USED", "USES", "COST", "WHAT"]
    print("\nBuild cache:\n\n" + table(columns, rows))
    rows = [
        [item["id"], size(item.get("size", 0)), ago(item.get("last_used", 0)), item.get("sharing", "")]
        for item in found.get("mounts", [])
    ]
    print("\nCache mounts:\n\n" + table(["ID", "SIZE", "LAST USED", "SHARING"], rows))
