"""What an output's attributes ask of an image: media types, compression, annotations, how it is pushed.  Pure.

The attributes are those of BuildKit's image, oci and docker exporters (docs.docker.com/build/exporters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InvalidArgument
from ..model.request import OutputSpec
from ..ports import Compression
from .annotations import Annotations, parse_annotations

COMPRESSIONS: Mapping[str, Compression] = {
    "gzip": "gzip", "zstd": "zstd", "uncompressed": "none", "none": "none", "": "none",
}  # fmt: skip
LEVELS = {"gzip": 9, "zstd": 22, "none": 22}
"""The highest level of each compression; the lowest is 0, -1 is the compressor's default."""
ATTRIBUTES = frozenset({
    "name", "push", "push-by-digest", "name-canonical", "dangling-name-prefix", "compression",
    "compression-level", "force-compression", "rewrite-timestamp", "oci-mediatypes", "tar", "store",
    "unpack", "platform-split", "registry.insecure",
})  # fmt: skip
"""What is known; ``annotation…`` comes in addition."""
_TRUE = frozenset({"", "1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


@dataclass(frozen=True, slots=True)
class Shape:
    """How an image is written.  compression: every layer is to have it, None = layers stay as they are."""

    oci: bool = True
    compression: Compression | None = None
    level: int = -1
    annotations: Annotations = field(default_factory=Annotations)


def flag(attrs: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A yes or no; an attribute without a value is a yes.  Raises InvalidArgument."""
    if name not in attrs:
        return default
    text = attrs[name].lower()
    if text not in _TRUE | _FALSE:
        raise InvalidArgument(f"output: non-bool value specified for {name}: {attrs[name][:100]!r}")
    return text in _TRUE


def compression(
    attrs: Mapping[str, str], default: str, default_level: int
) -> tuple[Compression, int]:
    """The compression and its level that attributes name.  Raises InvalidArgument."""
    name = attrs.get("compression", default)
    if name not in COMPRESSIONS:
        raise InvalidArgument(
            f"output: compression {name[:100]!r}, expected gzip, zstd or uncompressed"
        )
    kind = COMPRESSIONS[name]
    text = attrs.get("compression-level", "")
    if not text:
        return kind, default_level if "compression" not in attrs else -1
    if not text.isascii() or not text.isdigit() or not int(text[:9]) <= LEVELS[kind]:
        raise InvalidArgument(
            f"output: compression-level {text[:100]!r} for {name}, expected 0 to {LEVELS[kind]}"
        )
    return kind, int(text)


def made_as(
    outputs: Sequence[OutputSpec], default: str, default_level: int
) -> tuple[Compression, int]:
    """How new layers of a build are compressed: as the first output says that says so."""
    attrs = next((o.attrs for o in outputs if "compression" in o.attrs), None)
    if attrs is None:
        attrs = next((o.attrs for o in outputs if "compression-level" in o.attrs), {})
    return compression(attrs, default, default_level)


def shape_of(
    output: OutputSpec | None, annotations: Sequence[str], made: tuple[Compression, int], *,
    platforms: int = 1,
) -> Shape:  # fmt: skip
    """The shape for an output (None: no output was named).  annotations: --annotation options.

    Layers keep the compression that they have, unless ``force-compression`` is set or another output
    decided what new layers get.  Raises InvalidArgument."""
    attrs = output.attrs if output is not None else {}
    found = parse_annotations(annotations, attrs)
    if platforms < 2 and (found.at("index") or found.at("index-descriptor")):
        raise InvalidArgument(
            "index annotations not supported for single platform export",
            hint="annotate the manifest, or build for several platforms",
        )
    kind, level = compression(attrs, *made)
    other = "compression" in attrs and kind != made[0]
    forced = flag(attrs, "force-compression") or other
    # Docker's media types have no annotations and no zstd.
    oci = flag(attrs, "oci-mediatypes", output is None or output.type != "docker") or found.any
    return Shape(oci, kind if forced else None, level, found)


def unused(output: OutputSpec) -> list[str]:
    """Attributes of an output that mean nothing here."""
    return sorted(
        name
        for name in output.attrs
        if name not in ATTRIBUTES and not name.startswith("annotation")
    )
