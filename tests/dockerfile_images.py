"""Stand-in base images and the open data for the front end's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocibuildd import dockerfile as front
from ocibuildd.model.digest import Digest
from ocibuildd.model.graph import Plan
from ocibuildd.model.oci import ContainerConfig, History, ImageConfig, RootFS

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIGEST = Digest("sha256:" + "b" * 64)


def base_image(**config: Any) -> ImageConfig:
    """An image with one layer; ``config``: fields of its container config."""
    config.setdefault("env", (PATH,))
    return ImageConfig(
        architecture="amd64",
        os="linux",
        config=ContainerConfig(**config),
        rootfs=RootFS(diff_ids=(Digest("sha256:" + "a" * 64),)),
        history=(History(created_by="base"),),
    )


class Images(dict[tuple[str, str], front.ResolvedImage]):
    """Every reference is known: as given by its short name, else a plain image."""

    def __init__(self, given: dict[str, ImageConfig]) -> None:
        super().__init__()
        self.given = given
        self.asked: list[str] = []

    def get(self, key: Any, default: Any = None) -> Any:
        ref = key[0]
        self.asked.append(ref)
        short = ref.removeprefix("docker.io/library/").removesuffix(":latest")
        return front.ResolvedImage(ref, DIGEST, self.given.get(short, base_image()))


Lower = Callable[..., Plan]


def conformance(name: str) -> Path:
    """A folder of the open conformance data; skips the test where it isn't."""
    given = os.environ.get("OCIBUILD_CONFORMANCE")
    root = Path(given) if given else Path(__file__).resolve().parents[1].parent / "shared" / "conformance"
    path = root / name
    if not path.exists():
        pytest.skip(f"{path}: the open conformance data isn't here ($OCIBUILD_CONFORMANCE)")
    return path
