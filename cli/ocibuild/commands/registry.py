"""``registry tags`` and ``registry delete``."""

from __future__ import annotations

from ..text import escape
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def tags(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild registry tags REPOSITORY

    List the tags that a repository has in its registry.

    Options:
      -h, --help  Print this
    """
    args = arguments(tags, argv, 1, 1)
    with client() as daemon:
        for tag in daemon.registry_tags(args.rest[0]):
            print(escape(tag))


def delete(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild registry delete [OPTIONS] NAME:TAG|NAME@DIGEST...

    Delete tags, or manifests by their digests, in their registry; what is here stays.  The registry must
    allow it, and takes the space back in its own time.  Many registries can't delete a tag alone.

    Options:
      -m, --manifest  Delete what the tag names, and with it every other tag that names it
      -h, --help      Print this
    """
    args = arguments(delete, argv, 1)
    with client() as daemon:
        for name in args.rest:
            print(f"Deleted: {escape(daemon.registry_delete(name, manifest=args.manifest))}", flush=True)
