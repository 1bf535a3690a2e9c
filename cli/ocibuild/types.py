"""The shapes of what the daemon answers, for type checkers and editors.

Sizes are bytes, times are seconds since the epoch, ids and digests ``sha256:<64 hex>``.  The
authority is the OpenAPI document that the daemon serves at ``/v1/openapi.json``.
"""

from __future__ import annotations

from typing import Any, TypedDict

Event = dict[str, Any]
"""An event of a build or of a transfer: ``type``, ``t`` and what the type has."""


class Image(TypedDict):
    """An image in a list.  ``parent``: the intermediate image that it stands on, "" = none."""

    id: str
    parent: str
    names: list[str]
    digests: list[str]
    created: float
    size: int
    shared: int
    created_by: str
    labels: dict[str, str]
    intermediate: bool
    platform: str


class HistoryItem(TypedDict):
    """One line of an image's history, newest first; ``id`` is "" where no image is kept of it."""

    id: str
    created: float
    created_by: str
    size: int
    comment: str
    names: list[str]


class Change(TypedDict):
    """A file that differs between two images: ``kind`` is added, changed or removed."""

    kind: str
    path: str
    size: int


class Build(TypedDict, total=False):
    """A build in a list; ``state`` is queued, running, done, failed or cancelled."""

    id: str
    name: str
    state: str
    created: float
    started: float
    ended: float
    image: str
    digest: str
    names: list[str]
    steps: int
    cached: int
    error: dict[str, Any]
    debug: bool


class BuildResult(TypedDict, total=False):
    """How a build ended well (the fields of its ``build.done`` event)."""

    id: str
    image: str
    digest: str
    descriptor: dict[str, Any]
    names: list[str]
    seconds: float
    cached: int
    total: int
    outputs: list[dict[str, Any]]


class Pruned(TypedDict):
    """What went, or would go (``dry_run``), and why."""

    deleted: list[dict[str, Any]]
    space: int


class Auth(TypedDict, total=False):
    """Credentials for one registry."""

    username: str
    password: str
    identity_token: str
    registry_token: str
