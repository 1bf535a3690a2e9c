"""Images to and from registries: ``pull`` and ``push`` as people use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import Corrupt, InvalidArgument, NotFound
from ..executor.image import ImagePuller, name_of
from ..executor.platforms import matches
from ..export.image import (
    EMPTY_LAYER,
    OCI,
    Composed,
    from_config,
    layer_descriptor,
    manifest_bytes,
)
from ..export.push import Pusher
from ..model.digest import Digest
from ..model.oci import Descriptor, Index, Manifest, Platform
from ..model.reference import Reference
from ..model.request import RegistryAuth
from ..ports import Emit
from ..registry.client import RegistryClient
from ..registry.protocol import parse_document
from ..store import Store
from ..store.images import Image, Name
from .lookup import find_named, layer_blobs, read_config
from .values import Pulled, Pushed

Auths = Mapping[str, RegistryAuth]
MAX_TAGS = 1_000
"""Tags of one repository that ``pull_all`` brings."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A manifest with what it names, all in the store."""

    data: bytes
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_reference(text: str | Reference) -> Reference:
    """Raises InvalidArgument in Docker's words."""
    if isinstance(text, Reference):
        return text
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


class Puller:
    """``docker pull``: the registry is always asked, what is here already isn't asked for again."""

    def __init__(self, store: Store, puller: ImagePuller, registry: RegistryClient) -> None:
        self._store = store
        self._puller = puller
        self._registry = registry

    async def pull(
        self, reference: Reference, platform: Platform, auth: Auths | None, emit: Emit | None
    ) -> Pulled:
        """One reference (``:latest`` where it says nothing).  Raises as ``ImagePuller``."""
        reference = reference.with_default_tag()
        before = self._store.images.resolve(name_of(reference))
        image = await self._puller.resolve(reference, platform, pull=True, auth=auth)
        with self._store.leases.new(f"pull {reference.familiar}") as lease:
            await self._puller.fetch(image, lease=lease, auth=auth, emit=emit)
        target = image.target or image.digest
        self._store.uploads.saw(reference.domain, reference.path, [target])
        same = before is not None and before.target == target and before.image == image.id
        return Pulled(reference.familiar, image.id, target, not same, image.warnings)

    async def pull_all(
        self, reference: Reference, platform: Platform, auth: Auths | None, emit: Emit | None
    ) -> list[Pulled]:
        """Every tag of a repository; tags that aren't for the platform are left out.  Raises NotFound."""
        tags = await self._registry.tags(reference, auth=auth)
        found = []
        for tag in tags[:MAX_TAGS]:
            try:
                found.append(await self.pull(replace(reference, tag=tag), platform, auth, emit))
            except NotFound:
                continue
        return found


