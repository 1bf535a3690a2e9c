"""nsd, the process that works inside the user namespace: its start and its jobs.

Started by main as ``python -I -S -c BOOT … enter`` in the host's namespaces; that process enters U0, starts
itself again (``serve``) as PID 1 of a pid namespace and ends.  Being PID 1, nsd takes every process of every job
with it when it dies, however it dies; and it ends when main does, because their socket closes.

The loop is ``sandbox.zygote``; what a job does with files is ``layer``; here one is given to the other.  A job gets
the site, its arguments and its descriptors, in a child of its own, and returns what ``ports`` says.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import errors, syscalls
from .sandbox import probe, roots, sources, spec, userns, wire
from .sandbox.site import Site
from .sandbox.zygote import READY_SECONDS, Job, Zygote

if TYPE_CHECKING:
    from .layer.select import Source

Arguments = dict[str, Any]

REMOVE_ATTEMPTS = 20
"""How often a removal begins again when somebody else removes below the same directory."""


def _options(site: Site) -> dict[str, Any]:
    return {"shift": site.shift, "squash": site.squash}


def apply(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A layer's tar from fds[0] into a new tree."""
    from .layer.apply import apply_layer
    from .layer.placement import make_apart

    path = site.tree(spec.trees([args["tree"]])[0])
    make_apart(os.path.dirname(path), os.path.join(site.state, b"tmp"))
    with site.mounted(args.get("lowers", [])) as root:
        tree = site.new_tree(args["tree"])
        try:
            return dict(apply_layer(
                fds[0], tree, root=root, expect_diff_id=args.get("expect_diff_id", ""),
                limits=args.get("limits"), lenient=args.get("lenient", False), **_options(site),
            ))
        finally:
            os.close(tree)


