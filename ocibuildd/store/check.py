"""``system check``: every blob hashed, every row followed to what it names; and repair."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import BuildError, Conflict
from ..model.digest import Digest
from .graph import Graph
from .survey import surveying

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger(__name__)

Kind = Literal[
    "database", "blob", "stray-file", "layer", "tree", "stray-tree", "image", "name", "record",
]
SLICE = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that isn't as it should be.  repair: what mending it does, in words; harm: a cache
    miss ("cache"), or something that can't be made again from what is here ("loss")."""

    kind: Kind
    id: str
    problem: str
    repair: str
    harm: Literal["cache", "loss", "none"] = "cache"


@dataclass(slots=True)
class CheckReport:
    """blobs, bytes: verified.  trees: compared with their blobs.  repaired: how many findings were mended."""

    findings: list[Finding] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0
    layers: int = 0
    records: int = 0
    images: int = 0
    trees: int = 0
    repaired: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of one blob's verification (``verify`` in a thread)."""

    digest: Digest
    problem: str


def verify_blobs(store: Store, digests: list[Digest]) -> list[Verified]:
    """Hash these blobs; gives the damaged ones.  *Thread-safe*: for ``in_thread``, a batch at a time."""
    found = [Verified(digest, store.blobs.verify(digest)) for digest in digests]
    return [one for one in found if one.problem]


def checking(store: Store, *, hashes: bool = True) -> Generator[None, None, CheckReport]:
    """All checks, stepwise.  hashes: also read every blob, here; where that would take long, pass False and
    use ``verify_blobs`` in a thread and ``add_damaged``."""
    report = CheckReport()
    for problem in store.db.damage():
        report.findings.append(
            Finding("database", "store.db", problem, "restart the daemon: it rebuilds the database", "loss")
        )
    yield
    graph = yield from surveying(store)
    yield from _blobs(store, graph, report, hashes=hashes)
    yield from _trees(store, graph, report)
    yield from _rows(store, graph, report)
    return report


def _blobs(store: Store, graph: Graph, report: CheckReport, *, hashes: bool) -> Generator[None, None, None]:
    for digest, size in graph.blobs.items():
        blob = Digest(digest)
        try:
            found = store.blobs.file(blob).stat().st_size
            problem = "" if found == size else f"{found:,} bytes, expected {size:,}"
        except OSError as error:
            problem = error.strerror or str(error)
        if not problem and hashes:
            problem = store.blobs.verify(blob)
            yield
        if problem:
            add_damaged(store, report, Verified(blob, problem))
        report.blobs += 1
        report.bytes += size
    yield
    for algorithm in ("sha256", "sha512"):
        for number, name in enumerate(os.listdir(store.path / "blobs" / algorithm)):
            if f"{algorithm}:{name}" not in graph.blobs and not _comes(store, f"{algorithm}:{name}"):
                report.findings.append(
                    Finding("stray-file", f"blobs/{algorithm}/{name}", "no row knows it", "delete it", "none")
                )
            if number % SLICE == SLICE - 1:
                yield


def _comes(store: Store, name: str) -> bool:
    """It came in while the check went on, or is about to."""
    try:
        return store.blobs.wanted(Digest(name))
    except ValueError:
        return False


def _layer_gone(store: Store, chain: Iterable[int], graph: Graph) -> int:
    """The first layer of a chain that isn't there, and didn't come while the check went on; 0 = none."""
    for layer in chain:
        if layer not in graph.layers and not store.layers.has(layer):
            return layer
    return 0


def add_damaged(store: Store, report: CheckReport, found: Verified) -> None:
    """A blob that isn't what its digest says, unless it was removed while the check went on."""
    if not store.blobs.has(found.digest):
        return
    report.findings.append(
        Finding("blob", found.digest, found.problem, "put it into quarantine: pulled or built again", "cache")
    )


def _trees(store: Store, graph: Graph, report: CheckReport) -> Generator[None, None, None]:
    there = set(os.listdir(store.path / "trees"))
    yield
    for tree in graph.trees:
        if tree not in there and store.trees.has(tree):
            report.findings.append(
                Finding("tree", tree, "its directory is gone", "unpack its layer again when needed")
            )
    for tree in there - set(graph.trees):
        if not store.trees.busy(tree) and not store.trees.has(tree):
            report.findings.append(
                Finding("stray-tree", tree, "no row knows it", "delete it", "none")
            )
    yield


def _rows(store: Store, graph: Graph, report: CheckReport) -> Generator[None, None, None]:
    report.layers, report.records, report.images = len(graph.layers), len(graph.records), len(graph.images)
    for layer, node in graph.layers.items():
        if (
            node.tree and node.tree not in graph.trees and not store.trees.busy(node.tree)
            and not store.trees.has(node.tree) and store.layers.has(layer)
            and store.layers.get(layer).tree == node.tree
        ):
            report.findings.append(
                Finding("layer", str(layer), f"its tree {node.tree} is not known", "forget the tree")
            )
    yield
    for number, record in enumerate(graph.records):
        missing = _layer_gone(store, record.chain, graph)
        if missing and store.records.get(record.key) is not None:
            report.findings.append(
                Finding("record", record.key, f"names layer {missing}, which is gone", "forget the record")
            )
        if number % SLICE == SLICE - 1:
            yield
    for number, image in enumerate(graph.images.values()):
        missing = _layer_gone(store, image.chain, graph)
        lost = image.id not in graph.blobs and not _comes(store, image.id)
        if (missing or lost) and store.images.get(image.id) is not None:
            problem = f"names layer {missing}, which is gone" if missing else "its config is gone"
            harm: Literal["cache", "loss"] = "loss" if image.names else "cache"
            report.findings.append(Finding("image", image.id, problem, "forget the image", harm))
        if number % SLICE == SLICE - 1:
            yield
    for name, image_id in store.db.all("SELECT name, image FROM names"):
        if image_id not in graph.images and store.images.get(image_id) is None:
            report.findings.append(
                Finding("name", name, f"names image {image_id[:19]}, which is gone", "forget it", "loss")
            )


def repair(store: Store, report: CheckReport) -> int:
    """Mend what was found, as each finding says; gives how many were.  Then run a collection."""
    for finding in report.findings:
        try:
            _mend(store, finding)
            report.repaired += 1
        except (BuildError, OSError) as error:
            log.warning("repair of %s %s: %s", finding.kind, finding.id, error)
    return report.repaired


def _drop_tree(store: Store, tree: str) -> None:
    """Its layers are unpacked again when they are wanted.  Raises Conflict where something stands on it now."""
    if any(store.held.has_layer(row[0]) for row in store.db.all("SELECT id FROM layers WHERE tree = ?", (tree,))):
        raise Conflict(f"tree {tree}: in use", hint="run it again when no build is running")
    store.trees.forget(tree)
    store.trees.trash(tree)


def _mend(store: Store, finding: Finding) -> None:
    match finding.kind:
        case "blob":
            store.blobs.quarantine(Digest(finding.id), finding.problem)
        case "stray-file":
            (store.path / finding.id).unlink(missing_ok=True)
        case "tree":
            _drop_tree(store, finding.id)
        case "stray-tree":
            store.trees.trash(finding.id)
        case "layer":
            store.layers.set_tree(int(finding.id), "")
        case "record":
            store.records.remove(finding.id, rule="check", why=finding.problem)
        case "image":
            store.images.remove(Digest(finding.id))
        case "name":
            store.images.untag(finding.id)
        case "database":
            raise BuildError(f"{finding.id}: {finding.repair}")
