"""What a collection takes, decided on values alone; policies and prune as people write them."""

from __future__ import annotations

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.store.gc import Plan, plan
from ocibuildd.store.graph import Graph, ImageNode, LayerNode, MountNode, RecordNode
from ocibuildd.store.policy import DAY, Policy, default_policies, prune_policies

NOW = 1_000 * DAY
EVERYTHING = Policy("everything", all=True)


def graph(layers: int = 3, size: int = 100) -> Graph:
    """Layers 1…n, each with a blob "b1" and a tree "t1" of ``size`` bytes."""
    return Graph(
        blobs={f"b{n}": size for n in range(1, layers + 1)},
        trees={f"t{n}": size for n in range(1, layers + 1)},
        layers={n: LayerNode(f"b{n}", f"t{n}") for n in range(1, layers + 1)},
    )


def record(key: str, *chain: int, cost: float = 1.0, idle: float = 0.0, kind: str = "regular",
           blobs: tuple[str, ...] = (), uses: int = 0) -> RecordNode:
    return RecordNode(key, kind, chain, blobs, cost, NOW - idle, NOW - idle, uses, f"RUN {key}")


def image(name: str, *chain: int, names: tuple[str, ...] = (), kind: str = "image", parent: str = "",
          blobs: tuple[str, ...] = (), idle: float = 0.0, labels: dict[str, str] | None = None) -> ImageNode:
    return ImageNode(
        name, kind, chain, parent, (name, *blobs), names, labels or {}, NOW - idle, NOW - idle, 0,
    )


def add(to: Graph, *nodes: RecordNode | ImageNode | MountNode) -> Graph:
    for node in nodes:
        if isinstance(node, RecordNode):
            to.records.append(node)
        elif isinstance(node, ImageNode):
            to.images[node.id] = node
            to.blobs.setdefault(node.id, 1)
        else:
            to.mounts.append(node)
    return to


def collect(what: Graph, *policies: Policy, free: int = 1 << 62) -> Plan:
    return plan(what, policies, now=NOW, free=free)


def ids(found: Plan) -> list[str]:
    return [removal.id for removal in found.removals]


def test_what_nobody_holds_goes_without_any_policy() -> None:
    found = collect(add(graph(3), record("r", 1)))
    assert (sorted(found.layers), sorted(found.blobs), sorted(found.trees)) == (
        [2, 3], ["b2", "b3"], ["t2", "t3"],
    )
    assert (found.garbage, found.freed, found.used) == (400, 400, 600)


def test_a_blob_that_two_layers_share_stays_with_the_second() -> None:
    what = graph(2)
    what.layers[2] = LayerNode("b1", "t2")
    found = collect(add(what, record("one", 1), record("two", 2, idle=9)), Policy("p", filters=("id==one",)))
    assert (found.layers, found.trees, found.blobs) == ([1], ["t1"], ["b2"])


def test_a_tree_that_two_layers_share_stays_with_the_second() -> None:
    what = graph(2)
    what.layers[2] = LayerNode("b2", "t1")
    found = collect(add(what, record("one", 1), record("two", 2)), Policy("p", filters=("id==one",)))
    assert found.trees == ["t2"]


def test_names_pin_what_they_lead_to() -> None:
    found = collect(add(graph(1), image("i", 1, names=("app",)), record("r", 1)), EVERYTHING)
    assert ids(found) == ["r"]
    assert (found.layers, found.blobs) == ([], [])


def test_leases_hold_layers_and_blobs() -> None:
    what = graph(3)
    what.leased_layers, what.leased_blobs = frozenset({1}), frozenset({"b2"})
    found = collect(add(what, record("r", 1)), EVERYTHING)
    assert ids(found) == []
    assert sorted(found.blobs) == ["b3"]


def test_a_dangling_image_goes_before_its_layers() -> None:
    found = collect(add(graph(1), image("i", 1)), EVERYTHING)
    assert ids(found) == ["i"]
    assert sorted(found.blobs) == ["b1", "i"]


def test_intermediate_images_go_with_their_layers() -> None:
    what = add(
        graph(2), image("a", 1, kind="intermediate"), image("b", 1, 2, kind="intermediate", parent="a"),
        record("one", 1), record("two", 1, 2),
    )
    assert ids(collect(what)) == []
    assert ids(collect(what, Policy("p", filters=("id==two",)))) == ["two", "b"]


