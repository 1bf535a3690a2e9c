"""What a Dockerfile comes down to: a Plan, that is a graph of vertices, each with one operation.

The front end (``ocibuildd.dockerfile``) makes Plans, the solver runs them.  A vertex refers to its
inputs by their index in ``Plan.vertices``; inputs always come before.  Paths inside an image are
``str`` (surrogateescape) and absolute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .digest import Digest
from .oci import ContainerConfig, ImageConfig, Platform

# --- sources: results that don't stand on another vertex --------------------------------------


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The root file system of an image (FROM, COPY --from=image, a docker-image:// context).

    ``ref`` is the canonical reference as resolved; ``digest`` the manifest digest for ``platform``
    and is what the cache key uses.  ``layout`` names an OCI layout directory in place of a registry.
    """

    ref: str
    digest: Digest
    platform: Platform
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The empty root file system."""


@dataclass(frozen=True, slots=True)
class ContextSource:
    """The build context, or a named local one.  ``name`` is "context" or the --build-context name.

    ``ignore`` holds the patterns of the .dockerignore that applies, in order (already parsed,
    comments gone); empty for remote contexts (git, HTTP tarball).
    """

    name: str = "context"
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A file by HTTP(S).  ``filename`` is what it is called in the result's directory."""

    url: str
    filename: str
    checksum: str = ""
    mode: int | None = None
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class GitSource:
    """A checkout.  ``ref`` is a branch, tag, commit or "" for the remote's HEAD."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True
    mtime: Literal["checkout", "commit"] = "checkout"


# --- operations on a root file system -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A heredoc's file: ``name`` is its last path component."""

    name: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class CopySource:
    """Where files of a Copy come from: ``input`` is an index into the *vertex's* ``inputs``
    (never 0, which is the destination), or None for ``inline`` files.

    ``paths`` are as written after expansion (wildcards allowed, relative to the source's root,
    ``..`` not yet clamped).  ``literal`` paths must exist; an unmatched wildcard is no error.
    """

    input: int | None
    paths: tuple[str, ...] = ()
    inline: tuple[InlineFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """COPY and ADD.  ``inputs[0]`` is the root file system that is copied to.

    dest: absolute, cleaned, with a trailing "/" where one was written (or dest was "." or "..").
    chown: "user[:group]" as expanded, "" = 0:0.  chmod: octal or symbolic as expanded, "" = keep.
    unpack: None = ADD's default (local archives yes, remote no), for COPY False.
    link: an independent layer (already False where --chmod is given, as BuildKit has it).
    """

    sources: tuple[CopySource, ...]
    dest: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    unpack: bool | None = False
    is_add: bool = False


@dataclass(frozen=True, slots=True)
class Mkdir:
    """WORKDIR: make ``path`` and missing parents, 0755, owned by ``user`` ("" = root)."""

    path: str
    user: str = ""


MountType = Literal["bind", "cache", "tmpfs", "secret", "ssh"]


@dataclass(frozen=True, slots=True)
class Mount:
    """One ``RUN --mount``, checked and expanded.

    input: index into the vertex's ``inputs`` for bind and for cache with from=; None otherwise.
    target: absolute.  source: path inside the input.  ``mode``: octal bits or None = the type's own.
    cache_id: for cache, namespaced (BUILDKIT_CACHE_MOUNT_NS) and never used as a path.
    """

    type: MountType
    target: str
    input: int | None = None
    source: str = "/"
    readonly: bool = True
    cache_id: str = ""
    sharing: Literal["shared", "private", "locked"] = "shared"
    size: int = 0
    id: str = ""
    env: str = ""
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """RUN.  ``args`` is the full argv; ``env`` the environment as it is visible, in order, with
    declared build arguments; ``proxy_env`` is visible too but in no key and no history.

    files: heredoc files, mounted read-only at /dev/pipes/<name>.  user: "" = root.
    """

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str = "/"
    user: str = ""
    mounts: tuple[Mount, ...] = ()
    network: Literal["default", "none", "host"] = "default"
    security: Literal["sandbox", "insecure"] = "sandbox"
    devices: tuple[str, ...] = ()
    hostname: str = "buildkitsandbox"
    files: tuple[InlineFile, ...] = ()
    proxy_env: tuple[tuple[str, str], ...] = ()
    shell: str = ""
    """What was typed (for messages): the command line without the SHELL prefix."""


Op = ImageSource | Scratch | ContextSource | HttpSource | GitSource | Copy | Mkdir | Run


@dataclass(frozen=True, slots=True)
class Location:
    """Lines of a Dockerfile, 1-based, inclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Vertex:
    """A node.  ``name`` is what progress shows (``[builder 2/5] RUN make``)."""

    op: Op
    inputs: tuple[int, ...] = ()
    name: str = ""
    ignore_cache: bool = False
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """History of one instruction; ``vertex`` is the one that makes its layer, None = empty layer."""

    created_by: str
    vertex: int | None = None
    author: str = ""
    comment: str = "buildkit.dockerfile.v0"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a needed stage, and the image as it stands after it.

    ``vertex``: whose result is the root file system after this instruction (None: scratch).
    ``config``: the container config after it; ``history``: index of the last HistoryItem, exclusive.
    """

    stage: int
    stage_name: str
    number: int
    total: int
    text: str
    location: Location
    vertex: int | None
    config: ContainerConfig
    history: int
    makes_layer: bool = False


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One needed stage.  ``base`` is the config of the image that its chain of FROMs starts at
    (its history and diff ids come first in the result; None for scratch).

    ``image``: the final image config without rootfs and without history.
    """

    index: int
    name: str
    base: ImageConfig | None
    image: ImageConfig
    history: tuple[HistoryItem, ...]
    vertex: int | None
    steps: tuple[Step, ...] = ()
    base_vertex: int | None = None


@dataclass(frozen=True, slots=True)
class Warning:  # noqa: A001 - BuildKit's word for it
    """A build check's finding (lint)."""

    rule: str
    message: str
    location: Location | None
    url: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be done, in an order in which inputs come first; only what is needed."""

    vertices: tuple[Vertex, ...]
    stages: tuple[StagePlan, ...]
    target: int
    """Index into ``stages``: the image asked for."""
    platform: Platform
    warnings: tuple[Warning, ...] = ()
    epoch: int | None = None
    unused_args: tuple[str, ...] = ()
    secrets: tuple[str, ...] = field(default=())
    arguments: tuple[str, ...] = ()
    """The ARGs before the first FROM, as they stand there."""