class Sender:
    """``docker push``: the bytes that a name stands for, as they are kept."""

    def __init__(self, store: Store, registry: RegistryClient) -> None:
        self._store = store
        self._registry = registry

    async def push(
        self, text: str, platform: Platform | None, auth: Auths | None, emit: Emit | None
    ) -> Pushed:
        """Push a local name.  An index goes whole where all that it names is here, else the one manifest of the
        local image (or of ``platform``).  Raises NotFound, Corrupt, and what the registry client raises."""
        reference = parse_reference(text).with_default_tag()
        if reference.digest is not None:
            raise InvalidArgument(
                "cannot push a digest reference", hint="give the image a tag first"
            )
        image, name = find_named(self._store, str(reference))
        with self._store.leases.new(f"push {reference.familiar}") as lease:
            lease.add(layers=image.chain, blobs=(image.id,))
            pusher = Pusher(self._store.blobs, self._registry, reference, auth=auth, emit=emit)
            try:
                index = self._whole_index(name) if platform is None else None
                if index is not None:
                    digest, size = await self._push_index(pusher, *index)
                else:
                    ready = self.ready(self.for_platform(image, name, platform))
                    digest = await pusher.image(
                        ready.data, ready.media_type, config=ready.config, layers=ready.layers
                    )
                    size = len(ready.data)
            finally:
                await pusher.close()
        self._store.uploads.saw(reference.domain, reference.path, [digest])
        return Pushed(reference.familiar, digest, size, reference.tag or "")

    async def push_all(
        self, repository: Reference, auth: Auths | None, emit: Emit | None
    ) -> list[Pushed]:
        """Every local tag of a repository.  Raises NotFound where there is none."""
        names = self._store.images.names(f"{repository.repository}:")
        if not names:
            raise NotFound(
                f"An image does not exist locally with the tag: {repository.familiar_name}"
            )
        return [await self.push(name.name, None, auth, emit) for name in names]

    # --- what there is to send ----------------------------------------------------------------

    def _whole_index(self, name: Name | None) -> tuple[bytes, str, list[Ready]] | None:
        """The index that a name stands for, if all that it names is in the store."""
        stored = self._store.images.get_index(name.target) if name and name.target else None
        if stored is None or not self._store.blobs.has(stored.digest):
            return None
        data = self._store.blobs.read(stored.digest)
        document = parse_document(data, stored.media_type, f"index {stored.digest}")
        if not isinstance(document, Index):
            return None
        try:
            return data, stored.media_type, [
                self._of_manifest(entry.digest, entry.media_type) for entry in document.manifests
            ]  # fmt: skip
        except NotFound:
            return None

    async def _push_index(
        self, pusher: Pusher, data: bytes, media_type: str, parts: list[Ready]
    ) -> tuple[Digest, int]:
        for ready in parts:
            await pusher.image(
                ready.data, ready.media_type, config=ready.config, layers=ready.layers,
                by_digest=True,
            )  # fmt: skip
        return await pusher.index(data, media_type), len(data)

    def for_platform(self, image: Image, name: Name | None, platform: Platform | None) -> Image:
        """The image of a name's index that is for ``platform``."""
        if platform is None or matches(platform, read_config(self._store, image).platform):
            return image
        stored = self._store.images.get_index(name.target) if name and name.target else None
        for _, _, other in stored.manifests if stored else ():
            found = self._store.images.get(other) if other is not None else None
            if found and matches(platform, read_config(self._store, found).platform):
                return found
        raise NotFound(f"image {image.id.short}: not here for {platform}")

    def ready(self, image: Image) -> Ready:
        """An image's manifest as it is kept, or the one that its config and layers make (an intermediate
        image has none).  Raises NotFound where a blob isn't here, Corrupt."""
        if image.manifest is not None and self._store.blobs.has(image.manifest):
            return self._of_manifest(image.manifest, image.media_type)
        composed = self.compose(image)
        data = manifest_bytes(composed, OCI)
        self._check(composed)
        return Ready(
            data, OCI.manifest, Descriptor(OCI.config, composed.id, len(composed.config)),
            tuple(layer_descriptor(layer, OCI) for layer in composed.layers),
        )  # fmt: skip

    def compose(self, image: Image) -> Composed:
        """An image's config, as it is kept, and its layers."""
        config = read_config(self._store, image)
        blobs = layer_blobs(self._store.layers.chain(image.chain))
        return from_config(config, self._store.blobs.read(image.id), blobs)

    def _check(self, composed: Composed) -> None:
        for layer in composed.layers:
            if layer.data is None and not self._store.blobs.has(layer.digest):
                raise NotFound(f"layer {layer.digest}: its blob is not in the store")

    def _of_manifest(self, digest: Digest, media_type: str) -> Ready:
        data = self._store.blobs.read(digest)
        document = parse_document(data, media_type, f"manifest {digest}")
        if not isinstance(document, Manifest) or document.config is None:
            raise Corrupt(f"manifest {digest}: not an image's")
        layers = []
        for descriptor in document.layers:
            if self._store.blobs.has(descriptor.digest) or descriptor.digest == EMPTY_LAYER.digest:
                layers.append(descriptor)
            elif not descriptor.urls:
                # A foreign layer stays where its urls say; any other one is missing.
                raise NotFound(f"layer {descriptor.digest}: its blob is not in the store")
        return Ready(data, media_type, document.config, tuple(layers))