def test_ancestors_of_a_named_image_stay() -> None:
    what = add(
        graph(2), image("a", 1, kind="intermediate"), image("env", kind="intermediate", parent="a"),
        image("i", 1, 2, names=("app",), parent="env"), image("stray", kind="intermediate"),
    )
    assert ids(collect(what, EVERYTHING)) == ["stray"]


def test_a_record_of_a_layer_that_is_gone_is_broken() -> None:
    found = collect(add(graph(1), record("r", 1, 99)))
    assert [(removal.id, removal.rule) for removal in found.removals] == [("r", "broken")]
    assert found.layers == [1]


def test_the_cheapest_to_make_again_for_its_bytes_goes_first() -> None:
    what = graph(3)
    what.blobs["b2"] = 100_000
    add(what, record("dear", 1, cost=60), record("big", 2, cost=60), record("cheap", 3, cost=0.01))
    found = collect(what, Policy("p", max_used_space=1))
    assert ids(found) == ["cheap", "big", "dear"]


def test_the_longest_unused_of_equals_goes_first() -> None:
    add(what := graph(3), record("new", 1), record("old", 2, idle=9 * DAY), record("mid", 3, idle=DAY))
    assert ids(collect(what, Policy("p", max_used_space=1))) == ["old", "mid", "new"]


def test_a_record_never_goes_before_those_that_stand_on_it() -> None:
    add(what := graph(3), record("low", 1, cost=0.001, idle=DAY), record("mid", 1, 2, cost=0.001),
        record("top", 1, 2, 3, cost=100))
    assert ids(collect(what, Policy("p", max_used_space=1))) == ["top", "mid", "low"]


def test_no_more_goes_than_must() -> None:
    add(what := graph(3), record("a", 1), record("b", 2), record("c", 3))
    found = collect(what, Policy("p", max_used_space=400))
    assert len(found.removals) == 1
    assert found.freed == 200


def test_reserved_space_is_never_collected() -> None:
    add(what := graph(3), record("a", 1), record("b", 2), record("c", 3))
    assert ids(collect(what, Policy("p", max_used_space=100, reserved_space=600))) == []


def test_space_is_freed_until_the_disk_has_enough() -> None:
    add(what := graph(3), record("a", 1), record("b", 2), record("c", 3))
    assert len(ids(collect(what, Policy("p", min_free_space=500), free=300))) == 1
    assert ids(collect(what, Policy("p", min_free_space=500), free=500)) == []


def test_keep_duration_spares_what_was_used_lately() -> None:
    add(what := graph(2), record("new", 1), record("old", 2, idle=3 * DAY))
    assert ids(collect(what, Policy("p", keep_duration=2 * DAY))) == ["old"]


def test_internal_and_shared_records_need_all() -> None:
    add(what := graph(2), record("in", 1, kind="internal"), record("shared", 2),
        image("i", 2, names=("app",)))
    assert ids(collect(what, Policy("p"))) == []
    assert sorted(ids(collect(what, EVERYTHING))) == ["in", "shared"]


def test_cache_mounts_are_collected_unless_in_use() -> None:
    add(what := graph(0), MountNode("h1", "apt", 500, NOW, NOW, 1, in_use=False),
        MountNode("h2", "go", 500, NOW, NOW, 1, in_use=True))
    found = collect(what, Policy("p", max_used_space=1, filters=("type==exec.cachemount",)))
    assert ids(found) == ["h1"]
    assert found.freed == 500


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("type==source.local", ["ctx"]), ("type!=source.local", ["apt", "make"]),
        ("description~=^RUN m", ["make"]), ("type==regular,id==apt", ["apt"]), ("shared", []),
        ("private", ["apt", "ctx", "make"]), ("inuse==false", ["apt", "ctx", "make"]),
    ],
)
def test_filters_are_buildkits(text: str, found: list[str]) -> None:
    add(what := graph(3), record("apt", 1), record("make", 2), record("ctx", 3, kind="source.local"))
    assert sorted(ids(collect(what, Policy("p", filters=(text,))))) == found


def test_any_one_filter_must_match() -> None:
    add(what := graph(2), record("a", 1), record("b", 2))
    assert len(ids(collect(what, Policy("p", filters=("id==a", "id==b"))))) == 2


