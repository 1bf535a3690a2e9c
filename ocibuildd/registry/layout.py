"""An OCI layout as a registry to pull from: a directory on this host, or the members of an archive.

Offers what a pull needs of ``ports.Registry``: resolve, head, blob.  Nothing in a layout is trusted: digests
and sizes hold or the answer is Corrupt, names are looked up and never made into paths.
Source: image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ocibuildd.errors import Corrupt, InvalidArgument, NotFound, RegistryError, TooLarge
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index, decode_index
from ocibuildd.model.reference import Reference
from ocibuildd.ports import Fetched

from .protocol import MAX_MANIFEST, check_digest, check_json, media_type_of, parse_document

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAMES = ("io.containerd.image.name", "com.docker.image.name")
OCI_LAYOUT = "oci-layout://"
CHUNK = 1 << 20
MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file: ``fd`` is the taker's to close."""

    fd: int
    offset: int
    size: int


class Files(Protocol):
    """Where a layout's files are.  ``open`` raises NotFound."""

    def open(self, name: str) -> Stretch: ...


class Directory:
    """A layout in a directory.  Links in it aren't followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> Stretch:
        try:
            fd = os.open(
                self._path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError as error:
            raise NotFound(f"{self._path}/{name}: {error.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise NotFound(f"{self._path}/{name}: not a regular file")
        return Stretch(fd, 0, status.st_size)


def read_small(files: Files, name: str, limit: int = MAX_MANIFEST) -> bytes:
    """A small file of a layout.  Raises NotFound, TooLarge."""
    stretch = files.open(name)
    try:
        if stretch.size > limit:
            raise TooLarge(f"{name}: {stretch.size:,} bytes, the limit is {limit:,}")
        data = b""
        while len(data) < stretch.size:
            part = os.pread(stretch.fd, stretch.size - len(data), stretch.offset + len(data))
            if not part:
                raise Corrupt(f"{name}: ended at {len(data):,} of {stretch.size:,} bytes")
            data += part
        return data
    finally:
        os.close(stretch.fd)


@dataclass(frozen=True, slots=True)
class Named:
    """An entry of index.json: the names that it has, as they are written there."""

    descriptor: Descriptor
    names: tuple[str, ...]


class Layout:
    """A layout.  ``what`` names it in messages."""

    def __init__(self, files: Files, what: str) -> None:
        self._files = files
        self.what = what

    @classmethod
    def at(cls, path: Path) -> Layout:
        """The layout in a directory."""
        return cls(Directory(path), f"oci layout {path}")

    async def close(self) -> None:
        """Nothing to do; registries have it."""

    def entries(self) -> list[Named]:
        """What index.json names.  Raises NotFound, RegistryError, TooLarge."""
        data = read_small(self._files, "index.json")
        value = check_json(data, f"{self.what}: index.json")
        if "manifests" not in value:
            raise RegistryError(f"{self.what}: index.json names no manifests")
        try:
            index = decode_index(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RegistryError(f"{self.what}: index.json: {str(error)[:300]}") from None
        found: dict[Digest, Named] = {}
        for entry in index.manifests:
            if entry.media_type not in INDEX_TYPES | MANIFEST_TYPES:
                continue
            named = found.get(entry.digest)
            names = (*(named.names if named else ()), *names_of(entry))
            found[entry.digest] = Named(entry, tuple(dict.fromkeys(names)))
        return list(found.values())

    def select(self, tag: str = "", digest: Digest | None = None) -> Descriptor:
        """The entry with this digest, or with this tag; the only one where neither is given.

        Raises NotFound, InvalidArgument (several, and nothing to tell them apart)."""
        entries = self.entries()
        if digest is not None:
            for entry in entries:
                if entry.descriptor.digest == digest:
                    return entry.descriptor
            return self._inside(digest, [entry.descriptor for entry in entries])
        wanted = [e for e in entries if any(_tag_of(n) == tag for n in e.names)] if tag else entries
        if not wanted and tag == "latest":
            wanted = entries if len(entries) == 1 else []
        if not wanted:
            raise NotFound(f"{self.what}: no image {tag or 'in it'}")
        if len(wanted) > 1:
            raise InvalidArgument(
                f"{self.what}: has {len(wanted)} images, name one by tag or digest"
            )
        return wanted[0].descriptor

    def _inside(self, digest: Digest, around: Iterable[Descriptor]) -> Descriptor:
        """A manifest that an index in the layout names."""
        for entry in around:
            if entry.media_type in INDEX_TYPES:
                document = self._document(entry)
                if isinstance(document, Index):
                    for inner in document.manifests:
                        if inner.digest == digest:
                            return inner
        raise NotFound(f"{self.what}: no manifest {digest}")

    def _document(self, descriptor: Descriptor) -> Any:
        what = f"{self.what}: {descriptor.digest}"
        return parse_document(self._read(descriptor), descriptor.media_type, what)

    def _read(self, descriptor: Descriptor) -> bytes:
        data = read_small(self._files, _path(descriptor.digest))
        if len(data) != descriptor.size:
            raise Corrupt(
                f"{self.what}: {descriptor.digest}: {len(data):,} bytes, expected {descriptor.size:,}"
            )
        check_digest(data, descriptor.digest, f"{self.what}: {descriptor.digest}")
        return data

    # --- ports.Registry, the half that pulls --------------------------------------------------

    def lenient(self, domain: str) -> Layout:  # noqa: ARG002
        """There is nobody to be lenient with."""
        return self

    async def resolve(self, reference: Reference, *, auth: object = None) -> Fetched:  # noqa: ARG002
        """The manifest or index that a reference's digest, else its tag, names."""
        descriptor = self.select(reference.tag or "", reference.digest)
        data = self._read(descriptor)
        document = parse_document(data, descriptor.media_type, f"{self.what}: {descriptor.digest}")
        return Fetched(descriptor.digest, media_type_of(document, descriptor.media_type), data)

    async def head(self, reference: Reference, *, auth: object = None) -> None:
        """Says nothing: ``resolve`` is as cheap."""

    async def blob(
        self, reference: Reference, descriptor: Descriptor, *, offset: int = 0, auth: object = None,  # noqa: ARG002
        verify: bool = True, mirrors: bool = True,  # noqa: ARG002
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        """The bytes of a blob.  Raises NotFound, Corrupt."""
        stretch = self._files.open(_path(descriptor.digest))
        hasher = hashlib.new(descriptor.digest.algorithm) if verify and not offset else None
        try:
            if stretch.size != descriptor.size:
                raise Corrupt(
                    f"{self.what}: {descriptor.digest}: {stretch.size:,} bytes, expected"
                    f" {descriptor.size:,}"
                )
            at = offset
            while at < stretch.size:
                data = os.pread(stretch.fd, min(CHUNK, stretch.size - at), stretch.offset + at)
                if not data:
                    raise Corrupt(f"{self.what}: {descriptor.digest}: ended at {at:,} bytes")
                at += len(data)
                if hasher is not None:
                    hasher.update(data)
                yield data
        finally:
            os.close(stretch.fd)
        if hasher is not None and hasher.hexdigest() != descriptor.digest.hex:
            raise Corrupt(f"{self.what}: {descriptor.digest}: its content has another digest")

    async def push_blob(self, *_: object, **__: object) -> str:
        raise InvalidArgument(f"{self.what}: can't be pushed to")

    async def push_manifest(self, *_: object, **__: object) -> Digest:
        raise InvalidArgument(f"{self.what}: can't be pushed to")


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def parse_layout(text: str) -> tuple[Layout, Reference]:
    """``oci-layout://<directory>[:tag][@digest]``: the layout, and a reference that selects in it.

    Raises InvalidArgument, NotFound.
    """
    head, at, digest = text.removeprefix(OCI_LAYOUT).partition("@")
    path, colon, tag = head.rpartition(":")
    if not colon or "/" in tag:
        path, tag = head, ""
    if not path.startswith("/") or not Path(path).is_dir():
        raise NotFound(
            f"oci layout {path or text!r}: no such directory (an absolute path is wanted)"
        )
    try:
        wanted = Digest(digest) if at else None
    except ValueError as error:
        raise InvalidArgument(f"oci layout {text}: {error}") from None
    return Layout.at(Path(path)), Reference("layout.invalid", "image", tag or None, wanted)


def names_of(descriptor: Descriptor) -> list[str]:
    """Names that an index entry has, the whole ones first."""
    whole = [descriptor.annotations[k] for k in IMAGE_NAMES if descriptor.annotations.get(k)]
    short = descriptor.annotations.get(REF_NAME, "")
    return whole or ([short] if short else [])


def _tag_of(name: str) -> str:
    head, colon, tail = name.rpartition(":")
    return tail if colon and "/" not in tail and head else name
