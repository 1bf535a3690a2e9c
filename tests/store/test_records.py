"""Cache records, builds, sources, uploads: rows by key."""

from __future__ import annotations

import time

import pytest
from filler import Filler

from ocibuildd.errors import Corrupt
from ocibuildd.model.digest import Digest
from ocibuildd.store import Store, records

BLOB = Digest.of(b"blob")


def test_a_record_comes_back_as_it_was_put(store: Store, fill: Filler) -> None:
    layer = fill.layer("l")
    put = fill.record("k", layer, selector="s", op="o", identity="i", kind="source.http", description="d",
                      value='{"a":1}')
    assert store.records.get("k") == put


def test_an_unknown_key_is_none(store: Store) -> None:
    assert store.records.get("nothing") is None
    assert store.records.nearest("nothing") is None
    assert not store.records.seen("nothing")


@pytest.mark.parametrize("preimage", ["short", "\udcff", "long " * 1000, "\udcff not unicode " * 100])
def test_the_preimage_is_kept(store: Store, fill: Filler, preimage: str) -> None:
    fill.record("k", selector="s", preimage=preimage)
    assert store.records.preimage("k") == preimage
    nearest = store.records.nearest("s")
    assert nearest is not None
    assert nearest.preimage == preimage


def test_the_nearest_is_the_newest_of_the_instruction(store: Store, fill: Filler) -> None:
    fill.record("old", selector="s", used=100.0)
    fill.record("new", selector="s", used=200.0)
    fill.record("other", selector="t", used=300.0)
    nearest = store.records.nearest("s")
    assert nearest is not None
    assert nearest.key == "new"


def test_the_nearest_is_the_one_that_was_used_last(store: Store, fill: Filler) -> None:
    fill.record("old", selector="s", used=100.0)
    fill.record("new", selector="s", used=200.0)
    store.records.touch(["old"], 300.0)
    nearest = store.records.nearest("s")
    assert nearest is not None
    assert nearest.key == "old"


def test_an_operation_is_seen_whatever_its_inputs(store: Store, fill: Filler) -> None:
    fill.record("k", op="run make")
    assert store.records.seen("run make")


def test_putting_again_replaces(store: Store, fill: Filler) -> None:
    fill.record("k", fill.layer("1"))
    fill.record("k", fill.layer("2"))
    assert store.records.count() == 1


def test_putting_again_replaces_the_preimage_too(store: Store, fill: Filler) -> None:
    fill.record("k", preimage="one")
    fill.record("k", preimage="two")
    assert store.records.preimage("k") == "two"
    store.records.remove("k")
    assert store.db.one("SELECT count(*) FROM preimages") == (0,)


def test_touching_counts_uses_and_never_goes_back(store: Store, fill: Filler) -> None:
    fill.record("k", used=1000.0)
    store.records.touch(["k", "gone"], now=500.0)
    record = store.records.get("k")
    assert record is not None
    assert (record.uses, record.last_used) == (1, 1000.0)


def test_an_eviction_is_remembered_with_its_rule(store: Store, fill: Filler) -> None:
    fill.record("k", selector="s", preimage="p")
    assert store.records.remove("k", rule="size", why="too big", now=9.0)
    assert store.records.preimage("k") == ""
    for found in (store.records.evicted(key="k"), store.records.evicted(key="x", selector="s")):
        assert found == records.Eviction("k", "s", 9.0, "size", "too big")
    assert store.records.evicted(key="x") is None


def test_removing_what_is_gone_is_no_error(store: Store) -> None:
    assert not store.records.remove("k", rule="r")
    assert store.records.evicted(key="k") is None


