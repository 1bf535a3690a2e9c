"""DockerClient.images: the object-oriented half of docker-py."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest

Run = Callable[..., str]
pytestmark = pytest.mark.filterwarnings(
    # docker-py leaves the sockets of streams that it read to the end to the garbage collector.
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # fmt: skip
HELLO = b"FROM busybox\nCMD echo hello world\n"


def ids(images: Any) -> list[str]:
    return [image.id for image in images]


def test_a_build_gives_an_image(client: Any, run: Run) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(HELLO))
    assert run(image.id) == "hello world\n"


def test_a_bad_dockerfile_is_an_error(client: Any) -> None:
    with pytest.raises(docker.errors.APIError, match=r"(?i)unknown instruction: NOTADOCKERFILE"):
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nNOTADOCKERFILECOMMAND\n"))


def test_a_failing_step_is_a_build_error_with_its_log(client: Any) -> None:
    with pytest.raises(docker.errors.BuildError) as caught:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo before; exit 7\n"))
    assert "returned a non-zero code: 7" in caught.value.msg
    assert any("before" in line.get("stream", "") for line in caught.value.build_log)


def test_several_builds_of_a_tag_succeed(client: Any, run: Run) -> None:
    for _ in range(2):
        image, _ = client.images.build(tag="some-tag", fileobj=io.BytesIO(HELLO))
    assert run(image.id) == "hello world\n"


def test_a_step_that_says_success_fools_nobody(client: Any, run: Run) -> None:
    text = b"FROM busybox\nCMD echo Successfully built abcd1234\n"
    image, _ = client.images.build(tag="dup-txt-tag", fileobj=io.BytesIO(text))
    assert run(image.id) == "Successfully built abcd1234\n"


def test_images_are_listed_by_repository(client: Any, remote: str) -> None:
    image = client.images.pull(remote)
    assert image.id in ids(client.images.list())
    assert image.id in ids(client.images.list(remote.removesuffix(":latest")))
    assert image.id in ids(client.images.list(remote))
    assert client.images.list("nosuch/repository") == []


def test_a_pull_gives_the_image(client: Any, remote: str) -> None:
    assert remote in client.images.pull(remote).attrs["RepoTags"]


def test_a_pull_with_a_tag_gives_that_tag(client: Any, remote: str) -> None:
    image = client.images.pull(remote.removesuffix(":latest"), tag="latest")
    assert remote in image.attrs["RepoTags"]


def test_a_pull_by_digest_gives_the_image(client: Any, remote: str) -> None:
    digest = client.images.get_registry_data(remote).id
    repository = remote.removesuffix(":latest")
    image = client.images.pull(f"{repository}@{digest}")
    assert f"{repository}@{digest}" in image.attrs["RepoDigests"]


def test_a_pull_of_all_tags_gives_a_list(client: Any, remote: str) -> None:
    images = client.images.pull(remote.removesuffix(":latest"), all_tags=True)
    assert len(images) == 1
    assert remote in images[0].attrs["RepoTags"]


def test_loading_what_is_no_image_fails(client: Any) -> None:
    with pytest.raises(docker.errors.ImageLoadError):
        client.images.load("abc")


def test_an_image_can_be_saved_and_loaded(client: Any, tmp_path: Path) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(HELLO), tag="py/save")
    path = tmp_path / "image.tar"
    path.write_bytes(b"".join(image.save()))
    loaded = client.images.load(path.read_bytes())
    assert [found.id for found in loaded] == [image.id]


@pytest.mark.parametrize("named", [True, "py/named:latest"])
def test_a_saved_image_keeps_its_name_where_asked(client: Any, named: bool | str) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(HELLO + b"LABEL n=1\n"), tag="py/named")
    data = b"".join(image.save(named=named))
    client.images.remove("py/named", force=True)
    assert "py/named:latest" in client.images.load(data)[0].tags


def test_an_image_saves_under_none_but_its_own_names(client: Any) -> None:
    with pytest.raises(docker.errors.InvalidArgument):
        client.images.get("busybox").save(named="sakuya/izayoi")


def test_a_tag_can_be_given_and_taken(client: Any) -> None:
    repository, tag = "dockersdk.tests.images.test_tag", "some-tag"
    image = client.images.get("busybox:latest")
    image.tag(repository, tag)
    assert image.id in ids(client.images.list(repository))
    assert image.id in ids(client.images.list(f"{repository}:{tag}"))
    client.images.remove(f"{repository}:{tag}")
    assert image.id not in ids(client.images.list(repository))
    assert image.id in ids(client.images.list("busybox:latest"))


def test_an_image_tells_of_itself(client: Any) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(HELLO + b"LABEL k=v\n"), tag="py/self")
    assert image.labels == {"k": "v"}
    assert image.tags == ["py/self:latest"]
    assert image.short_id == image.id[:19]
    assert "CMD" in image.history()[1]["CreatedBy"]
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("nosuch/image")


def test_a_push_tells_its_digest(client: Any, registry: str) -> None:
    client.images.get("busybox").tag(f"{registry}/py/push", "v")
    lines = list(client.images.push(f"{registry}/py/push", tag="v", stream=True, decode=True))
    assert [line["aux"]["Tag"] for line in lines if "aux" in line] == ["v"]


def test_registry_data_tells_platforms(client: Any, remote: str) -> None:
    data = client.images.get_registry_data(remote)
    assert data.has_platform("linux/amd64")
    assert data.pull().id in ids(client.images.list(all=True))


def test_unused_images_can_be_pruned(client: Any) -> None:
    client.images.build(fileobj=io.BytesIO(HELLO + b"LABEL dangling=1\n"))
    pruned = client.images.prune(filters={"dangling": True})
    assert isinstance(pruned["SpaceReclaimed"], int)
