"""The service: everything that can be done with images, for both APIs."""

from __future__ import annotations

import platform as host
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from ..dockerfile.platforms import normalize_arch, parse_platform
from ..errors import InvalidArgument
from ..executor.image import ImagePuller, name_of
from ..model.digest import Digest
from ..model.oci import Platform
from ..model.reference import Reference
from ..model.request import RegistryAuth
from ..ports import Emit, Nsd
from ..registry.client import RegistryClient
from ..store import Store
from ..store.images import Image
from ..store.maintenance import Maintenance
from ..store.policy import prune_policies
from . import lookup, removal
from .bundle import Form, Loader, Saver
from .rootfs import Importer
from .spool import Source
from .transfer import Puller, Sender, parse_reference
from .values import Details, HistoryLine, Loaded, Pruned, Pulled, Pushed, Removed, Summary

List = list
"""The builtin, for annotations in a class that has a ``list`` of its own."""
Auths = Mapping[str, RegistryAuth]


def host_platform() -> Platform:
    """What this machine runs."""
    architecture, variant = normalize_arch(host.machine(), "")
    return Platform(architecture, "linux", variant=variant)


def chosen_platform(text: str | Platform | None) -> Platform:
    """A platform as people write it; what it leaves open is this host's.  Raises InvalidArgument."""
    if isinstance(text, Platform):
        return text
    if not text:
        return host_platform()
    try:
        return parse_platform(text, host_platform())
    except ValueError as error:
        raise InvalidArgument(f"invalid platform: {error}") from None


class Images:
    """Images.  One for the daemon; used from its loop's thread.

    ``maintenance`` collects what ``prune`` leaves; without one, ``prune`` is refused.
    """

    def __init__(
        self,
        store: Store,
        nsd: Nsd,
        registry: RegistryClient,
        puller: ImagePuller,
        maintenance: Maintenance | None = None,
    ) -> None:
        self._store = store
        self._maintenance = maintenance
        self._puller = Puller(store, puller, registry)
        self._sender = Sender(store, registry)
        self._saver = Saver(store, self._sender)
        self._loader = Loader(store, nsd, puller)
        self._importer = Importer(store, nsd, puller.unpacker)

    # --- looking ------------------------------------------------------------------------------

    def find(self, name: str) -> Image:
        """By name, id, or unique prefix of an id.  Raises NotFound, InvalidArgument."""
        return lookup.find_named(self._store, name)[0]

    def list(
        self,
        *,
        all: bool = False,  # noqa: A002 - Docker's word
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> Sequence[Summary]:
        """See ``lookup.list_images``."""
        return lookup.list_images(self._store, everything=all, filters=filters)

    def inspect(self, name: str) -> Details:
        """Raises NotFound, InvalidArgument, Corrupt."""
        return lookup.inspect(self._store, name)

    def history(self, name: str) -> Sequence[HistoryLine]:
        """Newest first.  Raises NotFound, InvalidArgument, Corrupt."""
        return lookup.history(self._store, name)

    # --- names and removal --------------------------------------------------------------------

    def tag(self, source: str, target: str) -> Reference:
        """Give an image another name.  Raises NotFound, InvalidArgument."""
        image, name = lookup.find_named(self._store, source)
        reference = parse_reference(target).with_default_tag()
        if reference.digest is not None:
            raise InvalidArgument("refusing to create a tag with a digest reference")
        if image.kind == "intermediate":
            self._store.images.put(replace(image, kind="image"))
        self._store.images.tag(name_of(reference), image.id, name.target if name else None)
        return reference

    def remove(self, name: str, *, force: bool = False, prune: bool = True) -> Sequence[Removed]:
        """See ``removal.remove``."""
        return removal.remove(self._store, name, force=force, prune=prune)

    async def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> Pruned:
        """Remove dangling images; with ``dangling=false`` all that nobody holds.  filters: dangling, until,
        label, label!.  Raises InvalidArgument."""
        if self._maintenance is None:
            raise InvalidArgument("prune: this store is not maintained")
        wanted = {name: [*values] for name, values in (filters or {}).items()}
        dangling = [lookup.truth(value) for value in wanted.pop("dangling", [])]
        until = [lookup.moment(value) for value in wanted.pop("until", [])]
        labels = wanted.pop("label", []) + [f"!{text}" for text in wanted.pop("label!", [])]
        if wanted:
            raise InvalidArgument(f"invalid filter '{next(iter(wanted))}'")
        everything = bool(dangling) and not all(dangling)
        before = self._named()
        outcome = await self._maintenance.collect(
            prune_policies(
                cache=False, all=everything, until=max(until, default=0.0), labels=labels
            ),
            wait=True,
        )
        removed: List[Removed] = []
        for removal_ in outcome.removals:
            if removal_.what in ("image", "intermediate"):
                removed += [Removed("untagged", name) for name in before.get(removal_.id, ())]
                removed.append(Removed("deleted", removal_.id))
        return Pruned(tuple(removed), outcome.freed)

    def _named(self) -> dict[str, List[str]]:
        found: dict[str, List[str]] = {}
        for name in self._store.images.names():
            found.setdefault(str(name.image), []).append(lookup.familiar(name.name))
        return found

    # --- registries ---------------------------------------------------------------------------

    async def pull(
        self, reference: str | Reference, *, platform: str | Platform = "",
        auth: Auths | None = None, emit: Emit | None = None,
    ) -> Pulled:  # fmt: skip
        """See ``transfer.Puller``."""
        return await self._puller.pull(
            parse_reference(reference), chosen_platform(platform), auth, emit
        )

    async def pull_all(
        self, reference: str | Reference, *, platform: str | Platform = "",
        auth: Auths | None = None, emit: Emit | None = None,
    ) -> Sequence[Pulled]:  # fmt: skip
        """Every tag of a repository."""
        return await self._puller.pull_all(
            parse_reference(reference), chosen_platform(platform), auth, emit
        )

    async def push(
        self, name: str, *, platform: str | Platform = "", auth: Auths | None = None,
        emit: Emit | None = None,
    ) -> Pushed:  # fmt: skip
        """See ``transfer.Sender``.  platform: only that one of a multi-platform image."""
        chosen = chosen_platform(platform) if platform else None
        return await self._sender.push(name, chosen, auth, emit)

    async def push_all(
        self, repository: str, *, platform: str | Platform = "", auth: Auths | None = None,
        emit: Emit | None = None,
    ) -> Sequence[Pushed]:  # fmt: skip
        """Every local tag of a repository."""
        if platform:
            raise InvalidArgument("push of all tags: --platform can't be given with it")
        return await self._sender.push_all(parse_reference(repository), auth, emit)

    # --- archives -----------------------------------------------------------------------------

    def save(
        self, names: Sequence[str], *, form: Form = "docker", platform: str | Platform = ""
    ) -> AsyncIterator[bytes]:
        """A tar with these images.  platform: of multi-platform names.  Raises NotFound at the first step."""
        return self._saver.save(names, form, chosen_platform(platform) if platform else None)

    async def load(
        self, source: Source, *, platform: str | Platform = "", emit: Emit | None = None
    ) -> Sequence[Loaded]:
        """See ``bundle.Loader``."""
        return await self._loader.load(source, chosen_platform(platform), emit)

    async def import_rootfs(
        self, source: Source, name: str = "", *, changes: Sequence[str] = (), message: str = "",
        platform: str | Platform = "", origin: str = "-",
    ) -> Digest:  # fmt: skip
        """See ``rootfs.Importer``."""
        return await self._importer.run(
            source, name, changes=changes, message=message, platform=chosen_platform(platform),
            origin=origin,
        )  # fmt: skip
