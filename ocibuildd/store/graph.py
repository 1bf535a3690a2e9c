"""What there is and what holds what, as values: the input of collection, prune and df.

There can be hundreds of thousands of nodes: they are structs that the cyclic garbage collector of Python
doesn't look at (``gc=False``), whose full passes would hold the loop for longer than the work itself.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from ..ports import LayerId


class LayerNode(msgspec.Struct, frozen=True, gc=False):
    """Where a layer's bytes are; "" = not there."""

    digest: str
    tree: str


class ImageNode(msgspec.Struct, frozen=True, gc=False):
    """blobs: config, manifest and what else the image keeps.  names: those that pin it."""

    id: str
    kind: str
    chain: tuple[LayerId, ...]
    parent: str
    blobs: tuple[str, ...]
    names: tuple[str, ...]
    labels: Mapping[str, str]
    created: float
    last_used: float
    size: int
    description: str = ""


class RecordNode(msgspec.Struct, frozen=True, gc=False):
    """A cache record.  blobs: those that its value names."""

    key: str
    kind: str
    chain: tuple[LayerId, ...]
    blobs: tuple[str, ...]
    cost: float
    created: float
    last_used: float
    uses: int
    description: str


class MountNode(msgspec.Struct, frozen=True, gc=False):
    """A cache mount."""

    hash: str
    id: str
    size: int
    created: float
    last_used: float
    uses: int
    in_use: bool
    sharing: str = ""


T = TypeVar("T")


@dataclass(slots=True)
class Graph:
    """All of the store at one moment.  blobs, trees: bytes by digest and id.  leased_*: held by what is
    in flight.  indexes: the digest of an index → digests of its manifests.  targets: image → digests
    that its names stand for."""

    blobs: dict[str, int] = field(default_factory=dict)
    trees: dict[str, int] = field(default_factory=dict)
    layers: dict[LayerId, LayerNode] = field(default_factory=dict)
    images: dict[str, ImageNode] = field(default_factory=dict)
    records: list[RecordNode] = field(default_factory=list)
    mounts: list[MountNode] = field(default_factory=list)
    indexes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    leased_layers: frozenset[LayerId] = frozenset()
    leased_blobs: frozenset[str] = frozenset()

    @property
    def used(self) -> int:
        """Bytes of everything."""
        return (
            sum(self.blobs.values()) + sum(self.trees.values()) + sum(mount.size for mount in self.mounts)
        )



class Counts:
    """How many hold each layer, blob and tree; what dropping a holder frees.

    A layer holds its blob and its tree; both may be shared by several layers.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self.layers: Counter[LayerId] = Counter()
        self.blobs: Counter[str] = Counter()
        self.trees: Counter[str] = Counter()
        self.free_layers: list[LayerId] = []
        self.free_blobs: list[str] = []
        self.free_trees: list[str] = []
        self.freed = 0

    def hold(self, chain: tuple[LayerId, ...], blobs: tuple[str, ...]) -> bool:
        """One holder more; False if a layer of the chain isn't there at all."""
        whole = True
        for layer in chain:
            node = self._graph.layers.get(layer)
            if node is None:
                whole = False
                continue
            self.layers[layer] += 1
            if self.layers[layer] == 1:
                self._up(node)
        for blob in blobs:
            self.blobs[blob] += 1
        return whole

    def _up(self, node: LayerNode) -> None:
        if node.digest:
            self.blobs[node.digest] += 1
        if node.tree:
            self.trees[node.tree] += 1

    def drop(self, chain: tuple[LayerId, ...], blobs: tuple[str, ...]) -> int:
        """One holder less; gives the bytes that nobody holds any more."""
        before = self.freed
        for layer in chain:
            node = self._graph.layers.get(layer)
            if node is None:
                continue
            self.layers[layer] -= 1
            if not self.layers[layer]:
                self.free_layers.append(layer)
                self._drop_blob(node.digest)
                self._drop_tree(node.tree)
        for blob in blobs:
            self._drop_blob(blob)
        return self.freed - before

    def _drop_blob(self, digest: str) -> None:
        if not digest:
            return
        self.blobs[digest] -= 1
        if not self.blobs[digest] and digest in self._graph.blobs:
            self.free_blobs.append(digest)
            self.freed += self._graph.blobs[digest]

    def _drop_tree(self, tree: str) -> None:
        if not tree:
            return
        self.trees[tree] -= 1
        if not self.trees[tree] and tree in self._graph.trees:
            self.free_trees.append(tree)
            self.freed += self._graph.trees[tree]

    def sweep_unheld(self) -> Generator[None, None, int]:
        """What nobody held from the start, stepwise; gives its bytes."""
        before = self.freed
        graph = self._graph
        for layers in _batches(graph.layers):
            self.free_layers += [layer for layer in layers if not self.layers[layer]]
            yield
        for blobs in _batches(graph.blobs):
            unheld = [blob for blob in blobs if not self.blobs[blob]]
            self.free_blobs += unheld
            self.freed += sum(graph.blobs[blob] for blob in unheld)
            yield
        for trees in _batches(graph.trees):
            loose = [tree for tree in trees if not self.trees[tree]]
            self.free_trees += loose
            self.freed += sum(graph.trees[tree] for tree in loose)
            yield
        return self.freed - before


def _batches(items: Iterable[T], size: int = 5_000) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
