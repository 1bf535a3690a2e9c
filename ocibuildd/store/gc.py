"""Collection, decided: a graph and policies in, a plan out.  Pure; nothing here touches a store.

**What goes first.**  Each candidate has a score: the seconds that it would cost to make again for each
byte that it takes, times how likely it is to be wanted (uses, and how long ago).  The lowest goes first; a
record never before those that stand on it.  What names lead to and what leases hold never goes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec

from .graph import Counts, Graph, ImageNode, RecordNode
from .policy import DAY, Candidate, Policy

SLICE = 2_000
"""Items between two breaths of the loop."""
SORT_SLICE = 8_000
"""Candidates sorted at once."""
KEEP_INTERMEDIATE = 7 * DAY
"""How long an image between steps stays for no other reason than that its layers do."""
PAGE_BYTES = 4_096
"""Nothing on a disk takes less: keeps the score of tiny things finite."""

T = TypeVar("T")


class Removal(msgspec.Struct, frozen=True, gc=False):
    """One thing that goes.  what: record | image | intermediate | mount.  bytes: what its going frees
    (after those before it).  rule, why: for the log and for people."""

    what: str
    id: str
    bytes: int
    rule: str
    why: str
    description: str = ""
    names: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """All that goes: removals, then the layers, trees and blobs that nobody holds then.  used: before;
    freed: all of it; garbage: the part of it that nobody held from the start."""

    removals: list[Removal] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    used: int = 0
    freed: int = 0
    garbage: int = 0


def breathing(items: Iterable[T], every: int = SLICE) -> Generator[None, None, list[T]]:
    """A list of items, with a yield after each so many."""
    found: list[T] = []
    for number, item in enumerate(items):
        found.append(item)
        if number % every == every - 1:
            yield
    return found


def releasing(items: list[T]) -> Generator[None, None, None]:
    """Empty a long list; freeing a hundred thousand objects at once would hold the loop too."""
    while items:
        del items[-SLICE:]
        yield


def releasing_graph(graph: Graph) -> Generator[None, None, None]:
    """The same for a graph that nobody needs any more."""
    yield from releasing(graph.records)
    for table in (graph.layers, graph.blobs, graph.trees, graph.images):
        rows = cast("dict[object, object]", table)
        while rows:
            for _ in range(min(SLICE, len(rows))):
                rows.popitem()
            yield


def finish(steps: Generator[None, None, T]) -> T:
    """Run a stepwise function to its end at once (tests, tools, small stores)."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def plan(graph: Graph, policies: Sequence[Policy], *, now: float, free: int = 1 << 62) -> Plan:
    """``planning`` at once."""
    return finish(planning(graph, policies, now=now, free=free))


def planning(
    graph: Graph, policies: Sequence[Policy], *, now: float, free: int = 1 << 62
) -> Generator[None, None, Plan]:
    """What the policies, applied one after the other, take.  free: bytes free on the disk.
    Raises InvalidArgument for a filter that can't be read."""
    matchers = [(policy, policy.matcher(now)) for policy in policies]
    result = Plan(used=graph.used)
    yield
    counts, candidates, broken = yield from _holding(graph)
    order = yield from _ordered(candidates, now)
    candidates.clear()
    result.garbage = yield from counts.sweep_unheld()
    mounts = 0
    gone = {record.key for record in broken}
    for record in broken:
        freed = counts.drop(record.chain, record.blobs)
        result.removals.append(
            Removal("record", record.key, freed, "broken", "a layer of it is gone", record.description)
        )
    for policy, matches in matchers:
        taken = 0
        for number, candidate in enumerate(order):
            if number % SLICE == SLICE - 1:
                yield
            used = result.used - counts.freed - mounts
            if not policy.unlimited and used <= policy.keep_bytes(used, free + result.used - used):
                break
            if not matches(candidate):
                continue
            taken += 1
            gone.add(candidate.id)
            if candidate.what == "mount":
                freed = candidate.own
                mounts += freed
            else:
                freed = counts.drop(candidate.chain, candidate.blobs)
            result.removals.append(_removal(candidate, freed, policy, now, graph))
        if taken:
            order = yield from breathing(c for c in order if c.id not in gone)
    yield from releasing(order)
    yield from _intermediates(graph, counts, gone, result, now)
    result.layers, result.trees, result.blobs = counts.free_layers, counts.free_trees, counts.free_blobs
    result.freed = counts.freed + mounts
    return result


def _removal(candidate: Candidate, freed: int, policy: Policy, now: float, graph: Graph) -> Removal:
    names = graph.images[candidate.id].names if candidate.what == "image" else ()
    return Removal(
        candidate.what, candidate.id, freed, policy.name, _why(candidate, policy, now),
        candidate.description, names,
    )


def _why(candidate: Candidate, policy: Policy, now: float) -> str:
    """In words."""
    idle = f"last used {_ago(now - candidate.last_used)} ago"
    if policy.name == "prune":
        return f"prune was asked for; {idle}"
    limits = [
        f"{name} {value:,}" for name, value in (
            ("max_used_space", policy.max_used_space), ("min_free_space", policy.min_free_space),
        ) if value
    ]
    reason = "over " + ", ".join(limits) if limits else f"unused for {_ago(policy.keep_duration)}"
    return f"{reason}; {idle}, {candidate.own:,} bytes, {candidate.cost:.1f} s to make again"


