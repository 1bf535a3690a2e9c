"""Members of a tar by name, and tars of any shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocibuildd.errors import BuildError, InvalidArgument, NotFound
from ocibuildd.image.archive import Archive
from ocibuildd.registry.layout import read_small


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def archive(tmp_path, tar):
    fds = []

    def make(data: bytes) -> Archive:
        fds.append(opened(tmp_path / "a.tar", data))
        return Archive(fds[-1])

    yield make
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    "name", ["dir/file", "./dir/file", "/dir/file", "dir//file", "dir/../dir/file", "../dir/file"]
)
def test_names_are_cleaned_on_both_sides(archive, tar, name):
    assert read_small(archive(tar({name: b"data"})), "dir/file") == b"data"
    assert read_small(archive(tar({"dir/file": b"data"})), name) == b"data"


def test_links_lead_to_files_inside(archive, tar):
    found = archive(
        tar(
            {
                "a/file": b"data",
                "b/link": b"->../a/file",
                "c": b"->/etc/passwd",
                "d": b"->../../a/file",
            }
        )
    )
    assert read_small(found, "b/link") == b"data"
    assert read_small(found, "d") == b"data"
    with pytest.raises(NotFound):
        read_small(found, "c")


def test_the_last_of_several_members_of_a_name_counts(archive, tar):
    data = tar({"f": b"one"})[:1024] + tar({"f": b"two"})
    assert read_small(archive(data), "f") == b"two"


def test_links_in_a_circle_end(archive, tar):
    with pytest.raises(NotFound):
        read_small(archive(tar({"a": b"->b", "b": b"->a"})), "a")


@pytest.mark.parametrize("keep", [600, 1100, 1600])
def test_a_tar_that_is_cut_off_is_refused(archive, tar, keep):
    with pytest.raises(InvalidArgument):
        archive(tar({"a": b"x" * 2000})[:keep])


@given(st.binary(max_size=3000))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_are_too_strange(tmp_path, data):
    fd = opened(tmp_path / "x", data)
    try:
        assert Archive(fd)
    except BuildError as error:
        assert error.message
    finally:
        os.close(fd)
