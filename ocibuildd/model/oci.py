"""OCI image-spec values (v1.1) and Docker's additions to them, as they cross wires and disks.

Encoding is deterministic: fields in declaration order, no white space, empty optional fields left
out.  What comes from elsewhere is kept as the bytes that came; these structs are for reading it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .digest import Digest

MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
MEDIA_LAYER_GZIP = MEDIA_LAYER + "+gzip"
MEDIA_LAYER_ZSTD = MEDIA_LAYER + "+zstd"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
INDEX_TYPES = frozenset({MEDIA_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({MEDIA_MANIFEST, DOCKER_MANIFEST})
BUILDKIT_COMMENT = "buildkit.dockerfile.v0"


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """``os/architecture[/variant]``; names are Go's (GOOS, GOARCH)."""

    architecture: str
    os: str
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A pointer to a blob: its type, digest and size in bytes (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = {}
    data: str = ""
    artifact_type: str = ""
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image manifest (manifest.md); also Docker's schema 2."""

    schema_version: int = msgspec.field(default=0)
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image index (image-index.md); also Docker's manifest list."""

    schema_version: int = msgspec.field(default=0)
    media_type: str = ""
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """Docker's HEALTHCHECK; durations in nanoseconds."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal"):
    """The ``config`` object of an image config, in the order in which Docker and BuildKit write it."""

    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] | None = None
    shell: tuple[str, ...] | None = None
    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0


class RootFS(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: tuple[Digest, ...] = ()


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of an image's history, oldest first in the config."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image config (config.md).  ``created`` is RFC 3339 in UTC."""

    created: str | None = None
    author: str = ""
    architecture: str = ""
    variant: str = ""
    os: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: tuple[str, ...] = msgspec.field(name="os.features", default=())
    config: ContainerConfig = ContainerConfig()
    rootfs: RootFS = RootFS()
    history: tuple[History, ...] = ()

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, self.os_version, self.os_features, self.variant)


def _enc_hook(value: object) -> object:
    if isinstance(value, Digest):
        return str(value)
    raise TypeError(f"can't encode {type(value)}")


def _dec_hook(kind: type, value: object) -> object:
    if kind is Digest and isinstance(value, str):
        return Digest(value)
    raise TypeError(f"can't decode {kind}")


def encode(value: msgspec.Struct) -> bytes:
    """Canonical JSON bytes of one of the structs above; ``rootfs`` and ``config`` always stand."""
    body = msgspec.to_builtins(value, enc_hook=_enc_hook, str_keys=True)
    if isinstance(value, ImageConfig):
        body.setdefault("config", {})
        body["rootfs"] = {
            "type": value.rootfs.type,
            "diff_ids": [str(d) for d in value.rootfs.diff_ids],
        }
    if isinstance(value, Manifest | Index):
        # image-spec: schemaVersion "This REQUIRED property … MUST be 2"
        body = {"schemaVersion": 2, **{k: v for k, v in body.items() if k != "schemaVersion"}}
        body.setdefault("layers" if isinstance(value, Manifest) else "manifests", [])
    return msgspec.json.encode(body)


def encode_config(
    template: ImageConfig, diff_ids: Iterable[Digest], history: Iterable[bytes]
) -> bytes:
    """``encode`` of the template with these diff ids and these lines of history, each one ``encode_line``'s:
    who makes many configs of one growing history encodes each line once."""
    bare = msgspec.structs.replace(template, rootfs=RootFS(), history=())
    body = msgspec.to_builtins(bare, enc_hook=_enc_hook, str_keys=True)
    ids = '","'.join(diff_ids)
    body["rootfs"] = {
        "type": "layers", "diff_ids": msgspec.Raw(f'["{ids}"]'.encode() if ids else b"[]"),
    }  # fmt: skip
    if lines := b",".join(history):
        body["history"] = msgspec.Raw(b"[%b]" % lines)
    body.setdefault("config", {})
    return msgspec.json.encode(body)


def encode_line(line: History) -> bytes:
    """A line of history as ``encode`` writes it."""
    return msgspec.json.encode(line)


def decode_manifest(data: bytes) -> Manifest:
    """Raises msgspec.ValidationError or ValueError."""
    return msgspec.json.decode(data, type=Manifest, dec_hook=_dec_hook)


def decode_index(data: bytes) -> Index:
    """Raises msgspec.ValidationError or ValueError."""
    return msgspec.json.decode(data, type=Index, dec_hook=_dec_hook)


def decode_config(data: bytes) -> ImageConfig:
    """Raises msgspec.ValidationError or ValueError."""
    return msgspec.json.decode(data, type=ImageConfig, dec_hook=_dec_hook)