def _ago(seconds: float) -> str:
    for size, unit in ((DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


# --- who holds what -----------------------------------------------------------------------------------


def _holding(graph: Graph) -> Generator[None, None, tuple[Counts, list[Candidate], list[RecordNode]]]:
    """Everything held once by whoever holds it; the candidates among the holders; records that name a
    layer that isn't there."""
    counts = Counts(graph)
    counts.hold(tuple(graph.leased_layers), tuple(graph.leased_blobs))
    pinned: set[int] = set()
    images = [image for image in graph.images.values() if image.kind == "image" or image.names]
    for number, image in enumerate(images):
        counts.hold(image.chain, image.blobs)
        pinned.update(image.chain)
        if number % SLICE == SLICE - 1:
            yield
    for image in graph.images.values():
        if image.kind != "image" and not image.names:
            counts.hold((), image.blobs)
    yield
    candidates = [_image(graph, image) for image in images]
    broken: list[RecordNode] = []
    for number, record in enumerate(graph.records):
        if not counts.hold(record.chain, record.blobs):
            broken.append(record)
            continue
        top = record.chain[-1] if record.chain else 0
        candidates.append(
            Candidate(
                "record", record.key, record.kind, record.chain, record.blobs,
                _own(graph, top, record.blobs), record.cost, record.created, record.last_used, record.uses,
                record.description, shared=top in pinned,
                in_use=top in graph.leased_layers or not graph.leased_blobs.isdisjoint(record.blobs),
            )
        )
        if number % SLICE == SLICE - 1:
            yield
    candidates += [
        Candidate(
            "mount", mount.hash, "exec.cachemount", (), (), mount.size, 0.0, mount.created,
            mount.last_used, mount.uses, mount.id, in_use=mount.in_use,
        )
        for mount in graph.mounts
    ]
    return counts, candidates, broken


def _own(graph: Graph, layer: int, blobs: tuple[str, ...]) -> int:
    """Bytes of a layer and some blobs."""
    node = graph.layers.get(layer)
    size = sum(graph.blobs.get(blob, 0) for blob in blobs)
    if node is not None:
        size += graph.blobs.get(node.digest, 0) + graph.trees.get(node.tree, 0)
    return size


def _image(graph: Graph, image: ImageNode) -> Candidate:
    return Candidate(
        "image", image.id, "image", image.chain, image.blobs, image.size, 0.0, image.created,
        image.last_used, 0, image.description, named=bool(image.names), labels=image.labels,
        in_use=image.id in graph.leased_blobs,
    )


# --- in which order -----------------------------------------------------------------------------------


def score(candidate: Candidate, now: float) -> float:
    """Seconds saved for each byte kept, weighed by how likely it is to be asked for again."""
    idle = max(now - candidate.last_used, 0.0)
    likely = (1.0 + math.log2(1 + candidate.uses)) / (1.0 + idle / DAY)
    return (candidate.cost + 0.001) / (candidate.own + PAGE_BYTES) * likely


def _ordered(candidates: list[Candidate], now: float) -> Generator[None, None, list[Candidate]]:
    """Lowest score first; a record is worth at least what those that stand on it are worth."""
    best: dict[int, float] = {}
    own: list[float] = []
    for number, candidate in enumerate(candidates):
        value = score(candidate, now)
        own.append(value)
        if candidate.what == "record":
            for layer in candidate.chain:
                if value > best.get(layer, 0.0):
                    best[layer] = value
        if number % SLICE == SLICE - 1:
            yield
    keys: list[tuple[float, int, float, int]] = []
    for number, candidate in enumerate(candidates):
        value = own[number]
        if candidate.what == "record" and candidate.chain:
            value = best[candidate.chain[-1]]
        keys.append((value, -len(candidate.chain), candidate.last_used, number))
        if number % SLICE == SLICE - 1:
            yield
    chunks = []
    for start in range(0, len(keys), SORT_SLICE):
        chunks.append(sorted(keys[start : start + SORT_SLICE]))
        yield
    return (yield from breathing(candidates[key[3]] for key in heapq.merge(*chunks)))


# --- intermediate images ------------------------------------------------------------------------------


def _intermediates(
    graph: Graph, counts: Counts, gone: set[str], result: Plan, now: float
) -> Generator[None, None, None]:
    """Images between steps hold no layers.  They stay while they are what a kept image came from, or
    the latest layer of theirs is a kept record's, and a week if it is anybody's; they go with any of
    their layers."""
    kept = [i for i in graph.images.values() if (i.kind == "image" or i.names) and i.id not in gone]
    ancestors: set[str] = set()
    for image in kept:
        parent = image.parent
        while parent and parent not in ancestors:
            ancestors.add(parent)
            before = graph.images.get(parent)
            parent = before.parent if before else ""
    yield
    tops: set[int] = set()
    for number, record in enumerate(graph.records):
        if record.chain and record.key not in gone:
            tops.add(record.chain[-1])
        if number % SLICE == SLICE - 1:
            yield
    for number, image in enumerate(graph.images.values()):
        if number % SLICE == SLICE - 1:
            yield
        if image.kind == "image" or image.names or image.id in graph.leased_blobs:
            continue
        top = image.chain[-1] if image.chain else 0
        wanted = image.id in ancestors or (top and (
            top in tops or top in graph.leased_layers
            or (counts.layers[top] > 0 and now - image.last_used < KEEP_INTERMEDIATE)
        ))
        whole = all(counts.layers[layer] for layer in image.chain)
        if wanted and whole:
            continue
        freed = counts.drop((), image.blobs)
        why = "none of its steps is cached any more" if whole else "a layer of it is gone"
        result.removals.append(
            Removal("intermediate", image.id, freed, "orphan", why, image.description)
        )