@pytest.mark.parametrize("text", ["colour==red", "type=x", "description~=(", ""])
def test_an_unreadable_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="filter"):
        collect(graph(1), Policy("p", filters=(text,)))


@pytest.mark.parametrize(
    ("policy", "used", "free", "keep"),
    [
        (Policy("p"), 100, 0, 0),
        (Policy("p", max_used_space=50), 100, 0, 50),
        (Policy("p", max_used_space=50, reserved_space=70), 100, 0, 70),
        (Policy("p", min_free_space=30), 100, 10, 80),
        (Policy("p", min_free_space=30), 100, 40, 100),
        (Policy("p", min_free_space=500), 100, 10, 0),
        (Policy("p", min_free_space=500, reserved_space=20), 100, 10, 20),
        (Policy("p", reserved_space=20), 100, 10, 20),
    ],
)
def test_what_may_stay_is_reckoned_as_buildkit_does(
    policy: Policy, used: int, free: int, keep: int
) -> None:
    assert policy.keep_bytes(used, free) == keep


def test_the_defaults_take_stale_sources_and_nothing_else() -> None:
    what = graph(3, size=300_000_000)
    add(what, record("ctx", 1, kind="source.local", idle=3 * DAY), record("new", 2, kind="source.local"),
        record("run", 3, idle=3 * DAY))
    assert ids(collect(what, *default_policies(100_000_000_000))) == ["ctx"]


# --- prune -------------------------------------------------------------------------------------------


def store_of_all() -> Graph:
    return add(
        graph(5), image("tagged", 1, names=("app",), labels={"keep": "1"}),
        image("dangling", 2, idle=2 * DAY, labels={"old": ""}),
        record("shared", 1), record("own", 3, idle=DAY), record("int", 4, kind="internal"),
        MountNode("mount", "apt", 10, NOW, NOW, 1, in_use=False),
    )


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["dangling", "own"]),
        ({"cache": False}, ["dangling"]),
        ({"images": False}, ["own"]),
        ({"images": False, "all": True}, ["int", "own", "shared"]),
        ({"cache": False, "all": True}, ["dangling", "tagged"]),
        ({"all": True, "mounts": True}, ["dangling", "int", "mount", "own", "shared", "tagged"]),
        ({"until": NOW - 1.5 * DAY}, ["dangling"]),
        ({"labels": ["old"]}, ["dangling"]),
        ({"labels": ["!old"], "all": True}, ["tagged"]),
        ({"labels": ["keep=2"], "all": True}, []),
        ({"filters": ["id==own"], "images": False}, ["own"]),
        ({"keep_storage": 10_000}, ["dangling"]),
        ({"keep_storage": 100, "images": False}, ["own"]),
    ],
)
def test_prune_takes_what_docker_would(options: dict[str, object], found: list[str]) -> None:
    policies = prune_policies(**options)  # type: ignore[arg-type]
    assert sorted(ids(collect(store_of_all(), *policies))) == found


def test_after_prune_all_nothing_is_left() -> None:
    what = store_of_all()
    found = collect(what, *prune_policies(all=True, mounts=True))
    assert found.freed == what.used
    assert sorted(found.layers) == sorted(what.layers)


def test_why_says_when_it_was_used_and_what_it_costs() -> None:
    add(what := graph(1), record("r", 1, cost=2.5, idle=3 * DAY))
    (removal,) = collect(what, Policy("size", max_used_space=10)).removals
    assert removal.rule == "size"
    assert removal.why == "over max_used_space 10; last used 3 d ago, 200 bytes, 2.5 s to make again"


def test_an_intermediate_image_goes_with_a_lower_layer() -> None:
    what = add(graph(2), image("a", 1, 2, kind="intermediate"), record("link", 2))
    found = collect(what)
    assert ids(found) == ["a"]
    assert found.removals[0].why == "a layer of it is gone"


@pytest.mark.parametrize(("idle", "stays"), [(DAY, True), (8 * DAY, False)])
def test_an_intermediate_image_of_layers_that_others_hold_stays_a_week(idle: float, stays: bool) -> None:
    what = add(graph(2), image("env", 1, kind="intermediate", idle=idle), record("r", 1, 2))
    assert (ids(collect(what)) == []) is stays
