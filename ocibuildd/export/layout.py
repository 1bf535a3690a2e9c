"""Images in tars and directories: OCI layouts, and docker archives, which are both at once.

A layout is first decided, as a list of members (pure), and then written: as the chunks of a tar, to a descriptor,
or into a directory.  The same images give the same bytes.  Source: image-spec v1.1, image-layout.md; Docker's
image-spec v1.2 (manifest.json, repositories), as ``docker save`` writes and ``docker load`` reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BuildError, Conflict, Corrupt
from ..model.digest import Digest
from ..model.oci import MEDIA_INDEX, Descriptor, Platform
from ..model.reference import Reference
from ..ports import BlobStore
from .image import LayerBlob

LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the layout.  data: its bytes, or None: the blob ``digest`` of the store, of ``size`` bytes."""

    name: str
    size: int
    data: bytes | None = None
    digest: Digest | None = None
    directory: bool = False


@dataclass(frozen=True, slots=True)
class Packaged:
    """An image to be packed.  names: whole references (with tags); platform: None = don't say.

    annotations: of the descriptor in index.json."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[LayerBlob, ...]
    names: tuple[Reference, ...] = ()
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PackagedIndex:
    """An index over images that are packed too.  annotations: of the descriptor in index.json."""

    data: bytes
    media_type: str
    names: tuple[Reference, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def oci_layout(
    images: Sequence[Packaged], indexes: Sequence[PackagedIndex] = (),
    annotations: Mapping[str, str] | None = None,
) -> list[Member]:  # fmt: skip
    """Members of an OCI layout.  index.json has an entry for each name of an index (or, without indexes, of an
    image), one without a name where there is none."""
    blobs = _blobs(images)
    entries: list[Descriptor] = []
    for index in indexes:
        blobs.setdefault(Digest.of(index.data), _data(index.data))
        entries += _named(index.data, index.media_type, index.names, None, index.annotations)
    if not indexes:
        for image in images:
            entries += _named(
                image.manifest, image.media_type, image.names, image.platform, image.annotations
            )
    top: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MEDIA_INDEX,
        "manifests": [descriptor_json(entry) for entry in entries],
    }
    if annotations:
        top["annotations"] = dict(sorted(annotations.items()))
    return [
        Member("blobs/", 0, directory=True),
        Member("blobs/sha256/", 0, directory=True),
        *(_at_path(digest, member) for digest, member in sorted(blobs.items())),
        _file("index.json", _json(top)),
        _file("oci-layout", LAYOUT_FILE),
    ]


def docker_archive(
    images: Sequence[Packaged], indexes: Sequence[PackagedIndex] = ()
) -> list[Member]:
    """Members of a docker archive: an OCI layout with manifest.json and repositories beside it."""
    entries: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        config = Digest.of(image.config)
        entries.append(
            {
                "Config": blob_path(config),
                "RepoTags": [name.familiar for name in image.names] or None,
                "Layers": [blob_path(layer.digest) for layer in image.layers],
            }
        )
        top = image.layers[-1].digest.hex if image.layers else config.hex
        for name in image.names:
            repositories.setdefault(name.familiar_name, {})[name.tag or "latest"] = top
    members = [*oci_layout(images, indexes), _file("manifest.json", _json(entries))]
    if repositories:
        members.append(_file("repositories", _json(repositories)))
    return members


def blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _blobs(images: Sequence[Packaged]) -> dict[Digest, Member]:
    blobs: dict[Digest, Member] = {}
    for image in images:
        for layer in image.layers:
            if layer.data is not None:
                blobs[layer.digest] = _data(layer.data)
            else:
                blobs.setdefault(layer.digest, Member("", layer.size, None, layer.digest))
        blobs[Digest.of(image.config)] = _data(image.config)
        blobs[Digest.of(image.manifest)] = _data(image.manifest)
    return blobs


def _data(data: bytes) -> Member:
    return Member("", len(data), data)


def _file(name: str, data: bytes) -> Member:
    return Member(name, len(data), data)


def _at_path(digest: Digest, member: Member) -> Member:
    return Member(blob_path(digest), member.size, member.data, member.digest)


def _named(
    data: bytes, media_type: str, names: Sequence[Reference], platform: Platform | None,
    about: Mapping[str, str],
) -> list[Descriptor]:  # fmt: skip
    annotations: list[dict[str, str]] = [
        {**about, IMAGE_NAME: str(name), REF_NAME: name.tag or str(name.digest or "latest")}
        for name in names
    ] or [dict(about)]
    return [
        Descriptor(media_type, Digest.of(data), len(data), annotations=each, platform=platform)
        for each in annotations
    ]


def descriptor_json(entry: Descriptor) -> dict[str, Any]:
    """A descriptor as JSON has it."""
    body: dict[str, Any] = {
        "mediaType": entry.media_type, "digest": str(entry.digest), "size": entry.size,
    }  # fmt: skip
    if entry.annotations:
        body["annotations"] = dict(sorted(entry.annotations.items()))
    if entry.platform is not None:
        body["platform"] = {
            "architecture": entry.platform.architecture, "os": entry.platform.os,
        }  # fmt: skip
        if entry.platform.variant:
            body["platform"]["variant"] = entry.platform.variant
    return body


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# --- writing ------------------------------------------------------------------------------------


def tar_chunks(
    members: Sequence[Member], blobs: BlobStore, mtime: int = 0, *, verified: bool = False
) -> Iterator[bytes]:
    """The tar, a mebibyte or less at a time.  verified: the blobs were read and found whole just now.
    Raises NotFound, Corrupt (a damaged blob)."""
    for member in members:
        yield _header(member, mtime)
        yield from _content(member, blobs, verified=verified)
        if member.size % tarfile.BLOCKSIZE:
            yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def tar_size(members: Sequence[Member]) -> int:
    """Bytes of that tar."""
    total = 2 * tarfile.BLOCKSIZE
    for member in members:
        total += len(_header(member, 0)) + member.size + -member.size % tarfile.BLOCKSIZE
    return total


def _header(member: Member, mtime: int) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime = member.size, mtime
    info.mode = 0o755 if member.directory else 0o644
    info.type = tarfile.DIRTYPE if member.directory else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT)


def damaged(digest: Digest) -> Corrupt:
    """A blob isn't what its digest says; for ``store.blobs.suspect``."""
    return Corrupt(
        f"blob {digest}: damaged on the disk",
        hint="what it was part of is no cache hit any more: build or pull the image again",
        details={"blob": str(digest)},
    )


