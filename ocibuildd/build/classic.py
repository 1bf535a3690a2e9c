"""What Docker's classic builder refuses where BuildKit takes it, in its words (builds with ``compat="docker"``).

Source: builder/dockerfile/copy.go of moby 20.10.
"""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable

from ..errors import InvalidArgument
from ..executor.source import Directory
from ..model.graph import Plan
from ..model.patterns import BadPattern, has_wildcard, match
from ..ports import Checksum, CopySpec, SourceDir

Checksums = Callable[[Directory, SourceDir, CopySpec], Awaitable[Checksum]]


def classic_checksums(checksum: Checksums) -> Checksums:
    """``Materials.checksum`` that holds COPY and ADD to the classic builder's rules."""

    async def checked(directory: Directory, source: SourceDir, spec: CopySpec) -> Checksum:
        command = "ADD" if spec["is_add"] else "COPY"
        for path in source["paths"]:
            if posixpath.normpath(path.lstrip("/")).split("/")[0] == "..":
                raise InvalidArgument(
                    f"{command} failed: forbidden path outside the build context: {path} ()"
                )
            if has_wildcard(path) and not is_pattern(path):
                raise InvalidArgument(f"{command} failed: no source files were specified")
        found = await checksum(directory, source, spec)
        check_copy(command, found, source["paths"], spec["dest"])
        return found

    return checked


def is_pattern(path: str) -> bool:
    """Is it a pattern that Go's matcher takes?"""
    try:
        for part in path.split("/"):
            match(part, part)
    except BadPattern:
        return False
    return True


def check_copy(command: str, found: Checksum, paths: list[str], dest: str) -> None:
    """Raises InvalidArgument unless the classic builder would copy this."""
    if found["missing"]:
        path = found["missing"][0].lstrip("/")
        raise InvalidArgument(
            f"{command} failed: file not found in build context or excluded by .dockerignore: "
            f"stat {path}: file does not exist",
            details={"missing": list(found["missing"]), "ignored": dict(found["ignored"])},
        )
    matches = found.get("matches", 1)
    if not matches and any(has_wildcard(path) for path in paths):
        raise InvalidArgument(f"{command} failed: no source files were specified")
    if matches > 1 and not dest.endswith("/"):
        raise InvalidArgument(
            f"When using {command} with more than one source file, the destination must be a directory "
            "and end with a /"
        )


def check_made(plan: Plan) -> None:
    """Raises InvalidArgument for a build of nothing (``FROM scratch`` alone)."""
    stage = plan.stages[plan.target]
    if stage.base is None and not stage.history:
        raise InvalidArgument("No image was generated. Is your Dockerfile empty?")
