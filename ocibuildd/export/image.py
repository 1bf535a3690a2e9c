"""Results into images: config, manifest and index bytes.  Pure; the same input gives the same bytes.

    composed = compose(template, base, base_layers, lines)      → config bytes and the image's layers
    manifest = manifest_bytes(composed, types=OCI, annotations={…})
    index = index_bytes([entry, …], types=OCI, annotations={…})

Source: image-spec v1.1 (config.md, manifest.md, image-index.md); for history BuildKit's
normalisation: a step whose layer is empty still has one, and history items without a time of their own get
the time of the next new layer, or of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec

from ..errors import BuildError
from ..model.digest import EMPTY_TAR, Digest
from ..model.oci import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MEDIA_CONFIG,
    MEDIA_INDEX,
    MEDIA_LAYER,
    MEDIA_LAYER_GZIP,
    MEDIA_LAYER_ZSTD,
    MEDIA_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    RootFS,
    encode,
)
from ..ports import Compression, Layer

EMPTY_GZIP = bytes.fromhex("1f8b08000000000000ff621805a360148c5800080000ffff2eafb5ef00040000")
"""An empty layer, gzip: the bytes that other builders write too, so that registries have them."""
EXPORTER_COMMENT = "buildkit.exporter.image.v0"


@dataclass(frozen=True, slots=True)
class MediaTypes:
    """One family of media types."""

    index: str
    manifest: str
    config: str
    layers: Mapping[str, str]


OCI = MediaTypes(
    MEDIA_INDEX, MEDIA_MANIFEST, MEDIA_CONFIG,
    {"gzip": MEDIA_LAYER_GZIP, "zstd": MEDIA_LAYER_ZSTD, "none": MEDIA_LAYER},
)  # fmt: skip
DOCKER = MediaTypes(
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_CONFIG, {"gzip": DOCKER_LAYER_GZIP, "none": DOCKER_LAYER}
)
"""Docker's schema 2 knows no zstd: ``types_for`` says which family a choice of compression needs."""


