"""A store with its nsd, and a real registry beside it."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import serve_registry

from ocibuildd.errors import Unsupported
from ocibuildd.executor.image import ImagePuller
from ocibuildd.image.service import Images
from ocibuildd.registry.client import RegistryClient
from ocibuildd.registry.config import RegistryConfig
from ocibuildd.sandbox import launch
from ocibuildd.store import Store
from ocibuildd.store.maintenance import Maintenance


@dataclass
class Rig:
    """One daemon's worth of images.  ``told``: the status events of its last work."""

    store: Store
    nsd: Any
    registry: RegistryClient
    images: Images
    puller: ImagePuller
    maintenance: Maintenance
    told: list[dict[str, Any]]

    def emit(self, kind: str, **fields: Any) -> None:
        self.told.append(fields)

    async def tree_names(self, name: str) -> set[str]:
        """Paths in an image's root file system."""
        image = self.images.find(name)
        lowers = await self.puller.unpacker.ensure_trees(image.chain)
        path = self.store.path / "listing.tar"
        with path.open("wb") as file:
            await self.nsd.call("archive", {"lowers": lowers}, [file.fileno()])
        with tarfile.open(path) as archive:
            return {member.name.strip("./") for member in archive}

    async def close(self) -> None:
        await self.puller.unpacker.close()
        trees = [str(path) for path in (self.store.path / "trees").iterdir()]
        trees += [str(path) for path in (self.store.path / "trash").iterdir()]
        await self.nsd.call("remove", {"paths": trees})
        await self.registry.close()
        await self.nsd.close()
        self.store.close()


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Rig]]]:
    rigs: list[Rig] = []

    async def make(config: RegistryConfig | None = None) -> Rig:
        state = tmp_path / f"state{len(rigs)}"
        store = Store.open(state)
        try:
            nsd = await launch.start(state, config={"network": False, "keep_ready": False})
        except Unsupported as error:
            store.close()
            pytest.skip(f"no user namespaces here: {error}")
        registry = RegistryClient(config or RegistryConfig(attempts=2), journal=store.uploads)
        puller = ImagePuller(store, nsd, registry)

        async def remove(paths: Any) -> None:
            await nsd.call("remove", {"paths": [str(path) for path in paths]})

        maintenance = Maintenance(store, remove)
        images = Images(store, nsd, registry, puller, maintenance)
        rigs.append(Rig(store, nsd, registry, images, puller, maintenance, []))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.close()


@pytest.fixture
async def rig(make_rig: Any) -> Rig:
    return await make_rig()


@pytest.fixture
def registry_host(tmp_path: Path) -> Iterator[str]:
    """docker-registry, plain HTTP on loopback."""
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed")
    with serve_registry(tmp_path) as host:
        yield host


def make_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar; names with a slash at the end are directories, values that begin with "->" are links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif data.startswith(b"->"):
                info.type, info.linkname = tarfile.SYMTYPE, data[2:].decode()
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


async def stream(data: bytes, piece: int = 1 << 16) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


ROOTFS = {
    "etc/": b"",
    "etc/motd": b"hello\n",
    "bin/": b"",
    "bin/sh": b"->busybox",
    "bin/busybox": b"\x7fELF" * 500,
}


@pytest.fixture
def rootfs() -> bytes:
    return make_tar(ROOTFS)


@pytest.fixture
def tar() -> Callable[..., bytes]:
    return make_tar


@pytest.fixture
def flow() -> Callable[..., AsyncIterator[bytes]]:
    return stream


async def collect(chunks: Any) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.fixture
def whole() -> Callable[[Any], Awaitable[bytes]]:
    return collect


def legacy_archive(layers: Iterable[bytes], tags: list[str], *, compress: bool = False) -> bytes:
    """What docker save wrote before version 25: layers by id, manifest.json, no OCI layout."""
    import hashlib
    import json

    files: dict[str, bytes] = {}
    names, diff_ids = [], []
    for number, layer in enumerate(layers):
        diff_ids.append("sha256:" + hashlib.sha256(layer).hexdigest())
        names.append(f"{number:064x}/layer.tar")
        files[f"{number:064x}/"] = b""
        files[f"{number:064x}/VERSION"] = b"1.0"
        files[names[-1]] = gzip.compress(layer) if compress else layer
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
            "docker_version": "19.03",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [
                {"created": "2020-01-01T00:00:00Z", "created_by": f"step {n}"}
                for n in range(len(names))
            ],
            "created": "2020-01-01T00:00:00Z",
        }
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    files[config_name] = config
    files["manifest.json"] = json.dumps(
        [{"Config": config_name, "RepoTags": tags or None, "Layers": names}]
    ).encode()
    return make_tar(files)


@pytest.fixture
def legacy() -> Callable[..., bytes]:
    return legacy_archive
