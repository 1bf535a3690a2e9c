"""Values that the build service trades in with the API and with itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ocibuildd.executor.output import STEP_LOG_LIMIT

UPLOAD_LIMIT = 16 << 30
"""Bytes of one uploaded context, unless the configuration says otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about builds (``config.BuildConfig`` and its neighbours).

    limits: defaults per step (the keys of ``ports.RunSpec.limits``); a request may lower them.
    entitlements: what clients may grant at all.  Times are seconds, sizes bytes, 0 = none.
    dns: {servers, search, options} for steps; empty = the sandbox's own choice.
    """

    max_builds: int = 0
    max_parallelism: int = 0
    entitlements: frozenset[str] = frozenset({"network.host"})
    limits: Mapping[str, int] = field(default_factory=dict)
    build_timeout: float = 0.0
    log_bytes: int = STEP_LOG_LIMIT
    context_bytes: int = UPLOAD_LIMIT
    no_new_privileges: bool = False
    reproducible: bool = False
    compression: str = "gzip"
    compression_level: int = -1
    failed_ttl: float = 3600.0
    history_ttl: float = 7 * 86400.0
    history_max: int = 200
    dns: Mapping[str, list[str]] = field(default_factory=dict)
    allow_private_http: bool = True


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks.  ``local``: over the Unix socket, hence the daemon's own user (or root): may name
    directories, sockets and output paths on the daemon's host.  uid, pid: -1 when unknown."""

    local: bool
    uid: int = -1
    pid: int = -1


class BuildInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A build as lists show it.  state: queued | running | done | failed | cancelled.

    created, started, ended: seconds since the epoch, 0 = not yet.  image: config digest.
    digest: manifest (or index) digest.  error: as ``BuildError.to_dict``.
    """

    id: str
    name: str
    state: str
    created: float
    started: float = 0.0
    ended: float = 0.0
    image: str = ""
    digest: str = ""
    names: tuple[str, ...] = ()
    steps: int = 0
    cached: int = 0
    error: dict[str, Any] | None = None
    debug: bool = False
    """The failed step's file system is still there (``ocibuild debug``)."""