def types_for(compressions: Sequence[Compression], *, oci: bool) -> MediaTypes:
    """The family asked for, or OCI where a layer's compression is known to it alone (as BuildKit does)."""
    return OCI if oci or "zstd" in compressions else DOCKER


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer as a manifest names it.  ``data``: its bytes, where they are ours to make (empty layers)."""

    diff_id: Digest
    digest: Digest
    size: int
    compression: Compression
    data: bytes | None = None
    media_type: str = ""
    """As received; kept where it fits no family (foreign layers)."""


EMPTY_LAYER = LayerBlob(EMPTY_TAR, Digest.of(EMPTY_GZIP), len(EMPTY_GZIP), "gzip", EMPTY_GZIP)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an image's own history.

    makes_layer: the instruction makes a layer.  layer: that layer, None = it turned out empty.
    created: RFC 3339, None = unknown (an instruction that only changes the config, or a cached one).
    """

    created_by: str
    makes_layer: bool = False
    layer: LayerBlob | None = None
    created: str | None = None
    comment: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Composed:
    """A config and the layers that go with it, lowest first."""

    config: bytes
    layers: tuple[LayerBlob, ...]
    platform: Platform
    id: Digest = field(init=False)
    """The config's digest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", Digest.of(self.config))


def rfc3339(seconds: float) -> str:
    """UTC, with as many fractional digits as there are (microseconds at most): ``2024-01-01T00:00:00Z``."""
    when = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=round(seconds * 1e6))
    text = when.strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{when.microsecond:06d}".rstrip("0") if when.microsecond else ""
    return f"{text}{fraction}Z"


def compression_of(media_type: str) -> Compression:
    """How a layer of this media type is compressed; Docker's and OCI's words."""
    kind = media_type.lower()
    if kind.endswith(("+zstd", ".zstd")):
        return "zstd"
    return "gzip" if kind.endswith(("gzip", "+gz")) else "none"


def layer_blob(layer: Layer) -> LayerBlob:
    """A stored layer.  Raises BuildError while its commit is under way, or where it has no blob."""
    if layer.diff_id is None or layer.digest is None:
        raise BuildError(f"layer {layer.id}: has no blob yet, so that no manifest can name it")
    return LayerBlob(
        layer.diff_id, layer.digest, layer.size, compression_of(layer.media_type),
        media_type=layer.media_type,
    )  # fmt: skip


def compose(
    template: ImageConfig,
    base: ImageConfig | None,
    base_layers: Sequence[LayerBlob],
    lines: Sequence[Line],
    *,
    created: str | None = None,
    keep_empty: bool = True,
    epoch: int | None = None,
) -> Composed:
    """An image's config and layers.

    template: the config without rootfs and history.  base: what the image stands on, with its layers.
    created: the image's time, None = that of its last history line with one.
    keep_empty: steps with an empty layer have a real, empty one (BuildKit); False = an ``empty_layer``
    history line (Docker's classic builder).  epoch: SOURCE_DATE_EPOCH, every time of ours becomes it.
    """
    layers, old_lines = _base_history(base, base_layers)
    ours: list[History] = []
    for line in lines:
        empty = not line.makes_layer or (line.layer is None and not keep_empty)
        if not empty:
            layers.append(line.layer or EMPTY_LAYER)
        ours.append(
            History(line.created, line.created_by, line.author, line.comment, empty_layer=empty)
        )
    if epoch is not None:
        ours = [msgspec.structs.replace(item, created=rfc3339(epoch)) for item in ours]
    history = _with_times(old_lines, ours)
    last = next((item.created for item in reversed(history) if item.created), None)
    if epoch is not None:
        created = rfc3339(epoch)
    config = msgspec.structs.replace(
        template,
        created=created or last or template.created,
        rootfs=RootFS(diff_ids=tuple(layer.diff_id for layer in layers)),
        history=tuple(history),
    )
    return Composed(encode(config), tuple(layers), config.platform)


def _base_history(
    base: ImageConfig | None, base_layers: Sequence[LayerBlob]
) -> tuple[list[LayerBlob], list[History]]:
    """The base's layers, and its history with exactly one line for each of them."""
    lines = list(base.history) if base is not None else []
    count = 0
    for position, line in enumerate(lines):
        if line.empty_layer:
            continue
        count += 1
        if count > len(base_layers):
            lines[position] = msgspec.structs.replace(line, empty_layer=True)
    missing = len(base_layers) - count
    lines += [History(comment=EXPORTER_COMMENT)] * max(0, missing)
    return list(base_layers), lines


def _with_times(old: list[History], ours: list[History]) -> list[History]:
    """Fill in missing times: those of the next line that has one, for the first new ones; then of the last
    line before (BuildKit's ``normalizeLayersAndHistory``)."""
    history = [*old, *ours]
    created: str | None = None
    gap = False
    for line in history:
        if line.created:
            created = line.created
            if gap:
                break
        else:
            gap = True
    gap = False
    for position, line in enumerate(history):
        if line.created:
            if gap:
                created = line.created
        else:
            gap = True
            history[position] = msgspec.structs.replace(line, created=created)
    return history


def from_config(config: ImageConfig, data: bytes, layers: Sequence[LayerBlob]) -> Composed:
    """An image whose config exists (an intermediate image, one that was pulled): its layers, with the empty
    ones that its diff ids name.  Raises BuildError where they don't fit."""
    found: list[LayerBlob] = []
    rest = list(layers)
    for diff_id in config.rootfs.diff_ids:
        if rest and rest[0].diff_id == diff_id:
            found.append(rest.pop(0))
        elif diff_id == EMPTY_TAR:
            found.append(EMPTY_LAYER)
        else:
            raise BuildError(f"image {Digest.of(data)}: no layer with diff id {diff_id}")
    return Composed(data, tuple(found), config.platform)


def layer_descriptor(layer: LayerBlob, types: MediaTypes) -> Descriptor:
    kind = types.layers.get(layer.compression) or OCI.layers[layer.compression]
    return Descriptor(kind, layer.digest, layer.size)


def manifest_bytes(
    composed: Composed,
    types: MediaTypes = OCI,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The manifest of an image."""
    config = Descriptor(types.config, composed.id, len(composed.config))
    return encode(
        Manifest(
            schema_version=2,
            media_type=types.manifest,
            config=config,
            layers=tuple(layer_descriptor(layer, types) for layer in composed.layers),
            annotations=dict(sorted((annotations or {}).items())),
        )
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest in an index.  ``annotations``: on the descriptor."""

    manifest: bytes
    platform: Platform | None
    media_type: str = MEDIA_MANIFEST
    annotations: Mapping[str, str] | None = None

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            self.media_type, self.digest, len(self.manifest),
            annotations=dict(sorted((self.annotations or {}).items())), platform=self.platform,
        )  # fmt: skip


def index_bytes(
    entries: Sequence[Entry],
    types: MediaTypes = OCI,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """An index of several manifests, in their order."""
    return encode(
        Index(
            schema_version=2,
            media_type=types.index,
            manifests=tuple(entry.descriptor for entry in entries),
            annotations=dict(sorted((annotations or {}).items())),
        )
    )


def recompressed(composed: Composed, layers: Mapping[Digest, LayerBlob]) -> Composed:
    """The same image with other bytes for some of its layers, by the digest that they had."""
    return replace(
        composed, layers=tuple(layers.get(layer.digest, layer) for layer in composed.layers)
    )
