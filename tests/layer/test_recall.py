"""The digest of a selection that was made before: recalled where nothing changed, forgotten where anything did."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.layer import recall
from ocibuildd.layer.checksum import checksum
from ocibuildd.layer.fingerprints import now, settled
from ocibuildd.layer.scan import Scan
from ocibuildd.layer.select import Source

SPEC = {
    "dest": "/app/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": None,
    "is_add": False, "epoch": 0,
}
LONG_AGO = -(10**18)


@pytest.fixture(autouse=True)
def nothing_is_racy(monkeypatch):
    monkeypatch.setattr("ocibuildd.layer.fingerprints.RACY_NS", LONG_AGO)


def make(top: Path) -> Path:
    for name in ("a", "d/b", "d/e/c", "d/e/x.log", "hidden/in/there", "hidden/kept"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (top / "link").symlink_to("d")
    (top / "d" / "up").symlink_to("../a")
    return top


@pytest.fixture
def context(tmp_path):
    return make(tmp_path / "context")


def digested(context, spec=SPEC, paths=(".",), ignore=()):
    source = Source(fd=os.open(context, os.O_PATH | os.O_DIRECTORY), paths=tuple(paths), ignore=tuple(ignore))
    scan, started = Scan(), now()
    try:
        return checksum(source, spec, scan=scan), scan, started
    finally:
        os.close(source.fd)


def remembered(context, spec=SPEC, **more):
    """A descriptor of the memory; None: there is none."""
    found, scan, started = digested(context, spec, **more)
    memory = os.memfd_create("memory")
    kept = recall.remember(memory, started, found, scan, scan.dump())
    next_tick(context.with_name("probe"))
    return memory if kept else None


def next_tick(probe: Path) -> None:
    """Wait until what is written has other times than what was written before."""
    probe.write_text("")
    now = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == now:
        time.sleep(0.001)
        probe.write_text("")


def recalled(memory, context, spec=SPEC, paths=(".",), ignore=()):
    fd = os.open(context, os.O_PATH | os.O_DIRECTORY)
    try:
        return recall.recall(memory, Source(fd=fd, paths=tuple(paths), ignore=tuple(ignore)), spec)
    finally:
        os.close(fd)


SELECTIONS = [
    {}, {"paths": ["d", "a"]}, {"paths": ["*"]}, {"paths": ["link/e"]}, {"ignore": ["hidden", "!hidden/kept"]},
    {"ignore": ["**/*.log"]}, {"spec": {**SPEC, "exclude": ["e"]}}, {"spec": {**SPEC, "parents": True}, "paths": ["d/./e"]},
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_what_did_not_change_is_recalled_as_it_was_digested(context, selection):
    memory = remembered(context, **selection)
    assert memory is not None
    assert recalled(memory, context, **selection) == digested(context, **selection)[0]


def rewrite(path: Path) -> None:
    """Other bytes, the same size and mtime."""
    before = path.stat()
    path.write_bytes(b"#" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def turn(path: Path) -> None:
    """A file becomes a directory with a file."""
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("")


def point(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def swap(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


CHANGES = {
    "rewritten": lambda top: rewrite(top / "d/e/c"),
    "added": lambda top: (top / "d/e/new").write_text("new"),
    "removed": lambda top: (top / "d/b").unlink(),
    "mode": lambda top: (top / "d/b").chmod(0o600),
    "mode of a directory": lambda top: (top / "d/e").chmod(0o700),
    "renamed": lambda top: (top / "d/e/c").rename(top / "d/e/cc"),
    "swapped": lambda top: swap(top / "a", top / "d/b"),
    "symlink": lambda top: point(top / "d/up", "../b"),
    "directory for file": lambda top: turn(top / "d/b"),
    "directory removed": lambda top: shutil.rmtree(top / "d/e"),
    "empty directory": lambda top: (top / "d/empty").mkdir(),
    "hard link": lambda top: os.link(top / "a", top / "d/again"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_recalled_after_a_change(context, change):
    memory = remembered(context)
    CHANGES[change](context)
    assert recalled(memory, context) is None


def test_a_symlink_on_the_way_to_what_is_named_counts(context):
    memory = remembered(context, paths=["link/e"])
    shutil.copytree(context / "d", context / "other")
    point(context / "link", "other")
    assert recalled(memory, context, paths=["link/e"]) is None


def test_a_new_match_of_a_wildcard_counts(context):
    memory = remembered(context, paths=["d/*"])
    (context / "d" / "bb").write_text("")
    assert recalled(memory, context, paths=["d/*"]) is None


def test_what_is_ignored_may_change(context):
    ignore = ["**/*.log", "hidden"]
    memory = remembered(context, ignore=ignore)
    (context / "d/e/x.log").write_text("longer than before")
    (context / "hidden/in/more").write_text("")
    assert recalled(memory, context, ignore=ignore) == digested(context, ignore=ignore)[0]


def test_an_ignored_file_that_becomes_a_directory_with_an_exception_counts(context):
    ignore = ["*", "!odd/kept"]
    (context / "odd").write_text("a file")
    memory = remembered(context, ignore=ignore)
    turn(context / "odd")
    assert memory is not None and recalled(memory, context, ignore=ignore) is None


def test_a_directory_below_a_hidden_one_that_has_nothing_to_show_counts(context):
    ignore = ["hidden", "!hidden/*/shown"]
    memory = remembered(context, ignore=ignore)
    (context / "hidden/in/shown").write_text("")
    assert memory is not None and recalled(memory, context, ignore=ignore) is None


def test_a_selection_that_was_just_written_is_not_remembered(context, monkeypatch):
    monkeypatch.setattr("ocibuildd.layer.fingerprints.RACY_NS", 3600 * 10**9)
    assert remembered(context) is None


def test_a_directory_that_was_just_written_is_racy_too(context):
    found, scan, started = digested(context)
    directories = [found.status for match in scan.matches for found in match.files if stat.S_ISDIR(found.status.st_mode)]
    oldest = min(status.st_ctime_ns for status in directories)
    racy = os.memfd_create("memory")
    assert not recall.remember(racy, oldest + LONG_AGO, found, scan, b"")
    assert settled(directories[0], started)


def test_a_selection_that_misses_something_is_not_remembered(context):
    assert remembered(context, paths=["a", "nowhere"]) is None


@pytest.mark.parametrize("at", [0, 30, 60, 200])
def test_a_damaged_memory_is_none(context, at):
    memory = remembered(context)
    os.pwrite(memory, bytes([os.pread(memory, 1, at)[0] ^ 1]), at)
    assert recalled(memory, context) is None


def test_a_memory_that_was_cut_off_is_none(context):
    memory = remembered(context)
    size = os.fstat(memory).st_size
    os.ftruncate(memory, size - 1)
    assert recall.scan_at(memory) is None
    os.ftruncate(memory, 100)
    assert recalled(memory, context) is None


def test_a_memory_has_the_scan_as_it_was(context):
    memory = remembered(context)
    at, size = recall.scan_at(memory)
    assert len(Scan.load(os.pread(memory, size, at)).matches[0].files) == len(digested(context)[1].matches[0].files)


def test_a_disk_that_is_full_gives_no_memory(context):
    found, scan, started = digested(context)
    with open("/dev/full", "wb", buffering=0) as full:
        assert not recall.remember(full.fileno(), started, found, scan, scan.dump())


NAMES = st.sampled_from(["a", "d", "d/b", "d/e", "d/e/c", "link", "hidden/kept", "n", "d/n", "\udcff"])
STEPS = st.lists(st.tuples(st.sampled_from(["write", "remove", "mkdir", "link", "rename", "touch"]), NAMES, NAMES), max_size=4)


def do(top: Path, what: str, name: str, other: str) -> None:
    path = top / name
    with contextlib.suppress(OSError):
        match what:
            case "write":
                path.write_bytes(os.fsencode(other))
            case "remove":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case "mkdir":
                path.mkdir()
            case "link":
                path.symlink_to(other)
            case "rename":
                path.rename(top / other)
            case "touch":
                os.utime(path, (0, 0), follow_symlinks=False)


@settings(max_examples=30)
@given(steps=STEPS, before=STEPS, selection=st.sampled_from(SELECTIONS))
def test_what_is_recalled_is_what_is_there(steps, before, selection):
    with tempfile.TemporaryDirectory() as directory:
        context = make(Path(directory) / "context")
        for step in before:
            do(context, *step)
        memory = remembered(context, **selection)
        for step in steps:
            do(context, *step)
        if memory is not None:
            known = recalled(memory, context, **selection)
            os.close(memory)
            assert known is None or known == digested(context, **selection)[0]
