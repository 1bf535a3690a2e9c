"""``verify``: is what a build made made again, byte for byte?  If not: which instruction, which file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from ..errors import InvalidArgument, NotFound
from ..executor.image import name_of
from ..executor.unpack import Unpacker
from ..model.digest import EMPTY_TAR
from ..model.oci import ImageConfig, decode_config
from ..model.reference import Reference
from ..model.request import BuildRequest, UploadContext
from ..ports import LayerId, Nsd
from ..store import Store
from ..store.images import Image

MAX_FILES = 50
"""Files named for one instruction."""
HIDDEN = ("secrets", "ssh", "auth", "tags", "outputs", "push", "cache_to")
"""Fields of a request that are not kept, or not to be done again."""


def kept_request(request: BuildRequest) -> dict[str, Any]:
    """A request as it is kept beside its build: nothing secret, nothing that only the first time needs."""
    body: dict[str, Any] = msgspec.to_builtins(request)
    return {name: value for name, value in body.items() if name not in HIDDEN}


def again(kept: Mapping[str, Any], build: str) -> BuildRequest:
    """The same build, without cache.  Raises InvalidArgument where its context is gone."""
    try:
        request = msgspec.convert(dict(kept), BuildRequest)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"build {build}: its request can't be read: {error}") from None
    if isinstance(request.context, UploadContext):
        raise InvalidArgument(f"build {build}: its context was sent, and is gone",
                              hint="build it again and compare the digests")
    return msgspec.structs.replace(request, no_cache=True, pull=False)


class Comparison:
    """Two images of the same build."""

    def __init__(self, store: Store, nsd: Nsd, unpacker: Unpacker):
        self._store = store
        self._nsd = nsd
        self._unpacker = unpacker

    async def differences(self, one: Image, two: Image) -> list[dict[str, Any]]:
        """[{instruction, files: [[kind, path, size, what], …]}]; [] when the images are the same.

        Where something but times differs in a layer, that is told, else the times; where the instructions are others
        now, only that is."""
        if one.id == two.id and one.manifest == two.manifest:
            return []
        configs = [decode_config(self._store.blobs.read(image.id)) for image in (one, two)]
        if other := _other_instruction(*configs):
            return [{"instruction": "the Dockerfile is another now", "files": [["changed", other, 0, ""]]}]
        found: list[dict[str, Any]] = []
        told: set[str] = set()
        chains = [self._chain(image) for image in (one, two)]
        names = _instructions(configs[0])
        for index in range(max(map(len, chains))):
            pair = [chain[index] if index < len(chain) else None for chain in chains]
            if pair[0] is not None and pair[1] is not None and pair[0][1] == pair[1][1]:
                continue
            # Both over the same files below: what is told is this layer's own.
            below = [each[0] for each in chains[0][:index]]
            files = await self._files(*([*below, *([each[0]] if each else [])] for each in pair))
            fresh = [each for each in files if each[1] not in told]
            told |= {each[1] for each in fresh}
            instruction = names[index] if index < len(names) else f"layer {index + 1}"
            fresh = [each for each in fresh if each[3] != "time"] or fresh
            if not fresh:
                fresh = [["times", "only modification times of directories, or entries' order", 0, ""]]
            found.append({"instruction": instruction, "files": fresh[:MAX_FILES]})
        return found or [{"instruction": "image config", "files": _config(*configs)}]

    def _chain(self, image: Image) -> list[tuple[LayerId, str]]:
        return [(layer.id, str(layer.diff_id)) for layer in self._store.layers.chain(image.chain)]

    async def _files(self, one: Sequence[LayerId], two: Sequence[LayerId]) -> list[Any]:
        lowers_a = await self._unpacker.ensure_trees(one)
        lowers_b = await self._unpacker.ensure_trees(two)
        args = {"lowers_a": lowers_a, "lowers_b": lowers_b, "blame": True}
        got = await self._nsd.call("compare", args)
        return [[*each[:3], ", ".join(each[3])] for each in got["changes"]]


def _other_instruction(one: ImageConfig, two: ImageConfig) -> str:
    """The first line of two histories that isn't the same; "" where all are: blaming files of others is no help."""
    pairs = zip_longest(one.history, two.history)
    for before, after in pairs:
        texts = ["nothing" if each is None else each.created_by[:200] for each in (before, after)]
        if texts[0] != texts[1]:
            return " → ".join(texts)
    return ""


def _instructions(config: ImageConfig) -> list[str]:
    """What made each layer that isn't empty, lowest first."""
    made = [line.created_by for line in config.history if not line.empty_layer]
    pairs = zip(made, config.rootfs.diff_ids, strict=False)
    return [text for text, diff_id in pairs if diff_id != EMPTY_TAR]


def _config(one: ImageConfig, two: ImageConfig) -> list[Any]:
    a, b = msgspec.to_builtins(one, enc_hook=str), msgspec.to_builtins(two, enc_hook=str)
    return [["config", f"{name}: {str(a.get(name))[:200]} → {str(b.get(name))[:200]}", 0, ""]
            for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def build_of(store: Store, target: str) -> str:
    """The build that an image's name or id, or a build's id, stands for.  Raises NotFound."""
    rows = store.builds.find(target) if target else []
    if len(rows) == 1:
        return rows[0].id
    try:
        name = store.images.resolve(name_of(Reference.parse(target)))
    except ValueError:
        name = None
    images = [store.images.get(name.image)] if name is not None else []
    images = images or list(store.images.find(target.removeprefix("sha256:")))
    built = [image.build for image in images if image is not None and image.build]
    if not built:
        raise NotFound(f"{target}: no build, and no image that was built here")
    return built[0]
