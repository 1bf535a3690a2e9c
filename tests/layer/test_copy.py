"""COPY, ADD and WORKDIR: what lands where, with which metadata."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from ocibuildd.errors import BuildError, InvalidArgument, NotFound
from ocibuildd.layer import checksum, copy, select, source, tar
from ocibuildd.layer.fingerprints import Fingerprints

EPOCH = 1_500_000_000
PLAIN = {"compression": "none", "level": -1, "clamp": None}
MTIME = 1_600_000_000 * 10**9 + 5


def spec(dest, **changes):
    base = {
        "dest": dest, "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": False,
        "is_add": False, "epoch": EPOCH,
    }
    return base | changes


class Place:
    """A context and a root file system to copy into."""

    def __init__(self, path: Path):
        self.path = path
        self.context, self.root = path / "context", path / "root"
        self.context.mkdir()
        self.root.mkdir()

    def file(self, name, data=b"data", mode=0o644, root=False):
        path = (self.root if root else self.context) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        os.utime(path, ns=(MTIME, MTIME))
        return path

    def tree(self, *names):
        for name in names:
            if name.endswith("/"):
                (self.context / name).mkdir(parents=True, exist_ok=True)
            else:
                self.file(name)
        return self

    def pack(self, dest, *paths, ignore=(), inline=(), scratch=True, owned=False, output=None, **changes):
        """(result, {name: entry}, {name: data})."""
        context = os.open(self.context, os.O_PATH | os.O_DIRECTORY)
        root = None if scratch else os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        out = os.open(self.path / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            files = select.Source(fd=context, paths=paths, ignore=ignore, inline=inline, owned=owned)
            packed = copy.pack([files], spec(dest, **changes), root, out, {**PLAIN, **(output or {})})
            return packed, *contents(out)
        finally:
            for fd in (context, out, root):
                if fd is not None:
                    os.close(fd)

    def names(self, dest, *paths, **changes):
        return [os.fsdecode(name) for name in self.pack(dest, *paths, **changes)[1]]


def contents(fd):
    os.lseek(fd, 0, os.SEEK_SET)
    entries, data = {}, {}
    with source.LayerSource(fd) as layer:
        for entry in tar.entries(layer):
            entries[entry.name] = entry
            data[entry.name] = b"".join(bytes(view) for view in layer.views(entry.size))
            layer.skip(-entry.size % 512)
    return entries, data


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


TREE = ("a.txt", "b.txt", "c.md", "dir/x.txt", "dir/sub/y.txt", "dir/empty/", "dir2/z.txt", ".dot")

RULES = [
    # dest, sources, what is in the layer
    ("/", ["a.txt"], ["a.txt"]),
    ("/new", ["a.txt"], ["new"]),
    ("/new/", ["a.txt"], ["new/", "new/a.txt"]),
    ("/one/two/three", ["a.txt"], ["one/", "one/two/", "one/two/three"]),
    ("/d", ["dir"], ["d/", "d/empty/", "d/sub/", "d/sub/y.txt", "d/x.txt"]),
    ("/d/", ["dir/"], ["d/", "d/empty/", "d/sub/", "d/sub/y.txt", "d/x.txt"]),
    ("/d/", ["dir/sub", "dir2"], ["d/", "d/y.txt", "d/z.txt"]),
    ("/d/", ["../../a.txt"], ["d/", "d/a.txt"]),
    ("/d/", ["/dir/../a.txt"], ["d/", "d/a.txt"]),
    ("/d/", ["*.txt"], ["d/", "d/a.txt", "d/b.txt"]),
    ("/d/", ["d*/*.txt"], ["d/", "d/x.txt", "d/z.txt"]),
    ("/d/", ["dir*"], ["d/", "d/empty/", "d/sub/", "d/sub/y.txt", "d/x.txt", "d/z.txt"]),
    ("/d/", ["[ab].txt", "?.md"], ["d/", "d/a.txt", "d/b.txt", "d/c.md"]),
    ("/d/", ["nothing*"], []),
    ("/d/", ["**/y.txt"], []),
    ("/", ["."], [".dot", "a.txt", "b.txt", "c.md", "dir/", "dir/empty/", "dir/sub/", "dir/sub/y.txt", "dir/x.txt", "dir2/", "dir2/z.txt"]),
]


@pytest.mark.parametrize(("dest", "paths", "expected"), RULES)
def test_files_land_where_buildkit_puts_them(place, dest, paths, expected):
    assert place.tree(*TREE).names(dest, *paths) == expected


PARENTS = [
    (["dir/sub/y.txt"], ["p/", "p/dir/", "p/dir/sub/", "p/dir/sub/y.txt"]),
    (["./dir/sub/y.txt", "dir2/z.txt"], ["p/", "p/dir/", "p/dir/sub/", "p/dir/sub/y.txt", "p/dir2/", "p/dir2/z.txt"]),
    (["dir/./sub/y.txt"], ["p/", "p/sub/", "p/sub/y.txt"]),
    (["dir/./sub"], ["p/", "p/sub/", "p/sub/y.txt"]),
    (["**/*.txt"], ["p/", "p/a.txt", "p/b.txt", "p/dir/", "p/dir/sub/", "p/dir/sub/y.txt", "p/dir/x.txt", "p/dir2/", "p/dir2/z.txt"]),
    (["dir/./**/y.txt"], ["p/", "p/sub/", "p/sub/y.txt"]),
    (["d*/x.txt"], ["p/", "p/dir/", "p/dir/x.txt"]),
    (["d*/./*.txt"], ["p/", "p/x.txt", "p/z.txt"]),
    (["d*/./**/y.txt", "nope*/./a", "d*/./nope"], ["p/", "p/sub/", "p/sub/y.txt"]),
    (["nope*"], ["p/"]),
]


@pytest.mark.parametrize(("paths", "expected"), PARENTS)
def test_parents_are_kept_from_the_pivot_on(place, paths, expected):
    assert place.tree(*TREE).names("/p/", *paths, parents=True) == expected


PARENTS_WITHOUT = [
    (["sub"], ["dir"], ["dir/", "dir/empty/", "dir/sub/", "dir/sub/y.txt", "dir/x.txt"]),
    (["dir/sub"], ["dir"], ["dir/", "dir/empty/", "dir/x.txt"]),
    (["sub"], ["dir/./sub", "dir/./x.txt"], ["x.txt"]),
    (["dir/x.txt"], ["dir/x.txt", "a.txt"], ["a.txt"]),
    (["**/*.txt"], ["dir"], ["dir/", "dir/empty/", "dir/sub/"]),
    (["dir", "!dir/sub/y.txt"], ["dir"], ["dir/", "dir/sub/", "dir/sub/y.txt"]),
]


@pytest.mark.parametrize(("exclude", "paths", "expected"), PARENTS_WITHOUT)
def test_with_parents_exclude_is_relative_to_the_pivot(place, exclude, paths, expected):
    found = place.tree(*TREE).names("/p/", *paths, parents=True, exclude=exclude)
    assert found == ["p/"] + ["p/" + name for name in expected]


FILTERED = [
    # ignore, exclude, sources, names below /d
    (["*.txt"], [], ["."], [".dot", "c.md", "dir/", "dir/empty/", "dir/sub/", "dir/sub/y.txt", "dir/x.txt", "dir2/", "dir2/z.txt"]),
    (["**/*.txt"], [], ["."], [".dot", "c.md", "dir/", "dir/empty/", "dir/sub/", "dir2/"]),
    (["*", "!dir/sub"], [], ["."], ["dir/", "dir/sub/", "dir/sub/y.txt"]),
    (["dir", "!dir/x.txt"], [], ["dir"], ["x.txt"]),
    (["dir/sub"], [], ["dir"], ["empty/", "x.txt"]),
    ([], ["*.txt"], ["dir"], ["empty/", "sub/", "sub/y.txt"]),
    ([], ["**/*.txt"], ["dir"], ["empty/", "sub/"]),
    ([], ["sub"], ["dir"], ["empty/", "x.txt"]),
    ([], ["b*"], ["*.txt"], ["a.txt"]),
    ([], ["*", "!sub/y.txt"], ["dir"], ["sub/", "sub/y.txt"]),
    ([], ["*"], ["dir*"], []),
    ([], ["*.txt"], ["dir*"], ["empty/", "sub/", "sub/y.txt"]),
]


@pytest.mark.parametrize(("ignore", "exclude", "paths", "expected"), FILTERED)
def test_patterns_hide_files(place, ignore, exclude, paths, expected):
    found = place.tree(*TREE).names("/d/", *paths, ignore=tuple(ignore), exclude=exclude)
    assert found == ["d/"] + ["d/" + name for name in expected]


def test_a_missing_source_is_named_with_its_neighbours(place):
    with pytest.raises(NotFound, match=r'"/a\.tx": not found') as caught:
        place.tree(*TREE).pack("/", "a.tx")
    assert "a.txt" in caught.value.hint


def test_a_hidden_source_names_the_pattern(place):
    with pytest.raises(NotFound, match=r"the \.dockerignore pattern '\*\.md' hides it"):
        place.tree(*TREE).pack("/", "c.md", ignore=("*.md",))


def test_a_hidden_directory_with_nothing_to_show_is_missing(place):
    with pytest.raises(NotFound, match="hides it"):
        place.tree(*TREE).pack("/", "dir", ignore=("dir", "!dir/nothing"))


# --- symlinks


def test_the_named_symlink_is_followed_and_others_are_kept(place):
    place.tree("dir/x.txt")
    (place.context / "link").symlink_to("dir/x.txt")
    (place.context / "dir/inner").symlink_to("/etc/passwd")
    assert place.pack("/f", "link")[2] == {b"f": b"data"}
    assert place.pack("/d/", "dir")[1][b"d/inner"].link == b"/etc/passwd"


def test_a_symlink_to_a_directory_gives_its_contents(place):
    place.tree("dir/x.txt")
    (place.context / "link").symlink_to("dir")
    assert place.names("/d/", "link") == ["d/", "d/x.txt"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd"])
def test_a_symlink_out_of_the_context_stays_inside(place, target):
    (place.context / "s").symlink_to(target)
    with pytest.raises(NotFound):
        place.pack("/", "s")
    place.file("etc/passwd", b"the context's own")
    assert place.pack("/f", "s")[2] == {b"f": b"the context's own"}


def test_symlinks_of_the_destination_are_followed_in_its_root(place):
    place.tree("a.txt")
    (place.root / "real").mkdir()
    (place.root / "link").symlink_to("/real")
    assert place.names("/link/", "a.txt", scratch=False) == ["real/", "real/a.txt"]


def test_a_destination_symlink_out_of_the_root_is_clamped(place):
    place.tree("a.txt")
    (place.root / "up").symlink_to("../../../..")
    assert place.names("/up/x/", "a.txt", scratch=False) == ["x/", "x/a.txt"]


def test_link_follows_nothing_in_the_destination(place):
    place.tree("a.txt")
    (place.root / "link").symlink_to("/real")
    assert place.names("/link/", "a.txt", scratch=False, link=True) == ["link/", "link/a.txt"]


def test_a_file_replaces_the_symlink_of_its_name(place):
    place.tree("dir/f")
    (place.root / "f").symlink_to("/elsewhere")
    assert place.names("/", "dir", scratch=False) == ["f"]


# --- conflicts


def test_a_file_does_not_replace_a_directory(place):
    place.tree("dir/f")
    (place.root / "f").mkdir()
    with pytest.raises(InvalidArgument, match="cannot replace to directory /f with file"):
        place.pack("/", "dir", scratch=False)


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a_directory_does_not_replace_anything_else(place, kind):
    place.tree("dir/f/g")
    if kind == "file":
        place.file("f", root=True)
    else:
        (place.root / "f").symlink_to("/")
    with pytest.raises(InvalidArgument, match="cannot copy to non-directory: /f"):
        place.pack("/", "dir", scratch=False)


# --- metadata


def test_parents_that_are_there_keep_their_metadata(place):
    place.tree("a.txt")
    (place.root / "opt").mkdir(mode=0o700)
    os.utime(place.root / "opt", ns=(7, 7))
    entry = place.pack("/opt/new/", "a.txt", scratch=False, chown="5:6", owned=False)[1]
    assert (entry[b"opt/"].mode, entry[b"opt/"].mtime_ns) == (0o700, 7)
    assert (entry[b"opt/new/"].mode, entry[b"opt/new/"].uid, entry[b"opt/new/"].mtime_ns) == (0o755, 5, EPOCH * 10**9)


def test_files_of_a_context_are_roots_and_keep_mode_and_time(place):
    place.file("f", mode=0o4711)
    entry = place.pack("/", "f", epoch=None)[1][b"f"]
    assert (entry.uid, entry.gid, entry.mode, entry.mtime_ns) == (0, 0, 0o4711, MTIME)


def test_with_an_epoch_everything_that_is_copied_has_its_time(place):
    place.tree("dir/sub/f")
    (place.context / "dir/l").symlink_to("sub")
    entries = place.pack("/new/", "dir")[1]
    assert {entry.mtime_ns for entry in entries.values()} == {EPOCH * 10**9} and len(entries) == 4


def test_files_of_a_stage_keep_their_owner(place):
    path = place.file("f")
    entry = place.pack("/", "f", owned=True)[1][b"f"]
    assert (entry.uid, entry.gid) == (path.stat().st_uid, path.stat().st_gid)


CHMOD = [("600", 0o600, 0o600), ("u=rwX,go=rX", 0o644, 0o755), ("a+x", 0o755, 0o755), ("go-rwx", 0o600, 0o700), ("4755", 0o4755, 0o4755)]


@pytest.mark.parametrize(("chmod", "file", "directory"), CHMOD)
def test_chmod_changes_files_and_directories_below(place, chmod, file, directory):
    place.tree("dir/sub/f")
    (place.context / "dir/sub").chmod(0o755)
    (place.root / "d").mkdir(mode=0o755)
    entry = place.pack("/d/", "dir", chmod=chmod, scratch=False)[1]
    assert (entry[b"d/sub/f"].mode, entry[b"d/sub/"].mode, entry[b"d/"].mode) == (file, directory, 0o755)


@pytest.mark.parametrize(("chmod", "made"), [("", 0o755), ("640", 0o640), ("4777", 0o777), ("u=rwX,go=", 0o755)])
def test_directories_made_on_the_way_take_an_octal_chmod(place, chmod, made):
    entry = place.tree("f").pack("/new/sub/", "f", chmod=chmod)[1]
    assert (entry[b"new/"].mode, entry[b"new/sub/"].mode) == (made, made)


CHOWN = [("1", 1, 1), ("1:2", 1, 2), ("lp", 7, 9), ("lp:adm", 7, 4), ("3:adm", 3, 4), ("lp:", 7, 0), ("1:", 1, 0), (":2", 0, 2)]


@pytest.mark.parametrize(("chown", "uid", "gid"), CHOWN)
@pytest.mark.parametrize("link", [False, True])
def test_chown_names_are_the_images_own(place, chown, uid, gid, link):
    place.file("etc/passwd", b"root:x:0:0::/:/bin/sh\nlp:x:7:9:lp:/:/bin/sh\n", root=True)
    place.file("etc/group", b"root:x:0:\nadm:x:4:\n", root=True)
    entry = place.tree("a").pack("/", "a", chown=chown, scratch=False, link=link)[1][b"a"]
    assert (entry.uid, entry.gid) == (uid, gid)


@pytest.mark.parametrize(("chown", "uid", "gid"), [("nobody", 0, 0), ("1:nogroup", 1, 1), ("1:root", 1, 0)])
def test_a_name_that_the_image_lacks_is_roots(place, chown, uid, gid):
    entry = place.tree("a").pack("/", "a", chown=chown)[1][b"a"]
    assert (entry.uid, entry.gid) == (uid, gid)


def test_a_number_that_is_none_is_refused(place):
    with pytest.raises(InvalidArgument, match="no such user"):
        place.tree("a").pack("/", "a", chown="99999999999")


def test_hard_links_of_one_copy_are_kept(place):
    os.link(place.file("dir/a"), place.context / "dir/b")
    entry = place.pack("/d/", "dir")[1]
    assert entry[b"d/b"].type == tar.LINK and entry[b"d/b"].link == b"d/a"


def test_xattrs_are_kept(place):
    os.setxattr(place.file("f"), "user.note", b"\0\xff")
    assert place.pack("/", "f")[1][b"f"].xattrs == {b"user.note": b"\0\xff"}


def test_an_existing_directory_keeps_its_owner_and_a_deeper_one_takes_the_sources(place):
    place.tree("dir/sub/f")
    (place.context / "dir").chmod(0o700)
    (place.context / "dir/sub").chmod(0o700)
    (place.root / "d/sub").mkdir(parents=True)
    entry = place.pack("/d", "dir", scratch=False)[1]
    assert (entry[b"d/"].mode, entry[b"d/sub/"].mode) == (0o755, 0o700)


def test_the_same_file_again_is_no_change(place):
    place.file("f", b"same")
    place.file("f", b"same", root=True)
    if os.geteuid() == 0:
        assert place.pack("/", "f", scratch=False)[0]["empty"]
    place.file("f", b"diff", root=True)
    assert not place.pack("/", "f", scratch=False)[0]["empty"]


def test_inline_files_are_written(place):
    _, entries, data = place.pack("/d/", inline=(("hello", b"world", 0o644),), chmod="755")
    assert data[b"d/hello"] == b"world" and entries[b"d/hello"].mode == 0o755


def test_big_files_and_holes_come_through(place):
    with open(place.context / "big", "wb") as file:
        file.truncate(5 << 20)
        file.seek((3 << 20) + 17)
        file.write(b"x" * 100)
    assert place.pack("/", "big")[2][b"big"] == (place.context / "big").read_bytes()


def test_a_fifo_does_not_block(place):
    os.mkfifo(place.context / "p")
    assert place.pack("/d/", ".")[1][b"d/p"].type == tar.FIFO


def test_the_order_of_the_disk_does_not_matter(place, tmp_path):
    for name in ("b", "a", "c/z", "c/a"):
        place.file(name)
    first = place.pack("/d/", ".")[0]
    (tmp_path / "again").mkdir()
    other = Place(tmp_path / "again")
    for name in ("c/a", "a", "c/z", "b"):
        other.file(name)
    for one in (place, other):
        for path in (one.context, one.context / "c"):
            os.utime(path, ns=(1, 1))
    found = [one.pack("/d/", ".")[0] for one in (place, other)]
    assert found[0]["digest"] == found[1]["digest"] and first["entries"] == 6


def test_workdir_makes_directories(place):
    (place.root / "srv").mkdir()
    entry = place.pack("/srv/app/x", mkdir=True, user="5", scratch=False)[1]
    assert list(entry) == [b"srv/", b"srv/app/", b"srv/app/x/"] and entry[b"srv/app/"].uid == 5
    assert place.pack("/srv", mkdir=True, scratch=False)[0]["empty"]


@pytest.mark.parametrize("path", ["l", "d/l/f", "*", "?", "d/../l*"])
def test_a_link_that_leads_nowhere_is_named(place, path):
    (place.context / "d").mkdir()
    for name in ("l", "d/l"):
        (place.context / name).symlink_to("nothing")
    with pytest.raises(NotFound, match='/l" is a symbolic link to "nothing", which is not there'):
        place.pack("/x/", path)


def test_a_link_that_leads_nowhere_is_copied_where_its_directory_is_named(place):
    (place.context / "d").mkdir()
    (place.context / "d" / "l").symlink_to("nothing")
    assert b"x/l" in place.pack("/x/", "d*")[1]
    assert place.pack("/x/", "d/*", exclude=["l"])[0]["entries"] <= 1


# --- ADD of archives


def archive(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, data, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = (("./", b"", {"type": b"5", "mode": 0o700}), ("d/f", b"hello", {"uid": 99, "gid": 98, "mtime": 5}))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_local_archive_is_unpacked(place, pack):
    place.file("a.bin", pack(archive(*MEMBERS)))
    _, entries, data = place.pack("/x/", "a.bin", is_add=True, unpack=None)
    assert list(entries) == [b"x/", b"x/d/", b"x/d/f"] and data[b"x/d/f"] == b"hello"
    assert (entries[b"x/d/f"].uid, entries[b"x/d/f"].mtime_ns, entries[b"x/"].mode) == (99, 5 * 10**9, 0o755)


@pytest.mark.parametrize("data", [b"plain", b"", gzip.compress(b"no tar"), bytes(10240), b"\x1f\x8bbroken"])
def test_what_is_no_archive_is_copied(place, data):
    place.file("f", data)
    assert place.pack("/x/", "f", is_add=True, unpack=None)[2][b"x/f"] == data


def test_unpack_can_be_refused_and_copy_never_unpacks(place):
    place.file("f.tar", archive(*MEMBERS))
    assert place.names("/", "f.tar", is_add=True, unpack=False) == ["f.tar"]
    assert place.names("/", "f.tar") == ["f.tar"]


def test_chown_owns_all_of_an_archive(place):
    members = ("d/", b"", {"type": b"5", "mode": 0o700}), *MEMBERS, ("l", b"", {"type": b"2", "linkname": "d"})
    place.file("f.tar", archive(*members))
    entries = place.pack("/new/", "f.tar", is_add=True, unpack=True, chown="3:4")[1]
    assert sorted(entries) == [b"new/", b"new/d/", b"new/d/f", b"new/l"]
    assert {(entry.uid, entry.gid) for entry in entries.values()} == {(3, 4)}


def test_parents_that_an_archive_does_not_list_are_roots_whatever_chown_says(place):
    place.file("f.tar", archive(*MEMBERS))
    entries = place.pack("/", "f.tar", is_add=True, unpack=True, chown="3:4")[1]
    assert (entries[b"d/"].uid, entries[b"d/"].gid, entries[b"d/"].mode) == (0, 0, 0o755)


def test_an_archives_directory_replaces_a_symlink_of_the_destination(place):
    (place.root / "x").mkdir()
    (place.root / "x/d").symlink_to("/elsewhere")
    place.file("f.tar", archive(("d", b"", {"type": b"5"}), ("d/f", b"x", {})))
    assert place.names("/x", "f.tar", is_add=True, unpack=None, scratch=False) == ["x/", "x/d/", "x/d/f"]


def test_an_archive_can_not_put_files_below_a_file(place):
    place.file("x/d", root=True)
    place.file("f.tar", archive(("d/f", b"x", {})))
    with pytest.raises(InvalidArgument, match="/x/d: not a directory"):
        place.pack("/x", "f.tar", is_add=True, unpack=None, scratch=False)


def test_an_archives_hard_link_may_name_a_file_of_the_destination(place):
    place.file("x/old", b"old bytes", 0o640, root=True)
    place.file("f.tar", archive(("h", b"", {"type": b"1", "linkname": "old"})))
    _, entries, data = place.pack("/x", "f.tar", is_add=True, unpack=None, scratch=False)
    assert data[b"x/old"] == b"old bytes" and entries[b"x/old"].mode == 0o640
    assert entries[b"x/h"].type == tar.LINK and entries[b"x/h"].link == b"x/old"


def test_an_archives_fifos_are_kept_and_its_devices_passed_over(place):
    members = (("p", b"", {"type": b"6", "mode": 0o620, "uid": 3}), ("c", b"", {"type": b"3"}), ("f", b"x", {}))
    place.file("f.tar", archive(*members))
    _, entries = place.pack("/x", "f.tar", is_add=True, unpack=None)[:2]
    assert sorted(entries) == [b"x/", b"x/f", b"x/p"]
    assert (entries[b"x/p"].type, entries[b"x/p"].mode, entries[b"x/p"].uid) == (tar.FIFO, 0o620, 3)


def test_a_socket_of_a_context_becomes_an_empty_file(place):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.context / "s.sock"))
        _, entries, data = place.pack("/x/", ".")
    assert entries[b"x/s.sock"].type == tar.REGULAR and data[b"x/s.sock"] == b""


def test_an_archives_symlinks_are_followed_below_the_destination(place):
    place.file("f.tar", archive(
        ("up", b"", {"type": b"2", "linkname": ".."}), ("up/etc/f", b"x", {}), ("abs", b"", {"type": b"2", "linkname": "/d"}),
        ("abs/g", b"y", {}),
    ))
    found = place.names("/x", "f.tar", is_add=True, unpack=None)
    assert found == ["x/", "x/up", "x/etc/", "x/etc/f", "x/abs", "x/d/", "x/d/g"]


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/../../escaped"])
def test_an_archive_can_not_leave_the_destination(place, name):
    place.file("f.tar", archive((name, b"x", {})))
    assert place.names("/x", "f.tar", is_add=True, unpack=None)[-1] == "x/escaped"


@pytest.mark.parametrize("member", [("h", b"", {"type": b"1", "linkname": "../../etc/passwd"}), (".wh.x", b"", {})])
def test_a_hostile_archive_is_refused(place, member):
    place.file("f.tar", archive(member))
    with pytest.raises(BuildError):
        place.pack("/x", "f.tar", is_add=True, unpack=None)


# --- checksums


def digest(place, *paths, ignore=(), prints=None, owned=False, **changes):
    fd = os.open(place.context, os.O_PATH | os.O_DIRECTORY)
    try:
        files = select.Source(fd=fd, paths=paths, ignore=ignore, owned=owned)
        return checksum.checksum(files, spec("/", **changes), fingerprints=prints)
    finally:
        os.close(fd)


def test_a_checksum_is_blind_to_times(place):
    path = place.file("f")
    first = digest(place, "f")
    os.utime(path)
    assert digest(place, "f")["digest"] == first["digest"] and first["count"] == 1 and first["bytes"] == 4


@pytest.mark.parametrize("change", ["data", "mode", "name", "xattr", "new", "link", "kind"])
def test_a_checksum_sees_every_other_change(place, change):
    place.tree("d/f", "d/g")
    (place.context / "d/l").symlink_to("f")
    before = digest(place, "d")["digest"]
    path = place.context / "d/f"
    if change == "data":
        path.write_bytes(b"atad")
    elif change == "mode":
        path.chmod(0o600)
    elif change == "name":
        path.rename(place.context / "d/h")
    elif change == "xattr":
        os.setxattr(path, "user.a", b"b")
    elif change == "new":
        (place.context / "d/new").mkdir()
    elif change == "link":
        (place.context / "d/l").unlink()
        (place.context / "d/l").symlink_to("g")
    else:
        path.unlink()
        path.mkdir()
    assert digest(place, "d")["digest"] != before


def test_a_checksum_is_of_the_selected_files_only(place):
    place.tree("d/f", "other")
    before = digest(place, "d", ignore=("other",))["digest"]
    place.file("other", b"changed")
    assert digest(place, "d")["digest"] == before


def test_a_checksum_tells_what_is_missing_and_why(place):
    found = digest(place.tree("abc", "hidden"), "abd", "hidden", ignore=("hid*",))
    assert found["missing"] == ["abd", "hidden"] and found["ignored"] == {"hidden": "hid*"}
    assert found["near"]["abd"] == ["abc"]


def test_known_files_are_not_opened_again(place, tmp_path, monkeypatch):
    place.file("f")
    monkeypatch.setattr("ocibuildd.layer.fingerprints.RACY_NS", -(10**18))
    prints = Fingerprints()
    first = digest(place, "f", prints=prints)
    prints.save(tmp_path / "prints")
    again = Fingerprints.load(tmp_path / "prints")
    monkeypatch.setattr(checksum._Summer, "_directory", lambda *_: pytest.fail("opened"))
    assert digest(place, "f", prints=again) == first


def test_a_file_with_its_size_and_mtime_restored_is_seen(place, monkeypatch):
    monkeypatch.setattr("ocibuildd.layer.fingerprints.RACY_NS", -(10**18))
    path = place.file("f", b"one")
    prints = Fingerprints()
    first = digest(place, "f", prints=prints)["digest"]
    path.write_bytes(b"two")
    os.utime(path, ns=(MTIME, MTIME))
    assert digest(place, "f", prints=prints)["digest"] != first


def test_a_file_just_written_is_not_remembered(place):
    place.file("f")
    prints = Fingerprints()
    digest(place, "f", prints=prints)
    assert not prints.changed


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"ocibuildd fingerprints 1\n" + bytes(76)])
def test_damaged_fingerprints_are_none(tmp_path, damage):
    (tmp_path / "prints").write_bytes(damage)
    assert Fingerprints.load(tmp_path / "prints").get(bytes(40)) is None


def test_pack_takes_what_the_checksum_was_of(place):
    place.tree(*TREE)
    count = digest(place, ".", ignore=("*.md",))["count"]
    assert place.pack("/", ".", ignore=("*.md",))[0]["entries"] == count


def test_a_stamp_tells_whether_pack_saw_the_same_files(place):
    path = place.file("f")
    before = digest(place, "f")["stamp"]
    assert place.pack("/", "f")[0]["stamps"] == [before]
    path.write_bytes(b"other")
    assert place.pack("/", "f")[0]["stamps"] != [before]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(place):
    place.file("f", mode=0)
    for work in (lambda: digest(place, "f"), lambda: place.pack("/", "f")):
        with pytest.raises(InvalidArgument, match="f: permission denied"):
            work()


def test_a_file_that_is_swapped_for_a_symlink_is_not_followed(place, monkeypatch):
    path = place.file("f")
    real = copy._Copier.add

    def add(self, files):
        real(self, files)
        path.unlink()
        path.symlink_to("/etc/passwd")

    monkeypatch.setattr(copy._Copier, "add", add)
    with pytest.raises(InvalidArgument, match="changed while"):
        place.pack("/", "f")


def test_a_directory_that_is_swapped_for_a_symlink_is_not_followed(place, monkeypatch):
    place.file("d/f")
    real = copy._Copier.add

    def add(self, files):
        real(self, files)
        (place.context / "d").rename(place.context / "gone")
        (place.context / "d").symlink_to("/etc")

    monkeypatch.setattr(copy._Copier, "add", add)
    with pytest.raises(InvalidArgument, match="changed while"):
        place.pack("/", "d")
