"""COPY, ADD and WORKDIR as jobs that write a layer straight from its sources."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from ocibuildd.model.graph import Copy, Mkdir
from ocibuildd.ports import CopySpec, Result, Selection, SourceDir

from .source import Directory


def copy_spec(op: Copy | Mkdir, epoch: int | None) -> CopySpec:
    """The instruction without its sources."""
    if isinstance(op, Mkdir):
        return {
            "dest": op.path, "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [],
            "unpack": False, "is_add": False, "user": op.user, "mkdir": True, "epoch": epoch,
        }
    return {
        "dest": op.dest, "chown": op.chown, "chmod": op.chmod, "link": op.link,
        "parents": op.parents, "exclude": list(op.exclude), "unpack": op.unpack,
        "is_add": op.is_add, "epoch": epoch,
    }


def selections(op: Copy) -> list[Selection]:
    """What it takes of each input, for its key."""
    options: dict[str, Any] = {
        "exclude": list(op.exclude), "parents": op.parents, "unpack": op.unpack, "add": op.is_add,
    }
    return [
        Selection(f"source {number}", source.input, source.paths, options)
        for number, source in enumerate(op.sources) if source.input is not None
    ]


def source_dir(
    paths: Sequence[str], *, directory: Directory | None = None, fd: int = -1,
    lowers: Sequence[str] = (),
) -> SourceDir:
    """Files of a directory (its descriptor is number ``fd`` of the job's) or of a chain."""
    if directory is None:
        return {"lowers": list(lowers), "paths": list(paths)}
    spec: SourceDir = {"fd": fd, "paths": list(paths)}
    if directory.ignore:
        spec["ignore"] = list(directory.ignore)
    if directory.remote:
        spec["remote"] = True
    return spec


def inline_dir(files: Sequence[Any]) -> SourceDir:
    """Heredoc files."""
    return {
        "inline": [[f.name, base64.b64encode(f.data).decode(), f.mode] for f in files],
        "paths": [],
    }


def directory_of(result: Result) -> Directory | None:
    """The directory behind a source, None for a root file system."""
    directory = result.directory
    return directory if isinstance(directory, Directory) else None
