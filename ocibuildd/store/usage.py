"""df: who takes how much.  Layers are stored once and counted once; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from .gc import SLICE
from .graph import Graph, ImageNode, MountNode, RecordNode


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """An image's bytes on the disk (blobs and trees).  shared: of layers that other images have too;
    unique: its own, gone when it goes; size: both together (the image list shows another: unpacked)."""

    image: ImageNode
    size: int
    shared: int
    unique: int


@dataclass(frozen=True, slots=True)
class RecordUsage:
    """A record in Docker's BuildCache terms.  size: of its own layer and blobs; shared: an image has
    that layer too; in_use: a lease holds it; parent: the key of the record whose layer is just below."""

    record: RecordNode
    size: int
    shared: bool
    in_use: bool
    parent: str


@dataclass(slots=True)
class Usage:
    """Bytes.  layers: all layers, once.  images: unique and shared together, once.  cache: what only
    records hold.
    *_reclaimable: what prune -a would give back."""

    images: list[ImageUsage] = field(default_factory=list)
    records: list[RecordUsage] = field(default_factory=list)
    mounts: list[MountNode] = field(default_factory=list)
    total: int = 0
    layers_size: int = 0
    images_size: int = 0
    images_reclaimable: int = 0
    cache_size: int = 0
    cache_reclaimable: int = 0
    mounts_size: int = 0


def reckoning(graph: Graph) -> Generator[None, None, Usage]:
    """Stepwise; see ``gc.finish``."""
    usage = Usage(mounts=graph.mounts, total=graph.used)
    images = [image for image in graph.images.values() if image.kind == "image" or image.names]
    holders: Counter[int] = Counter()
    for number, image in enumerate(images):
        holders.update(set(image.chain))
        if number % SLICE == SLICE - 1:
            yield
    sizes = _Sizes(graph)
    usage.layers_size = sizes.of(graph.layers)
    usage.images_size = sizes.of(holders)
    usage.mounts_size = sum(mount.size for mount in graph.mounts)
    yield
    for number, image in enumerate(images):
        shared = {layer for layer in image.chain if holders[layer] > 1}
        unique = set(image.chain) - shared
        own = sum(graph.blobs.get(blob, 0) for blob in image.blobs)
        common, own = sizes.of(shared), own + sizes.of(unique)
        usage.images.append(ImageUsage(image, common + own, common, own))
        if number % SLICE == SLICE - 1:
            yield
    usage.images_reclaimable = usage.images_size - sizes.of(set(graph.leased_layers) & set(holders))
    yield from _records(graph, usage, holders, sizes)
    return usage


def _records(
    graph: Graph, usage: Usage, holders: Counter[int], sizes: _Sizes
) -> Generator[None, None, None]:
    tops: dict[int, str] = {}
    only: set[int] = set()
    blobs: set[str] = set()
    for number, record in enumerate(graph.records):
        if record.chain:
            tops.setdefault(record.chain[-1], record.key)
        only.update(layer for layer in record.chain if layer not in holders)
        blobs.update(record.blobs)
        if number % SLICE == SLICE - 1:
            yield
    for number, record in enumerate(graph.records):
        top = record.chain[-1] if record.chain else 0
        below = tops.get(record.chain[-2], "") if len(record.chain) > 1 else ""
        size = sizes.of((top,)) + sum(graph.blobs.get(blob, 0) for blob in record.blobs)
        usage.records.append(
            RecordUsage(record, size, top in holders, top in graph.leased_layers, below)
        )
        if number % SLICE == SLICE - 1:
            yield
    extra = sum(graph.blobs.get(blob, 0) for blob in blobs)
    usage.cache_size = sizes.of(only) + extra
    usage.cache_reclaimable = usage.cache_size - sizes.of(only & graph.leased_layers)


class _Sizes:
    """Bytes of sets of layers, a blob or tree that several share counted once."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def of(self, layers: Iterable[int]) -> int:
        graph = self._graph
        blobs: set[str] = set()
        trees: set[str] = set()
        for layer in layers:
            node = graph.layers.get(layer)
            if node is not None:
                blobs.add(node.digest)
                trees.add(node.tree)
        return sum(graph.blobs.get(blob, 0) for blob in blobs) + sum(
            graph.trees.get(tree, 0) for tree in trees
        )
