"""``images``, ``history``, ``inspect``, ``tag``, ``rmi``, ``diff``."""

from __future__ import annotations

import sys

from ..args import Args
from ..errors import ClientError
from ..text import ago, escape, size, table
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ..client import Client
    from ..types import HistoryItem, Image

CREATED_BY_WIDTH = 45


def short(ident: str, *, full: bool = False) -> str:
    """An id as lists show it: twelve digits."""
    return ident if full else ident.rpartition(":")[2][:12]


def images(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild images [OPTIONS] [REPOSITORY[:TAG]]

    List images.  Intermediate images (one after each instruction of a build) are shown with -a;
    they can be used like any other: tag, inspect, history, run, FROM.

    Options:
      -a, --all               Show intermediate images too, with what made them
      -f, --filter FILTER...  dangling=true, label=KEY[=VALUE], reference=PATTERN, before=IMAGE,
                              since=IMAGE, until=TIME
      -q, --quiet             Only ids
      --no-trunc              Whole ids and commands
      --digests               Show digests
      --format TEMPLATE       A Go template, "table …" or "json"; fields: ID, Repository, Tag, Digest,
                              Created, CreatedSince, CreatedAt, CreatedBy, Size, SharedSize, UniqueSize,
                              Parent, Platform, Labels
      --tree                  Show intermediate images below what was made from them
      -h, --help              Print this
    """
    args = arguments(images, argv, most=1)
    filters = [*args.filter, *(f"reference={pattern}" for pattern in args.rest)]
    with client() as daemon:
        found = daemon.images(all=args.all or args.tree, filters=filters)
    if args.tree:
        print(_tree(found))
        return
    rows = [row for image in found for row in _rows(image, args)]
    if args.quiet:
        for ident in dict.fromkeys(str(row["ID"]) for row in rows):
            print(ident)
        return
    if args.format:
        print_formatted(args.format, rows)
        return
    columns = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    keys = ["Repository", "Tag", "ID", "CreatedSince", "Size"]
    if args.digests:
        columns.insert(2, "DIGEST")
        keys.insert(2, "Digest")
    if args.all:
        columns += ["PARENT", "CREATED BY"]
        keys += ["Parent", "CreatedBy"]
    print(table(columns, [[row[key] for key in keys] for row in rows]))


def split_name(name: str) -> tuple[str, str]:
    """``repository, tag`` of a name."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "<none>")


def _rows(image: Image, args: Args) -> list[dict[str, Any]]:
    """A row for each name of the image; one with ``<none>`` where it has none."""
    made: dict[str, Any] = {
        "ID": image["id"] if args.no_trunc else short(image["id"]),
        "Created": image["created"], "CreatedSince": ago(image["created"]),
        "CreatedAt": when(image["created"]), "Size": size(image["size"]),
        "SharedSize": size(image.get("shared", 0)),
        "UniqueSize": size(max(0, image["size"] - image.get("shared", 0))),
        "VirtualSize": size(image["size"]), "Containers": "N/A",
        "Parent": short(image.get("parent", ""), full=args.no_trunc),
        "CreatedBy": clip(image.get("created_by", ""), full=args.no_trunc),
        "Platform": image.get("platform", ""),
        "Labels": ",".join(f"{k}={v}" for k, v in (image.get("labels") or {}).items()),
    }
    digests = dict(digest.split("@", 1) for digest in image.get("digests", []) if "@" in digest)
    from ..template import Row

    rows = []
    for name in image["names"] or ["<none>:<none>"]:
        repository, tag = split_name(name)
        digest = digests.get(repository, "<none>")
        rows.append(Row(made, Repository=repository, Tag=tag, Digest=digest))
    return list(rows)


def clip(text: str, *, full: bool, width: int = CREATED_BY_WIDTH) -> str:
    text = " ".join(text.split())
    return text if full or len(text) <= width else text[: width - 1] + "…"


def when(created: float) -> str:
    """A local time as docker prints it: ``2024-03-01 12:00:00 +0000 UTC``."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(max(0, created)))


def print_formatted(text: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """``--format``: each row through the template."""
    from ..template import Template

    template = Template(text)
    if not template.is_table:
        for row in rows:
            print(escape(template.render(row)) if "\n" not in text else template.render(row))
        return
    titles = {
        "ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
    }
    lines = [template.header(titles).split("\t")]
    lines += [template.render(row).split("\t") for row in rows]
    print(table(lines[0], lines[1:]))


def _tree(found: Sequence[Image]) -> str:
    """Each image below its parent."""
    known = {image["id"]: image for image in found}
    children: dict[str, list[Image]] = {}
    for image in found:
        parent = image.get("parent", "")
        children.setdefault(parent if parent in known else "", []).append(image)
    lines: list[str] = []
    todo = [(image, "", True) for image in reversed(children.get("", []))]
    while todo:
        image, indent, top = todo.pop()
        names = ", ".join(image["names"]) or clip(image.get("created_by", ""), full=False)
        lines.append(escape(f"{indent}{short(image['id'])}  {size(image['size']):>8}  {names}"))
        below = children.get(image["id"], [])
        mark = "" if top else "  "
        todo += [(child, indent + mark + "└─", False) if not indent
                 else (child, "  " + indent, False) for child in reversed(below)]
    return "\n".join(lines)


def history(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild history [OPTIONS] IMAGE

    Show the steps that an image was made by, newest first, each with its intermediate image.

    Options:
      --tree             Oldest first, as a tree, with sizes and names
      -H, --human[=BOOL]  Sizes and dates for people (default)
      --no-trunc         Whole ids and commands
      -q, --quiet        Only ids
      --format TEMPLATE  A Go template, "table …" or "json"; fields: ID, CreatedSince, CreatedAt,
                         CreatedBy, Size, Comment
      -h, --help         Print this
    """
    args = arguments(history, argv, 1, 1)
    with client() as daemon:
        found = daemon.history(args.rest[0])
    from ..template import Row

    human = args.human not in ("false", "0")
    rows = [
        Row(
            ID=short(item["id"], full=args.no_trunc) or "<missing>",
            CreatedSince=ago(item["created"]) if human else when(item["created"]),
            CreatedAt=when(item["created"]),
            CreatedBy=clip(item["created_by"], full=args.no_trunc),
            Size=size(item["size"]) if human else str(item["size"]), Comment=item.get("comment", ""),
        )
        for item in found
    ]
    if args.quiet:
        print("\n".join(row["ID"] for row in rows))
    elif args.format:
        print_formatted(args.format, rows)
    elif args.tree:
        print(_history_tree(found, full=args.no_trunc))
    else:
        keys = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"]
        columns = ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]
        print(table(columns, [[row[key] for key in keys] for row in rows]))


