"""Taking names away and deleting images, by Docker's rules (``docker rmi``)."""

from __future__ import annotations

from ..errors import Conflict
from ..model.digest import Digest
from ..model.reference import Reference
from ..store import Store
from ..store.images import Image, Name
from .lookup import digest_name, familiar, find_named
from .values import Removed


def remove(store: Store, text: str, *, force: bool = False, prune: bool = True) -> list[Removed]:
    """Remove what ``text`` names.

    A name is taken away; the image goes with its last name.  By id, all names go where they are in one
    repository (``force``: in any number).  An image that another one was made from is not deleted: by
    name it just loses the name, by id that is a Conflict.  prune: unnamed parents go too.
    Raises NotFound, Conflict, InvalidArgument.
    """
    image, name = find_named(store, text)
    with store.transaction():
        if name is not None:
            return _by_name(store, image, name, prune=prune)
        return _by_id(store, image, force=force, prune=prune)


def _by_name(store: Store, image: Image, name: Name, *, prune: bool) -> list[Removed]:
    names = store.images.names_of(image.id)
    gone = [name]
    if "@" not in name.name:
        # Docker: the digest references of a repository go with its last tag.
        repository = _repository(name)
        tags = [n for n in names if _repository(n) == repository and "@" not in n.name]
        if len(tags) == 1:
            gone += [n for n in names if _repository(n) == repository and "@" in n.name]
    removed = _untag(store, gone)
    siblings = [] if len(names) > len(gone) else [image.id]
    siblings += [each for each in _only_in(store, name.target) if each != image.id]
    for each in siblings:
        found = store.images.get(each)
        removed += _delete(store, found, prune=prune, quiet=True) if found is not None else []
    return removed


def _only_in(store: Store, target: Digest | None) -> list[Digest]:
    """The nameless images of an index that no name stands for any more: they go with its last name."""
    index = store.images.get_index(target) if target is not None else None
    if index is None:
        return []
    held: set[Digest] = set()
    for name in store.images.names():
        held.add(name.image)
        other = store.images.get_index(name.target) if name.target is not None else None
        held.update(
            image for _, _, image in (other.manifests if other else ()) if image is not None
        )
    return [image for _, _, image in index.manifests if image is not None and image not in held]


def _by_id(store: Store, image: Image, *, force: bool, prune: bool) -> list[Removed]:
    names = store.images.names_of(image.id)
    repositories = {_repository(name) for name in names}
    shown = image.id.short
    if _children(store, image):
        raise Conflict(
            f"conflict: unable to delete {shown} (cannot be forced) - image has dependent child images"
        )
    if len(repositories) > 1 and not force:
        raise Conflict(
            f"conflict: unable to delete {shown} (must be forced) - image is referenced in multiple"
            " repositories"
        )
    return _untag(store, names) + _delete(store, image, prune=prune, quiet=False)


def _untag(store: Store, names: list[Name]) -> list[Removed]:
    """Docker: where a repository's last name goes, its digest reference is told as gone too."""
    digests = [(_repository(name), digest_name(store, name)) for name in names]
    for name in names:
        store.images.untag(name.name)
    left = {
        _repository(name)
        for image in {n.image for n in names}
        for name in store.images.names_of(image)
    }
    told = [familiar(name.name) for name in names]
    told += [digest for repository, digest in digests if digest and repository not in left]
    return [Removed("untagged", text) for text in dict.fromkeys(told)]


def _children(store: Store, image: Image) -> list[Image]:
    return store.images.children(image.id)


def _delete(store: Store, image: Image, *, prune: bool, quiet: bool) -> list[Removed]:
    """Delete an image without names, and its unnamed parents that nothing else stands on."""
    if _children(store, image):
        if quiet and image.kind == "image" and store.images.names_of(image.id) == []:
            # Something was made from it: it stays, as a step on the way to that.
            store.images.demote(image.id)
        return []
    store.images.remove(image.id)
    removed = [Removed("deleted", str(image.id))]
    if (
        prune
        and image.parent is not None
        and (parent := store.images.get(image.parent)) is not None
    ):
        named = store.images.names_of(parent.id)
        if not named and parent.kind == "intermediate":
            removed += _delete(store, parent, prune=True, quiet=False)
    return removed


def _repository(name: Name) -> str:
    return Reference.parse(name.name).repository
