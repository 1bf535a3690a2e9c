"""The pushes of one build: layers go to their registries while later steps still run, manifests last.

    pushes = Pushes(store, registry, names, request.auth, events)
    pushes.offer(chain)              part of the image is known: what has its blob is on its way
    await pushes.finish(images, index)    the rest, then the manifests
    await pushes.aclose()            ends what is under way: blobs may be there then, but no name

An upload that fails early is tried again at the end, and is the build's failure only then: the person
who waits is told at once, and the work of a long build isn't lost to a registry that was away for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BuildError, InvalidArgument
from ..export.image import (
    EMPTY_LAYER,
    OCI,
    Composed,
    LayerBlob,
    MediaTypes,
    layer_blob,
    layer_descriptor,
)
from ..export.push import Pusher
from ..model.graph import Plan
from ..model.oci import Descriptor
from ..model.reference import Reference
from ..model.request import BuildRequest, RegistryAuth
from ..ports import LayerId, Registry
from ..store import Store
from .progress import EventLog


@dataclass(frozen=True, slots=True)
class Pushable:
    """One platform's image as it is pushed."""

    manifest: bytes
    types: MediaTypes
    composed: Composed

    @property
    def config(self) -> Descriptor:
        return Descriptor(self.types.config, self.composed.id, len(self.composed.config))

    @property
    def layers(self) -> list[Descriptor]:
        return [layer_descriptor(layer, self.types) for layer in self.composed.layers]


class Pushes:
    """For one build.  names: what the image is to be called in registries; none = nothing is pushed."""

    def __init__(
        self, store: Store, registry: Registry, names: Sequence[Reference],
        auth: Mapping[str, RegistryAuth], events: EventLog,
    ):
        self._store = store
        self._events = events
        self._names = tuple(names)
        self._begun: dict[Reference, float] = {}
        self._pushers: dict[str, Pusher] = {}
        self._offered: set[LayerId] = set()
        for name in self._names:
            # Names of one repository share its blobs.
            if name.repository not in self._pushers:
                self._pushers[name.repository] = Pusher(
                    store.blobs, registry, name, auth=auth, emit=self._emitter(name),
                    on_failure=self._failed_early(name),
                )

    def offer(self, chain: Sequence[LayerId]) -> None:
        """Layers of the image to be: those that have a blob here start to go."""
        fresh = [layer for layer in chain if layer not in self._offered] if self._names else []
        for layer in self._store.layers.chain(fresh):
            if layer.digest is None or not self._store.blobs.has(layer.digest):
                continue  # it is still elsewhere, in a remote cache
            self._offered.add(layer.id)
            blob = layer_blob(layer)
            if blob.digest != EMPTY_LAYER.digest:
                self._upload(blob)

    def _upload(self, blob: LayerBlob) -> None:
        for pusher in self._pushers.values():
            if not pusher.failed:
                self._start(pusher.reference)
                pusher.layer(layer_descriptor(blob, OCI))

    async def finish(self, images: Sequence[Pushable], index: bytes | None) -> list[str]:
        """Push all that is left, under each name; the names.  Raises what the registry client raises."""
        for name in self._names:
            self._start(name)
            try:
                await self._push(self._pushers[name.repository], name, images, index)
            except BuildError as error:
                self._end(name, error=error.to_dict())
                raise
            self._end(name)
        return [str(name) for name in self._names]

    async def _push(
        self, pusher: Pusher, name: Reference, images: Sequence[Pushable], index: bytes | None
    ) -> None:
        for image in images:
            await pusher.image(
                image.manifest, image.types.manifest, config=image.config, layers=image.layers,
                by_digest=index is not None, reference=name,
            )
        if index is not None:
            await pusher.index(index, OCI.index, reference=name)

    async def aclose(self) -> None:
        """End uploads under way, and wait for their end.  Idempotent."""
        for pusher in self._pushers.values():
            await pusher.close()

    # --- events ---------------------------------------------------------------------------------

    def _start(self, name: Reference) -> None:
        if name not in self._begun:
            self._begun[name] = time.monotonic()
            self._events.append(
                "vertex.started", vertex=f"push:{name.familiar}", name=f"pushing {name.familiar}"
            )

    def _end(self, name: Reference, **fields: Any) -> None:
        seconds = round(time.monotonic() - self._begun[name], 4)
        self._events.append("vertex.done", vertex=f"push:{name.familiar}", seconds=seconds, **fields)

    def _emitter(self, name: Reference) -> Any:
        def emit(kind: str, **fields: Any) -> None:
            self._events.append(f"vertex.{kind}", vertex=f"push:{name.familiar}", **fields)

        return emit

    def _failed_early(self, name: Reference) -> Any:
        def tell(error: BuildError) -> None:
            self._events.append(
                "message", level="warning",
                text=f"{error.message}: pushing {name.familiar} is tried again when the image is made",
            )

        return tell


def push_names(request: BuildRequest, names: Sequence[Reference]) -> list[Reference]:
    """Under which names a build is pushed, once each; names: all that it is given.  None for a check or an
    outline.

    Raises InvalidArgument where a push is wanted and there is no name."""
    wanted: list[Reference] = []
    if request.call != "build":
        return wanted
    for output in request.outputs:
        if output.type == "registry":
            wanted += parse_references(output.attrs.get("name", "")) or names
    pushes = request.push or any(
        output.attrs.get("push", "").lower() in ("1", "true") for output in request.outputs
    )
    if pushes:
        wanted += names
    if not wanted and (pushes or any(output.type == "registry" for output in request.outputs)):
        raise InvalidArgument("push: the image has no name", hint="give it one with -t")
    return list(dict.fromkeys(wanted))


def image_vertices(plan: Plan) -> Collection[int]:
    """The vertices whose results are parts of the target's root file system, itself among them."""
    found: set[int] = set()
    vertex = plan.stages[plan.target].vertex
    while vertex is not None:
        found.add(vertex)
        inputs = plan.vertices[vertex].inputs
        vertex = inputs[0] if inputs else None  # what it stands on comes first
    return found


def parse_references(text: str) -> list[Reference]:
    """Comma-separated references.  Raises InvalidArgument."""
    try:
        return [Reference.parse(part.strip()).with_default_tag() for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidArgument(f"name {text!r}: {error}") from None


def parse_names(request: BuildRequest) -> list[Reference]:
    """All names that the image is to have, once each."""
    names = parse_references(",".join(request.tags))
    for output in request.outputs:
        names += parse_references(output.attrs.get("name", ""))
    return list(dict.fromkeys(names))
