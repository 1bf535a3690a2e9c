"""A selection that was walked once: packed from the scan, with known digests, with kept segments."""

from __future__ import annotations

import os

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.layer import checksum, copy, scan, select, sink
from ocibuildd.layer.fingerprints import Fingerprints
from ocibuildd.layer.scan import Scan
from ocibuildd.layer.sink import Reuse

SPEC = {
    "dest": "/app/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": None,
    "is_add": False, "epoch": 0,
}
GZIP = {"compression": "gzip", "level": -1, "clamp": None}


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("ocibuildd.layer.fingerprints.RACY_NS", -(10**18))
    top = tmp_path / "context"
    for number in range(30):
        path = top / f"d{number % 7}" / "e" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number * (number * 1000))
    (top / "big").write_bytes(os.urandom(1 << 20) + b"tail" * 300_000)
    os.link(top / "d1" / "e" / "f1", top / "d1" / "again")
    (top / "link").symlink_to("d1/e")
    (top / "empty").mkdir()
    return top


def scanned(context, spec=SPEC, paths=(".",), **more):
    """A source with its scan, as a job gets it."""
    fd = os.open(context, os.O_PATH | os.O_DIRECTORY)
    walked = Scan()
    files = select.Source(fd=fd, paths=paths, **more)
    checksum.checksum(files, spec, fingerprints=Fingerprints(), scan=walked)
    scan_fd = walked.memfd()
    try:
        return select.Source(fd=fd, paths=paths, scan=Scan.read(scan_fd), **more)
    finally:
        os.close(scan_fd)


@pytest.mark.parametrize("batch", [1, 7])
def test_how_many_files_are_digested_at_a_time_changes_nothing(context, monkeypatch, batch):
    fd = os.open(context, os.O_PATH | os.O_DIRECTORY)
    source = select.Source(fd=fd, paths=(".", "d1", "big"))
    whole = checksum.checksum(source, SPEC)
    for module in (checksum, scan):
        monkeypatch.setattr(module, "BATCH", batch)
    assert checksum.checksum(source, SPEC) == whole
    assert scan.stamp(select.Selector(source, SPEC).run()) == whole["stamp"]
    os.close(fd)


def packed(context, source, spec=SPEC, **more):
    path = context.parent / "layer"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return copy.pack([source], spec, None, fd, GZIP, **more), path.read_bytes()
    finally:
        os.close(fd)


def walked(source):
    return select.Source(fd=source.fd, paths=source.paths, ignore=source.ignore)


@pytest.mark.parametrize(("changes", "more"), [
    ({}, {}), ({"parents": True}, {"paths": ("d1", "d2/e/f2")}), ({}, {"ignore": ("d3", "*/e/f1*")}),
    ({"exclude": ["**/f2*"], "chown": "7:8"}, {}), ({}, {"paths": ("d*", "link", "big")}),
])  # fmt: skip
def test_a_pack_from_a_scan_is_the_same_as_one_that_walks(context, changes, more):
    spec = SPEC | changes
    source = scanned(context, spec, **more)
    assert packed(context, source, spec) == packed(context, walked(source), spec)


def test_threads_scans_and_kept_segments_all_give_the_same_bytes(context, monkeypatch):
    source = scanned(context)
    first = Reuse()
    results = [packed(context, source, reuse=first)]
    (context.parent / "blob").write_bytes(results[0][1])
    with (context.parent / "blob").open("rb") as file:
        for threads in (1, 2, 4):
            monkeypatch.setattr(sink, "THREADS", threads)
            monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
            results += [packed(context, source), packed(context, walked(source))]
            results.append(packed(context, source, reuse=Reuse(first.made, file.fileno())))
    assert all(result == results[0] for result in results)


def test_segments_are_kept_without_hashing_what_is_known(context):
    source = scanned(context)
    first = Reuse()
    plain = packed(context, source, reuse=first)
    blob = context.parent / "blob"
    blob.write_bytes(plain[1])
    with blob.open("rb") as file:
        second = Reuse(first.made, file.fileno())
        assert packed(context, source, reuse=second) == plain
    assert second.kept == len(first.made) > 3


@pytest.mark.parametrize("name", ["d1/e/f8", "big", "link"])
def test_a_file_that_changed_since_the_scan_is_an_error(context, name):
    source = scanned(context)
    path = context / name
    if path.is_symlink():
        path.unlink()
        path.symlink_to("d2/e")
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(InvalidArgument, match="changed"):
        packed(context, source)


def test_files_with_xattrs_keep_them_though_they_are_known(context):
    path = context / "d1" / "e" / "f8"
    try:
        os.setxattr(path, "user.a", b"b")
    except OSError:
        pytest.skip("no xattrs on this file system")
    source = scanned(context)
    assert packed(context, source) == packed(context, walked(source))


def test_a_tree_deeper_than_directories_are_kept_open(context):
    deep = context / "/".join(["d"] * (select.MAX_OPEN * 2))
    deep.mkdir(parents=True)
    (deep / "f").write_text("x")
    source = scanned(context)
    before = len(os.listdir("/proc/self/fd"))
    assert packed(context, source)[0]["entries"] == 50 + select.MAX_OPEN * 2
    assert len(os.listdir("/proc/self/fd")) == before