def _history_tree(found: Sequence[HistoryItem], *, full: bool) -> str:
    """The chain of steps from the base up; a layer's size, the image's id and its names."""
    lines = []
    for depth, item in enumerate(reversed(found)):
        ident = short(item["id"], full=full) or "-" * 12
        names = f"  [{', '.join(item['names'])}]" if item.get("names") else ""
        command = clip(item["created_by"], full=full, width=70)
        mark = "└─ " if depth else ""
        lines.append(escape(f"{ident}  {size(item['size']):>8}  {' ' * depth}{mark}{command}{names}"))
    return "\n".join(lines)


def inspect(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild inspect [OPTIONS] IMAGE|BUILD [IMAGE|BUILD...]

    Show everything about images, as JSON; or about builds, by their ids.

    Options:
      -f, --format TEMPLATE  A Go template, or "json"
      --platform PLATFORM    Which image of a multi-platform one
      --type TYPE            Accepted for docker's sake: image
      -s, --size             Accepted for docker's sake
      -h, --help             Print this
    """
    args = arguments(inspect, argv, 1)
    found, status = [], 0
    import sys

    with client() as daemon:
        for name in args.rest:
            try:
                found.append(_object(daemon, name, args.platform))
            except ClientError as error:
                print(f"ERROR: {escape(error.message)}", file=sys.stderr)
                status = 1
    if args.format:
        from ..template import Template

        template = Template(args.format)
        for item in found:
            print(template.render(item))
    else:
        import json

        print(json.dumps(found, indent=4, ensure_ascii=False))
    return status


def _object(daemon: Client, name: str, platform: str) -> dict[str, Any]:
    """An image, or where there is none of that name a build.  Raises ClientError."""
    try:
        return daemon.inspect(name, platform)
    except ClientError as error:
        if not name.isalnum():
            raise
        from .builds import of_build

        try:
            return of_build(daemon, name)
        except ClientError:
            raise error from None


def tag(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild tag SOURCE TARGET

    Give an image (a name, a digest, an id or its first digits) another name.

    Options:
      -h, --help  Print this
    """
    args = arguments(tag, argv, 2, 2)
    with client() as daemon:
        daemon.tag(args.rest[0], args.rest[1])


def rmi(argv: Sequence[str]) -> int:
    """
    Usage:  ocibuild rmi [OPTIONS] IMAGE [IMAGE...]

    Remove names of images, and the images that have none left.

    Options:
      -f, --force  Remove an image with all its names; a missing one is no error
      --no-prune   Keep parents that have no name
      -h, --help   Print this
    """
    args = arguments(rmi, argv, 1)
    status = 0
    import sys

    with client() as daemon:
        for name in args.rest:
            try:
                for item in daemon.remove(name, force=args.force, prune=not args.no_prune):
                    for word, what in item.items():
                        print(f"{word.capitalize()}: {escape(what)}")
            except ClientError as error:
                if args.force and getattr(error, "code", "") == "not-found":
                    continue
                print(f"ERROR: {escape(error.message)}", file=sys.stderr)
                status = 1
    return status


def diff(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild diff [OPTIONS] [FROM] IMAGE

    Show which files differ between two images: A added, C changed, D removed.  With one image:
    what the last step with a layer did.

    Options:
      --size             Show sizes (on a terminal they always are)
      --format TEMPLATE  A Go template or "json"; fields: Kind, Path, Size
      -h, --help         Print this
    """
    args = arguments(diff, argv, 1, 2)
    with client() as daemon:
        if len(args.rest) == 1:
            changes = daemon.diff("", args.rest[0])
        else:
            changes = daemon.diff(args.rest[0], args.rest[1])
    if args.format:
        from ..template import Row

        print_formatted(
            args.format, [Row(Kind=c["kind"], Path=c["path"], Size=c["size"]) for c in changes]
        )
        return
    letters = {"added": "A", "changed": "C", "removed": "D", "deleted": "D", "modified": "C"}
    for change in changes:
        sized = args.size or sys.stdout.isatty()
        shown = f"  {size(change['size'])}" if sized and change["size"] else ""
        letter = letters.get(change["kind"], change["kind"][:1].upper())
        print(f"{letter} {escape(change['path'])}{shown}")