def test_the_evictions_log_is_bounded(
    store: Store, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_EVICTIONS", 2)
    for key in "abc":
        fill.record(key)
        store.records.remove(key, rule="r")
    store.records.trim_evictions()
    assert store.records.evicted(key="a") is None
    assert store.records.evicted(key="c") is not None


def test_records_of_a_layer_are_found(store: Store, fill: Filler) -> None:
    layers = [fill.layer(str(n)) for n in range(12)]
    fill.record("one", layers[0])
    fill.record("eleven", layers[0], layers[10])
    assert store.records.using(layers[10]) == ["eleven"]
    assert store.records.using(layers[0]) == ["one", "eleven"]


def test_what_stands_on_a_lost_blob_is_no_hit_any_more_and_that_is_known(
    store: Store, fill: Filler
) -> None:
    base, damaged = fill.layer("base"), fill.layer("damaged")
    fill.record("below", base)
    fill.record("on it", base, damaged)
    store.blobs.quarantine(Digest.of(b"damaged"), "digest differs")
    assert store.records.get("below") is not None
    assert store.records.get("on it") is None
    gone = store.records.evicted(key="on it")
    assert gone is not None
    assert (gone.rule, "digest differs" in gone.why) == ("damage", True)


def test_a_blob_that_a_reader_suspects_is_looked_at_first(store: Store) -> None:
    whole = store.blobs.put(b"whole")
    store.blobs.suspect(Corrupt("x", details={"blob": str(whole)}))
    assert store.blobs.has(whole)
    store.blobs.file(whole).write_bytes(b"WHOLE")
    store.blobs.suspect(Corrupt("x", details={"blob": str(whole)}))
    assert not store.blobs.has(whole)


def test_an_exception_undoes_the_whole_batch(store: Store, fill: Filler) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        fill.record("a")
        with store.transaction():
            fill.record("b")
        raise RuntimeError
    assert store.records.count() == 0


def test_a_build_is_followed_from_start_to_end(store: Store) -> None:
    events = store.builds.new("b1", "app", {"tags": ["app"]}, now=10.0) / "events.jsonl"
    assert events == store.builds.events("b1")
    running = store.builds.get("b1")
    assert running is not None
    assert (running.status, running.ended) == ("running", 0.0)
    store.builds.finish("b1", "done", result={"image": "x"}, now=12.0)
    done = store.builds.get("b1")
    assert done is not None
    assert (done.status, done.ended, done.request, done.result) == (
        "done", 12.0, {"tags": ["app"]}, {"image": "x"},
    )


def test_builds_are_listed_newest_first_in_pages(store: Store) -> None:
    for number in range(5):
        store.builds.new(f"b{number}", "", {}, now=float(number + 1))
    assert [build.id for build in store.builds.recent(2)] == ["b4", "b3"]
    assert [build.id for build in store.builds.recent(2, before=4.0)] == ["b2", "b1"]
    latest = store.builds.latest()
    assert latest is not None
    assert latest.id == "b4"


def test_a_build_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    for build in ("abc1", "abc2", "xyz"):
        store.builds.new(build, "", {})
    assert [build.id for build in store.builds.find("x")] == ["xyz"]
    assert len(store.builds.find("abc")) == 2


def test_builds_that_ran_when_the_daemon_ended_are_interrupted(store: Store) -> None:
    store.builds.new("b1", "", {})
    path = store.path
    store.close()
    with Store.open(path) as again:
        assert again.recovered.interrupted == ["b1"]
        build = again.builds.get("b1")
        assert build is not None
        assert (build.status, build.error["code"]) == ("interrupted", "interrupted")


def test_old_builds_expire_running_ones_never(store: Store) -> None:
    for number in range(4):
        store.builds.new(f"b{number}", "", {}, now=float(number))
        if number:
            store.builds.finish(f"b{number}", "done", now=float(number))
    assert store.builds.expired(keep=1, max_age=0.0, now=10.0) == ["b2", "b1"]
    assert store.builds.expired(keep=9, max_age=8.5, now=10.0) == ["b1"]
    store.builds.remove("b1")
    assert not store.builds.directory("b1").exists()


def test_a_source_has_an_age_that_is_never_negative(store: Store) -> None:
    store.sources.put("tag", "busybox", {"digest": "x"}, fetched=time.time() + 1000)
    source = store.sources.get("tag", "busybox")
    assert source is not None
    assert source.value == {"digest": "x"}
    assert source.age() == 0.0
    assert store.sources.get("git", "busybox") is None


def test_old_sources_are_trimmed(store: Store) -> None:
    store.sources.put("http", "old", 1, fetched=1.0)
    store.sources.put("http", "new", 1, fetched=100.0)
    store.sources.trim(oldest=50.0)
    assert store.sources.get("http", "old") is None
    assert store.sources.get("http", "new") is not None


def test_an_upload_is_resumed_where_it_stopped(store: Store) -> None:
    store.uploads.put("r:5000", "app", BLOB, "http://r:5000/u/1", 100)
    upload = store.uploads.get("r:5000", "app", BLOB)
    assert upload is not None
    assert (upload.location, upload.offset) == ("http://r:5000/u/1", 100)
    store.uploads.remove("r:5000", "app", BLOB)
    assert store.uploads.get("r:5000", "app", BLOB) is None


def test_a_stale_upload_is_not_resumed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.uploads.put("r", "app", BLOB, "u", 1)
    monkeypatch.setattr(time, "time", lambda: 1e11)
    assert store.uploads.get("r", "app", BLOB) is None


def test_repositories_that_have_a_blob_are_hints_for_a_mount(store: Store) -> None:
    store.uploads.saw("r", "one", [BLOB])
    store.uploads.saw("r", "two", [BLOB])
    assert sorted(store.uploads.seen_in("r", BLOB)) == ["one", "two"]
    store.uploads.missed("r", "one", BLOB)
    assert store.uploads.seen_in("r", BLOB) == ["two"]
    assert store.uploads.seen_in("elsewhere", BLOB) == []
