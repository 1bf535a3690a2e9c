"""What a COPY names and isn't there: names like it, links that lead nowhere, patterns that hide it."""

from __future__ import annotations

import difflib
import os
import stat

from ..errors import NotFound
from ..model import patterns
from .select import Selector


def near(selector: Selector, written: str) -> list[str]:
    """Names like the one that is missing, in the deepest directory of its path that exists."""
    parts = os.fsencode(patterns.clean("/" + written)[1:]).split(b"/")
    real = b""
    for index, part in enumerate(parts):
        candidate = selector.root.resolve(real + b"/" + part if real else part)
        status = selector.root.stat(candidate)
        if status is not None and stat.S_ISDIR(status.st_mode):
            real = candidate
            continue
        names = [os.fsdecode(name) for name, _ in selector.names(real) if name != part]
        close = difflib.get_close_matches(os.fsdecode(part), names, 3, 0.6)
        lead = os.fsdecode(b"/".join(parts[:index]))
        return [lead + "/" + name if lead else name for name in close]
    return []


def dangling(selector: Selector, written: str) -> str:
    """The path of a symlink on the way to what is missing, and where it leads: "" for none."""
    done = b""
    for part in os.fsencode(patterns.clean("/" + written)[1:]).split(b"/"):
        done = done + b"/" + part if done else part
        real = selector.root.resolve(done, last=False)
        target = selector.root.readlink(real)
        if target is not None and selector.root.stat(selector.root.resolve(real)) is None:
            return f'"/{os.fsdecode(done)}" is a symbolic link to "{os.fsdecode(target)}"'
    return ""


def not_found(missing: str, ignored: dict[str, str], near: list[str], link: str = "") -> NotFound:
    """The error for a path that matched nothing.  link: what ``dangling`` said of it."""
    clean = patterns.clean("/" + missing)[1:]
    pattern = ignored.get(clean)
    if pattern is not None:
        return NotFound(
            f'"/{clean}": not found: the .dockerignore pattern {pattern!r} hides it',
            hint=f'add "!{clean}" to the .dockerignore file, or change the pattern',
        )
    if link:
        return NotFound(
            f'"/{clean}": not found: {link}, which is not there',
            hint="a link leads to something within its own context or stage; what it points to must be there too",
        )
    hint = "did you mean " + " or ".join(f'"{name}"' for name in near) + "?" if near else ""
    return NotFound(f'"/{clean}": not found', hint=hint)


def refuse(selector: Selector) -> None:
    """Raise NotFound for the first literal path that matched nothing."""
    for path in selector.missing:
        raise not_found(path, selector.ignored, near(selector, path), dangling(selector, path))
