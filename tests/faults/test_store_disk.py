"""The disk is full, fails, is read-only; there are no descriptors left: an error, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import Ledger, cut, prove
from filler import Filler

from ocibuildd.errors import BuildError, Conflict, Corrupt, NoSpace
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store, failpoints
from ocibuildd.store.check import checking
from ocibuildd.store.gc import finish

TESTS = Path(__file__).parent.parent
WRITES = ["blob.write", "blob.before-fsync", "blob.after-fsync", "blob.after-rename"]


@pytest.fixture(autouse=True)
def _disarm() -> object:
    yield
    failpoints.arm("")


@pytest.mark.parametrize("point", WRITES)
@pytest.mark.parametrize(("action", "error"), [("enospc", NoSpace), ("eio", Corrupt)])
def test_a_write_that_fails_is_an_error_and_nothing_else(
    state: Path, point: str, action: str, error: type[BuildError]
) -> None:
    with Store.open(state) as store:
        Filler(store).image("kept", Filler(store).layer("layer"), name="app")
        failpoints.arm(f"{point}={action}")
        with pytest.raises(error):
            store.blobs.put(b"fails")
        failpoints.arm("")
        assert not store.blobs.has(Digest.of(b"fails"))
        assert os.listdir(state / "ingest") == []
        assert store.blobs.put(b"fails") == Digest.of(b"fails")
    os.unlink(state / "clean")
    with Store.open(state) as store:
        assert finish(checking(store)).findings == []
        assert store.images.resolve("app") is not None


def test_a_disk_that_fails_to_sync_keeps_trees_unsynced(state: Path) -> None:
    with Store.open(state) as store:
        Filler(store).layer("layer", tree=5)
        failpoints.arm("tree.before-syncfs=eio")
        with pytest.raises(OSError, match="Input/output"):
            store.trees.syncfs()
        assert len(store.trees.unsynced()) == 1


def test_a_journal_that_can_not_be_written_costs_no_commit(state: Path) -> None:
    with Store.open(state) as store:
        assert store.db.journal is not None
        os.close(store.db.journal.fd)
        store.db.journal.fd = os.open("/dev/full", os.O_WRONLY)
        Filler(store).record("r")
        assert store.records.get("r") is not None


def in_namespace(script: str, *arguments: str) -> str:
    """Run a script where it may mount: in a user namespace of its own.  Its first argument is a directory
    that is a tmpfs of ``SIZE`` bytes."""
    program = f"import sys; sys.path[:0] = [{str(TESTS)!r}]\n{script}"
    command = [
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
        'mount -t tmpfs -o size="$2" tmpfs "$1"; shift 2; exec "$@"', "sh", *arguments,
        sys.executable, "-c", program, arguments[0],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "unshare failed" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


FILL_UP = """
import os
from pathlib import Path
from filler import Filler
from ocibuildd.errors import NoSpace
from ocibuildd.store import Store
from ocibuildd.store.check import checking
from ocibuildd.store.gc import finish
from ocibuildd.store.policy import prune_policies
from ocibuildd.store.sweep import empty_trash

state = Path(sys.argv[1]) / "state"
kept = []
with Store.open(state, ballast=1 << 20) as store:
    fill = Filler(store)
    fill.image("pinned", fill.layer("pinned layer"), name="app")
    try:
        for number in range(10_000):
            key, preimage = f"r{number}", os.urandom(3_000).hex()
            if number % 3:
                fill.record(key, preimage=preimage)
            else:
                fill.record(key, fill.layer(preimage * 5), preimage=preimage)
            kept.append(key)
    except NoSpace as error:
        print("full:", error.message)
    # To the last byte.
    with open(state / "stuffing", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert all(store.records.get(key) for key in kept)
    outcome = store.collect(prune_policies(all=False))
    empty_trash(state)
    print("collected:", len(outcome.removals) == len(kept), not (state / "ballast").exists())
    os.unlink(state / "stuffing")
    fill.record("after")
os.unlink(state / "clean")
with Store.open(state, ballast=1 << 20) as store:
    print("findings:", finish(checking(store)).findings)
    print("kept:", store.images.resolve("app") is not None, store.records.get("after") is not None)
    print("ballast:", (state / "ballast").exists())
"""


def test_a_full_disk_is_collected_and_nothing_committed_is_lost(tmp_path: Path) -> None:
    said = in_namespace(FILL_UP, str(tmp_path), "8m")
    assert "disk is full" in said or "No space left" in said
    assert "collected: True True" in said
    assert "findings: []" in said
    assert "kept: True True" in said
    assert "ballast: True" in said


READ_ONLY = """
import subprocess
from pathlib import Path
from filler import Filler
from ocibuildd.errors import BuildError
from ocibuildd.store import Store

mount = Path(sys.argv[1])
with Store.open(mount / "state") as store:
    Filler(store).record("r")
subprocess.run(["mount", "-o", "remount,bind,ro", str(mount)], check=True)
for name in ("state", "new"):
    try:
        Store.open(mount / name)
    except (BuildError, OSError) as error:
        print("refused:", error)
subprocess.run(["mount", "-o", "remount,bind,rw", str(mount)], check=True)
with Store.open(mount / "state") as store:
    print("kept:", store.records.get("r") is not None)
"""


def test_a_read_only_file_system_is_said_so_at_start(tmp_path: Path) -> None:
    said = in_namespace(READ_ONLY, str(tmp_path), "8m")
    assert said.count("read-only") == 2
    assert "kept: True" in said


def without_descriptors(state: Path, free: int, action: Callable[[Store], object]) -> int:
    """In a child with so many descriptors left: does the action fail as it should?  Gives the exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        store = Store.open(state)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for fd in taken[:free]:
            os.close(fd)
        try:
            action(store)
        except (OSError, BuildError):
            os._exit(10)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("free", [0, 1, 2])
def test_without_descriptors_a_put_fails_and_loses_nothing(state: Path, free: int) -> None:
    ledger = Ledger()
    assert not cut(state, ledger, rounds=2)
    code = without_descriptors(state, free, lambda store: store.blobs.put(b"needs two descriptors"))
    assert code == (10 if free < 2 else 0)
    prove(state, ledger)


def test_a_second_daemon_is_refused_while_the_first_lives(state: Path) -> None:
    with Store.open(state):
        program = f"from ocibuildd.store import Store; from pathlib import Path; Store.open(Path({str(state)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
        assert f"in use by another daemon (pid {os.getpid()})" in done.stderr


def test_a_killed_daemon_leaves_no_lock(state: Path) -> None:
    ledger = Ledger()
    assert cut(state, ledger, seconds=0.2)
    prove(state, ledger)
    with Store.open(state), pytest.raises(Conflict):
        Store.open(state)


def test_a_state_directory_that_was_copied_is_a_store(state: Path) -> None:
    ledger = Ledger()
    assert not cut(state, ledger, rounds=2)
    shutil.copytree(state, state.with_name("copy"))
    prove(state.with_name("copy"), ledger)
