"""The pushes of one build: layers go to their registries while later steps still run, manifests last.

    pushes = Pushes(store, registry, destinations, request.auth, events)
    pushes.offer(chain)              part of the image is known: what has its blob is on its way
    await pushes.finish(form)        the rest, then the manifests
    await pushes.aclose()            ends what is under way: blobs may be there then, but no name

An upload that fails early is tried again at the end, and is the build's failure only then: the person
who waits is told at once, and the work of a long build isn't lost to a registry that was away for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BuildError, InvalidArgument
from ..export.image import EMPTY_LAYER, OCI, LayerBlob, layer_blob, layer_descriptor
from ..export.options import flag
from ..export.push import Pusher
from ..model.graph import Plan
from ..model.oci import Descriptor
from ..model.reference import Reference
from ..model.request import BuildRequest, OutputSpec, RegistryAuth
from ..ports import LayerId, Registry
from ..store import Store
from .progress import EventLog
from .shapes import Formed


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a build is pushed.  name: with its tag; by_digest: the tag is left alone.  output: what asked for
    it, None = ``--push``."""

    name: Reference
    by_digest: bool = False
    output: OutputSpec | None = None

    @property
    def insecure(self) -> bool:
        """May the registry speak plain HTTP, or show any certificate?"""
        return self.output is not None and flag(self.output.attrs, "registry.insecure")


class Pushes:
    """For one build.  destinations: none = nothing is pushed.  early: the layers of the store are what is pushed,
    so that they may go before the image is whole."""

    def __init__(
        self, store: Store, registry: Registry, destinations: Sequence[Destination],
        auth: Mapping[str, RegistryAuth], events: EventLog, *, early: bool = True,
    ):
        self._store = store
        self._events = events
        self._destinations = tuple(destinations)
        self._early = early
        self._begun: dict[Reference, float] = {}
        self._pushers: dict[str, Pusher] = {}
        self._offered: set[LayerId] = set()
        lax = {each.name.repository for each in self._destinations if each.insecure}
        for name in (destination.name for destination in self._destinations):
            # Names of one repository share its blobs.
            if name.repository not in self._pushers:
                client = registry.lenient(name.domain) if name.repository in lax else registry
                self._pushers[name.repository] = Pusher(
                    store.blobs, client, name, auth=auth, emit=self._emitter(name),
                    on_failure=self._failed_early(name),
                )

    def offer(self, chain: Sequence[LayerId]) -> None:
        """Layers of the image to be: those that have a blob here start to go."""
        wanted = self._early and self._destinations
        fresh = [layer for layer in chain if layer not in self._offered] if wanted else []
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

    async def finish(
        self, form: Callable[[OutputSpec | None], Awaitable[Formed]]
    ) -> list[str]:
        """Push all that is left, under each name; the names.  form: the image as an output wants it.

        Raises what the registry client raises."""
        pushed = []
        for destination in self._destinations:
            name = destination.name
            self._start(name)
            try:
                formed = await form(destination.output)
                await self._push(self._pushers[name.repository], destination, formed)
            except BuildError as error:
                self._end(name, error=error.to_dict())
                raise
            self._end(name)
            self._store.uploads.saw(name.domain, name.path, [formed.digest])
            by_digest = replace(name, tag=None, digest=formed.digest)
            pushed.append(str(by_digest if destination.by_digest else name))
        return pushed

    async def _push(self, pusher: Pusher, destination: Destination, formed: Formed) -> None:
        for image in formed.ready:
            composed = image.final.composed
            await pusher.image(
                image.manifest, image.types.manifest,
                config=Descriptor(image.types.config, composed.id, len(composed.config)),
                layers=[layer_descriptor(layer, image.types) for layer in composed.layers],
                by_digest=formed.index is not None or destination.by_digest,
                reference=destination.name,
            )
        if formed.index is not None:
            await pusher.index(
                formed.index, formed.index_type, reference=destination.name,
                by_digest=destination.by_digest,
            )

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


def destinations(request: BuildRequest, names: Sequence[Reference]) -> list[Destination]:
    """Where a build is pushed, once each; names: all that it is given.  Nowhere for a check or an outline.

    Raises InvalidArgument where a push is wanted and there is no name."""
    wanted: list[Destination] = []
    if request.call != "build":
        return wanted
    asking: list[OutputSpec | None] = [
        output for output in request.outputs
        if output.type == "registry" or (output.type == "image" and flag(output.attrs, "push"))
    ]
    for output in [*asking, None] if request.push else asking:
        attrs = output.attrs if output is not None else {}
        by_digest = flag(attrs, "push-by-digest")
        own = parse_references(attrs.get("name", ""), untagged=by_digest) or names
        if not own:
            raise InvalidArgument("push: the image has no name", hint="give it one with -t")
        wanted += [Destination(name, by_digest, output) for name in own]
    seen = {(each.name, each.by_digest): each for each in reversed(wanted)}
    return [each for each in wanted if seen[each.name, each.by_digest] is each]


def image_vertices(plan: Plan) -> Collection[int]:
    """The vertices whose results are parts of the target's root file system, itself among them."""
    found: set[int] = set()
    vertex = plan.stages[plan.target].vertex
    while vertex is not None:
        found.add(vertex)
        inputs = plan.vertices[vertex].inputs
        vertex = inputs[0] if inputs else None  # what it stands on comes first
    return found


def parse_references(text: str, *, untagged: bool = False) -> list[Reference]:
    """Comma-separated references.  untagged: they may have no tag (to be pushed by digest).

    Raises InvalidArgument."""
    try:
        found = [Reference.parse(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidArgument(f"name {text!r}: {error}") from None
    for name in found if untagged else ():
        if name.tag or name.digest:
            raise InvalidArgument(f"can't push tagged ref {name.familiar} by digest")
    return [name.with_default_tag() for name in found]


def parse_names(request: BuildRequest) -> list[Reference]:
    """All tags that the image is to have, once each."""
    names = parse_references(",".join(request.tags))
    for output in request.outputs:
        if not flag(output.attrs, "push-by-digest"):
            names += parse_references(output.attrs.get("name", ""))
    return list(dict.fromkeys(names))
