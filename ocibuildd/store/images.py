"""Images, the names they go by, and indexes.

An image is known by its config digest, as with Docker.  ``kind`` is "image" or "intermediate" (the image
as it stood after one instruction); an image without a name is *dangling*.  Names pin: what a name leads
to is never collected.  Intermediate images hold nothing: they go when their layers go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import NotFound
from ..model.digest import Digest
from ..ports import LayerId
from .db import Database, Row
from .failpoints import hit
from .layers import pack_chain, unpack_chain
from .leases import Held
from .rows import trusted

Kind = Literal["image", "intermediate"]


@dataclass(frozen=True, slots=True)
class Image:
    """A row of ``images``.

    id: config digest.  manifest: digest of the manifest ("" while there is none: intermediate images
    have none until somebody pushes them).  parent: id of the image one instruction earlier.
    created: as the config says; added, last_used: ours.  size: unpacked bytes of all layers, as Docker
    shows it.  blobs: further blobs to keep with it (other manifests of the same config, attestations).
    """

    id: Digest
    manifest: Digest | None
    media_type: str
    chain: tuple[LayerId, ...]
    kind: Kind = "image"
    parent: Digest | None = None
    created_by: str = ""
    created: float = 0.0
    size: int = 0
    platform: str = ""
    build: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    blobs: tuple[Digest, ...] = ()
    added: float = 0.0
    last_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Name:
    """A reference.  ``target``: digest of the manifest or index it stands for (what a push sends);
    ``image``: the config digest that it means on this host."""

    name: str
    image: Digest
    target: Digest | None
    created: float


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """An index whose bytes are a blob.  manifests: (digest, platform, image id or None if not here)."""

    digest: Digest
    media_type: str
    manifests: tuple[tuple[Digest, str, Digest | None], ...]


_COLUMNS = (
    "id, manifest, media_type, kind, chain, parent, created_by, created, size, platform, build, labels,"
    " blobs, added, last_used"
)


def _image(row: Row) -> Image:
    return Image(
        id=trusted(row[0]), manifest=trusted(row[1]) if row[1] else None, media_type=row[2], kind=row[3],
        chain=unpack_chain(row[4]), parent=trusted(row[5]) if row[5] else None, created_by=row[6],
        created=row[7], size=row[8], platform=row[9], build=row[10],
        labels=json.loads(row[11]) if row[11] else {},
        blobs=tuple(map(trusted, json.loads(row[12]))) if row[12] else (), added=row[13], last_used=row[14],
    )


def _row(image: Image) -> tuple[str | int | float, ...]:
    return (
        str(image.id), str(image.manifest or ""), image.media_type, image.kind, pack_chain(image.chain),
        str(image.parent or ""), image.created_by, image.created, image.size, image.platform, image.build,
        json.dumps(dict(image.labels)) if image.labels else "",
        json.dumps(list(image.blobs)) if image.blobs else "", image.added, image.last_used,
    )


def _name(row: Row) -> Name:
    return Name(row[0], trusted(row[1]), trusted(row[2]) if row[2] else None, row[3])


class Images:
    """Images by id, and their names.  Names are the text of a normalised reference with tag or digest
    (``str(Reference)``: ``docker.io/library/busybox:latest``)."""

    def __init__(self, db: Database, held: Held):
        self._db = db
        self._held = held

    # --- images ---------------------------------------------------------------------------------------

    def put(self, image: Image) -> None:
        """Insert or replace.  Blobs and layers must be there.  An image that is there as "image" stays
        one when it comes again as an intermediate, and keeps its manifest, parent and time of adding."""
        now = time.time()
        before = self.get(image.id)
        parent = image.parent or (before.parent if before else None)
        row = list(_row(image))
        row[5] = str(parent or "")
        row[13] = before.added if before else image.added or now
        row[14] = image.last_used or now
        if before and before.kind == "image" and image.kind == "intermediate":
            row[1], row[2], row[3] = str(before.manifest or ""), before.media_type, "image"
        elif before and before.manifest and image.manifest not in (None, before.manifest):
            # Another manifest of the same config (other compression): names may stand for the old one.
            row[12] = json.dumps(sorted({*image.blobs, *before.blobs, before.manifest}))
        self._note(image)
        hit("image.before-row")
        self._db.put("images", row)
        hit("image.after-row")

    def get(self, image: Digest | str) -> Image | None:
        """By config digest."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM images WHERE id = ?", (image,))
        return None if row is None else self._note(_image(row))

    def known(self, images: Sequence[Digest]) -> set[str]:
        """Which of these are here, with their configs: one select."""
        rows = self._db.all(
            "SELECT id FROM images JOIN blobs ON digest = id WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(images),),
        )
        self._held.note(blobs=[row[0] for row in rows])
        return {row[0] for row in rows}

    def find(self, prefix: str) -> list[Image]:
        """By the first hex digits of the id, "sha256:" or not; at most two, so that ambiguity shows."""
        start = prefix if ":" in prefix else f"sha256:{prefix}"
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM images WHERE id >= ? AND id < ? LIMIT 2", (start, start + "g")
        )
        return [self._note(_image(row)) for row in rows]

    def by_manifest(self, manifest: Digest) -> Image | None:
        """The image that this manifest describes."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM images WHERE manifest = ? LIMIT 1", (manifest,))
        return None if row is None else self._note(_image(row))

    def children(self, image: Digest) -> list[Image]:
        """Images whose parent this is."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM images WHERE parent = ?", (image,))
        return [_image(row) for row in rows]

    def of_build(self, build: str) -> list[Image]:
        """Images that a build made, oldest first."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM images WHERE build = ? ORDER BY added", (build,))
        return [_image(row) for row in rows]

    def all(self, kind: Kind | None = None) -> list[Image]:
        """All images (of a kind), newest first."""
        where = "WHERE kind = ?" if kind else ""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM images {where} ORDER BY created DESC", (kind,) if kind else ()
        )
        return [_image(row) for row in rows]

    def touch(self, image: Digest, now: float | None = None) -> None:
        """It was used."""
        now = time.time() if now is None else now
        self._db.run("UPDATE images SET last_used = max(last_used, ?) WHERE id = ?", (now, image))

    def demote(self, image: Digest) -> None:
        """An image that lost its last name but is still a step of a cached build: intermediate again."""
        before = self.get(image)
        if before is not None:
            row = list(_row(before))
            row[3] = "intermediate"
            self._db.put("images", row)

    def remove(self, image: Digest) -> bool:
        """Delete the image and its names; layers and blobs go with the next collection
        (``Store.collect``)."""
        hit("image.before-delete")
        with self._db.transaction():
            for name in self.names_of(image):
                self._db.delete("names", name.name)
            return bool(self._db.delete("images", str(image)))

    # --- names ----------------------------------------------------------------------------------------

    def tag(self, name: str, image: Digest, target: Digest | None = None) -> None:
        """Let a name mean an image; moves it if it meant another.  target: the manifest or index that
        it stands for, None = the image's own manifest.  Raises NotFound."""
        found = self.get(image)
        if found is None:
            raise NotFound(f"image {image}: not in the store")
        target = target or found.manifest
        hit("name.before-row")
        self._db.put("names", (name, str(image), str(target or ""), time.time()))
        index = self.get_index(target) if target else None
        for _, _, member in index.manifests if index else ():
            if member is not None:
                self.get(member)  # a collection under way leaves the other platforms' images too

    def untag(self, name: str) -> Name | None:
        """Take a name away; gives what it was, None if it wasn't."""
        before = self.resolve(name)
        if before is not None:
            self._db.delete("names", name)
        return before

    def resolve(self, name: str) -> Name | None:
        """What a name means: one indexed select."""
        row = self._db.one("SELECT name, image, target, created FROM names WHERE name = ?", (name,))
        return None if row is None else _name(row)

    def names_of(self, image: Digest) -> list[Name]:
        """All names of an image."""
        rows = self._db.all(
            "SELECT name, image, target, created FROM names WHERE image = ? ORDER BY name", (image,)
        )
        return [_name(row) for row in rows]

    def names(self, prefix: str = "") -> list[Name]:
        """All names, in order; those that begin with ``prefix``."""
        rows = self._db.all(
            "SELECT name, image, target, created FROM names WHERE name >= ? AND name < ? ORDER BY name",
            (prefix, prefix + "\U0010ffff"),
        )
        return [_name(row) for row in rows]

    # --- indexes --------------------------------------------------------------------------------------

    def put_index(self, index: StoredIndex) -> None:
        """Its bytes must be a blob.  Kept as long as a name's target or a lease is it."""
        rows = json.dumps([[str(d), p, str(i or "")] for d, p, i in index.manifests])
        self._db.put("indexes", (str(index.digest), index.media_type, rows, time.time()))
        self._held.note(blobs=[str(index.digest), *(str(m[0]) for m in index.manifests)])

    def get_index(self, digest: Digest) -> StoredIndex | None:
        row = self._db.one("SELECT digest, media_type, manifests FROM indexes WHERE digest = ?", (digest,))
        if row is None:
            return None
        self._held.note(blobs=(digest,))
        manifests = [(trusted(d), str(p), trusted(i) if i else None) for d, p, i in json.loads(row[2])]
        return StoredIndex(trusted(row[0]), row[1], tuple(manifests))

    def _note(self, image: Image) -> Image:
        blobs: Sequence[Digest] = (image.id, *image.blobs, *((image.manifest,) if image.manifest else ()))
        self._held.note(blobs=blobs, layers=image.chain)
        return image
