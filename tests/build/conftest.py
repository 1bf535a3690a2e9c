"""A build service of one's own: a store, a real nsd, and a busybox image without any registry."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.build.info import BuildInfo, Peer, Settings
from ocibuildd.build.service import Builds
from ocibuildd.errors import NotFound
from ocibuildd.executor.image import ImagePuller
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import (
    MEDIA_CONFIG,
    MEDIA_LAYER_GZIP,
    MEDIA_MANIFEST,
    ContainerConfig,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
    RootFS,
    encode,
)
from ocibuildd.model.request import BuildRequest, LocalContext
from ocibuildd.registry.client import RegistryClient
from ocibuildd.sandbox import launch
from ocibuildd.store import Store
from ocibuildd.store.images import Image

BUSYBOX = shutil.which("busybox")
APPLETS = (
    "sh cat echo ls true false mkdir rm cp mv ln chmod chown id env sleep touch test tr wc grep sed "
    "find head tail stat printf date kill ps mount dd seq pwd readlink sha256sum od hostname"
).split()


class NoRegistry:
    """There is none: what isn't here isn't anywhere."""

    async def resolve(self, reference: Any, **_: Any) -> Any:
        raise NotFound(f"{reference}: not found")


class NoFetcher:
    """No network."""

    async def fetch(self, url: str, *_: Any, **__: Any) -> Any:
        raise NotFound(f"{url}: not found")


def busybox_layer() -> bytes:
    """A root file system of busybox and its links, as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        def directory(name: str, mode: int = 0o755) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)

        def file(name: str, data: bytes, mode: int = 0o644) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))

        for name in ("bin", "etc", "home", "proc", "dev", "sys", "root", "run", "var"):
            directory(name)
        directory("tmp", 0o1777)
        assert BUSYBOX is not None
        file("bin/busybox", Path(BUSYBOX).read_bytes(), 0o755)
        for name in APPLETS:
            info = tarfile.TarInfo(f"bin/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
        file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n")
        file("etc/group", b"root:x:0:\napp:x:1000:\nstaff:x:50:app\n")
    return out.getvalue()


def put_busybox(store: Store) -> None:
    """The image ``busybox``, straight into the store."""
    tar = busybox_layer()
    blob = gzip.compress(tar, 1, mtime=0)
    digest, diff_id = Digest.of(blob), Digest.of(tar)
    store.blobs.put(blob)
    layer = store.layers.add(
        0, diff_id=diff_id, digest=digest, size=len(blob), media_type=MEDIA_LAYER_GZIP, tar_size=len(tar)
    )
    config = encode(ImageConfig(
        created="2024-01-01T00:00:00Z", architecture="amd64", os="linux",
        config=ContainerConfig(env=("PATH=/bin:/usr/bin",), cmd=("/bin/sh",)),
        rootfs=RootFS(diff_ids=(diff_id,)),
        history=(History("2024-01-01T00:00:00Z", "busybox"),),
    ))
    manifest = encode(Manifest(
        schema_version=2, media_type=MEDIA_MANIFEST,
        config=Descriptor(MEDIA_CONFIG, Digest.of(config), len(config)),
        layers=(Descriptor(MEDIA_LAYER_GZIP, digest, len(blob)),),
    ))
    image, _ = store.blobs.put_many([config, manifest])
    store.images.put(Image(
        id=image, manifest=Digest.of(manifest), media_type=MEDIA_MANIFEST, chain=(layer.id,),
        size=len(tar), platform="linux/amd64",
    ))
    store.images.tag("docker.io/library/busybox:latest", image)


class Bench:
    """A build service and what tests want to know of it."""

    def __init__(self, store: Store, nsd: Any, settings: Settings, registry: Any):
        self.store, self.nsd = store, nsd
        self.puller = ImagePuller(store, nsd, registry)
        self.builds = Builds(
            store, nsd, registry, self.puller, NoFetcher(), settings=settings,
        )
        self.peer = Peer(local=True, uid=os.geteuid())

    async def start(self, context: Path, **options: Any) -> BuildInfo:
        request = BuildRequest(context=LocalContext(str(context)), **options)
        return await self.builds.start(request, peer=self.peer)

    async def build(self, context: Path, **options: Any) -> Outcome:
        started = await self.start(context, **options)
        info = await asyncio.wait_for(self.builds.wait(started.id), 60)
        return Outcome(info, await self.log(info.id))

    async def log(self, build: str) -> list[dict[str, Any]]:
        lines = b"".join([data async for data in self.builds.events(build)])
        return [json.loads(line) for line in lines.splitlines()]

    async def files(self, image: str) -> tarfile.TarFile:
        """The whole file system of an image."""
        row = self.store.images.get(image)
        assert row is not None
        lowers = await self.puller.unpacker.ensure_trees(row.chain)
        path = self.store.path / "export.tar"
        with path.open("wb") as out:
            await self.nsd.call("archive", {"lowers": lowers}, [out.fileno()])
        return tarfile.open(path)

    async def read(self, image: str, name: str) -> bytes:
        """A file of an image."""
        with await self.files(image) as tar:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()


class Outcome:
    """A build that has ended, and its events."""

    def __init__(self, info: BuildInfo, events: list[dict[str, Any]]):
        self.info, self.events = info, events

    @property
    def output(self) -> str:
        return "".join(e["data"] for e in self.events if e["type"] == "vertex.log")

    @property
    def ran(self) -> list[str]:
        """Names of steps that were executed."""
        names = {e["vertex"]: e["name"] for e in self.events if e["type"] == "vertex.started"}
        done = [e for e in self.events if e["type"] == "vertex.done" and "error" not in e]
        return [names[e["vertex"]] for e in done
                if not e.get("cached") and any(w in names[e["vertex"]] for w in ("RUN", "COPY", "ADD", "WORKDIR"))]

    @property
    def error(self) -> dict[str, Any]:
        assert self.info.error is not None
        return self.info.error

    def ok(self) -> Outcome:
        assert self.info.state == "done", self.info.error
        return self


def write_context(path: Path, dockerfile: str, files: dict[str, str] | None = None) -> Path:
    """A context directory."""
    path.mkdir(exist_ok=True)
    (path / "Dockerfile").write_text(dockerfile)
    for name, text in (files or {}).items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    past = time.time() - 10
    for each in path.rglob("*"):
        os.utime(each, (past, past), follow_symlinks=False)
    return path


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Path]:
    """context(dockerfile, **{name: text}) → a directory."""
    def make(dockerfile: str, files: dict[str, str] | None = None, name: str = "context") -> Path:
        return write_context(tmp_path / name, dockerfile, files)
    return make


@asynccontextmanager
async def running(state: Path, registry: Any = None) -> AsyncIterator[Bench]:
    """A build service on a state directory."""
    if BUSYBOX is None:
        pytest.skip("busybox-static is not installed")
    state.mkdir(mode=0o700)
    nsd = await launch.start(state, config={"keep_ready": True})
    with Store.open(state) as store:
        put_busybox(store)
        made = Bench(store, nsd, Settings(), registry or NoRegistry())
        try:
            yield made
        finally:
            await made.builds.close()
            await made.puller.unpacker.close()
            await nsd.call("remove", {"paths": [str(p) for p in (state / "trees").iterdir()]})
            await nsd.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A build service with a busybox image, as whoever runs the tests."""
    async with running(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    """A client of registries that several services may have."""
    made = RegistryClient()
    yield made
    await made.close()
