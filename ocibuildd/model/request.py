"""Requests as they cross the API: what a client may ask of a build.  JSON, unknown fields refused."""

from __future__ import annotations

from typing import Literal

import msgspec


class LocalContext(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="local"
):
    """A directory on the daemon's host, read in place.  Only for clients of the Unix socket."""

    path: str


class UploadContext(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="upload"
):
    """A tar that was posted to /v1/uploads before (or is the body of the request itself): its id."""

    id: str


class RemoteContext(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="remote"
):
    """A git URL, an HTTP tarball or an HTTP Dockerfile."""

    url: str


class EmptyContext(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="empty"
):
    """No files: a Dockerfile on stdin without a context."""


Context = LocalContext | UploadContext | RemoteContext | EmptyContext


class SecretSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A --secret; ``data`` is base64 and is never stored or logged."""

    id: str
    data: str


class SshSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A --ssh: ``agent`` is a socket path on the daemon's host, ``keys`` are PEM texts; ``raw`` forwards as is."""

    id: str = "default"
    agent: str = ""
    keys: tuple[str, ...] = ()
    raw: bool = False


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One -o.  ``dest`` is a path on the daemon's host for Unix-socket clients, "" = none,
    "-" = streamed to the client from /v1/builds/{id}/outputs/{n}."""

    type: Literal["image", "registry", "oci", "docker", "tar", "local", "cacheonly"] = "image"
    dest: str = ""
    attrs: dict[str, str] = {}


class CacheSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One --cache-from or --cache-to."""

    type: Literal["registry", "local", "inline"]
    attrs: dict[str, str] = {}


class RegistryAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Credentials for one registry host, as Docker's config.json has them."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class ResourceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Per step; bytes, microseconds, seconds; 0 = none."""

    memory: int = 0
    memory_swap: int = 0
    pids: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    shm_size: int = 0
    nofile: int = 0
    step_timeout: int = 0
    upper_bytes: int = 0


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/builds.

    dockerfile: path relative to the context, or an absolute path on the daemon's host (Unix-socket clients),
    or "" for the default; ``dockerfile_text`` wins where it is given (stdin, docker clients).
    build_args: value None = declared without a value (Docker's ``--build-arg X`` with X unset at the client).
    no_cache_filter: stage names.  allow: entitlements that the client grants (network.host, security.insecure).
    call: what is wanted: build, or a subrequest.
    """

    context: Context
    dockerfile: str = ""
    dockerfile_text: str | None = None
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: dict[str, str | None] = {}
    labels: dict[str, str] = {}
    annotations: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    pull: bool = False
    network: Literal["", "default", "none", "host"] = ""
    add_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    secrets: tuple[SecretSpec, ...] = ()
    ssh: tuple[SshSpec, ...] = ()
    build_contexts: dict[str, str] = {}
    outputs: tuple[OutputSpec, ...] = ()
    push: bool = False
    cache_from: tuple[CacheSpec, ...] = ()
    cache_to: tuple[CacheSpec, ...] = ()
    auth: dict[str, RegistryAuth] = {}
    limits: ResourceLimits = ResourceLimits()
    epoch: str = ""
    reproducible: bool | None = None
    call: Literal["build", "check", "outline", "targets"] = "build"
    no_new_privileges: bool = False
    squash: bool = False
    """One layer of all that the last stage did."""
    keep_failed: bool = True
    timeout: int = 0
    max_parallelism: int = 0
    compat: Literal["", "docker"] = ""
    """"docker": asked through the Docker Engine API (RUN steps and configs named as the classic builder does)."""
