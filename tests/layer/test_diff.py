"""Upper directories into layers."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.errors import InvalidArgument
from ocibuildd.layer import apply, compare, diff, remove, source, tar
from ocibuildd.layer.paths import Root

PLAIN = {"compression": "none", "level": -1, "clamp": None}
OLD, NEW = 1_600_000_000_123_456_789, 1_700_000_000_987_654_321


class Place:
    """A lower and an upper directory to work in."""

    def __init__(self, path: Path):
        self.path = path
        self.lower, self.upper = path / "lower", path / "upper"
        self.lower.mkdir()
        self.upper.mkdir()

    def put(self, name: str, data: bytes = b"", mtime_ns: int = OLD, lower: bool = False) -> Path:
        path = (self.lower if lower else self.upper) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        return path

    def whiteout(self, name: str) -> None:
        (self.upper / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(self.upper / name, stat.S_IFCHR | 0o600, 0)

    def diff(self, function=diff.diff_tree, **options):
        """(result, entries as {name: entry})."""
        out = os.open(self.path / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        upper = os.open(self.upper, os.O_RDONLY | os.O_DIRECTORY)
        lower = os.open(self.lower, os.O_RDONLY | os.O_DIRECTORY)
        try:
            packed = function(upper, lower, out, {**PLAIN, **options.pop("output", {})}, **options)
            return packed, entries(out)
        finally:
            for fd in (out, upper, lower):
                os.close(fd)


def entries(fd: int) -> dict[bytes, tar.Entry]:
    os.lseek(fd, 0, os.SEEK_SET)
    found = {}
    with source.LayerSource(fd) as layer:
        for entry in tar.entries(layer):
            layer.skip(entry.size + -entry.size % 512)
            found[entry.name] = entry
    return found


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_nothing_changed_is_an_empty_layer(place):
    place.put("d/f", lower=True)
    (place.upper / "d").mkdir()
    packed, _ = place.diff()
    assert packed["empty"] and packed["digest"] == "" and packed["entries"] == 0


def test_parents_of_a_change_are_in_the_layer(place):
    (place.lower / "a/b").mkdir(parents=True)
    place.put("a/b/f", b"new")
    _, found = place.diff()
    assert list(found) == [b"a/", b"a/b/", b"a/b/f"]


def test_a_file_that_was_only_copied_up_is_no_change(place):
    place.put("f", b"same", lower=True)
    place.put("f", b"same")
    assert place.diff()[0]["empty"]


@pytest.mark.parametrize("change", ["mode", "size", "time", "xattr", "bytes"])
def test_a_changed_file_is_found(place, change):
    whole = OLD // 10**9 * 10**9
    place.put("f", b"same", whole, lower=True)
    path = place.put("f", b"s4me" if change == "bytes" else b"longer" if change == "size" else b"same", whole)
    if change == "mode":
        path.chmod(0o600)
    if change == "time":
        os.utime(path, ns=(NEW, NEW))
    if change == "xattr":
        os.setxattr(path, "user.a", b"b")
    assert list(place.diff()[1]) == [b"f"]


def test_a_directorys_mode_is_a_change_and_its_time_is_none(place):
    for name in ("a", "b"):
        (place.lower / name).mkdir()
        (place.upper / name).mkdir()
    (place.upper / "a").chmod(0o700)
    os.utime(place.upper / "b", ns=(NEW, NEW))
    assert list(place.diff()[1]) == [b"a/"]


def test_a_removed_file_is_a_whiteout(place, inside):
    place.put("d/f", lower=True)
    inside(lambda: place.whiteout("d/f"))
    _, found = place.diff()
    assert list(found) == [b"d/", b"d/.wh.f"] and found[b"d/.wh.f"].size == 0


def test_a_whiteout_of_what_never_was_is_left_out(place, inside):
    inside(lambda: place.whiteout("f"))
    assert place.diff()[0]["empty"]


def test_a_whiteout_in_the_other_form_counts(place):
    place.put("f", lower=True)
    os.setxattr(place.put("f"), "user.overlay.whiteout", b"y")
    assert list(place.diff()[1]) == [b".wh.f"]


def test_an_opaque_directory_is_marked_and_all_of_it_is_new(place):
    place.put("d/f", b"x", lower=True)
    place.put("d/f", b"x")
    os.setxattr(place.upper / "d", "user.overlay.opaque", b"y")
    assert list(place.diff()[1]) == [b"d/", b"d/.wh..wh..opq", b"d/f"]


def test_an_opaque_directory_that_is_new_needs_no_mark(place):
    place.put("d/f")
    os.setxattr(place.upper / "d", "user.overlay.opaque", b"y")
    assert list(place.diff()[1]) == [b"d/", b"d/f"]


def test_hard_links_are_kept(place):
    os.link(place.put("a", b"data"), place.upper / "b")
    _, found = place.diff()
    assert (found[b"a"].size, found[b"b"].type, found[b"b"].link) == (4, tar.LINK, b"a")


def test_a_file_in_place_of_a_directory(place):
    place.put("d/f", lower=True)
    place.put("d", b"now a file")
    assert list(place.diff()[1]) == [b"d"]


def test_times_are_kept_to_the_nanosecond(place):
    place.put("f", mtime_ns=NEW)
    assert place.diff()[1][b"f"].mtime_ns == NEW


def test_times_are_clamped_when_asked(place):
    place.put("late", mtime_ns=NEW)
    place.put("early", mtime_ns=5)
    _, found = place.diff(output={"clamp": 1_650_000_000})
    assert (found[b"late"].mtime_ns, found[b"early"].mtime_ns) == (1_650_000_000 * 10**9, 5)


def test_sockets_are_left_out(place, monkeypatch):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(place.upper)
        server.bind("s")
    assert place.diff()[0]["empty"]


def test_a_name_that_would_be_a_whiteout_is_refused(place):
    place.put(".wh.f")
    with pytest.raises(InvalidArgument, match=r"\.wh\."):
        place.diff()


def test_skipped_paths_are_no_change(place):
    place.put("etc/resolv.conf", b"nameserver")
    place.put("etc/hosts", b"x")
    (place.lower / "etc").mkdir()
    assert list(place.diff(skip=[b"etc/resolv.conf"])[1]) == [b"etc/", b"etc/hosts"]
    assert place.diff(skip=[b"etc/resolv.conf", b"etc/hosts"])[0]["empty"]


def test_owners_and_capabilities_are_the_containers(place, inside):
    def work():
        path = place.put("f")
        os.chown(path, 1001, 51)
        os.setxattr(path, "security.capability", bytes.fromhex("0100000300200000000000000000000000000000") + b"\1\0\0\0")
        entry = place.diff(shift=1)[1][b"f"]
        return entry.uid, entry.gid, entry.xattrs

    uid, gid, xattrs = inside(work)
    assert (uid, gid) == (1000, 50)
    assert xattrs == {b"security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}


def test_escaped_overlay_xattrs_are_themselves_again(place):
    os.setxattr(place.put("f"), "user.overlay.overlay.opaque", b"z")
    assert place.diff()[1][b"f"].xattrs == {b"user.overlay.opaque": b"z"}


def test_the_content_digest_is_blind_to_times_only(place):
    path = place.put("f", b"x", OLD)
    first, _ = place.diff()
    os.utime(path, ns=(NEW, NEW))
    second, _ = place.diff()
    path.chmod(0o600)
    third, _ = place.diff()
    assert first["content"] == second["content"] != third["content"] and first["diff_id"] != second["diff_id"]


def test_a_deep_tree_is_walked(place):
    fd = os.open(place.upper, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir(b"d", dir_fd=fd)
        below = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert place.diff()[0]["entries"] == 1200
    assert remove.remove([str(place.upper / "d")])["files"] == 1200


@pytest.mark.parametrize("size", [4, 6])
def test_a_file_that_changes_while_it_is_read_is_refused(place, monkeypatch, size):
    place.put("f", b"12345")
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: b"x" * size if count == 6 else real(fd, count))
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(InvalidArgument, match=r"shorter|grew"):
        place.diff()


# --- two whole roots (no overlayfs)


def test_the_difference_of_two_roots_is_the_same_layer(place, inside):
    place.put("kept", b"k", lower=True)
    place.put("d/gone", b"g", lower=True)
    place.put("kept", b"k")
    place.put("d/new", b"n")
    _, found = place.diff(compare.diff_roots)
    assert list(found) == [b"d/", b"d/.wh.gone", b"d/new"]


def test_changes_are_listed_for_people(place):
    place.put("d/gone", b"gone", lower=True)
    place.put("changed", b"1", lower=True)
    place.put("changed", b"22")
    place.put("new/f", b"333")
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (place.lower, place.upper)]
    listed = compare.compare(*fds)["changes"]
    for fd in fds:
        os.close(fd)
    assert listed == [
        ["changed", "/changed", 2], ["removed", "/d", 0], ["removed", "/d/gone", 4],
        ["added", "/new", 0], ["added", "/new/f", 3],
    ]


# --- there and back

component = st.sampled_from([b"a", b"b", b"c.txt", b"\xff", b"n" * 120])
paths = st.lists(component, min_size=1, max_size=3).map(b"/".join)
member = st.one_of(
    st.tuples(st.just(tar.REGULAR), paths, st.binary(max_size=2000), st.integers(0, 0o7777), st.integers(0, 2**61)),
    st.tuples(st.just(tar.DIRECTORY), paths, st.just(b""), st.integers(0, 0o7777), st.integers(0, 2**61)),
    st.tuples(st.just(tar.SYMLINK), paths, paths, st.just(0o777), st.integers(0, 2**61)),
)


def snapshot(path: bytes) -> list[tuple[object, ...]]:
    """All that a tree is."""
    found: list[tuple[object, ...]] = []
    for top, directories, files in os.walk(path):
        for name in sorted([*directories, *files]):
            full = os.path.join(top, name)
            status = os.lstat(full)
            data: object = None
            if stat.S_ISREG(status.st_mode):
                data = Path(os.fsdecode(full)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                data = os.readlink(full)
            found.append((full[len(path):], status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, data))
    return sorted(found, key=lambda item: item[0])  # type: ignore[arg-type,return-value]


def apply_bytes(data: bytes, path: bytes) -> None:
    os.mkdir(path)
    tree = os.open(path, os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        apply.apply_layer(file.fileno(), tree)
    os.close(tree)


def diff_bytes(path: bytes) -> bytes:
    tree = os.open(path, os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        packed = diff.diff_tree(tree, None, file.fileno(), PLAIN)  # type: ignore[arg-type]
        os.close(tree)
        return os.pread(file.fileno(), packed["tar_size"], 0)


def there_and_back(members) -> bool:
    data = b""
    for kind, name, body, mode, mtime_ns in members:
        link = body if kind == tar.SYMLINK else b""
        body = b"" if link else body
        data += tar.header(name, kind, mode, 0, 0, len(body), mtime_ns, link) + body + tar.padding(len(body))
    top = os.fsencode(tempfile.mkdtemp())
    try:
        try:
            apply_bytes(data + tar.END, top + b"/one")
        except InvalidArgument:
            return True  # a file below a file
        layer = diff_bytes(top + b"/one")
        if layer:
            apply_bytes(layer, top + b"/two")
            assert snapshot(top + b"/one") == snapshot(top + b"/two")
            return diff_bytes(top + b"/two") == layer
        return os.listdir(top + b"/one") == []
    finally:
        remove.remove([top])


@settings(max_examples=60, deadline=None)
@given(st.lists(member, max_size=8))
def test_a_tree_survives_diff_and_apply(members):
    if os.geteuid():
        members = [(kind, name, body, mode | 0o700, time) for kind, name, body, mode, time in members]
        assert apply_squashed(members)
    else:
        assert there_and_back(members)


def apply_squashed(members) -> bool:
    """The same for an ordinary user, who can't give files away."""
    real = apply.apply_layer
    try:
        apply.apply_layer = lambda fd, tree: real(fd, tree, squash=True)  # type: ignore[assignment]
        return there_and_back(members)
    finally:
        apply.apply_layer = real


def test_looking_up_stops_at_the_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/s").symlink_to("../..")
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    root = Root(fd)
    assert root.resolve(b"s/s/x") == b"x" and root.read(b"s/../../etc/passwd", 100) is None
    os.close(fd)
