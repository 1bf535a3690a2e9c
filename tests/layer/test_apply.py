"""Layers into trees: what they make, what they hide, and what hostile ones can't do."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from ocibuildd.errors import BuildError, Corrupt, InvalidArgument
from ocibuildd.layer import apply, parents
from ocibuildd.layer.tar import CHAR, DIRECTORY, FIFO, LINK, REGULAR, SYMLINK

MTIME = 1_700_000_000_123_456_789
FILE, OPAQUE = (b"d/f", REGULAR, {"data": b"new"}), (b"d/.wh..wh..opq", REGULAR)


def is_whiteout(path) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path) -> bool:
    try:
        return os.getxattr(path, "user.overlay.opaque") == b"y"
    except OSError:
        return False


def test_a_file_has_its_bytes_mode_and_time(applied, tmp_path):
    applied((b"d", DIRECTORY), (b"d/f", REGULAR, {"data": b"hello", "mode": 0o640}))
    status = (tmp_path / "tree/d/f").stat()
    assert (tmp_path / "tree/d/f").read_bytes() == b"hello"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, MTIME)


def test_owners_are_shifted(applied, tmp_path, inside):
    applied((b"f", REGULAR, {"uid": 1000, "gid": 50, "mode": 0o6755}), shift=1)
    status = inside(lambda: os.stat(tmp_path / "tree/f"))
    assert (status.st_uid, status.st_gid) == (1001, 51) and status.st_mode & 0o6000 == 0o6000


def test_an_owner_that_is_not_mapped_is_named(applied, inside):
    def work():
        return int(Path("/proc/self/uid_map").read_text().split()[2])

    if inside(work) > 70000:
        pytest.skip("everything is mapped here")
    with pytest.raises(InvalidArgument, match="owner 4000000:0"):
        applied((b"f", REGULAR, {"uid": 4_000_000}))


def test_a_directory_keeps_its_time_though_files_come_later(applied, tmp_path):
    applied((b"d/", DIRECTORY, {"mtime_ns": 5 * 10**9}), (b"d/f", REGULAR))
    assert (tmp_path / "tree/d").stat().st_mtime_ns == 5 * 10**9


def test_a_directory_that_nobody_may_write_is_filled(applied, tmp_path, inside):
    applied((b"d/", DIRECTORY, {"mode": 0o555}), (b"d/f", REGULAR))
    assert inside(lambda: stat.S_IMODE(os.stat(tmp_path / "tree/d").st_mode)) == 0o555


@pytest.mark.parametrize("mtime_ns", [-(10**9), 0, 253402300799 * 10**9, -1, 1])
def test_odd_times_are_kept(applied, tmp_path, mtime_ns):
    applied((b"f", REGULAR, {"mtime_ns": mtime_ns}))
    found = (tmp_path / "tree/f").stat().st_mtime_ns
    assert found == mtime_ns or (mtime_ns > 2**34 * 10**9 and found < mtime_ns)  # ext4's last is in 2446


def test_links_are_made(applied, tmp_path):
    applied((b"f", REGULAR, {"data": b"x"}), (b"h", LINK, {"link": b"f"}), (b"s", SYMLINK, {"link": b"/etc/passwd"}))
    assert os.path.samefile(tmp_path / "tree/f", tmp_path / "tree/h")
    assert os.readlink(tmp_path / "tree/s") == "/etc/passwd"


def test_a_fifo_is_made(applied, tmp_path):
    applied((b"p", FIFO))
    assert stat.S_ISFIFO((tmp_path / "tree/p").stat().st_mode)


def test_a_later_entry_of_the_same_name_wins(applied, tmp_path):
    applied((b"a", DIRECTORY), (b"a/b", REGULAR), (b"a", REGULAR, {"data": b"1"}), (b"a", REGULAR, {"data": b"2"}))
    assert (tmp_path / "tree/a").read_bytes() == b"2"


def test_names_need_not_be_utf8(applied, tmp_path):
    applied((b"caf\xe9/\xff", REGULAR))
    assert os.listdir(os.fsencode(tmp_path / "tree")) == [b"caf\xe9"]


def test_the_root_entry_sets_the_root(applied, tmp_path):
    applied((b"./", DIRECTORY, {"mode": 0o711, "mtime_ns": 0}), (b"./f", REGULAR))
    assert stat.S_IMODE((tmp_path / "tree").stat().st_mode) == 0o711 and (tmp_path / "tree").stat().st_mtime == 0


def test_holes_stay_holes(applied, tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"x")
    os.system(f"tar -S -C {tmp_path} -cf {tmp_path}/s.tar sparse")
    applied((tmp_path / "s.tar").read_bytes())
    status = (tmp_path / "tree/sparse").stat()
    assert status.st_size == 8 << 20 and status.st_blocks * 512 < 1 << 20
    assert (tmp_path / "tree/sparse").read_bytes() == (tmp_path / "sparse").read_bytes()


def test_file_capabilities_get_the_containers_root(applied, tmp_path, inside):
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    applied((b"ping", REGULAR, {"mode": 0o755, "xattrs": {b"security.capability": value}}), shift=1)
    found = inside(lambda: os.getxattr(tmp_path / "tree/ping", "security.capability"))
    assert found == b"\x01\0\0\x03" + value[4:] + b"\1\0\0\0"


def test_overlays_own_marks_can_not_be_forged(applied, tmp_path):
    xattrs = {b"user.overlay.opaque": b"y", b"trusted.overlay.opaque": b"y", b"security.ima": b"x", b"user.fine": b"1"}
    applied((b"d/", DIRECTORY, {"xattrs": xattrs}))
    assert sorted(os.listxattr(tmp_path / "tree/d")) == ["user.fine", "user.overlay.overlay.opaque"]


def test_devices_are_skipped_and_counted(applied, tmp_path):
    result = applied((b"null", CHAR), (b"f", REGULAR))
    assert result["skipped"] == 1 and os.listdir(tmp_path / "tree") == ["f"]


def test_the_result_tells_digests_and_sizes(applied, tmp_path):
    result = applied((b"a/b/f", REGULAR, {"data": b"xyz"}))
    blob = (tmp_path / "layer0.tar").read_bytes()
    assert (result["size"], result["tar_size"]) == (len(blob), len(blob)) and result["digest"] == result["diff_id"]
    assert (result["entries"], result["bytes"], result["implied"]) == (1, 3, 2)


def test_another_diff_id_is_an_error(applied):
    with pytest.raises(Corrupt, match="diff id"):
        applied((b"f", REGULAR), expect_diff_id="sha256:" + "0" * 64)


def test_a_truncated_gzip_is_an_error(applied):
    with pytest.raises(InvalidArgument, match="truncated"):
        applied(gzip.compress(tarfile_of(b"x" * 100_000))[:-30])


def test_a_truncated_file_is_an_error(applied):
    with pytest.raises(InvalidArgument, match="cut off"):
        applied(tarfile_of(b"x" * 100_000)[:50_000])


def tarfile_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("f")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# --- whiteouts


def test_a_whiteout_becomes_a_device(applied, tmp_path):
    applied((b"d", DIRECTORY), (b"d/.wh.gone", REGULAR))
    assert is_whiteout(tmp_path / "tree/d/gone") and os.listdir(tmp_path / "tree/d") == ["gone"]


@pytest.mark.parametrize("order", [(FILE, OPAQUE), (OPAQUE, FILE)])
def test_an_opaque_mark_counts_wherever_it_stands(applied, tmp_path, order):
    applied((b"d", DIRECTORY), *order)
    assert is_opaque(tmp_path / "tree/d") and os.listdir(tmp_path / "tree/d") == ["f"]


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_does_not_hide_the_layers_own_file(applied, tmp_path, first):
    members = [(b".wh.f", REGULAR), (b"f", REGULAR, {"data": b"new"})]
    applied(*(members if first else members[::-1]))
    assert (tmp_path / "tree/f").read_bytes() == b"new"


@pytest.mark.parametrize("first", [True, False])
def test_a_directory_that_was_made_anew_is_opaque(applied, tmp_path, first):
    members = [(b".wh.d", REGULAR), (b"d/f", REGULAR)]
    applied(*(members if first else members[::-1]))
    assert is_opaque(tmp_path / "tree/d")


def test_no_whiteout_is_made_where_nothing_shows_through(applied, tmp_path):
    applied((b"d/.wh.x", REGULAR), OPAQUE, (b"d/e/.wh.y", REGULAR), (b"d/e/f", REGULAR))
    assert os.listdir(tmp_path / "tree/d") == ["e"] and os.listdir(tmp_path / "tree/d/e") == ["f"]


def test_an_opaque_root_hides_every_name_below(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/a").touch()
    (tmp_path / "below/b").touch()
    applied((b".wh..wh..opq", REGULAR), (b"a", REGULAR, {"data": b"new"}), root=below)
    assert is_whiteout(tmp_path / "tree/b") and (tmp_path / "tree/a").read_bytes() == b"new"


def test_book_keeping_of_aufs_is_left_out(applied, tmp_path):
    applied((b".wh..wh.plnk/1.2", REGULAR), (b".wh..wh.aufs", REGULAR), (b"f", REGULAR))
    assert "f" in os.listdir(tmp_path / "tree") and ".wh..wh.aufs" not in os.listdir(tmp_path / "tree")


# --- what lies below


def test_a_missing_parent_is_like_the_one_below(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/d").mkdir(mode=0o700)
    result = applied((b"d/f", REGULAR), root=below)
    assert result["implied"] == 1 and stat.S_IMODE((tmp_path / "tree/d").stat().st_mode) == 0o700


def inherited(below, tmp_path, result):
    tree = os.open(tmp_path / "tree", os.O_RDONLY)
    try:
        return parents.inherit(tree, below, parents.asked(result["parents"]))
    finally:
        os.close(tree)


def test_missing_parents_can_be_made_like_those_below_later(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/d/e").mkdir(parents=True, mode=0o700)
    (tmp_path / "below/d/e").chmod(0o1750)
    os.setxattr(tmp_path / "below/d/e", "user.colour", b"red")
    os.utime(tmp_path / "below/d/e", (5, 7))
    result = applied((b"d/e/f", REGULAR), (b"new/f", REGULAR))
    assert sorted(result["parents"]) == ["d", "d/e", "new"] and inherited(below, tmp_path, result)
    status = (tmp_path / "tree/d/e").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o1750, 7)
    assert os.getxattr(tmp_path / "tree/d/e", "user.colour") == b"red"
    assert stat.S_IMODE((tmp_path / "tree/new").stat().st_mode) == 0o755


def test_parents_that_are_symlinks_below_can_not_be_made_later(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/lib").symlink_to("usr/lib")
    assert not inherited(below, tmp_path, applied((b"lib/f", REGULAR)))


def test_a_parent_whose_entry_comes_late_is_not_missing(applied):
    assert applied((b"d/f", REGULAR), (b"d/", DIRECTORY))["implied"] == 0


def test_a_parent_that_is_a_symlink_below_is_followed(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/usr/lib").mkdir(parents=True)
    (tmp_path / "below/lib").symlink_to("usr/lib")
    applied((b"lib/x.so", REGULAR), root=below)
    assert (tmp_path / "tree/usr/lib/x.so").exists() and not (tmp_path / "tree/lib").exists()


def test_a_hard_link_to_a_lower_file_copies_it_up(applied, directory, tmp_path):
    below = directory("below")
    (tmp_path / "below/f").write_bytes(b"lower")
    applied((b"h", LINK, {"link": b"f"}), root=below, squash=True)
    assert (tmp_path / "tree/h").read_bytes() == b"lower"
    assert os.path.samefile(tmp_path / "tree/h", tmp_path / "tree/f")


def test_a_hard_link_to_what_may_be_below_waits_until_that_is_known(applied):
    result = applied((b"h", LINK, {"link": b"f"}), (b"g", REGULAR), lenient=True)
    assert result["implied"] > len(result["parents"])


def test_a_hard_link_to_what_is_not_below_either_is_refused(applied, directory):
    with pytest.raises(InvalidArgument, match="doesn't exist"):
        applied((b"h", LINK, {"link": b"f"}), root=directory("below"), squash=True, lenient=True)


# --- attacks


OUT = b"escaped"
REFUSED = {
    "..": [(b"../escaped", REGULAR)],
    "./../": [(b"./../escaped", REGULAR)],
    "a/../../": [(b"a/../../escaped", REGULAR)],
    ".. as a directory": [(b"..", DIRECTORY)],
    "hard link outside": [(b"h", LINK, {"link": b"../secret"})],
    "hard link to what comes later": [(b"h", LINK, {"link": b"f"}), (b"f", REGULAR)],
    "hard link to a directory": [(b"d", DIRECTORY), (b"h", LINK, {"link": b"d"})],
    "hard link through a symlink": [(b"s", SYMLINK, {"link": b".."}), (b"h", LINK, {"link": b"s/secret"})],
    "whiteout of ..": [(b".wh...", REGULAR)],
    "whiteout of .": [(b".wh..", REGULAR)],
    "whiteout of nothing": [(b"d/.wh.", REGULAR)],
    "file in place of the root": [(b".", REGULAR)],
    "symlink in place of the root": [(b"/.", SYMLINK, {"link": b"/tmp"})],
    "file below a file": [(b"f", REGULAR), (b"f/g", REGULAR)],
    "a loop of symlinks": [(b"a", SYMLINK, {"link": b"b"}), (b"b", SYMLINK, {"link": b"a"}), (b"a/f", REGULAR)],
    "component of 300 bytes": [(b"n" * 300, REGULAR)],
    "empty symlink": [(b"s", SYMLINK)],
    "too deep": [(b"d/" * 1500 + b"f", REGULAR)],
}
CONTAINED = {
    "absolute": [(b"/escaped", REGULAR)],
    "absolute symlink, then through it": [(b"s", SYMLINK, {"link": b"/"}), (b"s/escaped", REGULAR)],
    "relative symlink, then through it": [(b"s", SYMLINK, {"link": b"../../.."}), (b"s/escaped", REGULAR)],
    "directory, then a symlink in its place": [
        (b"d", DIRECTORY), (b"d/x", REGULAR), (b"d", SYMLINK, {"link": b".."}), (b"d/escaped", REGULAR)],
    "two symlinks": [
        (b"a", SYMLINK, {"link": b"."}), (b"a/b", SYMLINK, {"link": b"../.."}), (b"a/b/escaped", REGULAR)],
    "file through a symlink of its own name": [(b"f", SYMLINK, {"link": b"../escaped"}), (b"f", REGULAR)],
    "directory through a symlink": [(b"s", SYMLINK, {"link": b".."}), (b"s/escaped", DIRECTORY)],
    "whiteout through a symlink": [(b"s", SYMLINK, {"link": b".."}), (b"s/.wh.secret", REGULAR)],
    "opaque through a symlink": [(b"s", SYMLINK, {"link": b".."}), (b"s/.wh..wh..opq", REGULAR)],
    "hard link to a symlink, then through it": [
        (b"s", SYMLINK, {"link": b"../secret"}), (b"h", LINK, {"link": b"s"}), (b"h", REGULAR, {"data": b"!"})],
    "dots and slashes": [(b".//./escaped//", REGULAR)],
}


def outside(tmp_path) -> list[tuple[str, bytes]]:
    return sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".tar")


@pytest.mark.parametrize("what", REFUSED)
def test_an_attack_is_refused(applied, tmp_path, what):
    (tmp_path / "secret").write_bytes(b"s")
    with pytest.raises(BuildError):
        applied(*REFUSED[what])
    assert outside(tmp_path) == [("secret", b"s")]


@pytest.mark.parametrize("what", CONTAINED)
def test_an_attack_stays_inside(applied, tmp_path, what):
    (tmp_path / "secret").write_bytes(b"s")
    applied(*CONTAINED[what])
    assert outside(tmp_path) == [("secret", b"s")]


def test_a_device_that_poses_as_a_whiteout_is_none(applied, tmp_path):
    applied((b"passwd", CHAR))
    assert os.listdir(tmp_path / "tree") == []


def test_many_directories_keep_few_descriptors_open(applied):
    before = len(os.listdir("/proc/self/fd"))
    applied(*[(b"d%d/f" % n, REGULAR) for n in range(600)])
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_the_umask_is_as_it_was(tarball, directory):
    before = os.umask(0o027)
    try:
        with contextlib.suppress(OSError):
            apply.apply_layer(tarball((b"f", REGULAR)), directory("tree"), squash=True)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
