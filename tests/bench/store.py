"""What a lookup and a put cost, in an empty store and in one with 20,000 records and 2,000 images.

    python tests/bench/store.py [records] [images]

Prints microseconds (medians of rounds, interleaved so that both see the same machine) and ratios.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from filler import Filler

from ocibuildd.model.digest import Digest
from ocibuildd.ports import Record
from ocibuildd.store import Store
from ocibuildd.store.images import Image
from ocibuildd.store.policy import prune_policies

ROUNDS = 60
CALLS = 50
STEPS = 20
"""A build's steps: what a build commits at once."""


def populate(store: Store, records: int, images: int) -> None:
    """Chains of up to twenty layers, a record each, with preimages; every tenth layer an image."""
    with store.transaction():
        chain: tuple[int, ...] = ()
        for number in range(records):
            digest = Digest.of(b"%d" % number)
            layer = store.layers.add(
                chain[-1] if chain else 0, diff_id=digest, digest=digest, size=10, media_type="m",
                content=digest.hex,
            )
            chain = (*chain, layer.id) if number % 20 else (layer.id,)
            store.records.put(record(number, chain))
            if number < images:
                config = Digest.of(b"config %d" % number)
                store.images.put(Image(config, digest, "m", chain, created=float(number)))
                store.images.tag(f"docker.io/library/image:{number}", config)


def record(number: int, chain: tuple[int, ...]) -> Record:
    return Record(
        key=Digest.of(b"key %d" % number).hex, chain=chain, value="", preimage="x" * 600, cost=1.0,
        created=time.time(), build="b", selector=f"s{number % 500}", op=f"o{number}", identity="i",
    )


def cases(store: Store, number: int) -> dict[str, Callable[[], object]]:
    """Name → call.  ``number``: beyond all that is there."""
    fill = Filler(store)
    chain = [fill.layer(f"bench {n}") for n in range(10)]
    store.records.put(record(number, tuple(chain)))
    config = fill.image("bench", *chain, name="docker.io/library/bench:latest")
    counter = iter(range(number + 1, number + 10_000_000))

    def build() -> None:
        with store.transaction():
            for _ in range(STEPS):
                store.records.put(record(next(counter), tuple(chain)))

    key, diff = record(number, ()).key, Digest.of(b"bench 0")
    return {
        "record: hit": lambda: store.records.get(key),
        "record: miss": lambda: store.records.get("no such key"),
        "record: seen": lambda: store.records.seen("no such op"),
        "record: nearest": lambda: store.records.nearest("s0"),
        "layer: chain of ten": lambda: store.layers.chain(chain),
        "layer: find": lambda: store.layers.find(diff, 0),
        "blob: has": lambda: store.blobs.has(diff),
        "name: resolve": lambda: store.images.resolve("docker.io/library/bench:latest"),
        "image: get": lambda: store.images.get(config),
        f"build: {STEPS} records, one commit": build,
    }


def measure(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls * 1e6


def main(records: int = 20_000, images: int = 2_000) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        with Store.open(root / "empty") as empty, Store.open(root / "full") as full:
            populate(empty, 1, 1)
            populate(full, records, images)
            pairs = {
                name: (call, cases_full)
                for (name, call), cases_full in zip(
                    cases(empty, records).items(), cases(full, records).values(), strict=True
                )
            }
            print(f"{'':36}{'empty':>10}{f'{records:,}':>10}{'ratio':>8}")
            for name, both in pairs.items():
                calls = 3 if name.startswith("build") else CALLS
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    for place, call in enumerate(both):
                        times[place].append(measure(call, calls))
                low, high = (statistics.median(one) for one in times)
                print(f"{name:36}{low:10.1f}{high:10.1f}{high / low:8.2f}")
            started = time.perf_counter()
            outcome = full.collect(prune_policies(all=True))
            print(f"prune --all of {len(outcome.removals):,}: {time.perf_counter() - started:.2f} s")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