def _content(member: Member, blobs: BlobStore, *, verified: bool = False) -> Iterator[bytes]:
    if member.data is not None:
        yield member.data
        return
    if member.digest is None:
        return
    fd = blobs.open(member.digest)
    hasher = hashlib.new(member.digest.algorithm, usedforsecurity=False)
    try:
        left = member.size
        while left and (data := os.read(fd, min(CHUNK, left))):
            left -= len(data)
            if not verified:
                hasher.update(data)
            yield data
    finally:
        os.close(fd)
    if left or not (verified or hasher.hexdigest() == member.digest.hex):
        raise damaged(member.digest)


def write_tar(members: Sequence[Member], blobs: BlobStore, fd: int, mtime: int = 0) -> None:
    """The tar, to a descriptor."""
    for chunk in tar_chunks(members, blobs, mtime):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


def write_directory(members: Sequence[Member], blobs: BlobStore, path: Path) -> None:
    """The layout, into a directory (made if need be).  A layout that is there already is added to: its
    index keeps the entries of other names.  Raises Conflict where something else is there."""
    index_file = path / "index.json"
    if path.exists() and not path.is_dir():
        raise Conflict(f"{path}: is there, and is no directory")
    old: list[Any] = []
    if index_file.exists():
        try:
            old = json.loads(index_file.read_bytes())["manifests"]
        except (ValueError, KeyError, TypeError):
            raise Conflict(f"{index_file}: is there, and is no OCI index") from None
    path.mkdir(parents=True, exist_ok=True)
    for member in members:
        target = path / member.name
        if member.directory:
            target.mkdir(exist_ok=True)
            continue
        target.parent.mkdir(exist_ok=True)
        data = member.data
        if member.name == "index.json" and data is not None:
            data = _merge(old, data)
        elif target.exists() and target.stat().st_size == member.size:
            continue
        _write_file(
            target,
            Member(member.name, len(data) if data else member.size, data, member.digest),
            blobs,
        )


def _merge(old: list[Any], data: bytes) -> bytes:
    top = json.loads(data)

    def key(entry: Any) -> tuple[object, object]:
        annotations = entry.get("annotations", {}) if isinstance(entry, dict) else {}
        name = annotations.get(IMAGE_NAME) or annotations.get(REF_NAME)
        return (name, None) if name else (None, entry.get("digest"))

    new = {key(entry) for entry in top["manifests"]}
    top["manifests"] = [entry for entry in old if key(entry) not in new] + top["manifests"]
    return _json(top)


def _write_file(target: Path, member: Member, blobs: BlobStore) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with temporary.open("wb") as file:
            for chunk in _content(member, blobs):
                file.write(chunk)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"write {target}: {error.strerror}") from error
