"""Whole builds through the service, with real sandboxes."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from patience import PATIENCE

from ocibuildd.image.lookup import list_images
from ocibuildd.image.removal import remove
from ocibuildd.model.digest import EMPTY_TAR, Digest
from ocibuildd.model.oci import decode_config
from ocibuildd.model.request import SecretSpec

MULTI_STAGE = """\
FROM busybox AS builder
WORKDIR /src
COPY in.txt .
RUN tr a-z A-Z < in.txt > /out.txt
FROM busybox AS unused
RUN exit 9
FROM busybox
ENV GREETING=hello
COPY --from=builder /out.txt /result.txt
USER app
CMD ["cat", "/result.txt"]
"""


async def test_a_multi_stage_build_makes_what_it_says(bench: Any, context: Any) -> None:
    built = (await bench.build(context(MULTI_STAGE, {"in.txt": "made without root\n"}))).ok()
    assert await bench.read(built.info.image, "result.txt") == b"MADE WITHOUT ROOT\n"
    assert not any("exit 9" in name for name in built.ran)


async def test_a_second_build_runs_nothing_and_gives_the_same_image(bench: Any, context: Any) -> None:
    path = context(MULTI_STAGE, {"in.txt": "x\n"})
    first = (await bench.build(path)).ok()
    again = (await bench.build(path)).ok()
    assert again.ran == []
    assert again.info.image == first.info.image
    assert again.info.cached == first.info.steps


async def test_the_image_has_config_history_and_name(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo a > /a\nENV K=v\nCMD [\"x\"]\n")
    built = (await bench.build(path, tags=("app:1",), labels={"l": "m"})).ok()
    name = bench.store.images.resolve("docker.io/library/app:1")
    assert str(name.image) == built.info.image
    config = decode_config(bench.store.blobs.read(name.image))
    assert config.config.cmd == ("x",)
    assert config.config.labels == {"l": "m"}
    assert len(config.rootfs.diff_ids) == 2
    assert [h.empty_layer for h in config.history] == [False, False, True, True]


async def test_a_step_that_waits_for_room_says_so(bench: Any, context: Any, monkeypatch: Any) -> None:
    leases = []

    async def admit(size: int = 0, *, lease: Any = None, told: Any = None) -> Any:
        leases.append(lease.name)
        told("waiting for room: 1 other build")
        return bench.store.space.reserve(size)

    monkeypatch.setattr(bench.store, "admit", admit)
    built = (await bench.build(context("FROM busybox\nRUN echo a > /a\n"))).ok()
    assert built.output == "waiting for room: 1 other build\n"
    assert leases == [f"build {built.info.id}"]


async def test_every_instruction_has_its_intermediate_image(bench: Any, context: Any) -> None:
    built = (await bench.build(context("FROM busybox\nRUN echo a > /a\nRUN echo b > /b\nLABEL k=v\n"))).ok()
    steps = [e for e in built.events if e["type"] == "step.done"]
    assert len({e["image"] for e in steps}) == 4
    after_a = bench.store.images.get(steps[1]["image"])
    assert after_a.kind == "intermediate"
    with await bench.files(steps[1]["image"]) as tar:
        names = tar.getnames()
    assert "a" in names
    assert "b" not in names


async def test_a_changed_file_runs_exactly_what_depends_on_it(bench: Any, context: Any) -> None:
    text = "FROM busybox\nRUN echo before\nCOPY f /f\nRUN cat /f\nCOPY g /g\n"
    path = context(text, {"f": "one", "g": "gee", "other": "x"})
    (await bench.build(path)).ok()
    (path / "other").write_text("not copied")
    assert (await bench.build(path)).ran == []
    (path / "f").write_text("two")
    again = (await bench.build(path)).ok()
    assert [name.split("] ")[1] for name in again.ran] == ["COPY f /f", "RUN cat /f", "COPY g /g"]
    assert "two" in again.output


async def test_a_touched_file_is_the_same_file(bench: Any, context: Any) -> None:
    import os

    path = context("FROM busybox\nCOPY f /f\nRUN cat /f\n", {"f": "same"})
    (await bench.build(path)).ok()
    os.utime(path / "f", (1, 1))
    assert (await bench.build(path)).ran == []


async def test_a_file_changed_with_size_and_mtime_restored_is_seen(bench: Any, context: Any) -> None:
    """BuildKit takes it for unchanged and ships the file before: moby/buildkit#4817."""
    import os

    path = context("FROM busybox\nCOPY f /f\nRUN cat /f\n", {"f": "one"})
    (await bench.build(path)).ok()
    status = (path / "f").stat()
    (path / "f").write_text("two")
    os.utime(path / "f", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "two" in (await bench.build(path)).output


async def test_a_build_argument_runs_what_sees_it(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo first\nARG WHO=a\nRUN echo hello $WHO\n")
    (await bench.build(path)).ok()
    other = (await bench.build(path, build_args={"WHO": "b"})).ok()
    assert "hello b" in other.output
    assert len(other.ran) == 1
    explained = await bench.builds.explain(other.info.id)
    assert explained[-1]["reasons"] == [{"kind": "argument", "text": "variable WHO changed: a → b"}]


async def test_a_step_that_gives_the_same_content_again_leaves_the_rest_cached(
    bench: Any, context: Any
) -> None:
    text = "FROM busybox AS a\nCOPY f /f\nRUN wc -l < /f > /n\nFROM busybox\nCOPY --from=a /n /n\nRUN cat /n\n"
    path = context(text, {"f": "one\n"})
    first = (await bench.build(path)).ok()
    (path / "f").write_text("two\n")
    again = (await bench.build(path)).ok()
    assert len(again.ran) == 2
    assert again.info.image == first.info.image


async def test_early_cutoff_holds_from_run_to_run(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo one; echo same > /same\nRUN cat /same > /copy\n")
    first = (await bench.build(path)).ok()
    (path / "Dockerfile").write_text("FROM busybox\nRUN echo two; echo same > /same\nRUN cat /same > /copy\n")
    again = (await bench.build(path)).ok()
    assert len(again.ran) == 1
    layers = [bench.store.images.get(b.info.image).chain for b in (first, again)]
    assert layers[0] == layers[1]


async def test_dockerignore_hides_files_and_the_error_says_so(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nCOPY . /all\n", {"kept": "k", "secret.pem": "s", ".dockerignore": "*.pem\n"})
    built = (await bench.build(path)).ok()
    with await bench.files(built.info.image) as tar:
        names = tar.getnames()
    assert "all/kept" in names
    assert "all/secret.pem" not in names
    (path / "Dockerfile").write_text("FROM busybox\nCOPY secret.pem /\n")
    failed = await bench.build(path)
    assert failed.info.state == "failed"
    assert "dockerignore" in failed.error["message"] + failed.error.get("hint", "")
    assert failed.error["details"]["line"] == 2


async def test_a_failing_step_keeps_its_status_its_tail_and_its_file_system(
    bench: Any, context: Any
) -> None:
    failed = await bench.build(context("FROM busybox\nRUN echo made > /made; echo oops >&2; exit 7\n"))
    assert failed.info.state == "failed"
    assert failed.error["code"] == "step-failed"
    details = failed.error["details"]
    assert (details["exit_code"], details["tail"], details["line"]) == (7, ["oops"], 2)
    kept = bench.builds.failed(failed.info.id)
    assert (bench.store.trees.path(kept.spec["tree"]) / "fs" / "made").exists()
    assert failed.events[-1]["type"] == "build.failed"


async def test_a_missing_command_is_named(bench: Any, context: Any) -> None:
    failed = await bench.build(context("FROM busybox\nRUN no-such-command --now\n"))
    assert failed.error["details"]["exit_code"] == 127
    assert "no-such-command" in failed.error["hint"]


async def test_a_cancelled_build_ends_its_step_and_the_next_one_works(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo begun; sleep 6000\n")
    started = await bench.start(path)
    async with asyncio.timeout(PATIENCE):
        async for data in bench.builds.events(started.id):
            if b"begun" in data and b"vertex.log" in data:
                break
    await bench.builds.cancel(started.id)
    assert bench.builds.get(started.id).state == "cancelled"
    (await bench.build(context("FROM busybox\nRUN echo fine\n", name="next"))).ok()


async def test_identical_steps_of_two_builds_run_once(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN sleep 1; date +%s%N > /when\n")
    one, two = await asyncio.gather(bench.build(path), bench.build(path))
    assert one.ok().info.image == two.ok().info.image


async def test_a_cancelled_build_leaves_a_step_that_another_waits_for(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo begun; sleep 1; echo ended > /e\n")
    first, second = await bench.start(path), await bench.start(path)
    async with asyncio.timeout(PATIENCE):
        async for data in bench.builds.events(second.id):
            if b"begun" in data and b"vertex.log" in data:
                break
    await bench.builds.cancel(first.id)
    info = await asyncio.wait_for(bench.builds.wait(second.id), PATIENCE)
    assert info.state == "done"
    assert "begun" in "".join(e.get("data", "") for e in await bench.log(second.id))


async def test_independent_stages_run_side_by_side(bench: Any, context: Any) -> None:
    meet = "i=0; until test -e /c/0 -a -e /c/1 -a -e /c/2; do i=$((i+1)); test $i -lt 600 || exit 1; sleep 0.05; done"
    stages = "".join(
        f"FROM busybox AS s{n}\nRUN --mount=type=cache,target=/c touch /c/{n}; {meet}; echo {n} > /{n}\n" for n in range(3)
    )
    copies = "".join(f"COPY --from=s{n} /{n} /{n}\n" for n in range(3))
    built = (await bench.build(context(f"{stages}FROM busybox\n{copies}"))).ok()
    names = {e["vertex"]: e["name"] for e in built.events if e["type"] == "vertex.started"}
    steps = [e for e in built.events if "touch /c/" in names.get(e.get("vertex", ""), "")]
    begun = max(e["t"] for e in steps if e["type"] == "vertex.started")
    assert begun < min(e["t"] for e in steps if e["type"] == "vertex.done")


async def test_a_secret_is_seen_and_left_nowhere(bench: Any, context: Any) -> None:
    secret = SecretSpec("token", base64.b64encode(b"s3cr3t-value").decode())
    text = "FROM busybox\nRUN --mount=type=secret,id=token cat /run/secrets/token; wc -c < /run/secrets/token\n"
    built = (await bench.build(context(text), secrets=(secret,))).ok()
    assert "12" in built.output
    assert "s3cr3t" not in str(built.events)
    for path in bench.store.path.rglob("*"):
        if path.is_file() and "trees" not in path.parts:
            assert b"s3cr3t-value" not in path.read_bytes(), path
    other = SecretSpec("token", base64.b64encode(b"another").decode())
    assert (await bench.build(context(text, name="b"), secrets=(other,))).ran == []


async def test_a_required_secret_that_is_not_given_is_an_error(bench: Any, context: Any) -> None:
    failed = await bench.build(context("FROM busybox\nRUN --mount=type=secret,id=x,required true\n"))
    assert "secret x" in failed.error["message"]


async def test_a_cache_mount_outlives_its_build(bench: Any, context: Any) -> None:
    line = "RUN --mount=type=cache,target=/c"
    (await bench.build(context(f"FROM busybox\n{line} echo kept > /c/f\n"))).ok()
    again = (await bench.build(context(f"FROM busybox\n{line} cat /c/f\n", name="b"))).ok()
    assert "kept" in again.output


async def test_bind_mounts_show_the_context_and_other_stages(bench: Any, context: Any) -> None:
    text = (
        "FROM busybox AS a\nRUN mkdir /d; echo stage > /d/f\nFROM busybox\n"
        "RUN --mount=type=bind,target=/ctx cat /ctx/file\n"
        "RUN --mount=type=bind,from=a,source=/d,target=/m cat /m/f\n"
    )
    path = context(text, {"file": "from the context\n"})
    built = (await bench.build(path)).ok()
    assert "from the context" in built.output
    assert "stage" in built.output
    assert (await bench.build(path)).ran == []


async def test_a_heredoc_runs(bench: Any, context: Any) -> None:
    built = await bench.build(context("FROM busybox\nRUN <<EOF\necho one\necho two\nEOF\nCOPY <<EOF /f\nhi\nEOF\n"))
    assert built.ok().output == "one\ntwo\n"
    assert await bench.read(built.info.image, "f") == b"hi\n"


async def test_no_cache_runs_everything_again(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo a\nRUN echo b\n")
    (await bench.build(path)).ok()
    assert len((await bench.build(path, no_cache=True)).ran) == 2


async def test_an_image_of_new_layers_and_cached_steps_is_of_one_chain(bench: Any, context: Any) -> None:
    path = context(
        "FROM busybox AS a\nRUN mkdir /e && touch /e/f\nWORKDIR /e\n"
        "FROM a\nWORKDIR /new\nCOPY f /copied\n", {"f": "x"},
    )
    for no_cache in (False, True, False):
        built = (await bench.build(path, no_cache=no_cache)).ok()
        image = bench.store.images.get(Digest(built.info.image))
        rootfs = decode_config(bench.store.blobs.read(image.id)).rootfs
        layers = [layer.diff_id for layer in bench.store.layers.chain(image.chain)]
        assert layers == [diff_id for diff_id in rootfs.diff_ids if diff_id != EMPTY_TAR]
        assert len(layers) == 4


async def test_host_network_wants_both_leaves(bench: Any, context: Any) -> None:
    refused = await bench.build(context("FROM busybox\nRUN --network=host true\n"))
    assert refused.error["code"] == "denied"
    insecure = await bench.build(context("FROM busybox\nRUN --security=insecure true\n", name="b"),
                                 allow=("security.insecure",))
    assert insecure.error["code"] == "denied"
    assert "configuration" in insecure.error["message"]


async def test_errors_before_anything_ran_are_told(bench: Any, context: Any, tmp_path: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (await bench.build(empty)).error["code"] == "not-found"
    broken = await bench.build(context("FROM busybox\nRUM true\n"))
    assert broken.error["code"] == "dockerfile"
    absent = await bench.build(context("FROM no-such-image\n", name="b"))
    assert absent.error["code"] == "not-found"
    target = await bench.build(context("FROM busybox\n", name="c"), target="nowhere")
    assert target.info.state == "failed"


async def test_a_dockerfile_may_not_be_reached_by_leaving_the_context(
    bench: Any, context: Any, tmp_path: Any
) -> None:
    (tmp_path / "outside").write_text("FROM busybox\n")
    path = context("FROM busybox\n")
    (path / "link").symlink_to("../outside")
    failed = await bench.build(path, dockerfile="link")
    assert failed.info.state == "failed"


async def test_a_copy_from_scratch_and_links(bench: Any, context: Any) -> None:
    path = context("FROM scratch\nCOPY --link f /d/f\nCOPY --chown=5:6 f /g\n", {"f": "x"})
    built = (await bench.build(path)).ok()
    with await bench.files(built.info.image) as tar:
        member = tar.getmember("g")
    assert (member.uid, member.gid) == (5, 6)
    assert (await bench.build(path)).ran == []


async def verified(bench: Any, target: str) -> dict[str, Any]:
    found = [e async for e in bench.builds.verify(target, peer=bench.peer)]
    return found[-1]


async def test_verify_says_that_a_reproducible_build_is_one(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nCOPY f /f\nRUN cat /f > /g\n", {"f": "x"})
    built = (await bench.build(path, reproducible=True, tags=("v:1",))).ok()
    answer = await verified(bench, "v:1")
    assert answer == {"type": "verified", "same": True, "image": built.info.image, "differences": []}


async def test_verify_blames_the_instruction_and_the_file(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN echo fixed > /fixed\nRUN cat /proc/sys/kernel/random/uuid > /random\n")
    built = (await bench.build(path, reproducible=True)).ok()
    answer = await verified(bench, built.info.id)
    (difference,) = answer["differences"]
    assert "uuid" in difference["instruction"]
    assert [each[:2] for each in difference["files"]] == [["changed", "/random"]]


async def test_a_verification_leaves_the_cache_as_it_was(bench: Any, context: Any) -> None:
    path = context("FROM busybox\nRUN date +%s%N > /f\nRUN cat /f > /g\n")
    built = (await bench.build(path, tags=("app:1",))).ok()
    events = [each async for each in bench.builds.verify("app:1", peer=bench.peer)]
    assert events[-1]["same"] is False
    again = (await bench.build(path)).ok()
    assert (again.ran, again.info.image) == ([], built.info.image)


async def test_source_date_epoch_is_in_config_and_history(bench: Any, context: Any) -> None:
    from ocibuildd.model.oci import decode_config

    path = context("FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /e\n")
    built = (await bench.build(path, epoch="1000000000")).ok()
    config = decode_config(bench.store.blobs.read(Digest(built.info.image)))
    assert config.created == "2001-09-09T01:46:40Z"
    assert config.history[-1].created == "2001-09-09T01:46:40Z"
    assert await bench.read(built.info.image, "e") == b"1000000000\n"


async def test_the_same_in_two_directories_at_two_times_is_the_same_image(
    bench: Any, context: Any, tmp_path: Any
) -> None:
    text = "FROM busybox\nWORKDIR /w\nCOPY . /w\nRUN echo made > made; mkdir -p d; touch d/e\n"
    files = {"a": "1", "sub/b": "2"}
    images = []
    for name in ("x", "y"):
        built = await bench.build(context(text, files, name=name), reproducible=True, no_cache=True)
        images.append(built.ok().info.digest)
    assert images[0] == images[1]


async def test_a_failed_build_leaves_the_images_of_the_steps_before(bench: Any, context: Any) -> None:
    failed = await bench.build(context("FROM busybox\nRUN echo a > /a\nRUN exit 1\n"))
    done = [e for e in failed.events if e["type"] == "step.done"]
    assert len(done) == 2
    assert await bench.read(done[1]["image"], "a") == b"a\n"


async def test_builds_and_a_collector_that_takes_all_it_may_get_along(bench: Any, context: Any) -> None:
    from ocibuildd.store.maintenance import Maintenance
    from ocibuildd.store.policy import Policy

    async def remove(paths: Any) -> Any:
        return await bench.nsd.call("remove", {"paths": [str(path) for path in paths]})

    collector, done = Maintenance(bench.store, remove, ()), False

    async def collect() -> None:
        while not done:
            await collector.collect([Policy("all", all=True)], wait=True)
            await asyncio.sleep(0.05)

    async def build(name: str) -> None:
        for number in range(5):
            text = f"FROM busybox AS a\nCOPY f /f\nRUN cat /f > /g; echo {number % 2}\nFROM busybox\nCOPY --from=a /g /\nRUN cat /g > /h\n"
            (await bench.build(context(text, {"f": f"{number}"}, name=name), tags=("kept",))).ok()

    collecting = asyncio.ensure_future(collect())
    await asyncio.gather(build("x"), build("y"))
    done = True
    await collecting
    await collector.collect([Policy("all", all=True)], wait=True)
    assert not bench.store.held.layers
    assert not bench.store.layers._pending
    assert await bench.read(str(bench.store.images.resolve("docker.io/library/kept:latest").image), "h") == b"4"


async def test_several_platforms_make_an_index(bench: Any, context: Any, tmp_path: Any) -> None:
    import json

    path = context("FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n", {"f-amd64": "a", "f-arm64": "b"})
    platforms = ("linux/amd64", "linux/arm64")
    built = (await bench.build(path, platforms=platforms, tags=("multi:1",))).ok()
    index = json.loads(bench.store.blobs.read(Digest(built.info.digest)))
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]
    assert str(bench.store.images.resolve("docker.io/library/multi:1").target) == built.info.digest
    assert (await bench.build(path, platforms=platforms)).ok().ran == []
    for everything, count in ((False, 1), (True, 2)):
        shown = list_images(bench.store, everything=everything)
        built_ = [i for i in shown if not i.intermediate and "busybox:latest" not in i.names]
        assert len(built_) == count
    bench.store.images.tag("docker.io/library/other:1", Digest(built.info.image), Digest(built.info.digest))
    assert [each.action for each in remove(bench.store, "multi:1")] == ["untagged"]
    actions = [each.action for each in remove(bench.store, "other:1")]
    assert actions[0] == "untagged"
    assert actions.count("deleted") >= 2
    assert [i.names for i in list_images(bench.store)] == [("busybox:latest",)]
    assert list_images(bench.store, filters={"dangling": ["true"]}) == []


async def test_a_docker_archive_of_several_platforms_names_the_first(
    bench: Any, context: Any, tmp_path: Any
) -> None:
    import json
    import tarfile

    from ocibuildd.model.request import OutputSpec

    path = context("FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n", {"f-amd64": "a", "f-arm64": "b"})
    outputs = (OutputSpec("docker", str(tmp_path / "d.tar"), {"name": "multi:2"}),)
    (await bench.build(path, platforms=("linux/arm64", "linux/amd64"), outputs=outputs)).ok()
    with tarfile.open(tmp_path / "d.tar") as tar:
        entries = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(entries[0]["Config"]))  # type: ignore[arg-type]
    assert [entry["RepoTags"] for entry in entries] == [["multi:2"], None]
    assert config["architecture"] == "arm64"


async def test_outputs_are_written(bench: Any, context: Any, tmp_path: Any) -> None:
    import tarfile

    from ocibuildd.model.request import OutputSpec

    path = context("FROM scratch\nCOPY f /d/f\n", {"f": "data"})
    outputs = (
        OutputSpec("local", str(tmp_path / "files")), OutputSpec("tar", str(tmp_path / "fs.tar")),
        OutputSpec("oci", str(tmp_path / "oci.tar")), OutputSpec("docker", "-"),
    )
    built = (await bench.build(path, outputs=outputs)).ok()
    assert (tmp_path / "files" / "d" / "f").read_text() == "data"
    with tarfile.open(tmp_path / "fs.tar") as tar:
        assert "d/f" in tar.getnames()
    with tarfile.open(tmp_path / "oci.tar") as tar:
        assert "index.json" in tar.getnames()
    with tarfile.open(bench.builds.output(built.info.id, 3)) as tar:
        assert "manifest.json" in tar.getnames()


async def test_a_named_context_is_copied_from(bench: Any, context: Any, tmp_path: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "f").write_text("from elsewhere")
    path = context("FROM scratch\nCOPY --from=other f /f\n")
    built = (await bench.build(path, build_contexts={"other": str(other)})).ok()
    assert await bench.read(built.info.image, "f") == b"from elsewhere"


async def test_subrequests_answer_without_building(bench: Any, context: Any) -> None:
    path = context("FROM busybox AS base\nARG WHO=me\nFROM base AS app\nRUN exit 1\n")
    for call in ("targets", "outline", "check"):
        started = await bench.start(path, call=call)
        assert (await bench.builds.wait(started.id)).state == "done"
        assert (await bench.log(started.id))[-1]["type"] == "build.done"


async def test_a_timeout_ends_the_build(bench: Any, context: Any) -> None:
    failed = await bench.build(context("FROM busybox\nRUN sleep 60\n"), timeout=1)
    assert failed.info.state == "failed"
    assert "longer than 1 s" in failed.error["message"]


async def test_an_agents_key_is_usable_in_a_step(bench: Any, context: Any) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    from ocibuildd.model.request import SshSpec

    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    text = "FROM busybox\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK && ls -l $SSH_AUTH_SOCK\n"
    built = await bench.build(context(text), ssh=(SshSpec(keys=(key,)),))
    assert built.ok().output.startswith("s")
