"""Which of an index's manifests serves a platform.  Pure; containerd's rules for variants."""

from __future__ import annotations

from ..errors import NotFound
from ..model.oci import Descriptor, ImageConfig, Index, Platform

_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "i386": ("386", ""), "i686": ("386", ""),
    "aarch64": ("arm64", ""), "armhf": ("arm", "v7"), "armel": ("arm", "v6"),
}  # fmt: skip
_VARIANTS = {
    "arm": ("v5", "v6", "v7", "v8"),
    "amd64": ("v1", "v2", "v3", "v4"),
    "arm64": ("v8", "v9"),
}
_DEFAULTS = {"arm": "v7", "amd64": "v1", "arm64": "v8"}
ATTESTATION = "vnd.docker.reference.type"
"""BuildKit's annotation on manifests that are no images (attestations)."""


def normalise(platform: Platform) -> tuple[str, str, str]:
    """(os, architecture, variant) in Go's words, the default variant spelt out."""
    architecture = platform.architecture.lower()
    variant = platform.variant.lower()
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or implied or _DEFAULTS.get(architecture, "")
    if variant.isdigit():
        variant = f"v{variant}"
    return platform.os.lower(), architecture, variant


def rank(wanted: Platform, found: Platform) -> int | None:
    """How well ``found`` serves ``wanted``: 0 = the same, more = an older variant, None = not at all."""
    os_, architecture, variant = normalise(wanted)
    other_os, other_architecture, other_variant = normalise(found)
    if (os_, architecture) != (other_os, other_architecture):
        return None
    order = _VARIANTS.get(architecture, ())
    if variant == other_variant:
        return 0
    if variant not in order or other_variant not in order:
        return None
    distance = order.index(variant) - order.index(other_variant)
    return distance if distance > 0 else None


def matches(wanted: Platform, found: Platform) -> bool:
    """Can ``found`` be used where ``wanted`` is asked for?  A config that says nothing fits anywhere."""
    if not found.architecture or not found.os:
        return True
    return rank(wanted, found) is not None


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The entry of an index for a platform.  Raises NotFound, which lists what there is."""
    images = [
        entry
        for entry in index.manifests
        if ATTESTATION not in entry.annotations
        and (entry.platform is None or entry.platform.os != "unknown")
    ]
    ranked = [
        (found, position)
        for position, entry in enumerate(images)
        if entry.platform is not None and (found := rank(wanted, entry.platform)) is not None
    ]
    if ranked:
        return images[min(ranked)[1]]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    offered = ", ".join(sorted({str(e.platform) for e in images if e.platform}))[:500] or "none"
    raise NotFound(f"{what}: no manifest for {wanted}, there are: {offered}")


def platform_of(config: ImageConfig) -> Platform:
    """A config's platform; what it leaves out is linux/amd64's."""
    found = config.platform
    if found.os and found.architecture:
        return found
    return Platform(found.architecture or "amd64", found.os or "linux", variant=found.variant)
