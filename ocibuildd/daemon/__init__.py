"""The daemon: composition root of main.

``options`` reads the command line, ``notify`` speaks with the service manager, ``sockets`` finds and
opens the socket, ``logs`` writes the log, ``parts`` makes the objects and ``serve`` runs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point ``ocibuildd``; its exit status."""
    from .options import parse

    options = parse(sys.argv[1:] if argv is None else list(argv))
    if isinstance(options, int):
        return options
    from .serve import run

    return run(options)
