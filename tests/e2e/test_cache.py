"""Caches in a registry, a directory and the image; cache mounts; what a no-op build costs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import FaultyRegistry, serving
from patience import PATIENCE

Context = Callable[..., Path]
DOCKERFILE = """\
FROM busybox AS made
COPY f /f
RUN cat /f /f > /twice
FROM busybox
COPY --from=made /twice /twice
RUN wc /twice > /count
"""


@pytest.fixture(scope="module")
def bases(daemon: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base image as an archive: the same digest in every daemon."""
    path = tmp_path_factory.mktemp("bases") / "busybox.tar"
    daemon.ok("save", "-o", path, "busybox")
    return path


@pytest.fixture
def fresh(make_daemon: Callable[..., Any], bases: Path) -> Iterator[Any]:
    """A daemon that has the base image and nothing else."""
    daemon = make_daemon()
    daemon.ok("load", "-i", bases)
    yield daemon
    daemon.stop()


def ids(daemon: Any, name: str) -> str:
    return str(json.loads(daemon.ok("inspect", name).out)[0]["Id"])


def write(context: Context, word: str) -> Path:
    return context(Dockerfile=DOCKERFILE, f=f"{word} {time.time_ns()}\n")


def cached(daemon: Any, path: Path, *options: str) -> int:
    """Steps that a build took from a cache."""
    return int(daemon.ok("build", "--progress=plain", *options, path).text.count("CACHED"))


def test_a_registry_cache_of_mode_max_serves_a_daemon_that_has_nothing(
    daemon: Any, fresh: Any, registry: str, context: Context
) -> None:
    path = write(context, "max")
    where = f"type=registry,ref={registry}/cache/max:1"
    daemon.ok("build", "-t", "cache/max", "--cache-to", f"{where},mode=max", path)
    assert cached(fresh, path, "-t", "cache/max", "--cache-from", where) == 4
    assert ids(fresh, "cache/max") == ids(daemon, "cache/max")
    assert fresh.ok("run", "cache/max", "cat", "/count").out.split()[:2] == ["2", "4"]


def test_a_registry_cache_of_mode_min_serves_the_final_stage(
    daemon: Any, fresh: Any, registry: str, context: Context
) -> None:
    path = write(context, "min")
    where = f"type=registry,ref={registry}/cache/min:1"
    daemon.ok("build", "-t", "cache/min", "--cache-to", f"{where},mode=min", path)
    text = fresh.ok("build", "--progress=plain", "-t", "cache/min", "--cache-from", where, path).text
    assert 1 <= text.count("CACHED") <= 4, text
    assert fresh.ok("run", "cache/min", "cat", "/count").out.split()[:2] == ["2", "4"]


def test_a_cache_in_a_directory(daemon: Any, fresh: Any, context: Context, tmp_path: Path) -> None:
    path = write(context, "local")
    there = tmp_path.parent / f"{tmp_path.name}-cache"
    daemon.ok("build", "--cache-to", f"type=local,dest={there},mode=max", path)
    assert (there / "index.json").exists()
    assert cached(fresh, path, "--cache-from", f"type=local,src={there}") == 4


def test_a_cache_inside_the_image(
    daemon: Any, fresh: Any, registry: str, context: Context
) -> None:
    path = write(context, "inline")
    name = f"{registry}/cache/inline:1"
    daemon.ok("build", "-t", name, "--push", "--cache-to", "type=inline", path)
    text = fresh.ok("build", "--progress=plain", "-t", name, "--cache-from", name, path).text
    assert text.count("CACHED") >= 2, text
    assert fresh.ok("run", name, "cat", "/count").out.split()[:2] == ["2", "4"]


def test_importing_costs_a_manifest_until_something_is_needed(
    daemon: Any, fresh: Any, watched: FaultyRegistry, context: Context
) -> None:
    path = write(context, "lazy")
    where = f"type=registry,ref={watched.host}/cache/lazy:1"
    daemon.ok("build", "--cache-to", f"{where},mode=max", path)
    before = len(watched.seen)
    (path / "Dockerfile").write_text("FROM busybox\nRUN echo something else\n")
    assert cached(fresh, path, "--cache-from", where, "-o", "type=cacheonly") == 0
    asked = [where for method, where, _ in watched.seen[before:] if method == "GET"]
    assert len([where for where in asked if "/manifests/" in where]) == 1, asked
    assert len([where for where in asked if "/blobs/" in where]) <= 1, asked


@pytest.fixture
def watched() -> Iterator[FaultyRegistry]:
    """A registry that notes what it was asked, in a thread."""
    registry, loop = FaultyRegistry(), asyncio.new_event_loop()
    ready, ends = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving() as start:
            await start(registry)
            ready.set()
            await ends.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    assert ready.wait(PATIENCE)
    yield registry
    loop.call_soon_threadsafe(ends.set)
    thread.join()
    loop.close()


def test_a_cache_that_is_not_there_is_no_error(fresh: Any, registry: str, context: Context) -> None:
    path = write(context, "missing")
    built = fresh.ok("build", "--progress=plain", "--cache-from",
                     f"type=registry,ref={registry}/cache/nothing:1", path)
    assert "nothing:1" in built.text


# --- cache mounts -------------------------------------------------------------------------------

FILLS = "FROM busybox\nRUN --mount=type=cache,id={id},target=/c echo {word} >> /c/words\n"


