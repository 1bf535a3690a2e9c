"""The interfaces between packages and the values that they trade in: one page.  Standard library only: nsd reads it.

**The two processes.**  ``main`` (asyncio, host namespaces, an ordinary user) owns database, blobs and
sockets.  ``nsd`` (single-threaded zygote in user namespace U0) forks a child per *job*.  All work on the
bytes of file systems happens in such children: running steps, applying layers, diffing, packing COPYs,
deleting trees; they read, hash and compress there (in threads of that short-lived child), so that main's
loop, its GIL and its memory stay free.  A child gets file descriptors, never opens blobs by name.

**Trees.**  A layer unpacked in overlayfs form lives in ``<state>/trees/<tree id>/fs`` (beside it ``work`` while a
step runs).  A *chain* is a list of tree ids, lowest first; mounting it with overlayfs (``userxattr``) gives a root
file system.  Owners in trees are "container id + ``Capabilities.shift``" (1 in the normal mode) as seen from U0.

**Jobs** (``Nsd.call``): name, JSON-able args, descriptors → JSON-able result.  Errors come back as
``errors.BuildError`` (by code) or OSError.  Cancelling the call kills the job's process tree.

    run          RunSpec → RunOutcome                                  fds: stdout, stderr[, stdin]
                 (with ``tty``: one fd, the pty's slave side is made inside; main gets the master by event)
    apply        {tree, lowers, expect_diff_id, limits, lenient} → Applied   fds: input (file or pipe)
    inherit      {tree, lowers, parents} → {done}                      (parents as below; else apply over lowers)
    fill         MountSpec (a cache with lowers) → {filled}            (``run`` sees to it: nobody else calls it)
    diff         {tree, lowers, output: Output} → Packed               fds: blob (file, written from 0)
    pack         {sources, copy, lowers, output} → Packed              fds: blob, source directories …
    checksum     {source, paths, …} → Checksum                         fds: [source directory]
    lookup       {lowers, stat, read, heads: [...]} → {stat, read, head: {...}}
    archive      {lowers, clamp, files} → {}                           fds: output    (tar/local outputs)
    compare      {lowers_a, lowers_b} → {changes: [[kind, path, size], …]}
                 with ``blame``: [[kind, path, size, [what differs, …]], …]
    unpack       {path, limits} → {files, bytes, skipped, newest}      fds: input     (a tar as plain files)
    recompress   {output, expect_diff_id, limits} → Packed             fds: input (file), blob
    remove       {paths} → {files, bytes}
    measure      {paths} → {sizes}                             (bytes on the disk)
    git          {…} → {commit, …}                                     (clones inside a sandbox)

``Limits`` are {bytes, entries, name, ratio}; 0 = the module's own constant.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from .model.digest import Digest

Compression = Literal["gzip", "zstd", "none"]

# --- what crosses between main and nsd (JSON) ------------------------------------------------------


class Output(TypedDict):
    """How a layer is written.  Same input and same Output give the same bytes, always.

    level: -1 = the compressor's default.  clamp: seconds since the epoch that no mtime may pass
    (SOURCE_DATE_EPOCH with rewrite-timestamp, --reproducible), None = as they are."""

    compression: Compression
    level: int
    clamp: int | None


class Packed(TypedDict):
    """A layer as written.  ``empty``: it has no entries, nothing was written, the digests are "".

    digest, size: of the compressed bytes.  diff_id, tar_size: of the tar.  content: a digest of paths,
    modes, owners, link targets, xattrs and bytes, without mtimes (for early cutoff).
    entries: how many."""

    empty: bool
    digest: str
    size: int
    diff_id: str
    tar_size: int
    content: str
    entries: int
    stamps: NotRequired[list[str]]


class Applied(TypedDict):
    """An applied layer.  digest, size: of the bytes read (with what trails the stream);
    diff_id, tar_size: of the tar; skipped: device nodes that could not be made;
    implied: parents that the layer lacked, taken from ``lowers`` or made 0755 (and an opaque root, or hard links
    to files, of unknown lowers); parents: their paths, for ``inherit`` (fewer than ``implied``: it can't)."""

    digest: str
    size: int
    diff_id: str
    tar_size: int
    entries: int
    bytes: int
    skipped: int
    implied: int
    parents: list[str]


class SourceDir(TypedDict):
    """Files to copy from.  Exactly one of: ``fd`` (index into the job's fds: a directory opened
    O_PATH by main: a context, a git checkout, an HTTP download), ``lowers`` (a chain: a stage or image),
    ``inline`` ([[name, base64 data, mode], …])."""

    fd: NotRequired[int]
    lowers: NotRequired[list[str]]
    inline: NotRequired[list[list[Any]]]
    paths: list[str]
    ignore: NotRequired[list[str]]
    """.dockerignore patterns, for local contexts only."""
    remote: NotRequired[bool]
    """It came by HTTP or git: ADD doesn't unpack it unless told to."""
    scan: NotRequired[int]
    """Index into the job's fds: what ``layer.scan.Scan.memfd`` gave; ``fd`` isn't walked then."""


class CopySpec(TypedDict):
    """``graph.Copy`` without its sources; the same words."""

    dest: str
    chown: str
    chmod: str
    link: bool
    parents: bool
    exclude: list[str]
    unpack: bool | None
    is_add: bool
    user: NotRequired[str]
    """For Mkdir (WORKDIR): the owner."""
    mkdir: NotRequired[bool]
    """True: no sources; make ``dest`` and its missing parents (WORKDIR)."""
    epoch: NotRequired[int | None]
    """mtime of all that the instruction makes or copies; None: now, and what is copied keeps its own."""


class Checksum(TypedDict):
    """Content of a selection of files.  digest: over [path, type, mode, uid, gid, link, xattrs, content].
    files: {path: short digest} for explaining a miss; at most MAX_EXPLAINED entries.
    missing: literal paths that matched nothing; ignored: {path: the pattern that hides it};
    matches: things that the paths name (a directory is one).
    scan: the selection itself, for ``SourceDir.scan`` (it has ``memfd``), of a local context.
    near, links: {missing path: names like it | the dead symlink on its way}, for ``layer.missing.not_found``."""

    digest: str
    files: dict[str, str]
    count: int
    bytes: int
    missing: list[str]
    ignored: dict[str, str]
    near: NotRequired[dict[str, list[str]]]
    links: NotRequired[dict[str, str]]
    stamp: NotRequired[str]
    matches: NotRequired[int]
    scan: NotRequired[Any]
    """Of the inodes and times of the files.  ``Packed.stamps`` (in the order of the sources) tells whether a
    pack saw the same ones; where it didn't, its result must not be kept under this digest."""


class MountSpec(TypedDict):
    """A mount inside the sandbox.

    kind "chain": overlay of ``lowers`` (read-only, or with a throw-away upper when rw), subpath ``source``.
    kind "cache": directory ``path`` on our disk (a cache mount), subpath ``source``.
    kind "tmpfs": ``size`` bytes.  kind "secret": ``data`` (base64) on a tmpfs, with mode, uid, gid.
    kind "files": [[name, base64, mode], …] in a directory on a tmpfs (heredocs).
    kind "socket": ``path`` of a Unix socket on our side (ssh agent), bound to target.
    """

    kind: Literal["chain", "cache", "tmpfs", "secret", "files", "socket"]
    target: str
    readonly: bool
    source: NotRequired[str]
    lowers: NotRequired[list[str]]
    path: NotRequired[str]
    size: NotRequired[int]
    data: NotRequired[str]
    files: NotRequired[list[list[Any]]]
    mode: NotRequired[int]
    uid: NotRequired[int]
    gid: NotRequired[int]


class RunSpec(TypedDict):
    """All that a step's sandbox is to be; nothing is looked up elsewhere.

    tree: the tree id whose ``fs`` is the upper directory (made by the job), or "" for a throw-away one.
    user: "", "name", "uid", "name:group" … resolved in the image's own passwd and group files.
    limits: memory, memory_swap, pids, cpu_quota, cpu_period, cpu_shares, cpuset_cpus, cpuset_mems (a bit for each),
    io_weight, upper_bytes, fsize, nofile, shm_size, timeout (seconds);
    0 or absent = none.  hosts: [[name, address], …].  dns: {servers, search, options}.
    """

    lowers: list[str]
    tree: str
    args: list[str]
    env: list[list[str]]
    cwd: str
    user: str
    hostname: str
    network: Literal["default", "none", "host"]
    security: Literal["sandbox", "insecure"]
    mounts: list[MountSpec]
    hosts: list[list[str]]
    dns: dict[str, list[str]]
    limits: dict[str, int]
    tty: bool
    no_new_privileges: bool
    step: str
    """A name for logs and cgroups, [a-z0-9-] only."""


class RunOutcome(TypedDict):
    """How a step ended.  ``reason``: exit | signal | oom | timeout | disk-limit | cancelled.

    usage: wall, user, system (seconds, float), max_rss, read, written (bytes)."""

    exit_code: int
    signal: int
    reason: str
    message: str
    usage: dict[str, float]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that the host has or lacks (``ocibuild doctor``).

    level: ok | degraded | missing; cost: what it costs to lack it; fix: the exact command."""

    name: str
    level: Literal["ok", "degraded", "missing"]
    found: str
    cost: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this host allows, found once at start."""

    ids: Literal["shifted", "identity", "single", "none"]
    overlay: Literal["kernel", "fuse", "copy"]
    network: Literal["pasta", "slirp4netns", "host", "none"]
    shift: int
    id_count: int
    proc: Literal["new", "bind", "none"] = "new"
    cgroup: Literal["v2", "none"] = "none"
    controllers: tuple[str, ...] = ()
    """Of ``cgroup``: those that steps are under; limits of the others don't hold."""
    requirements: tuple[Requirement, ...] = field(default=())


class Nsd(Protocol):
    """nsd as main sees it (made by ``sandbox.launch``)."""

    capabilities: Capabilities

    async def call(
        self,
        job: str,
        args: Mapping[str, Any],
        fds: Sequence[int] = (),
        on_event: Callable[[dict[str, Any], list[int]], None] | None = None,
    ) -> dict[str, Any]:
        """Run a job; cancelling kills it and waits until it is gone.

        ``fds`` stay the caller's to close.  Raises BuildError or OSError as the job did;
        ``Unavailable`` when nsd died under it."""
        ...


# --- the store ---------------------------------------------------------------------------------------

LayerId = int
"""A row of ``layers``: stable, ours, known before the layer's digests are."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the store knows it.  ``tree`` is "" while it isn't unpacked; ``digest`` is "" for a
    layer that is known by its diff id only, or whose commit is under way."""

    id: LayerId
    diff_id: Digest | None
    digest: Digest | None
    size: int
    tar_size: int
    media_type: str
    content: str
    tree: str


class BlobWriter(Protocol):
    """An ingest: bytes land in a temporary file and become a blob at ``commit``, or nothing remains."""

    fd: int

    def write(self, data: bytes) -> None: ...
    def commit(self, digest: Digest, size: int) -> None:
        """fsync, check the digest and size (recomputed unless ``write`` hashed all of it, or the job
        that wrote through ``fd`` reported it), rename, fsync the directory, insert the row."""
        ...

    def abort(self) -> None: ...


class BlobStore(Protocol):
    """Content by digest.  Everything it hands out was verified when it came in."""

    def has(self, digest: Digest) -> bool: ...
    def size(self, digest: Digest) -> int: ...
    def open(self, digest: Digest) -> int:
        """A read-only descriptor.  Raises NotFound."""
        ...

    def read(self, digest: Digest, limit: int = 8 << 20) -> bytes:
        """A small blob, verified again.  Raises NotFound, Corrupt (and quarantines), TooLarge."""
        ...

    def put(self, data: bytes) -> Digest: ...
    def writer(self) -> BlobWriter: ...


class Lease(Protocol):
    """Keeps what is added to it from garbage collection until it is released."""

    def add(self, *, blobs: Sequence[Digest] = (), layers: Sequence[LayerId] = ()) -> None: ...
    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the cache: what a key's work gave.  ``cost`` is the measured seconds it took.

    ``chain`` holds layer ids, lowest first; ``value`` is for results that are no root file system
    (JSON: an HTTP download's blob and validators, a git commit).  ``identity``: what the result *is*
    (content, not how it came about); keys of what follows are made from it.  ``selector``: the
    instruction without arguments and inputs (for :meth:`CacheIndex.nearest`); ``op``: the operation
    without its inputs (for :meth:`CacheIndex.seen`)."""

    key: str
    chain: tuple[LayerId, ...]
    value: str
    preimage: str
    cost: float
    created: float
    build: str
    identity: str = ""
    selector: str = ""
    op: str = ""
    kind: str = "regular"
    """BuildKit's record types: regular | source.local | source.git.checkout | source.http | source.image |
    exec.cachemount | internal | frontend."""
    description: str = ""
    """What ``df -v`` shows: the instruction or source."""
    last_used: float = 0.0
    uses: int = 0


class RecordSource(Protocol):
    """Records that are somewhere else (a remote cache): what ``CacheIndex`` offers to read."""

    def get(self, key: str) -> Record | None: ...
    def seen(self, op: str) -> bool: ...


class CacheIndex(Protocol):
    """Cache records by key: each query is one indexed select."""

    def get(self, key: str) -> Record | None:
        """``preimage`` is left empty here: who asks by key has it already (``store.Records.preimage``
        reads the stored one)."""
        ...

    def put(self, record: Record) -> None: ...
    def nearest(self, selector: str) -> Record | None:
        """The newest record of the same instruction (same ``selector``), for explaining a miss."""
        ...

    def seen(self, op: str) -> bool:
        """Is there any record of this very operation, whatever its inputs?  (If not, no key of it can
        hit, and nothing need wait for its inputs' content.)"""
        ...


# --- registries -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest, index or config as received: the bytes are kept as they came."""

    digest: Digest
    media_type: str
    data: bytes


class Registry(Protocol):
    """The registry client (``registry.client``).  References are ``model.reference.Reference``."""

    async def resolve(self, reference: Any, *, auth: Any = None) -> Fetched: ...
    async def head(self, reference: Any, *, auth: Any = None) -> Any: ...
    def lenient(self, domain: str) -> Registry: ...
    def blob(
        self, reference: Any, descriptor: Any, *, offset: int = 0, auth: Any = None, verify: bool = True,
        mirrors: bool = True,
    ) -> AsyncGenerator[bytes, None]: ...
    async def push_blob(
        self,
        reference: Any,
        descriptor: Any,
        source: Path | Callable[[], int],
        *,
        mount_from: Sequence[str] = (),
        auth: Any = None,
        progress: Callable[[int], None] | None = None,
    ) -> str: ...
    async def push_manifest(
        self, reference: Any, data: bytes, media_type: str, *, auth: Any = None
    ) -> Digest: ...


# --- the solver and who does the work for it ------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a vertex gave: a root file system (``chain``) or files that are none (``directory``).

    identity: what it is, by content; "" for a context (each selection of it has its own) and while
    ``settled`` is there: then the layer's commit is still under way, ``chain`` can be mounted already,
    and awaiting ``settled`` gives the final Result (same content, perhaps other layers).
    provisional: stands for the identity until then; the same for all who share the run.
    directory: the executor's own handle of a context, download or checkout.
    layer: what this vertex itself added, None = nothing.  created: when it was first made, in seconds
    since the epoch.
    """

    chain: tuple[LayerId, ...] = ()
    identity: str = ""
    provisional: str = ""
    settled: Callable[[], Awaitable[Result]] | None = None
    directory: Any = None
    layer: LayerId | None = None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Files that a vertex uses of one of its inputs (an index into its ``inputs``).

    options: what else decides which files these are and what of them counts (exclude, parents …)."""

    role: str
    input: int
    paths: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work:
    """What an execution gave: a tree with the changes (``layer`` has it; to be diffed), or a layer that
    is written already (``packed``), or nothing at all (both None: the result is the parent's).

    standalone: the layer is the same whatever it is laid on (COPY --link)."""

    layer: LayerId | None = None
    packed: Packed | None = None
    standalone: bool = False
    usage: Mapping[str, float] = field(default_factory=dict)


Emit = Callable[..., None]
"""``emit(kind, **fields)`` with kind "log" (stream, data) or "status" (id, current, total, unit, text)."""


class Executor(Protocol):
    """Does the work of one build's vertices (``executor.work``); the solver decides which."""

    def at_hand(self, vertex: int) -> Result | None:
        """A source's result, when nothing need be fetched for it."""
        ...

    async def fetch(self, vertex: int, emit: Emit) -> Result:
        """Pull, download or check out a source."""
        ...

    def selections(self, vertex: int) -> list[Selection]:
        """What COPY, ADD and bind mounts select; not the root file system that they stand on."""
        ...

    async def checksum(self, vertex: int, selection: Selection, source: Result) -> Checksum: ...

    async def execute(self, vertex: int, inputs: Sequence[Result], emit: Emit) -> Work:
        """Run it.  Raises StepFailed and other BuildErrors; cancelling leaves nothing behind."""
        ...

    async def commit(self, vertex: int, inputs: Sequence[Result], work: Work) -> Packed:
        """Diff a tree, write its blob and make it durable; the layer's row has it afterwards."""
        ...
