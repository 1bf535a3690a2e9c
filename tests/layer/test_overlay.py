"""Applied layers under a real overlay mount, and back through its upper directory."""

from __future__ import annotations

import os
import shutil
import stat

import pytest

from ocibuildd.layer import apply, diff, lookup, tar
from ocibuildd.layer.tar import DIRECTORY, REGULAR, SYMLINK
from ocibuildd.sandbox import mounts

PLAIN = {"compression": "none", "level": -1, "clamp": None}
BASE = (
    (b"etc/", DIRECTORY), (b"etc/passwd", REGULAR, {"data": b"root"}), (b"etc/gone", REGULAR), (b"opt/", DIRECTORY),
    (b"opt/old", REGULAR), (b"opt/sub/", DIRECTORY), (b"opt/sub/old", REGULAR), (b"lib", SYMLINK, {"link": b"usr/lib"}),
    (b"usr/lib/", DIRECTORY),
)
NEXT = (
    (b"etc/.wh.gone", REGULAR), (b"opt/", DIRECTORY), (b"opt/new", REGULAR), (b"opt/.wh..wh..opq", REGULAR),
    (b"lib/x.so", REGULAR), (b"new/deep/f", REGULAR),
)


def names(fd: int, path: str = ".") -> list[str]:
    found = []
    for name in sorted(os.listdir(os.open(path, os.O_RDONLY, dir_fd=fd))):
        full = name if path == "." else f"{path}/{name}"
        found.append(full)
        if stat.S_ISDIR(os.stat(full, dir_fd=fd, follow_symlinks=False).st_mode):
            found += names(fd, full)
    return found


def overlay(*lowers, **options) -> int:
    mount = mounts.overlay([os.fsencode(path) for path in lowers], **options)
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)


@pytest.fixture
def stacked(tarball, inside, tmp_path):
    """The base and the next layer, unpacked over one another."""
    archives = tarball(*BASE), tarball(*NEXT)

    def unpack():
        for index, archive in enumerate(archives):
            (tmp_path / str(index)).mkdir()
            tree = os.open(tmp_path / str(index), os.O_RDONLY)
            root = os.open(tmp_path / "0", os.O_RDONLY) if index else None
            apply.apply_layer(archive, tree, root=root)

    inside(unpack)
    return tmp_path / "0", tmp_path / "1"


def test_a_merged_root_shows_what_the_layers_mean(stacked, mounting):
    found = mounting(lambda: names(overlay(*stacked)))
    assert found == [
        "etc", "etc/passwd", "lib", "new", "new/deep", "new/deep/f", "opt", "opt/new", "usr", "usr/lib", "usr/lib/x.so",
    ]


def test_questions_are_answered_from_the_merged_root(stacked, mounting):
    answer = mounting(lambda: lookup.lookup(overlay(*stacked), ["/lib/x.so", "/etc/gone"], ["/etc/passwd"]))
    assert answer["stat"]["/lib/x.so"]["path"] == "/usr/lib/x.so" and answer["stat"]["/etc/gone"] is None
    assert answer["read"]["/etc/passwd"] == "cm9vdA=="


def test_what_a_step_does_comes_out_as_a_layer(stacked, mounting, tmp_path):
    def step():
        for name in ("upper", "work"):
            (tmp_path / name).mkdir()
        root = overlay(*stacked, upper=os.fsencode(tmp_path / "upper"), work=os.fsencode(tmp_path / "work"))
        os.chdir(root)
        os.unlink("etc/passwd")
        shutil.rmtree("opt")
        os.mkdir("opt")
        with open("opt/again", "w") as file:
            file.write("x")
        os.chmod("usr/lib/x.so", 0o755)
        os.utime("new")
        os.chdir("/")
        out = os.open(tmp_path / "layer", os.O_RDWR | os.O_CREAT)
        upper, below = os.open(tmp_path / "upper", os.O_RDONLY), overlay(*stacked)
        diff.diff_tree(upper, below, out, PLAIN)
        os.lseek(out, 0, os.SEEK_SET)
        with open(out, "rb") as file:
            return [(entry.name, entry.mode) for entry in tar.entries(file) if file.seek(entry.size + -entry.size % 512, 1)]

    assert mounting(step) == [
        (b"etc/", 0o755), (b"etc/.wh.passwd", 0), (b"opt/", 0o755), (b"opt/.wh..wh..opq", 0), (b"opt/again", 0o644),
        (b"usr/", 0o755), (b"usr/lib/", 0o755), (b"usr/lib/x.so", 0o755),
    ]
