"""The store, collections and leases against a model that is a few sets."""

from __future__ import annotations

from collections.abc import Generator

from filler import Filler, quick_directory
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ocibuildd.model.digest import Digest
from ocibuildd.store import Store
from ocibuildd.store.check import checking
from ocibuildd.store.gc import finish
from ocibuildd.store.leases import Lease
from ocibuildd.store.policy import Policy, prune_policies
from ocibuildd.store.sweep import Outcome, collecting


class StoreMachine(RuleBasedStateMachine):
    """Model: which layers, records and names there should be, and which leases hold what."""

    layers = Bundle("layers")
    records = Bundle("records")
    names = Bundle("names")
    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.directory = quick_directory()
        self.store = Store.open(self.directory.__enter__() / "s")
        self.fill = Filler(self.store)
        self.number = 0
        self.texts: dict[int, str] = {}
        self.chains: dict[str, tuple[int, ...]] = {}
        self.named: dict[str, tuple[Digest, tuple[int, ...]]] = {}
        self.held: dict[Lease, set[int]] = {}
        self.collection: Generator[None, None, Outcome] | None = None
        self.wanted: set[str] = set()

    def gone(self, layer: int) -> bool:
        return layer in self.store.held.gone_layers or layer not in self.texts

    def fresh(self) -> str:
        self.number += 1
        return f"{self.number}"

    @rule(target=layers, share=st.booleans(), tree=st.sampled_from([-1, 0, 100]))
    def add_layer(self, share: bool, tree: int) -> int:
        text = "shared" if share else f"layer {self.fresh()}"
        layer = self.fill.layer(text, tree=tree)
        self.texts[layer] = text
        return layer

    @rule(target=records, chain=st.lists(layers, max_size=4, unique=True), cost=st.floats(0, 100))
    def put_record(self, chain: list[int], cost: float) -> str:
        alive = tuple(layer for layer in chain if not self.gone(layer))
        key = f"key {self.fresh()}"
        self.fill.record(key, *alive, cost=cost, used=float(self.number))
        self.chains[key] = alive
        self.wanted.add(key)
        return key

    @rule(target=names, chain=st.lists(layers, max_size=4, unique=True))
    def put_image(self, chain: list[int]) -> str:
        alive = tuple(layer for layer in chain if not self.gone(layer))
        name = f"name {self.fresh()}"
        self.named[name] = (self.fill.image(f"config of {name}", *alive, name=name), alive)
        return name

    @rule(name=consumes(names))
    def untag(self, name: str) -> None:
        self.store.images.untag(name)
        self.named.pop(name, None)

    @rule(target=leases, chain=st.lists(layers, max_size=3, unique=True))
    def lease(self, chain: list[int]) -> Lease:
        lease = self.store.leases.new("model")
        alive = [layer for layer in chain if not self.gone(layer)]
        lease.add(layers=alive)
        self.held[lease] = set(alive)
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        lease.release()
        del self.held[lease]

    @rule(key=records)
    def look_up(self, key: str) -> None:
        record = self.store.records.get(key)
        if record is not None:
            assert record.chain == self.chains[key]
            self.wanted.add(key)

    @rule(limit=st.integers(1, 1000), everything=st.booleans())
    def collect(self, limit: int, everything: bool) -> None:
        if self.collection is not None:
            return  # one at a time
        used = self.store.used
        outcome = self.store.collect([Policy("size", max_used_space=limit, all=everything)])
        assert self.store.used == used - outcome.freed
        self.after_collection()

    @rule(everything=st.booleans())
    def prune(self, everything: bool) -> None:
        if self.collection is not None:
            return
        self.store.collect(prune_policies(all=everything))
        if everything:
            self.named.clear()
            held = set().union(*self.held.values()) if self.held else set()
            blobs = {self.texts[layer] for layer in held}
            assert self.store.blobs.bytes == sum(map(len, blobs))
        self.after_collection()

    @rule(limit=st.integers(1, 1000))
    def begin_to_collect(self, limit: int) -> None:
        """A collection that others' work goes on beside."""
        if self.collection is None:
            self.collection = collecting(self.store, [Policy("size", max_used_space=limit, all=True)])
            self.wanted = set()
            next(self.collection)

    @rule(steps=st.integers(1, 12))
    def go_on_collecting(self, steps: int) -> None:
        for _ in range(steps):
            if self.collection is not None and next(self.collection, self) is self:
                self.collection = None
        for key in self.wanted & set(self.chains):
            assert self.store.records.get(key) is not None, "it was put or looked up meanwhile"
        self.after_collection()

    def after_collection(self) -> None:
        """The model forgets what the store says it took; the invariants say that this was allowed."""
        self.chains = {k: c for k, c in self.chains.items() if self.store.records.get(k) is not None}
        kept = {layer for chain in self.chains.values() for layer in chain}
        kept |= {layer for _, chain in self.named.values() for layer in chain}
        kept |= set().union(*self.held.values()) if self.held else set()
        for layer in list(self.texts):
            if layer not in kept and layer in self.store.held.gone_layers:
                del self.texts[layer]

    @rule(damaged=st.booleans())
    def restart(self, damaged: bool) -> None:
        """In order; or with a database that has to be built again."""
        if self.collection is not None:
            self.collection.close()
            self.collection = None
        for lease in self.held:
            lease.release()
        path = self.store.path
        gone = self.store.held.gone_layers
        self.store.close()
        if damaged:
            (path / "store.db").write_bytes(b"no database" * 1000)
        self.store = Store.open(path)
        assert bool(self.store.recovered.damage) == damaged
        self.store.held.gone_layers |= gone
        self.fill = Filler(self.store)
        self.held = {lease: set() for lease in self.held}

    @invariant()
    def what_is_held_is_there(self) -> None:
        if not hasattr(self, "store"):
            return
        for key, chain in self.chains.items():
            self.whole(chain, key)
        for name, (image, chain) in self.named.items():
            found = self.store.images.resolve(name)
            assert found is not None
            assert found.image == image
            assert self.store.blobs.has(image)
            self.whole(chain, name)
        for held in self.held.values():
            self.whole(tuple(held), "a lease")

    def whole(self, chain: tuple[int, ...], who: str) -> None:
        for layer in self.store.layers.chain(chain):
            assert layer.digest is not None
            assert self.store.blobs.read(layer.digest) == self.texts[layer.id].encode(), who
            assert not layer.tree or self.store.trees.has(layer.tree)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            if self.collection is not None:
                finish(self.collection)
            report = finish(checking(self.store))
            self.store.close()
            self.directory.__exit__(None, None, None)
            assert report.findings == []


StoreMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStoreAgainstAModel = StoreMachine.TestCase
