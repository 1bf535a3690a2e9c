"""What a sandbox is made of on our side: upper directories, mounts behind mounts, files to show, descriptors.

Runs in nsd itself (user namespace U0), where the store can be reached; ``fill`` in a job of its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid

from .. import errors, syscalls
from . import mounts, spec, trees
from .network import NetnsLease
from .site import Site


def upper_of(site: Site, plan: spec.Plan, trash: list[bytes]) -> tuple[bytes, bytes]:
    """Make the upper directory, with the root directory's attributes as the chain has them."""
    if plan.tree:
        base = os.path.dirname(site.tree(plan.tree))
    else:
        base = os.path.join(site.state, b"tmp", b"run-" + uuid.uuid4().hex.encode())
        trash.append(base)
    upper, work = os.path.join(base, b"fs"), os.path.join(base, b"work")
    os.makedirs(base, 0o700, exist_ok=True)
    os.mkdir(upper, 0o755)
    os.mkdir(work, 0o700)
    below = os.stat(site.tree(plan.lowers[-1]) if plan.lowers else site.empty)
    os.chown(upper, below.st_uid, below.st_gid)
    os.chmod(upper, below.st_mode & 0o7777)
    os.utime(upper, ns=(below.st_atime_ns, below.st_mtime_ns))
    return upper, work


def source_of(site: Site, mount: spec.Mount, trash: list[bytes]) -> int:
    """The detached mount that a mount of the plan shows.  Raises NotFound, OSError."""
    if mount.kind == "chain":
        stack = site.stack(mount.lowers)
        if mount.readonly:
            return site.overlaid(stack, trash)
        base = os.path.join(site.state, b"tmp", b"mount-" + uuid.uuid4().hex.encode())
        trash.append(base)
        upper, work = os.path.join(base, b"fs"), os.path.join(base, b"work")
        os.makedirs(upper, 0o755)
        os.mkdir(work, 0o700)
        os.chown(upper, site.shift, site.shift)
        return site.overlaid(stack, trash, upper=upper, work=work)
    if mount.kind == "cache":
        return _cache(site, mount)
    path = _socket(site, mount)
    try:
        return mounts.bind(path)
    finally:
        os.close(path)


def _is_fresh(site: Site, path: bytes) -> bool:
    """Is there no such cache yet?  One that main has made belongs to the daemon's user, which no sandbox has when
    ids are shifted."""
    try:
        return site.shift > 0 and os.stat(path, follow_symlinks=False).st_uid == 0
    except FileNotFoundError:
        return True


def _cache(site: Site, mount: spec.Mount) -> int:
    """A cache's directory; on first use it gets its owner and its mode.  One with a base was filled by then."""
    path = os.fsencode(mount.path)
    if _is_fresh(site, path):
        if mount.lowers:
            raise errors.NotFound(f"mount {mount.target}: the cache {mount.path} is not filled with its base yet")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mount.mode)
        _hand_over(site, mount, path)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return mounts.bind(fd)
    finally:
        os.close(fd)


def _hand_over(site: Site, mount: spec.Mount, path: bytes) -> None:
    """To the owner whom the mount names, with the mode."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not site.squash:
            os.fchown(fd, mount.uid + site.shift, mount.gid + site.shift)
        os.fchmod(fd, mount.mode)
    finally:
        os.close(fd)


def fill(site: Site, mount: spec.Mount) -> bool:
    """The first content of a cache mount that has a base: a copy of that, there whole or not at all; False: it was
    there already.  A job of its own, which takes as long as the base is large; one at a time for each cache.

    Raises NotFound (the base has no such directory), OSError."""
    path = os.fsencode(mount.path)
    if not _is_fresh(site, path):
        return False
    making = path + b".new"
    trees.discard(making)  # of a job that was ended
    os.mkdir(making, 0o700)
    try:
        _copy_base(site, mount, making)
        _hand_over(site, mount, making)
        trees.discard(path)  # main's: no sandbox ever had it
        os.rename(making, path)
    except BaseException:
        trees.discard(making)
        raise
    return True


def _copy_base(site: Site, mount: spec.Mount, into: bytes) -> None:
    target = os.open(into, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with site.rooted(mount.lowers) as root:
            source = mount.source.encode("utf-8", "surrogateescape") or b"."
            try:
                base = syscalls.open_in_root(root, source, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise errors.NotFound(
                    f"mount {mount.target}: source /{mount.source}: {error.strerror}"
                ) from None
            try:
                trees.copy_below(base, target)
            finally:
                os.close(base)
    finally:
        os.close(target)


def _socket(site: Site, mount: spec.Mount) -> int:
    """A path descriptor of a socket of ours, given to the one who is to use it."""
    fd = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.InvalidArgument(f"mount {mount.target}: {mount.path} is no socket")
    if not site.squash:
        os.chown(mount.path, mount.uid + site.shift, mount.gid + site.shift, follow_symlinks=False)
    os.chmod(mount.path, mount.mode)
    return fd


def stdio(null: int, plan: spec.Plan, fds: list[int]) -> list[int]:
    """stdin, stdout and stderr of a step; ``null`` is a descriptor of /dev/null."""
    if plan.tty:
        return [null, null, null]
    if len(fds) < 2:
        raise errors.InvalidArgument("run: descriptors for stdout and stderr wanted")
    stdin = fds[2] if len(fds) > 2 else null
    return [stdin, fds[0], fds[1]]


def files(site: Site, lease: NetnsLease, plan: spec.Plan) -> dict[str, str]:
    """What is shown over the image's own /etc/resolv.conf, /etc/hosts and /etc/hostname."""
    network = site.network or site.dormant
    if network is None:
        return {"/etc/hostname": f"{plan.hostname}\n"}
    hosts = network.hosts(lease, plan.hostname, plan.hosts)
    resolv = network.resolv_conf(lease.kind, plan.dns)
    return {
        "/etc/resolv.conf": resolv.decode("utf-8", "surrogateescape"),
        "/etc/hosts": hosts.decode("utf-8", "surrogateescape"),
        "/etc/hostname": f"{plan.hostname}\n",
    }
