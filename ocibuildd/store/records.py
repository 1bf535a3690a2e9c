"""The build cache: what a key's work gave (``ports.CacheIndex``), and what was taken from it, when and why."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ..ports import LayerId, Record
from .db import Database, Row
from .failpoints import hit
from .layers import pack_chain, unpack_chain
from .leases import Held

_COLUMNS = (
    "key, chain, value, cost, created, build, identity, selector, op, kind, description, last_used, uses"
)
COMPRESS_FROM = 512
"""Preimages of more characters are stored deflated."""
DIGESTS = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
"""Whatever looks like a digest in a record's value keeps its blob."""
MAX_EVICTIONS = 20_000
"""Rows of the evictions log; the oldest go first."""
TRIM = 1_000
ADD_EVICTION = "INSERT INTO evictions (key, selector, at, rule, why) VALUES (?, ?, ?, ?, ?)"
LATEST = 64
"""Records of an instruction among which the one used last is looked for."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """A record that was taken away: which rule did it, and why, in words."""

    key: str
    selector: str
    at: float
    rule: str
    why: str


def _record(row: Row, preimage: str = "") -> Record:
    return Record(
        key=row[0], chain=unpack_chain(row[1]), value=row[2], preimage=preimage, cost=row[3], created=row[4],
        build=row[5], identity=row[6], selector=row[7], op=row[8], kind=row[9], description=row[10],
        last_used=row[11], uses=row[12],
    )


def _pack(preimage: str) -> str | bytes:
    if len(preimage) < COMPRESS_FROM and preimage.isascii():
        return preimage
    return zlib.compress(preimage.encode("utf-8", "surrogateescape"), 1)


def _unpack(data: str | bytes) -> str:
    if isinstance(data, str):
        return data
    return zlib.decompress(data).decode("utf-8", "surrogateescape")


def mirrored(key: str, packed: str | bytes) -> tuple[str, str, bytes]:
    """A stored preimage as the journal's line has it."""
    return (key, packed, b"") if isinstance(packed, str) else (key, "", packed)


class Records:
    """Records by key."""

    def __init__(self, db: Database, held: Held):
        self._db = db
        self._held = held

    def get(self, key: str) -> Record | None:
        """One indexed select; ``preimage`` is left empty.  Add the chain to a lease before awaiting
        anything, and ``touch`` the key when it was used."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM records WHERE key = ?", (key,))
        if row is None:
            return None
        record = _record(row)
        self._note(record)
        return record

    def put(self, record: Record) -> None:
        """Insert or replace.  The layers of its chain must be finished (a row always has what it names)."""
        self._note(record)
        used = record.last_used or record.created
        hit("record.before-row")
        with self._db.transaction():
            before = self._db.one("SELECT id FROM records WHERE key = ?", (record.key,))
            row = self._db.put_returning_id(
                "records",
                (
                    before[0] if before else None, record.key, record.selector, record.op, record.identity, record.kind,
                    record.description, pack_chain(record.chain), record.value, record.cost,
                    record.created, used, record.uses, record.build,
                ),
            )
            if record.preimage:
                packed = _pack(record.preimage)
                self._db.run("INSERT OR REPLACE INTO preimages VALUES (?, ?)", (row, packed))
                self._db.mirror("preimages", mirrored(record.key, packed))
        hit("record.after-row")

    def _note(self, record: Record) -> None:
        blobs = DIGESTS.findall(record.value) if record.value else ()
        self._held.note(keys=(record.key,), layers=record.chain, blobs=blobs)

    def nearest(self, selector: str) -> Record | None:
        """The record of the same instruction that was used last, with its preimage: what people compare with is
        their build before."""
        row = self._db.one(
            f"SELECT * FROM (SELECT {_COLUMNS} FROM records WHERE selector = ? ORDER BY created DESC LIMIT {LATEST})"
            " ORDER BY max(last_used, created) DESC LIMIT 1",
            (selector,),
        )
        return None if row is None else _record(row, self.preimage(row[0]))

    def seen(self, op: str) -> bool:
        """Is there any record of this very operation, whatever its inputs?"""
        return self._db.one("SELECT 1 FROM records WHERE op = ? LIMIT 1", (op,)) is not None

    def preimage(self, key: str) -> str:
        """What the key was made from; "" if unknown."""
        row = self._db.one("SELECT data FROM preimages JOIN records USING (id) WHERE key = ?", (key,))
        return _unpack(row[0]) if row else ""

    def touch(self, keys: Iterable[str], now: float | None = None) -> None:
        """These were used: one commit for all of them (at the end of a build)."""
        now = time.time() if now is None else now
        with self._db.transaction():
            for key in keys:
                self._db.run(
                    "UPDATE records SET last_used = max(last_used, ?), uses = uses + 1 WHERE key = ?",
                    (now, key),
                )

    def remove(self, key: str, *, rule: str = "", why: str = "", now: float | None = None) -> bool:
        """Delete a record; with a ``rule``, leave a line in the evictions log."""
        row = self._db.one("SELECT selector, id FROM records WHERE key = ?", (key,))
        if row is None:
            return False
        at = time.time() if now is None else now
        hit("record.before-delete")
        with self._db.transaction():
            self._db.delete("records", key, *((at, rule, why) if rule else ()))
            self._db.run("DELETE FROM preimages WHERE id = ?", (row[1],))
            if rule:
                self._db.run(ADD_EVICTION, (key, row[0], at, rule, why))
        return True

    def using(self, layer: LayerId) -> list[str]:
        """Keys of all records whose chain has this layer.  A scan: for damage, not for hot paths."""
        return [
            row[0]
            for row in self._db.all(
                "SELECT key FROM records WHERE instr(',' || chain || ',', ?) > 0", (f",{layer},",)
            )
        ]

    def evicted(self, *, key: str = "", selector: str = "") -> Eviction | None:
        """The latest eviction of this key, or else of this instruction."""
        for column, value in (("key", key), ("selector", selector)):
            row = value and self._db.one(
                f"SELECT key, selector, at, rule, why FROM evictions WHERE {column} = ?"
                " ORDER BY id DESC LIMIT 1",
                (value,),
            )
            if row:
                return Eviction(*row)
        return None

    def trim_evictions(self) -> bool:
        """Keep the newest MAX_EVICTIONS, a thousand rows at a time; True if there may be more to do."""
        return self._db.run(
            "DELETE FROM evictions WHERE id IN (SELECT id FROM evictions"
            " WHERE id <= (SELECT max(id) FROM evictions) - ? LIMIT ?)",
            (MAX_EVICTIONS, TRIM),
        ) == TRIM

    def count(self) -> int:
        row = self._db.one("SELECT count(*) FROM records")
        return int(row[0]) if row else 0

    def page(self, after: int = 0, count: int = 1_000) -> list[tuple[int, Record]]:
        """(row id, record), in order of row id, a page at a time; no preimages."""
        rows = self._db.all(
            f"SELECT {_COLUMNS}, id FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, count)
        )
        return [(row[-1], _record(row)) for row in rows]
