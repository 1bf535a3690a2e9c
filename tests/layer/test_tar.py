"""Tar headers: ours read by others, others' read by us, and hostile ones."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.errors import BuildError, InvalidArgument, TooLarge
from ocibuildd.layer import fields, tar

names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))
times = st.integers(-(10**18), 253402300799 * 10**9)


class Bytes(io.BytesIO):
    """A Source."""


def read(data: bytes, **limits: int) -> list[tar.Entry]:
    source = Bytes(data)
    found = []
    for entry in tar.entries(source, **limits):
        source.read(entry.size + -entry.size % 512)
        found.append(entry)
    return found


@settings(max_examples=150, deadline=None)
@given(names, names, st.integers(0, 0o7777), st.integers(0, 2**32 - 2), times, st.integers(0, 1 << 40))
def test_what_is_written_is_read(name, link, mode, uid, mtime_ns, size):
    written = tar.header(name, tar.REGULAR, mode, uid, uid, size, mtime_ns, link)
    entry = next(tar.entries(Bytes(written)))
    assert (entry.name, entry.link, entry.mode, entry.uid) == (name, link, mode, uid)
    assert (entry.mtime_ns, entry.size) == (mtime_ns, size)


@settings(max_examples=60, deadline=None)
@given(names.filter(lambda name: not name.startswith(b"/")), times.filter(lambda time: time >= 0), st.integers(0, 5000))
def test_python_reads_what_is_written(name, mtime_ns, size):
    data = tar.header(name, tar.REGULAR, 0o640, 1000, 100, size, mtime_ns) + bytes(size) + tar.padding(size)
    with tarfile.open(fileobj=io.BytesIO(data + tar.END)) as archive:
        member = archive.getmembers()[0]
    assert member.name.encode("utf-8", "surrogateescape") == name
    assert (member.mode, member.uid, member.gid, member.size) == (0o640, 1000, 100, size)
    assert abs(member.mtime - mtime_ns / 1e9) < 1e-3


@settings(max_examples=60, deadline=None)
@given(names, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.integers(0, 2**31), st.integers(0, 5000))
def test_we_read_what_python_writes(name, form, uid, size):
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.uid, info.size, info.mtime = uid, size, 12345
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        archive.addfile(info, io.BytesIO(bytes(size)))
    entry = read(buffer.getvalue())[0]
    assert entry.name.rstrip(b"/") == info.name.encode("utf-8", "surrogateescape").rstrip(b"/")
    assert (entry.uid, entry.size, entry.mtime_ns) == (uid, size, 12345 * 10**9)


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_we_read_what_gnu_tar_writes(form, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "d" / "link").symlink_to("file")
    command = ["tar", f"--format={form}", "-cf", "-", "-C", str(tmp_path), "d"]
    entries = read(subprocess.run(command, check=True, capture_output=True).stdout)
    assert sorted((entry.name, entry.type) for entry in entries) == [
        (b"d/", b"5"), (b"d/file", b"0"), (b"d/link", b"2"),
    ]


def test_gnu_tar_reads_what_we_write(tmp_path):
    name, xattrs = b"d/" + b"n" * 200, {b"user.note": b"\0\xff=\n"}
    data = tar.header(name, tar.REGULAR, 0o600, 1, 2, 5, 1_700_000_000_000_000_007, b"", xattrs)
    archive = data + b"hello" + tar.padding(5) + tar.END
    done = subprocess.run(["tar", "-tvf", "-", "--full-time"], input=archive, capture_output=True, check=True)
    assert b"1/2" in done.stdout and name in done.stdout and b".000000007" in done.stdout


def test_xattrs_survive_whatever_their_bytes():
    xattrs = {b"user.a": bytes(range(256)), b"user.b": b"", b"security.capability": b"\1\0\0\2" + bytes(16)}
    entry = read(tar.header(b"f", tar.REGULAR, 0o755, 0, 0, 0, 0, b"", xattrs))[0]
    assert entry.xattrs == xattrs


@pytest.mark.parametrize("size", range(85, 110))
def test_a_pax_length_counts_its_own_digits(size):
    entry = read(tar.header(b"n", tar.SYMLINK, 0o777, 0, 0, 0, 5, b"l" * (size + 30)))[0]
    assert entry.link == b"l" * (size + 30)


def test_a_common_header_is_one_block():
    assert len(tar.header(b"usr/bin/env", tar.REGULAR, 0o755, 0, 0, 100, 1_700_000_000 * 10**9)) == 512


@pytest.mark.parametrize(("field", "value"), [
    (b"0000644\0", 0o644), (b"   644 \0", 0o644), (b"644\0\0\0\0\0", 0o644), (b"\0" * 8, 0),
    (b"\x80\0\0\0\0\0\1\0", 256), (b"\xff" * 8, -1), (b"\xff" * 7 + b"\xfe", -2),
])
def test_a_number_is_read(field, value):
    assert fields.number(field) == value


@pytest.mark.parametrize("field", [b"0x1f\0\0\0\0", b"1_0\0\0\0\0\0", b"-1\0\0\0\0\0\0", b"8\0\0\0\0\0\0\0", b"+1\0\0\0\0\0\0"])
def test_what_is_no_octal_number_is_refused(field):
    with pytest.raises(InvalidArgument, match="octal"):
        fields.number(field)


@pytest.mark.parametrize(("text", "value"), [
    (b"1700000000.123456789", 1_700_000_000_123_456_789), (b"0.5", 500_000_000), (b"-1.5", -1_500_000_000),
    (b"7", 7 * 10**9), (b"1.1234567899", 1_123_456_789),
])
def test_a_time_is_exact(text, value):
    assert fields.parse_time(text) == value


def header(**changes: bytes) -> bytes:
    """A ustar header with some fields replaced (by offset), its checksum made good."""
    block = bytearray(tar.header(b"f", tar.REGULAR, 0o644, 0, 0, 0, 0))
    for key, value in changes.items():
        at = int(key[1:])
        block[at:at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HOSTILE = {
    "negative size": header(_124=b"\xff" * 12),
    "negative uid": header(_108=b"\xff" * 8),
    "unknown type": header(_156=b"Z"),
    "huge pax header": header(_156=b"x", _124=b"77777777777\0"),
    "pax without length": tar.header(b"p", b"x", 0, 0, 0, 10, 0) + b"nonsense=\n" + bytes(502),
    "pax record past its end": tar.header(b"p", b"x", 0, 0, 0, 9, 0) + b"99 a=bcd\n" + bytes(503),
    "pax size that is no number": tar.header(b"p", b"x", 0, 0, 0, 13, 0) + b"13 size=1e99\n"[:13] + bytes(499) + header(),
    "NUL in a pax path": tar.header(b"p", b"x", 0, 0, 0, 12, 0) + b"12 path=a\0b\n" + bytes(500) + header(),
    "end after an extension": tar.header(b"p", b"x", 0, 0, 0, 10, 0) + b"10 path=a\n" + bytes(502) + tar.END,
    "only extensions": (tar.header(b"p", b"x", 0, 0, 0, 10, 0) + b"10 path=a\n" + bytes(502)) * 100,
    "lone zero block": bytes(512) + header(),
    "half a header": header()[:200],
    "random bytes": b"\xa5" * 1024,
    "cut extension": tar.header(b"p", b"L", 0, 0, 0, 4000, 0) + bytes(100),
    "name too long": tar.header(b"p", b"L", 0, 0, 0, 65536, 0) + b"n" * 65536 + header(),
    "sparse parts overlap": header(
        _156=b"S", _124=b"00000000400\0", _386=b"%011o\0%011o\0" % (0, 128) + b"%011o\0%011o\0" % (64, 128),
        _483=b"00000010000\0"),
    "sparse map past the file": header(
        _156=b"S", _124=b"00000000200\0", _386=b"%011o\0%011o\0" % (1 << 20, 128), _483=b"00000000400\0"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused(what):
    with pytest.raises((InvalidArgument, TooLarge)):
        read(HOSTILE[what])


def test_too_many_entries_are_refused():
    with pytest.raises(TooLarge, match="more than 2 entries"):
        read(header() * 3, max_entries=2)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 600))
def test_damage_gives_an_error_or_entries_and_nothing_else(noise, at):
    data = bytearray(tar.header(b"n" * 150, tar.REGULAR, 0o644, 0, 0, 3, 1) + b"abc" + bytes(509) + tar.END)
    data[at:at + len(noise)] = noise
    try:
        assert len(read(bytes(data))) <= len(data) // 512
    except BuildError as error:
        assert error.message


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "old"])
def test_sparse_maps_of_gnu_tar_are_understood(version, tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"middle")
    options = ["--format=oldgnu"] if version == "old" else ["--format=posix", f"--sparse-version={version}"]
    command = ["tar", "-S", *options, "-cf", "-", "-C", str(tmp_path), "f"]
    entry = read(subprocess.run(command, check=True, capture_output=True).stdout)[0]
    assert (entry.name, entry.real) == (b"f", 3 << 20)
    assert entry.sparse and entry.sparse[0][0] <= 1 << 20 and entry.size < 1 << 20
