"""APIClient: images listed, pulled, imported, saved, loaded, pruned; as docker-py's users do it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from building import build, tar_of

pytestmark = pytest.mark.filterwarnings(
    # docker-py leaves the sockets of streams that it read to the end to the garbage collector.
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # fmt: skip
DATA = {"testdata": bytes(511) + b"A"}


def imported(statuses: str) -> str:
    """The id at the end of an import's answer."""
    result = json.loads(statuses.splitlines()[-1])
    assert "error" not in result
    assert result["status"].startswith("sha256:")
    return str(result["status"])


def test_images_are_listed_and_counted(api: Any) -> None:
    found = api.images(all=True)
    assert {"Id", "Created", "RepoTags", "Size", "ParentId"} <= set(found[0])
    assert len({image["Id"] for image in found}) == api.info()["Images"]


def test_a_quiet_list_is_of_ids(api: Any) -> None:
    assert all(isinstance(image, str) for image in api.images(quiet=True))


def test_a_pull_answers_text(api: Any, remote: str) -> None:
    assert isinstance(api.pull(remote.removesuffix(":latest")), str)
    assert len(api.images(remote)) == 1
    assert "Id" in api.inspect_image(remote)


def test_a_pull_streams_messages(api: Any, remote: str) -> None:
    messages = list(api.pull(remote.removesuffix(":latest"), stream=True, decode=True))
    assert all(isinstance(message, dict) for message in messages)
    assert messages[-1]["status"] == f"Status: Downloaded newer image for {remote}"
    assert api.inspect_image(remote)["RepoTags"] == [remote]


def test_a_pull_for_an_invalid_platform_is_refused(api: Any, remote: str) -> None:
    with pytest.raises(docker.errors.APIError, match=r"unknown operating system|invalid platform"):
        api.pull(remote, platform="foobar")


def test_a_pull_of_what_is_not_there_is_not_found(api: Any, registry: str) -> None:
    with pytest.raises(docker.errors.NotFound):
        api.pull(f"{registry}/no/such", tag="x")


def test_a_removed_image_is_gone(api: Any) -> None:
    build(api, "FROM busybox\nRUN touch /removed\n", tag="py/remove")
    image = api.inspect_image("py/remove")["Id"]
    assert {"Deleted": image} in api.remove_image(image, force=True)
    assert image not in api.images(all=True, quiet=True)


def test_bytes_can_be_imported(api: Any) -> None:
    image = imported(api.import_image_from_data(tar_of(DATA), repository="test/from-bytes"))
    assert api.inspect_image("test/from-bytes")["Id"] == image


def test_a_file_can_be_imported(api: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of({"big": bytes(512 * 1024)}))
    image = imported(api.import_image_from_file(str(tmp_path / "a.tar"), repository="test/from-file"))
    found = api.inspect_image("test/from-file")
    assert (found["Id"], found["Size"] >= 512 * 1024) == (image, True)


def test_a_stream_can_be_imported(api: Any) -> None:
    image = imported(api.import_image(src=io.BytesIO(tar_of(DATA)), repository="test/from-stream"))
    assert api.inspect_image(image)["RepoTags"] == ["test/from-stream:latest"]


def test_an_import_takes_changes(api: Any) -> None:
    image = imported(
        api.import_image_from_data(
            tar_of(DATA), repository="test/changes", changes=["USER foobar", 'CMD ["echo"]']
        )
    )
    config = api.inspect_image(image)["Config"]
    assert (config["Cmd"], config["User"]) == (["echo"], "foobar")


def test_an_import_of_a_file_takes_changes_and_a_tag(api: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(DATA))
    changes = ["USER foobar", 'CMD ["echo"]']
    image = imported(
        api.import_image(
            src=str(tmp_path / "a.tar"), repository="test/changes", tag="t", changes=changes
        )
    )
    assert api.inspect_image("test/changes:t")["Id"] == image


def test_a_saved_image_can_be_loaded(api: Any, remote: str) -> None:
    api.pull(remote)
    data = b"".join(api.get_image(remote))
    assert {"stream": f"Loaded image: {remote}\n"} in list(api.load_image(data))


def test_a_saved_base_image_can_be_loaded(api: Any) -> None:
    data = b"".join(api.get_image("busybox:latest"))
    assert {"stream": "Loaded image: busybox:latest\n"} in list(api.load_image(data))


def test_prune_takes_tagged_images_only_where_asked(api: Any, remote: str) -> None:
    api.pull(remote)
    image = api.inspect_image(remote)["Id"]
    kept = b"".join(api.get_image("busybox:latest"))
    try:
        pruned = api.prune_images()
        assert image not in [item.get("Deleted") for item in pruned["ImagesDeleted"] or []]
        pruned = api.prune_images({"dangling": False})
        assert pruned["SpaceReclaimed"] > 0
        assert {"Untagged": remote} in pruned["ImagesDeleted"]
        assert {"Deleted": image} in pruned["ImagesDeleted"]
    finally:
        list(api.load_image(kept))


def test_what_a_registry_has_can_be_inspected(api: Any, remote: str) -> None:
    found = api.inspect_distribution(remote)
    assert {"os": "linux", "architecture": "amd64"} in found["Platforms"]
    assert found["Descriptor"]["digest"].startswith("sha256:")


def test_history_and_tags_are_told(api: Any) -> None:
    build(api, "FROM busybox\nENV A=b\n", tag="py/history")
    assert api.tag("py/history", "py/history2", "v", force=True)
    assert api.history("py/history")[0]["Tags"] is not None
    assert "ENV A=b" in api.history("py/history2:v")[0]["CreatedBy"]


def test_the_engine_tells_of_itself(api: Any) -> None:
    assert api.ping()
    assert api.version()["ApiVersion"] == api.api_version
    assert api.df()["LayersSize"] > 0
    assert api.containers(all=True) == api.networks() == []
    assert api.volumes()["Volumes"] == []


def test_what_is_not_there_is_not_found(api: Any) -> None:
    for look in (api.inspect_image, api.inspect_container, api.inspect_network, api.inspect_volume):
        with pytest.raises(docker.errors.NotFound):
            look("nosuch")
    with pytest.raises(docker.errors.NotFound):
        api.commit("nosuch")


def test_events_are_streamed(api: Any) -> None:
    build(api, "FROM busybox\nENV EVENT=1\n", tag="py/events")
    api.tag("py/events", "py/events2")
    until = int(time.time()) + 1
    found = list(api.events(since=0, until=until, decode=True, filters={"event": "tag"}))
    assert any(event["Actor"]["Attributes"]["name"] == "py/events2:latest" for event in found)
