"""What the image service answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..model.digest import Digest
from ..model.oci import ImageConfig

PROGRESS_TEXTS = (
    "waiting", "downloading", "extracting", "done", "exists",  # pull
    "pushing", "pushed", "mounted",  # push: also "waiting" and "exists"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """An image in a list.

    names: familiar references with tags (``busybox:latest``); digests: ``busybox@sha256:…``.  parent: "" =
    none.  created: seconds since the epoch.  size: unpacked bytes; shared: of those, in other images
    too (-1 = not computed).  intermediate: an image between two instructions.
    """

    id: Digest
    parent: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    created: float
    size: int
    labels: Mapping[str, str]
    intermediate: bool
    created_by: str
    platform: str
    build: str = ""
    shared: int = -1

    @property
    def dangling(self) -> bool:
        return not self.names and not self.intermediate


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer of an image; digest is "" while only its diff id is known."""

    diff_id: str
    digest: str
    size: int
    unpacked: int


@dataclass(frozen=True, slots=True)
class Details:
    """An image in full.  ``raw``: the config's JSON as it is kept; ``manifest``: the manifest's, None where the
    image has none yet."""

    summary: Summary
    config: ImageConfig
    raw: Mapping[str, Any]
    layers: tuple[LayerInfo, ...]
    manifest: Mapping[str, Any] | None
    manifest_digest: str = ""
    tagged: float = 0.0
    """Seconds since the epoch: when it last got a name."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One line of ``history``.  id: of the intermediate image, "" = unknown ("<missing>")."""

    id: str
    created: float
    created_by: str
    size: int
    comment: str
    names: tuple[str, ...] = ()
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``remove`` and ``prune`` did: a name taken away, or an image deleted (``what`` is its id)."""

    action: Literal["untagged", "deleted"]
    what: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """removed, in order; reclaimed: bytes."""

    removed: tuple[Removed, ...]
    reclaimed: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """reference: familiar, with its tag or digest.  digest: what the reference leads to (index or manifest).
    fresh: something came (``Downloaded newer image``), False = it was up to date."""

    reference: str
    id: Digest
    digest: Digest
    fresh: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pushed:
    """reference: familiar.  digest, size: of the manifest or index that was put."""

    reference: str
    digest: Digest
    size: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that ``load`` brought in; names: the familiar names that it got, none = by id only."""

    id: Digest
    names: tuple[str, ...] = field(default=())
