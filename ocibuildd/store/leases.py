"""Leases: what is in flight is not garbage.

They live in memory only.  One process has the store open (``lock``), so that a lease can't outlast its
holder: after a crash there is nothing to expire and nothing to mistake for a live one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Self, TypeVar

from .. import ports
from ..errors import NotFound
from ..model.digest import Digest
from ..ports import LayerId

T = TypeVar("T", bound=Hashable)


class Held:
    """What must not be collected now: counts of leases, and, while a collection is under way, all that
    was put or looked up since it began (it marked without knowing of that)."""

    def __init__(self) -> None:
        self.blobs: Counter[str] = Counter()
        self.layers: Counter[int] = Counter()
        self.recent_blobs: set[str] | None = None
        self.recent_layers: set[int] | None = None
        self.recent_keys: set[str] | None = None
        self.gone_layers: set[int] = set()
        self.releases = 0
        """How often something that was held was let go."""
        self._passing: set[Lease] = set()

    @property
    def passing(self) -> int:
        """Open leases of work that ends by itself: builds, pulls, pushes."""
        return len(self._passing)

    def others(self, lease: ports.Lease | None) -> int:
        """Pieces of work, apart from the one that ``lease`` is of, that end by themselves and hold something."""
        mine = lease.work if isinstance(lease, Lease) else None
        return len({each.work for each in self._passing if each.holds} - {mine})

    def opened(self, lease: Lease) -> None:
        """Its work ends by itself."""
        self._passing.add(lease)

    def closed(self, lease: Lease) -> None:
        """It holds nothing any more."""
        self._passing.discard(lease)
        self.releases += lease.holds

    def note(
        self, *, blobs: Iterable[str] = (), layers: Iterable[int] = (), keys: Iterable[str] = ()
    ) -> None:
        """These are wanted from now on: a collection under way must leave them."""
        if self.recent_layers is None or self.recent_blobs is None or self.recent_keys is None:
            return
        self.recent_blobs.update(blobs)
        self.recent_layers.update(layers)
        self.recent_keys.update(keys)

    def watch(self) -> None:
        """A collection begins."""
        self.recent_blobs, self.recent_layers, self.recent_keys = set(), set(), set()

    def unwatch(self) -> None:
        """It has ended."""
        self.recent_blobs = self.recent_layers = self.recent_keys = None

    def has_blob(self, digest: str) -> bool:
        return digest in self.blobs or (self.recent_blobs is not None and digest in self.recent_blobs)

    def has_layer(self, layer: int) -> bool:
        return layer in self.layers or (self.recent_layers is not None and layer in self.recent_layers)


class Lease:
    """``ports.Lease``.  Also a context manager.

    A holder that looks something up and adds it without awaiting in between can't lose it.
    """

    def __init__(self, held: Held, name: str, *, passing: bool = True, of: Lease | None = None):
        self.name = name
        self.work: Lease = self if of is None else of.work
        """The first lease of the same piece of work."""
        self._held = held
        self._blobs: set[str] = set()
        self._layers: set[int] = set()
        self._open = True
        if passing:
            held.opened(self)

    @property
    def holds(self) -> bool:
        """Is anything kept by it?"""
        return bool(self._blobs or self._layers)

    def add(self, *, blobs: Sequence[Digest] = (), layers: Sequence[LayerId] = ()) -> None:
        """Raises NotFound for a layer that was collected: look it up again.  (A blob needs no row yet:
        the lease then keeps it as soon as it has one.)"""
        for layer in layers:
            if layer in self._held.gone_layers:
                raise NotFound(f"layer {layer}: collected in the meantime", hint="run the build again")
        for blob in blobs:
            if self._open and blob not in self._blobs:
                self._blobs.add(str(blob))
                self._held.blobs[str(blob)] += 1
        for layer in layers:
            if self._open and layer not in self._layers:
                self._layers.add(layer)
                self._held.layers[layer] += 1

    def release(self) -> None:
        """Idempotent."""
        if not self._open:
            return
        self._open = False
        self._held.closed(self)
        for blob in self._blobs:
            _drop(self._held.blobs, blob)
        for layer in self._layers:
            _drop(self._held.layers, layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _drop(counts: Counter[T], item: T) -> None:
    """One holder less."""
    counts[item] -= 1
    if counts[item] <= 0:
        del counts[item]


class Leases:
    """Makes leases."""

    def __init__(self, held: Held):
        self._held = held

    def new(self, name: str = "", *, passing: bool = True, of: Lease | None = None) -> Lease:
        """``name``: for people (a build's id, "pull busybox").  passing: of work that ends by itself, so
        that waiting for what it holds makes sense.  of: a lease of the same piece of work."""
        return Lease(self._held, name, passing=passing, of=of)
