"""A database from the journal, and where that is lost too, from the blobs themselves: manifests and
configs say which layers an image has."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..model.digest import Digest
from ..model.oci import MANIFEST_TYPES, MEDIA_MANIFEST, Manifest, decode_config, decode_manifest
from . import journal
from .db import Database
from .layers import pack_chain, unpack_chain
from .records import ADD_EVICTION, MAX_EVICTIONS, mirrored
from .schema import KEYS, MIGRATIONS

log = logging.getLogger(__name__)

MAX_MANIFEST = 4 << 20
"""Larger blobs aren't manifests."""
PAGE = 500
_EVICTION = "key, selector, at, rule, why"
KEPT_EVICTIONS = 2_000
"""As many of the evictions log's newest rows are kept when the journal is rewritten."""
EMPTY = 64
"""A journal of fewer bytes has only its first line."""


def live_rows(db: Database) -> Iterator[tuple[str, Sequence[Any]]]:
    """All rows that the journal mirrors, for rewriting it."""
    for table, key in KEYS.items():
        after: object = ""
        column = next(
            number for number, row in enumerate(db.all(f"PRAGMA table_info({table})")) if row[1] == key
        )
        if table == "layers":
            after = 0
        while rows := db.all(f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT {PAGE}", (after,)):
            for row in rows:
                yield table, row
            after = rows[-1][column]
    after = 0
    while rows := db.all(
        "SELECT records.id, key, data FROM preimages JOIN records USING (id)"
        f" WHERE records.id > ? ORDER BY records.id LIMIT {PAGE}",
        (after,),
    ):
        for _, record, packed in rows:
            yield "preimages", mirrored(record, packed)
        after = rows[-1][0]
    for row in db.all(f"SELECT {_EVICTION} FROM evictions ORDER BY id DESC LIMIT {KEPT_EVICTIONS}")[::-1]:
        yield "evictions", row


def compacting(db: Database, removed: int = 0) -> Generator[None, None, None]:
    """Rewrite a journal that is mostly history, stepwise; write one where there is none.  removed: rows that
    a collection has just taken."""
    if db.journal is None:
        return
    new = db.journal.size < EMPTY and any(db.one(f"SELECT 1 FROM {table} LIMIT 1") for table in KEYS)
    if new or db.journal.bloated or db.journal.outlived(removed):
        yield from db.journal.rewriting(live_rows(db))


def rebuild(state: Path, db: Database) -> int:
    """Fill an empty database; gives the number of rows.  What the journal says is believed as far as the
    files bear it out (names, sizes; content is verified when it is read)."""
    rows, evictions = _replay(state / "journal.jsonl")
    _prune(state, rows)
    count = 0
    with db.transaction():
        for table, by_key in rows.items():
            for row in by_key.values():
                try:
                    db.put(table, row)
                    count += 1
                except (sqlite3.Error, OverflowError) as error:
                    log.warning("journal: a row of %s is unusable: %s", table, error)
        top = max((int(row[0]) for row in rows["layers"].values()), default=0)
        db.run("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'layers'", (top,))
        rows.clear()
        for eviction in evictions:
            with contextlib.suppress(sqlite3.Error):
                db.run(ADD_EVICTION, eviction)
        _preimages(state / "journal.jsonl", db)
        if db.one("SELECT 1 FROM images LIMIT 1") is None:
            count += _from_blobs(state, db)
    return count


def _replay(path: Path) -> tuple[dict[str, dict[Any, list[Any]]], deque[Sequence[Any]]]:
    """The rows that stand after all lines, and why the latest records went that don't."""
    rows: dict[str, dict[Any, list[Any]]] = {table: {} for table in KEYS}
    evictions: deque[Sequence[Any]] = deque(maxlen=MAX_EVICTIONS)
    width = _widths()
    for what, row in journal.read(path):
        table = what.removeprefix("-")
        if not row or any(isinstance(value, list | dict) for value in row):
            continue  # no column holds such a thing
        if what == "evictions" and len(row) == len(_EVICTION.split()):
            evictions.append(row)
        if table not in rows:
            continue
        if what.startswith("-"):
            gone = rows[table].pop(row[0], None)
            if what == "-records" and len(row) == 4 and gone is not None:
                evictions.append((row[0], gone[2], *row[1:]))
        elif len(row) == width[table][0]:
            rows[table][row[width[table][1]]] = row
    return rows, evictions


def _preimages(path: Path, db: Database) -> None:
    """Those of the records that stand, in a second reading: they are large and many."""
    for what, row in journal.read(path):
        if what != "preimages" or len(row) != 3:
            continue
        record = db.one("SELECT id FROM records WHERE key = ?", (row[0],))
        if record is None:
            continue
        try:
            packed = row[1] or base64.b64decode(row[2])
            db.run("INSERT OR REPLACE INTO preimages VALUES (?, ?)", (record[0], packed))
        except (sqlite3.Error, ValueError, TypeError) as error:
            log.warning("journal: a preimage is unusable: %s", error)


def _widths() -> dict[str, tuple[int, int]]:
    """For each mirrored table: how many columns, and which one is its key."""
    memory = sqlite3.connect(":memory:")
    try:
        for script in MIGRATIONS:
            memory.executescript(script)
        found = {}
        for table, key in KEYS.items():
            columns = [row[1] for row in memory.execute(f"PRAGMA table_info({table})")]
            found[table] = (len(columns), columns.index(key))
        return found
    finally:
        memory.close()


def _prune(state: Path, rows: dict[str, dict[Any, list[Any]]]) -> None:
    """Leave out what names things that aren't there."""
    for digest in list(rows["blobs"]):
        try:
            path = state / "blobs" / Digest(digest).algorithm / Digest(digest).hex
            whole = path.stat().st_size == rows["blobs"][digest][1]
        except (OSError, ValueError):
            whole = False
        if not whole:
            del rows["blobs"][digest]
    for tree in list(rows["trees"]):
        if not (state / "trees" / str(tree)).is_dir():
            del rows["trees"][tree]
    for layer in rows["layers"].values():
        if layer[9] not in rows["trees"]:
            layer[9] = ""
    for table, column in (("records", 7), ("images", 4)):
        for key, row in list(rows[table].items()):
            if not all(layer in rows["layers"] for layer in unpack_chain(row[column])):
                del rows[table][key]
    for record in rows["records"].values():
        record[0] = None
    for name, row in list(rows["names"].items()):
        if row[1] not in rows["images"]:
            del rows["names"][name]


def _from_blobs(state: Path, db: Database) -> int:
    """Images from the manifests among the blobs; nameless, since names are nowhere else."""
    count = 0
    for entry in os.scandir(state / "blobs" / "sha256"):
        if entry.stat(follow_symlinks=False).st_size > MAX_MANIFEST or len(entry.name) != 64:
            continue
        data = Path(entry.path).read_bytes()
        if not data.startswith(b"{") or Digest.of(data).hex != entry.name:
            continue
        try:
            manifest = decode_manifest(data)
            if manifest.config is None or not manifest.layers:
                continue
            count += _image_from(state, db, Digest.of(data), manifest)
        except (msgspec.ValidationError, msgspec.DecodeError, ValueError, OSError):
            continue
    return count


def _image_from(state: Path, db: Database, digest: Digest, manifest: Manifest) -> int:
    assert manifest.config is not None
    data = (state / "blobs" / "sha256" / manifest.config.digest.hex).read_bytes()
    if Digest.of(data) != manifest.config.digest:
        return 0
    config = decode_config(data)
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        return 0
    chain: list[int] = []
    for diff_id, layer in zip(diff_ids, manifest.layers, strict=True):
        row = db.one("SELECT id FROM layers WHERE diff_id = ? AND digest = ?", (diff_id, layer.digest))
        if row is None:
            db.run(
                "INSERT INTO layers VALUES (NULL, ?, 0, ?, ?, ?, 0, ?, '', '', ?)",
                (chain[-1] if chain else 0, str(diff_id), str(layer.digest), layer.size, layer.media_type,
                 time.time()),
            )
            row = db.one("SELECT last_insert_rowid()")
        assert row is not None
        chain.append(int(row[0]))
    media = manifest.media_type if manifest.media_type in MANIFEST_TYPES else MEDIA_MANIFEST
    labels = msgspec.json.encode(config.config.labels).decode() if config.config.labels else ""
    db.put(
        "images",
        (str(manifest.config.digest), str(digest), media, "image", pack_chain(chain), "", "", time.time(), 0,
         str(config.platform), "", labels, "", time.time(), time.time()),
    )
    return 1
