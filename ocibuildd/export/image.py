"""Results into images: config, manifest and index bytes.  Pure; the same input gives the same bytes.

    composed = compose(template, base, base_layers, lines)      → config bytes and the image's layers
    composer = Composer(base, base_layers); composer.add(line); composed = composer.image(template)
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
    encode,
    encode_config,
    encode_line,
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
    """An image's config and layers: ``Composer``'s, of all these lines."""
    composer = Composer(base, base_layers, keep_empty=keep_empty, epoch=epoch)
    for line in lines:
        composer.add(line)
    return composer.image(template, created=created)


class Composer:
    """Composes images of which each has the history of the one before and some lines more.

    A line is made and encoded once, not once for each image that has it.

    base: what the images stand on, with its layers.  keep_empty: steps with an empty layer have a real,
    empty one (BuildKit); False = an ``empty_layer`` history line (Docker's classic builder).
    epoch: SOURCE_DATE_EPOCH, every time of ours becomes it.
    """

    def __init__(
        self, base: ImageConfig | None, base_layers: Sequence[LayerBlob], *,
        keep_empty: bool = True, epoch: int | None = None,
    ):  # fmt: skip
        self._keep_empty = keep_empty
        self._epoch = None if epoch is None else rfc3339(epoch)
        self._layers, lines = _base_history(base, base_layers)
        self._diff_ids = [layer.diff_id for layer in self._layers]
        self._history: list[bytes] = []
        self._created: str | None = None
        """Of the last line that has a time."""
        self._undated: list[History] = []
        """The last lines, while the first of all without a time is one of them and none after it has one."""
        self._settled = False
        for line in lines:
            self._append(line)

    def add(self, line: Line) -> None:
        """The next line of the images' own history."""
        empty = not line.makes_layer or (line.layer is None and not self._keep_empty)
        if not empty:
            self._layers.append(line.layer or EMPTY_LAYER)
            self._diff_ids.append(self._layers[-1].diff_id)
        created = line.created if self._epoch is None else self._epoch
        self._append(
            History(created, line.created_by, line.author, line.comment, empty_layer=empty)
        )

    def image(self, template: ImageConfig, *, created: str | None = None) -> Composed:
        """The image as its history stands.

        template: the config without rootfs and history.  created: the image's time, None = that of its
        last history line with one."""
        config = msgspec.structs.replace(
            template, created=self._epoch or created or self._created or template.created
        )
        data = encode_config(config, self._diff_ids, self._history)
        return Composed(data, tuple(self._layers), config.platform)

    def _append(self, line: History) -> None:
        """Fill in a missing time: that of the next line that has one, for the first that lack it; then that of
        the last line before (BuildKit's ``normalizeLayersAndHistory``)."""
        if line.created:
            if self._undated:
                dated = [_dated(each, line.created) for each in self._undated]
                self._history[-len(dated) :] = [encode_line(each) for each in dated]
                self._undated.clear()
                self._settled = True
            self._created = line.created
        else:
            if not self._settled:
                self._undated.append(line)
            line = _dated(line, self._created)
        self._history.append(encode_line(line))


def _dated(line: History, created: str | None) -> History:
    return msgspec.structs.replace(line, created=created)


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
