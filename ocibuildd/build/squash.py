"""``squash``: one layer of all that a build's last stage did, over what it stands on.

As the classic builder's experimental ``--squash``: the history keeps its lines, without layers, and ends
with one that names the image that was squashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import msgspec

from ..executor.unpack import Unpacker
from ..executor.work import MEDIA_TYPES
from ..export.image import Composed, layer_blob
from ..model import oci
from ..model.digest import Digest
from ..ports import Layer, LayerId, Nsd, Output, Packed
from ..runtime import in_thread
from ..store import Store
from ..store.leases import Lease
from .outcome import MadeImage

COMMENT = "merge {image} to the base image"


class Squasher:
    """Squashes what one build made; its lease holds the new layer."""

    def __init__(self, store: Store, nsd: Nsd, unpacker: Unpacker, output: Output, lease: Lease):
        self._store = store
        self._nsd = nsd
        self._unpacker = unpacker
        self._output = output
        self._lease = lease

    async def squash(self, made: MadeImage, base: Sequence[LayerId], own: int) -> MadeImage:
        """The image with the layers of ``base`` (its lowest) and one more.  own: lines of history that
        are the stage's.  Raises NoSpace and what unpacking raises."""
        layer = None
        if len(made.chain) > len(base):
            layer = await self._layer(made.chain, tuple(base))
        config = squashed_config(made.composed, own, layer)
        kept = made.composed.layers[: len(config.rootfs.diff_ids) - (layer is not None)]
        layers = (*kept, layer_blob(layer)) if layer is not None else kept
        composed = Composed(oci.encode(config), layers, made.composed.platform)
        chain = (*base, layer.id) if layer is not None else tuple(base)
        return replace(made, composed=composed, chain=chain, created_by="")

    async def _layer(self, chain: Sequence[LayerId], base: Sequence[LayerId]) -> Layer | None:
        store = self._store
        after = await self._unpacker.ensure_trees(chain)
        before = await self._unpacker.ensure_trees(base) if base else []
        writer = store.blobs.writer(trusted=True)
        try:
            args = {"lowers": before, "root": after, "output": self._output}
            packed = cast("Packed", await self._nsd.call("diff", args, [writer.fd]))
            if packed["empty"]:
                return None
            digest = Digest(packed["digest"])
            self._lease.add(blobs=(digest,))
            await in_thread(writer.seal, digest, packed["size"])
            with store.transaction():
                writer.commit(digest, packed["size"])
                layer = store.layers.ensure(
                    base[-1] if base else 0, diff_id=Digest(packed["diff_id"]), digest=digest,
                    size=packed["size"], media_type=MEDIA_TYPES[self._output["compression"]],
                )
                self._lease.add(layers=(layer.id,))
        finally:
            writer.abort()
        return layer


def squashed_config(image: Composed, own: int, layer: Layer | None) -> oci.ImageConfig:
    """The image's config with one layer, or none, for the last ``own`` lines of its history.  Pure."""
    config = oci.decode_config(image.config)
    old = list(config.history[: len(config.history) - own])
    ours = [
        msgspec.structs.replace(line, empty_layer=True)
        for line in config.history[len(config.history) - own :]
    ]
    kept = config.rootfs.diff_ids[: sum(1 for line in old if not line.empty_layer)]
    merged = oci.History(
        created=config.created, comment=COMMENT.format(image=image.id), empty_layer=layer is None
    )
    diff_ids = (*kept, str(layer.diff_id)) if layer is not None else kept
    return msgspec.structs.replace(
        config, history=(*old, *ours, merged),
        rootfs=msgspec.structs.replace(config.rootfs, diff_ids=diff_ids),
    )
