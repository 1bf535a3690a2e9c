"""A life of a store that is cut short, and the proof that nothing committed was lost.

``live`` does what builds, pulls and collections do to a store, one operation after the other, and says of
each when it begins to be a promise (``Ledger`` lines through a pipe).  ``cut`` runs it in a child that is
killed at a named point or after a time; ``prove`` opens the store again and holds it against the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filler import Filler

from ocibuildd.model.digest import Digest
from ocibuildd.store import Store, failpoints
from ocibuildd.store.blobs import LARGE
from ocibuildd.store.check import checking
from ocibuildd.store.db import checkpoint
from ocibuildd.store.gc import finish
from ocibuildd.store.images import Image
from ocibuildd.store.policy import Policy, prune_policies
from ocibuildd.store.rebuild import live_rows
from ocibuildd.store.sweep import empty_trash

Promise = Callable[..., None]
MANY_NAMES = 5


@dataclass
class Ledger:
    """What was promised.  names: reference → image id; records: key → texts of its layers' blobs.
    ``unsure``: what was being changed when the end came."""

    names: dict[str, str] = field(default_factory=dict)
    records: dict[str, list[str]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    operations: int = 0

    def read(self, line: str) -> None:
        what, *rest = json.loads(line)
        self.operations += 1
        if what == "name":
            self.names[rest[0]] = rest[1]
        elif what == "record":
            self.records[rest[0]] = rest[1]
        elif what == "changing":
            self.unsure.update(rest)
            for name in rest:
                self.names.pop(name, None)
                self.records.pop(name, None)
        elif what == "collecting":
            # From here on only names hold.
            self.records.clear()


class Life:
    """The operations.  Each writes, and promises once the write has returned."""

    def __init__(self, store: Store, promise: Promise, seed: int):
        self.store = store
        self.fill = Filler(store)
        self.promise = promise
        self.random = random.Random(seed)
        self.prefix = f"{os.getpid()}-{time.time_ns()}"
        self.number = 0

    def fresh(self) -> str:
        self.number += 1
        return f"{self.prefix}-{self.number}"

    def build(self) -> None:
        """A build of a few steps, committed as the executor commits: blobs first, then all rows at once."""
        store, build = self.store, self.fresh()
        store.builds.new(build, "app", {"tags": ["app"]})
        chain: list[int] = []
        texts: list[str] = []
        promises = []
        with store.leases.new(build) as lease:
            for _ in range(self.random.randint(1, 3)):
                text = f"layer {self.fresh()}" + "x" * self.random.choice([0, 10, 70_000, LARGE])
                digest = Digest.of(text.encode())
                with store.blobs.writer() as writer:
                    writer.write(text.encode())
                    writer.seal(digest, len(text))
                    writer.commit(digest, len(text))
                lease.add(blobs=[digest])
                tree = store.trees.allocate()
                (store.trees.path(tree) / "fs").mkdir(parents=True)
                (store.trees.path(tree) / "fs" / "file").write_text(text)
                layer = store.layers.new(chain[-1] if chain else 0, tree=tree)
                chain.append(layer)
                texts.append(text[:80])
                with store.transaction():
                    store.trees.commit(tree, len(text))
                    store.layers.finish(
                        layer, diff_id=digest, digest=digest, size=len(text), tar_size=len(text),
                        media_type="m", content=text[:40],
                    )
                    self.fill.record(f"key {build} {len(chain)}", *chain, selector="s", preimage=text[:100_000])
                promises.append((f"key {build} {len(chain)}", list(texts)))
                self.promise("record", *promises[-1])
            configs = store.blobs.put_many([f"config {build} {n}".encode() for n in range(len(chain))])
            with store.transaction():
                for place, config in enumerate(configs):
                    last = place == len(configs) - 1
                    store.images.put(
                        Image(config, None, "", tuple(chain[: place + 1]), "image" if last else "intermediate",
                              parent=configs[place - 1] if place else None, build=build)
                    )
                store.images.tag(f"name {build}", configs[-1])
            store.builds.finish(build, "done")
        self.promise("name", f"name {build}", configs[-1])

    def unpack_again(self) -> None:
        """A tree is lost and made again."""
        rows = self.store.db.all("SELECT id FROM layers ORDER BY id DESC LIMIT 1")
        if not rows:
            return
        before = self.store.layers.get(rows[0][0])
        if before.tree:
            self.store.trees.forget(before.tree)
            self.store.trees.trash(before.tree)
        tree = self.store.trees.allocate()
        (self.store.trees.path(tree) / "fs").mkdir(parents=True)
        with self.store.transaction():
            self.store.trees.commit(tree, 5)
            self.store.layers.set_tree(before.id, tree)

    def remove(self) -> None:
        """`ocibuild rmi`; of all but a few, where there are many."""
        names = self.store.images.names()
        self.random.shuffle(names)
        for name in names[MANY_NAMES:] or names[:1]:
            self.promise("changing", name.name)
            self.store.images.remove(name.image)

    def mounts(self) -> None:
        grip = self.store.cache_mounts.try_acquire(self.random.choice(["apt", "go"]), "private")
        assert grip is not None
        grip.path.mkdir(exist_ok=True)
        grip.release()
        self.store.cache_mounts.set_size(grip.hash, self.random.randint(0, 100))

    def collect(self) -> None:
        self.promise("collecting")
        if self.random.random() < 0.5:
            self.store.collect([Policy("size", max_used_space=self.random.randint(1, 200_000), all=True)])
        else:
            self.store.collect(prune_policies(mounts=True))
        empty_trash(self.store.path)

    def forget_build(self) -> None:
        for build in self.store.builds.expired(3, 0.0, time.time()):
            self.store.builds.remove(build)

    def tidy(self) -> None:
        store = self.store
        trees = store.trees.unsynced()
        store.trees.syncfs()
        store.trees.mark_synced(trees)
        store.space.make_ballast(0)
        store.space.make_ballast(1 << 16)
        store.db.shrink()
        checkpoint(store.db.path)
        assert store.db.journal is not None
        finish(store.db.journal.rewriting(live_rows(store.db)))

    def go_on(self, rounds: int) -> None:
        steps = [self.build, self.build, self.unpack_again, self.mounts, self.remove, self.collect,
                 self.forget_build, self.tidy]
        for step in steps:
            step()
        for _ in range(rounds):
            self.random.choice(steps)()


def cut(
    state: Path, ledger: Ledger, *, point: str = "", seconds: float = 0.0, rounds: int = 10_000, seed: int = 0
) -> bool:
    """A life in a child, which ends at a failpoint (``name:n``) or is killed after so many seconds.
    Was it cut short?  (If not, it came to its end in order.)"""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _live(state, write, point, rounds, seed)
    os.close(write)
    with os.fdopen(read, "rb") as acks:
        if seconds:
            data = _read_for(acks.fileno(), seconds)
            os.kill(child, signal.SIGKILL)
            data += acks.read()
        else:
            data = acks.read()
    _, status = os.waitpid(child, 0)
    for line in data.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            ledger.read(line)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the life failed before it was cut (see stderr)"
    return False


def _read_for(fd: int, seconds: float) -> bytes:
    data = b""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            part = os.read(fd, 1 << 16)
            if not part:
                break
            data += part
    return data


def _live(state: Path, write: int, point: str, rounds: int, seed: int) -> None:
    """In the child; never returns."""
    code = 1
    try:
        failpoints.arm(point)

        def promise(*words: object) -> None:
            os.write(write, json.dumps(words).encode() + b"\n")

        with Store.open(state, ballast=1 << 16) as store:
            Life(store, promise, seed).go_on(rounds)
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def prove(state: Path, ledger: Ledger) -> None:
    """Open what is left: clean, every promise kept.  Then the unsure is what it turns out to be."""
    with Store.open(state) as store:
        report = finish(checking(store))
        assert report.findings == [], report.findings
        assert os.listdir(state / "ingest") == []
        for name, image in ledger.names.items():
            found = store.images.resolve(name)
            assert found is not None, f"{name} is lost"
            assert found.image == image
            held = store.images.get(found.image)
            assert held is not None
            store.blobs.read(held.id)
            for layer in store.layers.chain(held.chain):
                assert layer.digest is not None
                assert store.blobs.verify(layer.digest) == ""
        for key, texts in ledger.records.items():
            record = store.records.get(key)
            assert record is not None, f"{key} is lost"
            assert store.records.preimage(key), f"what explains {key} is lost"
            for layer, text in zip(store.layers.chain(record.chain), texts, strict=True):
                assert layer.digest is not None
                assert store.blobs.read(layer.digest).decode().startswith(text)
        for name in ledger.unsure:
            left = store.images.resolve(name)
            if left is not None:
                ledger.names[name] = left.image
        ledger.unsure.clear()
        # A collection may have been under way: what it left is promised again.
        for _, record in store.records.page():
            ledger.records.setdefault(record.key, [])
            ledger.records[record.key] = [
                store.blobs.read(layer.digest).decode()[:80]
                for layer in store.layers.chain(record.chain) if layer.digest
            ]
