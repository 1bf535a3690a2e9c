"""Tars, trees and a process that may own other ids, for the tests of layers."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ocibuildd import syscalls
from ocibuildd.errors import BuildError
from ocibuildd.layer import apply as layer_apply
from ocibuildd.layer import tar
from ocibuildd.sandbox import userns

settings.register_profile("here", database=None, deadline=None)  # no .hypothesis directory is left behind
settings.load_profile("here")

MTIME = 1_700_000_000_123_456_789


def make_tar(members: Iterable[tuple[Any, ...]]) -> bytes:
    """Members as (name, kind[, options]); ``data`` and ``raw`` (a whole header) are options beside ``tar.header``'s."""
    out = []
    for name, kind, *more in members:
        options: dict[str, Any] = {"mode": 0o755 if kind == tar.DIRECTORY else 0o644, "uid": 0, "gid": 0}
        options |= {"mtime_ns": MTIME, "link": b"", "xattrs": None, "data": b""} | (more[0] if more else {})
        data = options.pop("data")
        out.append(tar.header(name, kind, size=options.pop("size", len(data)), **options))
        out.append(data + tar.padding(len(data)))
    return b"".join(out) + tar.END


@pytest.fixture
def tarball(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """A descriptor of a file that holds a tar of the given members (or the given bytes)."""
    opened = []

    def make(*members: Any) -> int:
        path = tmp_path / f"layer{len(opened)}.tar"
        whole = members[0] if members and isinstance(members[0], bytes) else make_tar(members)
        path.write_bytes(whole)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    yield make
    for fd in opened:
        os.close(fd)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """A descriptor of a new directory below tmp_path, by name."""
    opened = []

    def make(name: str) -> int:
        (tmp_path / name).mkdir(exist_ok=True)
        opened.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
        return opened[-1]

    yield make
    for fd in opened:
        os.close(fd)


def _inside(work: Callable[[], Any]) -> Any:
    """``work`` in a child that is root of a user namespace (as nsd's jobs are), or here when we are root."""
    return work() if os.geteuid() == 0 else _apart(work)


def _apart(work: Callable[[], Any], *, mounts: bool = False) -> Any:
    """The same, always in a child; ``mounts``: with a mount namespace of its own."""
    plan = userns.discover()
    if plan.mode == "single":
        pytest.skip("no subordinate ids here")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid():
                userns.enter(plan)
            if mounts:
                syscalls.unshare(syscalls.CLONE_NEWNS)
            answer = (True, work())
        except BuildError as error:
            answer = (False, (type(error), error.message))
        except BaseException:
            answer = (False, (RuntimeError, traceback.format_exc()))
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        fine, value = pickle.load(pipe)
    os.waitpid(pid, 0)
    if fine:
        return value
    raise value[0](value[1])


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Runs a function where other ids may be owned; what it leaves is deleted the same way."""
    from ocibuildd.layer.remove import remove

    yield _inside
    names = [str(tmp_path / name) for name in os.listdir(tmp_path)]
    _inside(lambda: remove(names))


@pytest.fixture
def mounting() -> Callable[[Callable[[], Any]], Any]:
    """Runs a function where file systems may be mounted."""
    return lambda work: _apart(work, mounts=True)


@pytest.fixture
def applied(tarball, directory, inside, tmp_path):
    """Applies a layer of the given members to a new tree; (result, path of the tree, look).

    ``look(function)`` calls a function where the tree's files may be read."""

    def run(*members: Any, root: int | None = None, name: str = "tree", **options: Any) -> Any:
        source, tree = tarball(*members), directory(name)
        return inside(lambda: layer_apply.apply_layer(source, tree, root=root, **options))

    return run
