"""``pull``, ``push``, ``save``, ``load``, ``import``."""

from __future__ import annotations

import os
import sys

from ..errors import ClientError, UsageError
from ..text import escape, size
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, BinaryIO, TextIO


class TransferDisplay:
    """Progress of a pull or push: a line a blob, redrawn on a terminal."""

    def __init__(self, out: TextIO, *, quiet: bool = False):
        self.out = out
        self.live = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.quiet = quiet
        self.lines: dict[str, str] = {}
        self.drawn = 0

    def feed(self, event: dict[str, Any]) -> None:
        """``status`` events: id, text, current, total."""
        if self.quiet:
            return
        if event.get("type") == "message":
            self._print(escape(str(event.get("text", ""))))
            return
        if event.get("type") != "status":
            return
        ident, text = escape(str(event.get("id", ""))), escape(str(event.get("text", "")))
        current, total = event.get("current") or 0, event.get("total") or 0
        line = f"{short(ident)}: {text}" if ident else text
        if total and current < total:
            line += f"  {size(current)}/{size(total)}"
        if self.live and ident:
            self.lines[ident] = line
            self._draw()
        elif self.lines.get(ident) != text:
            self.lines[ident] = text
            self._print(f"{short(ident)}: {text}" if ident else text)

    def _print(self, line: str) -> None:
        if self.live and self.drawn:
            self.out.write(f"\x1b[{self.drawn}A\r\x1b[J{line}\n")
            self.drawn = 0
            self._draw()
        else:
            self.out.write(line + "\n")
        self.out.flush()

    def _draw(self) -> None:
        try:
            width, height = os.get_terminal_size(self.out.fileno())
        except OSError:
            width, height = 80, 24
        shown = list(self.lines.values())[-max(3, height - 2) :]
        up = f"\x1b[{self.drawn}A" if self.drawn else ""
        self.out.write(up + "\r\x1b[J" + "".join(line[: width - 1] + "\n" for line in shown))
        self.out.flush()
        self.drawn = len(shown)


def short(ident: str) -> str:
    return ident.partition(":")[2][:12] if ident.startswith("sha256:") else ident


def pull(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild pull [OPTIONS] NAME[:TAG|@DIGEST]

    Download an image from a registry.

    Options:
      -q, --quiet          Print the name only
      -a, --all-tags       All tags of the repository
      --platform PLATFORM  Another platform than this host's
      --disable-content-trust[=BOOL]  Accepted for docker's sake
      -h, --help           Print this
    """
    args = arguments(pull, argv, 1, 1)
    shown = TransferDisplay(sys.stdout, quiet=args.quiet)
    with client() as daemon:
        done = daemon.pull(
            args.rest[0], platform=args.platform, all_tags=args.all_tags, on_event=shown.feed
        )
    name = str(done.get("name") or args.rest[0])
    if args.quiet:
        print(name)
        return
    if done.get("digest"):
        print(f"Digest: {done['digest']}")
    what = "Downloaded newer image for" if done.get("new", True) else "Image is up to date for"
    print(f"Status: {what} {escape(name)}")


def push(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild push [OPTIONS] NAME[:TAG]

    Upload an image to its registry.  What the registry has already is not sent again.

    Options:
      -q, --quiet          Print the name only
      -a, --all-tags       All tags of the repository
      --platform PLATFORM  Only this platform of a multi-platform image
      --disable-content-trust[=BOOL]  Accepted for docker's sake
      -h, --help           Print this
    """
    args = arguments(push, argv, 1, 1)
    shown = TransferDisplay(sys.stdout, quiet=args.quiet)
    if not args.quiet:
        print(f"The push refers to repository [{escape(args.rest[0].partition('@')[0])}]", flush=True)
    with client() as daemon:
        done = daemon.push(
            args.rest[0], platform=args.platform, all_tags=args.all_tags, on_event=shown.feed
        )
    if args.quiet:
        print(done.get("name") or args.rest[0])
        return
    for item in done.get("pushed") or [done]:
        print(f"{item.get('tag', 'latest')}: digest: {item['digest']} size: {item['size']}")


def save(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild save [OPTIONS] IMAGE [IMAGE...]

    Write images to a tar, on standard output unless -o says otherwise.

    Options:
      -o, --output FILE    Write to a file
      --format FORMAT      docker (docker load reads it; default) or oci (an OCI layout)
      --platform PLATFORM  Only this platform
      -h, --help           Print this
    """
    args = arguments(save, argv, 1)
    if args.format not in ("", "docker", "docker-archive", "oci", "oci-archive"):
        raise UsageError(f"invalid format {args.format!r}: expected docker or oci")
    if not args.output and sys.stdout.isatty():
        raise UsageError("refusing to write a tar to a terminal: use -o FILE or redirect")
    with client() as daemon:
        kind = args.format.removesuffix("-archive") or "docker"
        chunks = daemon.save(args.rest, format=kind, platform=args.platform)
        if not args.output:
            copy(chunks, sys.stdout.buffer)
            return
        write_file(args.output, chunks)


def copy(chunks: Iterator[bytes], out: BinaryIO) -> None:
    out.writelines(chunks)
    out.flush()


def write_file(path: str, chunks: Iterator[bytes]) -> None:
    """A file that is there as a whole or not at all."""
    temporary = f"{path}.{os.getpid()}.part"
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as out:
                copy(chunks, out)
            return
        with open(temporary, "wb") as out:
            copy(chunks, out)
        os.replace(temporary, path)
    except OSError as error:
        raise ClientError(f"can't write {path}: {error.strerror}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def read_file(path: str) -> Iterator[bytes]:
    """A file, or standard input for ``-``, in pieces.  Raises ClientError when it can't be opened."""
    try:
        file = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ClientError(f"can't read {path}: {error.strerror}") from None

    def pieces() -> Iterator[bytes]:
        try:
            while data := file.read(1 << 20):
                yield data
        finally:
            if path != "-":
                file.close()

    return pieces()


def load(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild load [OPTIONS]

    Read images from a tar (docker archive or OCI layout; plain or compressed), on standard input
    unless -i says otherwise.

    Options:
      -i, --input FILE     Read from a file
      -q, --quiet          Print the names only
      --platform PLATFORM  Accepted for docker's sake
      -h, --help           Print this
    """
    args = arguments(load, argv, 0, 0)
    if not args.input and sys.stdin.isatty():
        raise UsageError("nothing to read: use -i FILE or redirect standard input")
    with client() as daemon:
        for item in daemon.load(read_file(args.input or "-")):
            name, image = item.get("name") or "", item.get("image", "")
            if args.quiet:
                print(escape(name or image))
            else:
                print(f"Loaded image: {escape(name)}" if name else f"Loaded image ID: {image}")


def import_(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild import [OPTIONS] FILE|- [NAME[:TAG]]

    Make an image of one layer from a root file system's tar (plain or compressed).

    Options:
      -c, --change INSTRUCTION...  Apply CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR … to it
      -m, --message TEXT           A comment for its history
      --platform PLATFORM          What it runs on (default: this host)
      -h, --help                   Print this
    """
    args = arguments(import_, argv, 1, 2)
    name = args.rest[1] if len(args.rest) > 1 else ""
    with client() as daemon:
        image = daemon.import_image(
            read_file(args.rest[0]), name, changes=args.change, message=args.message,
            platform=args.platform,
        )
    print(image)