def test_cache_mounts_are_listed_inspected_and_cleared_by_id(daemon: Any, context: Context) -> None:
    daemon.ok("build", context(Dockerfile=FILLS.format(id="e2e-clear", word="one")))
    assert "e2e-clear" in daemon.ok("cache", "mounts").out
    assert "e2e-clear" in daemon.ok("cache", "inspect", "e2e-clear").out
    daemon.ok("cache", "clear", "e2e-clear")
    shown = "FROM busybox\nRUN --mount=type=cache,id=e2e-clear,target=/c ls -A /c | wc -l\n"
    text = daemon.ok("build", "--progress=plain", context(Dockerfile=shown)).text
    assert " 0\n" in text


def test_a_cache_mount_is_known_by_its_target_and_told_from_its_variants(
    daemon: Any, context: Context
) -> None:
    mounts = [f"RUN --mount=type=cache,target=/by-target{more} date > /by-target/f\n" for more in ("", ",mode=0700")]
    daemon.ok("build", "--no-cache", context(Dockerfile=f"FROM busybox\n{''.join(mounts)}"))
    found = json.loads(daemon.ok("cache", "inspect", "/by-target").out)
    assert sorted(one["variant"] for one in found) == ["", "448:0:0"]
    assert {one["id"] for one in found} == {"//by-target"}
    several = daemon("cache", "export", "/by-target")
    assert "there are 2 of this id" in several.text
    assert daemon.ok("cache", "export", found[0]["hash"]).out
    daemon.ok("cache", "clear", "/by-target")
    assert "there is none" in daemon("cache", "inspect", "/by-target").text


def test_a_cache_mount_that_nobody_can_read_counts_against_the_ceiling(
    make_daemon: Any, busybox_tar: Path, context: Context
) -> None:
    own = make_daemon("[gc]\nceiling = 40000000\nballast = 65536\n")
    own.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    fill = "RUN --mount=type=cache,target=/c,id=%s,uid=1000,mode=0700 head -c 25000000 /dev/zero > /c/%s\n"
    steps = [fill % (name, name) for name in ("one", "two")]
    own.ok("build", context(Dockerfile="FROM busybox\n" + "".join(steps) + "RUN true\n"))
    assert own.ok("cache", "mounts", "-q").out.split() == ["/two"]


def test_a_cache_mount_goes_to_another_daemon(
    daemon: Any, fresh: Any, context: Context, tmp_path: Path
) -> None:
    daemon.ok("build", context(Dockerfile=FILLS.format(id="e2e-move", word="carried")))
    daemon.ok("cache", "export", "e2e-move", "-o", tmp_path / "mount.tar")
    with tarfile.open(tmp_path / "mount.tar") as archive:
        assert any(name.endswith("words") for name in archive.getnames())
    fresh.ok("cache", "import", "e2e-move", tmp_path / "mount.tar")
    shown = "FROM busybox\nRUN --mount=type=cache,id=e2e-move,target=/c cat /c/words\n"
    assert "carried" in fresh.ok("build", "--progress=plain", context(Dockerfile=shown)).text


# --- the cost of a build that does nothing ------------------------------------------------------

STEPS = 200
RECORDS = 5_000


def many_records(state: Path) -> None:
    """Copies of the records that are there, under keys of their own."""
    with sqlite3.connect(state / "store.db") as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(records)")]
        others = [name for name in columns if name not in ("key", "id")]
        (held,) = db.execute("SELECT count(*) FROM records").fetchone()
        names = ", ".join(others)
        db.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {RECORDS // held + 1})"
            f" INSERT INTO records (key, {names}) SELECT key || '-' || i, {names} FROM records, n"
        )
    db.close()


@pytest.mark.slow
def test_a_no_op_build_of_200_steps_among_5000_records_is_quick(
    fresh: Any, context: Context
) -> None:
    lines = "".join(f"ENV V{n}={n}\n" if n % 2 else f"COPY --link f /d{n}/f\n" for n in range(STEPS))
    path = context(Dockerfile=f"FROM busybox\n{lines}", f="f")
    fresh.ok("build", path)
    fresh.stop()
    many_records(fresh.root / "state")
    fresh.start()
    assert cached(fresh, path) >= STEPS // 2
    begun = time.monotonic()
    fresh.ok("build", "-q", path)
    assert time.monotonic() - begun < 5.0


SPOIL = '''
cd "$1"; for f in */fs/spoilt; do time=$(stat -c %y "$f"); printf wrong > "$f"; touch -d "$time" "$f"; done
'''


def spoil(daemon: Any) -> None:
    """Other bytes in ``/spoilt`` of an unpacked layer, with size and time as they were."""
    trees = daemon.root / "state" / "trees"
    command = ["unshare", "--map-root-user", "--map-auto", "sh", "-ec", SPOIL, "sh", str(trees)]
    subprocess.run(command, check=True)


def test_a_tree_that_the_disk_spoilt_is_found_and_made_anew(fresh: Any, context: Context) -> None:
    lines = "RUN printf right > /spoilt\nRUN mkdir /d && ln -s /spoilt /d/l && rm /bin/vi && chmod 700 /home\nCOPY f /d/f\n"
    fresh.ok("build", "-t", "tree", context(Dockerfile=f"FROM busybox\n{lines}RUN cat /d/l /d/f\n", f="f"))
    assert "all is well" in fresh.ok("system", "check", "--trees").out
    spoil(fresh)
    assert "all is well" in fresh.ok("system", "check").out
    found = fresh("system", "check", "--trees", "--repair").out
    assert "differs from its blob: /spoilt content changed" in found
    assert "1 repaired" in found
    assert "all is well" in fresh.ok("system", "check", "--trees").out
    assert fresh.ok("run", "tree", "cat", "/spoilt").out == "right"
