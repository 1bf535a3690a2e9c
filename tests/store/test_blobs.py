"""Blobs: in whole or not at all, verified, out of sight when damaged."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from ocibuildd.errors import Corrupt, NoSpace, NotFound, TooLarge
from ocibuildd.model.digest import Digest
from ocibuildd.runtime import in_thread
from ocibuildd.store import Store, blobs

ABSENT = Digest.of(b"never put")


def files(state: Path, name: str) -> list[str]:
    return os.listdir(state / name)


def damage(store: Store, digest: Digest, data: bytes) -> None:
    store.blobs.file(digest).write_bytes(data)


def test_what_was_put_is_read(store: Store) -> None:
    digest = store.blobs.put(b"hello")
    assert store.blobs.read(digest) == b"hello"
    assert store.blobs.has(digest)
    assert store.blobs.size(digest) == 5


def test_putting_twice_keeps_one(store: Store) -> None:
    assert store.blobs.put(b"x") == store.blobs.put(b"x")
    assert store.blobs.bytes == 1


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    assert store.blobs.read(store.blobs.put(b"")) == b""


def test_files_are_the_users_alone(store: Store, state: Path) -> None:
    path = store.blobs.file(store.blobs.put(b"x"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "store.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["size", "open", "read"])
def test_what_is_absent_is_not_found(store: Store, call: str) -> None:
    with pytest.raises(NotFound, match="not in the store"):
        getattr(store.blobs, call)(ABSENT)


def test_a_read_has_a_limit(store: Store) -> None:
    digest = store.blobs.put(b"12345")
    with pytest.raises(TooLarge, match="at most 4"):
        store.blobs.read(digest, 4)


def test_a_writer_that_is_not_committed_leaves_nothing(store: Store, state: Path) -> None:
    with store.blobs.writer() as writer:
        writer.write(b"half")
    assert files(state, "ingest") == []


@pytest.mark.parametrize(
    ("digest", "size", "match"),
    [(Digest.of(b"data"), 5, "4 bytes, expected 5"), (ABSENT, 4, "its content has digest")],
)
def test_a_wrong_digest_or_size_is_refused(
    store: Store, state: Path, digest: Digest, size: int, match: str
) -> None:
    writer = store.blobs.writer()
    writer.write(b"data")
    with pytest.raises(Corrupt, match=match):
        writer.commit(digest, size)
    assert files(state, "ingest") == []
    assert not store.blobs.has(digest)


def test_what_a_job_wrote_through_the_descriptor_is_hashed(store: Store) -> None:
    writer = store.blobs.writer()
    os.write(writer.fd, b"by a job")
    with pytest.raises(Corrupt):
        writer.commit(ABSENT, 8)
    with store.blobs.writer() as second:
        os.write(second.fd, b"by a job")
        second.commit(Digest.of(b"by a job"), 8)


def test_a_trusted_job_is_believed_about_the_digest_not_the_size(store: Store) -> None:
    digest = Digest.of(b"reported")
    with store.blobs.writer(trusted=True) as writer:
        os.write(writer.fd, b"reported")
        with pytest.raises(Corrupt):
            writer.commit(digest, 9)
    with store.blobs.writer(trusted=True) as writer:
        os.write(writer.fd, b"reported")
        writer.commit(digest, 8)
    assert store.blobs.read(digest) == b"reported"


def test_sha512_blobs_are_hashed_as_such(store: Store) -> None:
    import hashlib

    digest = Digest("sha512:" + hashlib.sha512(b"long").hexdigest())
    with store.blobs.writer() as writer:
        writer.write(b"long")
        writer.commit(digest, 4)
    assert store.blobs.read(digest) == b"long"


async def test_sealing_in_a_thread_leaves_only_the_row(store: Store) -> None:
    digest = Digest.of(b"slow disk")
    writer = store.blobs.writer()
    writer.write(b"slow disk")
    await in_thread(writer.seal, digest, 9)
    assert not store.blobs.has(digest)
    writer.commit(digest, 9)
    assert store.blobs.has(digest)
    await asyncio.sleep(0)


def test_many_small_blobs_are_one_commit(store: Store) -> None:
    old = store.blobs.put(b"old")
    digests = store.blobs.put_many([b"a", b"old", b"b"])
    assert digests[1] == old
    assert [store.blobs.read(digest) for digest in digests] == [b"a", b"old", b"b"]


@pytest.mark.parametrize("data", [b"Hello", b"hell", b""])
def test_a_damaged_blob_goes_to_quarantine_when_read(store: Store, state: Path, data: bytes) -> None:
    digest = store.blobs.put(b"hello")
    damage(store, digest, data)
    with pytest.raises(Corrupt, match="quarantine"):
        store.blobs.read(digest)
    assert not store.blobs.has(digest)
    assert len(files(state, "quarantine")) == 1
    assert store.blobs.put(b"hello") == digest
    assert store.blobs.read(digest) == b"hello"


def test_a_truncated_blob_is_seen_when_opened(store: Store) -> None:
    digest = store.blobs.put(b"hello")
    damage(store, digest, b"hell")
    with pytest.raises(Corrupt):
        store.blobs.open(digest)
    assert store.blobs.bytes == 0


def test_a_blob_whose_file_is_gone_is_missing(store: Store) -> None:
    digest = store.blobs.put(b"hello")
    store.blobs.file(digest).unlink()
    with pytest.raises(NotFound, match="file is gone"):
        store.blobs.open(digest)
    assert not store.blobs.has(digest)


def test_verify_names_what_is_wrong(store: Store) -> None:
    digest = store.blobs.put(b"hello")
    assert store.blobs.verify(digest) == ""
    damage(store, digest, b"jello")
    assert "damaged" in store.blobs.verify(digest)


def test_a_symbolic_link_in_place_of_a_blob_is_not_followed(store: Store, tmp_path: Path) -> None:
    digest = store.blobs.put(b"hello")
    (tmp_path / "elsewhere").write_bytes(b"hello")
    store.blobs.file(digest).unlink()
    store.blobs.file(digest).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.blobs.open(digest)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace),
                                              (errno.EIO, Corrupt)])
def test_a_failed_fsync_is_the_end_of_the_ingest(
    store: Store, state: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    writer = store.blobs.writer()
    writer.write(b"data")
    monkeypatch.setattr(blobs.os, "fsync", fail)
    with pytest.raises(kind):
        writer.commit(Digest.of(b"data"), 4)
    assert files(state, "ingest") == []
    assert not store.blobs.has(Digest.of(b"data"))


def test_the_sum_survives_a_rollback(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.blobs.put(b"12345")
        raise RuntimeError
    assert store.blobs.bytes == 0


def test_forgetting_what_is_gone_is_no_error(store: Store) -> None:
    assert store.blobs.forget(ABSENT) == 0


def test_a_blob_that_comes_back_is_not_thrown_away(store: Store) -> None:
    digest = store.blobs.put(b"again")
    store.blobs.forget(digest)
    store.blobs.put(b"again")
    assert not store.blobs.trash_forgotten(digest)
    assert store.blobs.read(digest) == b"again"


def test_a_blob_of_a_transaction_that_is_undone_leaves_no_file(store: Store) -> None:
    data = b"undone"
    with pytest.raises(ZeroDivisionError), store.transaction():
        with store.blobs.writer() as writer:
            writer.write(data)
            writer.commit(Digest.of(data), len(data))
        1 / 0  # noqa: B018
    assert not store.blobs.file(Digest.of(data)).exists()
    assert store.used == 0


def test_many_blobs_whose_commit_fails_leave_no_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str) -> None:
        if name == "db.before-commit":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ocibuildd.store.failpoints._armed", full)
    with pytest.raises(NoSpace):
        store.blobs.put_many([b"one", b"two"])
    assert list((store.path / "blobs" / "sha256").iterdir()) == []
    assert list((store.path / "ingest").iterdir()) == []


def test_a_file_that_a_writer_has_placed_is_neither_trashed_nor_put_aside(store: Store) -> None:
    data, digest = b"comes and goes", Digest.of(b"comes and goes")
    store.blobs.put(data)
    store.blobs.forget(digest)  # a collection is between the row and the file
    with store.blobs.writer() as writer:
        writer.write(data)
        writer.seal(digest, len(data))
        assert not store.blobs.trash_forgotten(digest)
        store.blobs.quarantine(digest, "what was here before was damaged")
        writer.commit(digest, len(data))
    assert store.blobs.read(digest) == data


def test_an_error_after_the_commit_undoes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(name: str) -> None:
        if name == "db.after-commit":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("ocibuildd.store.failpoints._armed", failing)
    with pytest.raises(OSError), store.transaction():
        store.blobs.put(b"stands")
    monkeypatch.setattr("ocibuildd.store.failpoints._armed", None)
    assert store.blobs.read(Digest.of(b"stands")) == b"stands"
    assert store.used == 6