def inherit(site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """Parents that a layer lacked: as they are in its lowers."""
    from .layer import parents

    tree = site.open_tree(args["tree"])
    with site.rooted(args["lowers"]) as root:
        wanted = parents.asked(args["parents"])
        return {"done": parents.inherit(tree, root, wanted, squash=site.squash)}


def fill(site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """A cache mount's first content."""
    return {"filled": sources.fill(site, spec.cache_mount(args))}


def diff(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A tree's changes against its lowers, as a layer, to fds[0].  ``root`` in place of ``tree``: a chain's."""
    from .layer.diff import diff_tree

    with site.mounted(args["lowers"]) as root:
        if "root" in args:
            from .layer.compare import diff_roots

            with site.rooted(args["root"]) as whole:
                return dict(diff_roots(whole, root, fds[0], args["output"], **_options(site)))
        tree = site.open_tree(args["tree"])
        if roots.whole(site.tree(args["tree"])):
            from .layer.compare import diff_roots

            return dict(diff_roots(tree, root, fds[0], args["output"], **_options(site)))
        return dict(diff_tree(tree, root, fds[0], args["output"], **_options(site)))


@contextlib.contextmanager
def _sources(site: Site, sources: list[Any], fds: list[int]) -> Iterator[list[Source]]:
    """``SourceDir`` values as the layer package has them, chains mounted."""
    import base64

    from .layer.scan import Scan
    from .layer.select import Source

    with contextlib.ExitStack() as stack:
        found = []
        for source in sources:
            fd = fds[source["fd"]] if "fd" in source else None
            if "lowers" in source:
                fd = stack.enter_context(site.rooted(source["lowers"]))
            inline = tuple(
                (name, base64.b64decode(data), mode) for name, data, mode in source.get("inline", ())
            )
            found.append(Source(
                fd=fd, inline=inline, paths=tuple(source["paths"]),
                ignore=tuple(source.get("ignore", ())), remote=source.get("remote", False),
                owned="lowers" in source,
                scan=Scan.read(fds[source["scan"]]) if "scan" in source else None,
            ))
        yield found


def pack(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A COPY, ADD or WORKDIR straight into a layer, to fds[0].

    With ``reuse`` {segments: base64, fd: of the blob that they are in}, what didn't change isn't compressed again;
    the answer then has ``segments`` of the new layer."""
    import base64

    from .layer import copy
    from .layer.sink import Reuse

    output, wanted = args["output"], args.get("reuse")
    reuse = None
    if wanted is not None:
        blob = fds[wanted["fd"]] if "fd" in wanted else None
        reuse = Reuse.load(base64.b64decode(wanted["segments"]), blob, output)
    with _sources(site, args["sources"], fds) as sources, site.mounted(args["lowers"]) as root:
        packed = dict(copy.pack(
            sources, args["copy"], root, fds[0], output, reuse=reuse, **_options(site),
        ))
    if reuse is not None:
        packed["segments"] = base64.b64encode(reuse.dump(output)).decode()
    return packed


def _of_root() -> bool:
    """Whether the user that stands behind id 0 here is the superuser, who may read everything."""
    with open("/proc/self/uid_map") as file:
        return file.readline().split()[1:2] == ["0"]


def checksum(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """The content of a selection of files.

    With ``local`` {scan, remember, known, memory, remembered}, descriptors: of a context on this machine, whose
    selection goes to the first of them, fingerprints to the second where they are new (``changed``), a memory
    (``layer.recall``) to ``memory`` (``kept``: it has one).  ``known`` and ``remembered``, if any, have those of
    before; where nothing changed since (``recalled``), nothing is written."""
    from .layer import checksum as layer
    from .layer import recall
    from .layer.fingerprints import Fingerprints, now
    from .layer.scan import Scan

    with _sources(site, [args["source"]], fds) as sources:
        local = args.get("local")
        if local is None:
            return dict(layer.checksum(sources[0], args["copy"], **_options(site)))
        if not _of_root():
            syscalls.capset((), ())  # what the user may not read himself isn't read for him
        if "remembered" in local:
            known = recall.recall(fds[local["remembered"]], sources[0], args["copy"])
            if known is not None:
                return {**known, "changed": False, "kept": False, "recalled": True}
        prints = Fingerprints.load(fds[local["known"]]) if "known" in local else Fingerprints()
        scan, started = Scan(), now()
        found = layer.checksum(sources[0], args["copy"], fingerprints=prints, scan=scan, **_options(site))
        dump = scan.write(fds[local["scan"]])
        if prints.changed:
            prints.write(fds[local["remember"]])
        kept = "memory" in local and recall.remember(fds[local["memory"]], started, found, scan, dump)
        return {**found, "changed": prints.changed, "kept": kept, "recalled": False}


def replicate(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A selection of a context's files as a new tree, which steps mount."""
    from .layer import replicate as layer

    tree = site.new_tree(args["tree"])
    try:
        with _sources(site, [args["source"]], fds) as sources:
            return {"stamp": layer.replicate(sources[0], args["copy"], tree, **_options(site))}
    finally:
        os.close(tree)


def lookup(site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """What paths are, and what small files hold, in a chain."""
    from .layer import lookup as layer

    with site.mounted(args["lowers"]) as root:
        asked = [args.get(what, []) for what in ("stat", "read", "heads")]
        return dict(layer.lookup(root, *asked, **_options(site)))


def archive(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A chain's whole file system as a tar, to fds[0]; with ``files`` as files, into the directory fds[0].

    ``directory`` in place of ``lowers``: a cache mount's."""
    from .layer import archive as layer

    if "directory" in args:
        directory = os.open(args["directory"], DIRECTORY)
        return dict(layer.archive(directory, fds[0], **_options(site)))
    with site.rooted(args["lowers"]) as root:
        if args.get("files"):
            return dict(layer.export(root, fds[0], clamp=args.get("clamp")))
        return dict(layer.archive(root, fds[0], clamp=args.get("clamp"), **_options(site)))


def compare(site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """How two chains differ; with ``blame``, and in what each file does."""
    from .layer.blame import blame
    from .layer.compare import compare as compare_roots

    with site.mounted(args["lowers_a"]) as a, site.rooted(args["lowers_b"]) as b:
        if args.get("blame"):
            return dict(blame(a, b, every_byte=bool(args.get("every_byte"))))
        return dict(compare_roots(a, b))


def unpack(site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """A tar as plain files of ours, into an existing directory; with ``root``, made where it is missing, as
    files of a step's root user (a cache mount)."""
    from .layer import unpack as layer

    if args.get("root"):
        os.makedirs(args["path"], mode=0o755, exist_ok=True)
    directory = os.open(args["path"], DIRECTORY)
    done = dict(layer.unpack(fds[0], directory, limits=args.get("limits")))
    if args.get("root"):
        os.fchown(directory, site.shift, site.shift)
        for _, directories, files, at in os.fwalk(dir_fd=directory):
            for name in [*directories, *files]:
                os.chown(name, site.shift, site.shift, dir_fd=at, follow_symlinks=False)
    return done


def recompress(_site: Site, args: Arguments, fds: list[int]) -> dict[str, Any]:
    """The layer in fds[0], in another compression, to fds[1]."""
    from .layer import convert

    return dict(convert.recompress(
        fds[0], fds[1], args["output"], expect_diff_id=args.get("expect_diff_id", ""),
        limits=args.get("limits"),
    ))


def remove(site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """Delete files and directories below our state directory, whoever of our ids owns them."""
    from .layer import remove as layer

    paths = [os.fsencode(path) for path in args["paths"]]
    for path in paths:
        if not os.path.normpath(path).startswith(os.path.normpath(site.state) + b"/"):
            raise errors.InvalidArgument(f"remove {os.fsdecode(path)}: that is not ours to remove")
    total = {"files": 0, "bytes": 0}
    for _ in range(REMOVE_ATTEMPTS):
        for name, value in layer.remove(paths).items():
            total[name] += value
        # A step's ``work`` may go away by itself meanwhile, which ends a walk early: then once more.
        paths = [path for path in paths if os.path.lexists(path)]
        if not paths:
            break
    return total


def measure(_site: Site, args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """Bytes that directories take on the disk, whoever of our ids owns what is in them."""
    from .sandbox import trees

    return {"sizes": [trees.size(os.fsencode(path), sys.maxsize) for path in args["paths"]]}


def describe(site: Site, _args: Arguments, _fds: list[int]) -> dict[str, Any]:
    """What this host gives to sandboxes, tried again."""
    site.selftest = probe.selftest(site.state)
    return site.describe()


JOBS: dict[str, Job] = {
    "describe": describe,
    "apply": apply, "inherit": inherit, "fill": fill, "diff": diff, "pack": pack, "checksum": checksum,
    "lookup": lookup, "archive": archive, "compare": compare, "unpack": unpack, "remove": remove,
    "measure": measure, "recompress": recompress, "replicate": replicate,
}

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

PRELOAD = (
    "layer.apply", "layer.placement", "layer.diff", "layer.copy", "layer.checksum", "layer.recall",
    "layer.remove",
)
"""Imported once nsd is idle, so that no child has to."""


# --- start ------------------------------------------------------------------------------------------


def enter(arguments: Arguments) -> None:
    """First process: make U0 and a pid and mount namespace in it, start ``serve`` there, end.

    The new process is made main's own child, so that main can wait for it."""
    control = socket.socket(fileno=arguments["control"])
    try:
        ids = userns.discover()
        if arguments.get("ids"):
            ids = userns.lowered(ids, arguments["ids"])
        ids = userns.enter(ids, strict=bool(arguments.get("ids")))
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
        # Later mounts of the host shall be seen here, ours not there.
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
        arguments["ids"] = ids.dump()
        command = [*sys.orig_argv[:-2], "serve", json.dumps(arguments)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        pid = syscalls.clone(syscalls.CLONE_PARENT)
        if pid == 0:
            # Starting afresh makes the memory belong to the new user namespace.
            os.set_inheritable(control.fileno(), True)
            os.execve(sys.executable, command, environment)
        wire.send(control, {"pid": pid})
    except errors.BuildError as error:
        wire.send(control, {"error": error.to_dict()})
    except OSError as error:
        wire.send(control, {"errno": error.errno or errno.EIO, "message": f"nsd: {error}"})


def serve(arguments: Arguments) -> None:
    """Second process: nsd itself."""
    syscalls.set_name("ocibuild-nsd")
    control = socket.socket(fileno=arguments["control"])
    os.set_inheritable(control.fileno(), False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # main ends us, by closing the socket
    os.umask(0o022)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        site = Site.open(arguments["state"], userns.IdPlan.load(arguments["ids"]), arguments.get("overlay", ""))
        site.start_network(arguments.get("network_mode", ""), wanted=arguments.get("network", True))
    except errors.BuildError as error:
        wire.send(control, {"error": error.to_dict()})
        return
    wire.send(control, {"ready": site.describe()})
    zygote = Zygote(
        site, control, JOBS, keep_ready=arguments.get("keep_ready", True),
        ready_seconds=arguments.get("ready_seconds", READY_SECONDS),
    )
    zygote.when_idle.append(_preload)
    site.filter(insecure=False)  # compiled once, not in each child
    gc.disable()  # a collection in a child would copy every page that it shares with us
    gc.freeze()
    zygote.loop()
    site.close()


def _preload() -> None:
    import importlib

    for name in PRELOAD:
        try:
            importlib.import_module(f".{name}", __package__)
        except ImportError:
            continue  # the job that needs it says so


def main() -> None:
    """``… (enter|serve) JSON``."""
    what, text = sys.argv[-2:]
    commands: dict[str, Callable[[Arguments], None]] = {"enter": enter, "serve": serve}
    commands[what](json.loads(text))
