"""Compression by segments, and decompression of what others wrote."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import random
import zlib

import pytest
import zstandard
from isal import isal_zlib

from ocibuildd.errors import InvalidArgument, TooLarge
from ocibuildd.layer import compress, source, tar
from ocibuildd.layer.sink import LayerSink, Reuse, identity
from ocibuildd.ports import Output

FILES = [(b"d/f%d" % n, random.Random(n).randbytes(n % 7000) * 3) for n in range(600)]
BIG = random.Random(1).randbytes(100_000) * 40


def output(compression: str, level: int = -1) -> Output:
    return {"compression": compression, "level": level, "clamp": None}  # type: ignore[typeddict-item]


def write(path, out, threads=2, files=FILES, reuse=None, big=BIG):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        sink = LayerSink(fd, out, threads=threads, reuse=reuse)
        for name, data in files:
            meta = (name, tar.REGULAR, 0o644, 0, 0, len(data))
            sink.add(tar.header(*meta, 0), identity(*meta, b"", None), data)
        if big:
            sink.begin(tar.header(b"big", tar.REGULAR, 0o644, 0, 0, len(big), 0), b"big\0")
            for at in range(0, len(big), 1 << 20):
                sink.data(big[at:at + (1 << 20)])
            sink.end(len(big))
        return sink.close()
    finally:
        os.close(fd)


def unpacked(path) -> bytes:
    with open(path, "rb") as file:
        return b"".join(compress.decompress(iter(lambda: file.read(50_000), b"")))


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_the_bytes_are_the_same_whatever_the_number_of_threads(kind, tmp_path):
    results = {write(tmp_path / "l", output(kind), threads)["digest"] for threads in (1, 2, 5)}
    assert len(results) == 1


@pytest.mark.parametrize(("kind", "level"), [("gzip", -1), ("gzip", 0), ("gzip", 6), ("gzip", 9), ("zstd", -1), ("zstd", 9), ("none", -1)])
def test_digests_and_sizes_are_those_of_the_bytes(kind, level, tmp_path):
    packed = write(tmp_path / "l", output(kind, level))
    blob, whole = (tmp_path / "l").read_bytes(), unpacked(tmp_path / "l")
    assert packed["digest"] == "sha256:" + hashlib.sha256(blob).hexdigest() and packed["size"] == len(blob)
    assert packed["diff_id"] == "sha256:" + hashlib.sha256(whole).hexdigest() and packed["tar_size"] == len(whole)


def test_python_reads_our_gzip_as_one_member(tmp_path):
    write(tmp_path / "l", output("gzip"))
    blob = (tmp_path / "l").read_bytes()
    assert gzip.decompress(blob) == unpacked(tmp_path / "l")
    assert blob[:10] == compress.GZIP_HEADER  # no time, no name, the same OS byte everywhere


def test_a_small_layer_is_the_same_with_and_without_threads(tmp_path):
    small = write(tmp_path / "a", output("gzip"), files=FILES[:3], big=b"")
    again = write(tmp_path / "b", output("gzip"), threads=1, files=FILES[:3], big=b"")
    assert small == again and gzip.decompress((tmp_path / "a").read_bytes())


def test_an_empty_layer_writes_nothing(tmp_path):
    packed = write(tmp_path / "l", output("gzip"), files=[], big=b"")
    assert packed["empty"] and packed["digest"] == "" and (tmp_path / "l").stat().st_size == 0


def test_the_content_digest_ignores_times_and_compression(tmp_path):
    first = write(tmp_path / "a", output("gzip"))
    assert first["content"] == write(tmp_path / "b", output("none"))["content"]
    assert first["content"] != write(tmp_path / "b", output("none"), files=FILES[1:])["content"]


@pytest.mark.parametrize("level", [-2, 10, 99])
def test_a_level_that_does_not_exist_is_refused(level):
    with pytest.raises(InvalidArgument, match="level"):
        compress.codec("gzip", level)


def test_a_failed_write_is_raised_to_the_caller(tmp_path):
    fd = os.open(tmp_path / "l", os.O_RDONLY | os.O_CREAT)
    sink = LayerSink(fd, output("gzip"))
    with pytest.raises(OSError):
        for name, data in FILES * 20:
            sink.add(tar.header(name, tar.REGULAR, 0o644, 0, 0, len(data), 0), name + b"\0", data)
        sink.close()
    sink.abort()
    os.close(fd)


# --- unchanged segments are kept


def test_a_layer_with_kept_segments_is_the_same_as_one_without(tmp_path):
    changed = [*FILES[:300], (b"d/new", b"new"), *FILES[301:]]
    first = Reuse()
    write(tmp_path / "a", output("gzip"), reuse=first)
    plain = write(tmp_path / "b", output("gzip"), files=changed)
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    second = Reuse.load(first.dump(output("gzip")), fd, output("gzip"))
    assert write(tmp_path / "c", output("gzip"), files=changed, reuse=second) == plain
    assert second.kept > len(first.made) // 2
    os.close(fd)


@pytest.mark.parametrize("data", [b"", b"segments 1 zstd -1\n" + bytes(32), b"segments 1 gzip -1\nodd"])
def test_an_index_of_other_settings_is_nothing(data):
    assert Reuse.load(data, 0, output("gzip")).index == {}


def test_damaged_kept_segments_are_compressed_anew(tmp_path):
    first = Reuse()
    plain = write(tmp_path / "a", output("gzip"), reuse=first)
    (tmp_path / "a").write_bytes(bytes((tmp_path / "a").stat().st_size))
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    second = Reuse(first.made, fd)
    assert write(tmp_path / "b", output("gzip"), reuse=second) == plain and second.kept == 0
    os.close(fd)


# --- what others wrote

DATA = random.Random(5).randbytes(3000) * 1000
FOREIGN = {
    "gzip": gzip.compress(DATA), "two gzip members": gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]),
    "zstd": zstandard.compress(DATA), "zstd frames": zstandard.compress(DATA[:5]) + zstandard.compress(DATA[5:]),
    "bzip2": bz2.compress(DATA), "xz": lzma.compress(DATA), "two bzip2": bz2.compress(DATA[:9]) + bz2.compress(DATA[9:]),
    "plain": DATA, "gzip and zeros": gzip.compress(DATA) + bytes(1000), "gzip and garbage": gzip.compress(DATA) + b"garbage",
    "zstd and garbage": zstandard.compress(DATA) + b"garbage",
    "skippable zstd": b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstandard.compress(DATA),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("step", [1 << 20, 4099])
def test_foreign_compression_is_read(what, step):
    blob = FOREIGN[what]
    pieces = (blob[at:at + step] for at in range(0, len(blob), step))
    assert b"".join(compress.decompress(pieces)) == DATA


def test_single_bytes_are_enough():
    blob = gzip.compress(b"hello" * 100)
    assert b"".join(compress.decompress(blob[at:at + 1] for at in range(len(blob)))) == b"hello" * 100


@pytest.mark.parametrize("what", ["gzip", "zstd", "bzip2", "xz", "zstd frames", "two gzip members"])
@pytest.mark.parametrize("cut", [1, 5, 200])
def test_truncated_data_is_refused(what, cut):
    with pytest.raises(InvalidArgument, match=r"truncated|damaged"):
        list(compress.decompress(iter([FOREIGN[what][:-cut]])))


@pytest.mark.parametrize("what", ["gzip", "zstd", "bzip2", "xz"])
def test_damaged_data_is_refused(what):
    blob = bytearray(FOREIGN[what])
    blob[len(blob) // 2:len(blob) // 2 + 50] = bytes(50)
    if what == "zstd":
        blob = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(DATA))
        blob[-1] ^= 1
    with pytest.raises(InvalidArgument, match=r"damaged|truncated"):
        list(compress.decompress(iter([bytes(blob)])))


def test_a_huge_zstd_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = stream.compress(b"x" * 100) + stream.flush()
    with pytest.raises(TooLarge, match="window"):
        list(compress.decompress(iter([blob])))


def drain(path, **limits):
    fd = os.open(path, os.O_RDONLY)
    try:
        with source.LayerSource(fd, limits) as layer:
            layer.finish()
            return layer
    finally:
        os.close(fd)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bz2.compress])
def test_a_bomb_is_stopped_by_the_byte_limit(pack, tmp_path):
    (tmp_path / "bomb").write_bytes(pack(bytes(64 << 20)))
    with pytest.raises(TooLarge, match="more than 1000000 bytes"):
        drain(tmp_path / "bomb", bytes=1_000_000)


def test_a_bomb_is_stopped_by_its_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "RATIO_FROM", 1 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(32 << 20)))
    with pytest.raises(TooLarge, match="to one"):
        drain(tmp_path / "bomb")


def test_trailing_bytes_count_for_the_digest(tmp_path):
    blob = FOREIGN["gzip and garbage"]
    (tmp_path / "l").write_bytes(blob)
    layer = drain(tmp_path / "l")
    assert layer.digest == "sha256:" + hashlib.sha256(blob).hexdigest() and layer.size == len(blob)
    assert layer.diff_id == "sha256:" + hashlib.sha256(DATA).hexdigest()


def castagnoli(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC32C = [castagnoli(value) for value in range(256)]


def bucket(word: int) -> int:
    """Of ISA-L's hash table for 32 bits, at level 1: the lowest 13 bits of their CRC-32C."""
    for _ in range(4):
        word = word >> 8 ^ CRC32C[word & 0xFF]
    return word & 0x1FFF


@pytest.mark.parametrize("level", [1, 2])
def test_a_segments_bytes_do_not_depend_on_where_the_compressor_is(level: int) -> None:
    """ISA-L would put a position into a bucket that bits 16 to 47 of the stream's address choose."""
    letters, rest = random.Random(1), bytes(random.Random(2).choices(range(48, 112), k=600))
    for _ in range(12):
        probe = isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15)
        # Where the next one will be, too; the stream begins a few words into the object.
        wanted = bucket((id(probe) + 64) >> 16 & 0xFFFFFFFF)
        del probe
        while bucket(int.from_bytes(start := letters.randbytes(4), "little")) != wanted:
            pass
        data = start + rest + start + rest[::-1]
        here = compress.codec("gzip", level).segment(data)
        kept = [isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15) for _ in range(9)]
        assert compress.codec("gzip", level).segment(data) == here
        del kept


@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 9, 11, 16, 17, 300, 70_000])
@pytest.mark.parametrize("level", [-1, 2, 3])
def test_a_segment_of_any_size_is_read_back(level: int, size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    packed = compress.codec("gzip", level).segment(data) + compress.DEFLATE_END
    assert zlib.decompress(packed, -15) == data
