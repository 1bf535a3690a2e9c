"""What a build asks of the front end, beside the Dockerfile itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..model.digest import Digest
from ..model.graph import ContextSource, GitSource, HttpSource
from ..model.oci import ImageConfig, Platform

CONTEXT = "context"
"""The name of the main context in ``ContextSource``."""
OCI_LAYOUT = "oci-layout://"
"""Prefix of a required image that lies in an OCI layout: ``oci-layout://<directory>[:tag][@digest]``."""
DEFAULT_HOSTNAME = "buildkitsandbox"
LINUX_AMD64 = Platform("amd64", "linux")
MAIN_CONTEXT = ContextSource()


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A base image as the build layer resolved it.

    ref: canonical (``docker.io/library/busybox:latest``); digest: the manifest's for the platform;
    layout: the OCI layout directory that it lies in, "" = a registry."""

    ref: str
    digest: Digest
    config: ImageConfig
    layout: str = ""


@dataclass(frozen=True, slots=True)
class NamedContext:
    """A ``--build-context``, classified.

    image: ``value`` is a reference.  local: ``value`` is nothing, the name of the context says it all
    (``ContextSource(name)``), ``ignore`` is its own .dockerignore.  git and http: a URL (http: an archive
    that is unpacked).  oci-layout: ``<directory>[:tag][@digest]``."""

    kind: Literal["image", "local", "git", "http", "oci-layout"]
    value: str = ""
    ignore: tuple[str, ...] = ()


def is_scratch(context: NamedContext) -> bool:
    """``docker-image://scratch``: the empty root file system."""
    return context.kind == "image" and context.value.removeprefix("docker-image://") == "scratch"


@dataclass(frozen=True, slots=True)
class LowerOptions:
    """Everything that shapes a Plan.

    target: a stage's name or index, "" = the last.  build_args: None = named without a value.
    platform: the target; ``implicit_platform`` says that nobody asked for it (the base image decides).
    network: of RUN steps that don't say, "" = default.
    no_cache, no_cache_filter: (all | these stages') steps run again.
    contexts: ``--build-context`` by name, optionally ``name::os/arch``.
    context: what COPY reads.  A ContextSource carries the patterns of its .dockerignore; for a
    GitSource or an HttpSource (an archive, unpacked) none applies.
    epoch: SOURCE_DATE_EPOCH in seconds where the build layer knows it already (a "context" epoch).
    cache_namespace: BUILDKIT_CACHE_MOUNT_NS.  multi_platform: vertex names carry the platform.
    """

    target: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform = LINUX_AMD64
    build_platform: Platform = LINUX_AMD64
    implicit_platform: bool = True
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    network: Literal["", "default", "none", "host"] = ""
    contexts: Mapping[str, NamedContext] = field(default_factory=dict)
    context: ContextSource | GitSource | HttpSource = MAIN_CONTEXT
    epoch: int | None = None
    hostname: str = ""
    cache_namespace: str = ""
    multi_platform: bool = False
    compat: Literal["", "docker"] = ""
