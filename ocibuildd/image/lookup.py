"""Finding and describing images: names, lists, details, history."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..errors import Corrupt, InvalidArgument, NotFound
from ..executor.image import is_id, name_of, seconds
from ..export.image import LayerBlob, compression_of
from ..model import patterns
from ..model.digest import EMPTY_TAR, Digest
from ..model.oci import ImageConfig, decode_config
from ..model.reference import Reference
from ..model.units import parse_duration
from ..ports import Layer
from ..registry.protocol import MAX_CONFIG
from ..store import Store
from ..store.images import Image, Name
from .values import Details, HistoryLine, LayerInfo, Summary

FILTERS = ("label", "label!", "reference", "dangling", "before", "since", "until")


def familiar(name: str) -> str:
    """A stored name as people see it."""
    try:
        return Reference.parse(name).familiar
    except ValueError:
        return name


def digest_name(store: Store, name: Name) -> str:
    """``repository@digest`` of what a name leads to, "" = no registry is known to have it there.

    As Docker: an image that was built here has none until it is pushed."""
    if name.target is None:
        return ""
    reference = Reference.parse(name.name)
    known = reference.digest or store.uploads.has(reference.domain, reference.path, name.target)
    return f"{reference.familiar_name}@{name.target}" if known else ""


def read_config(store: Store, image: Image) -> ImageConfig:
    """Raises Corrupt, NotFound."""
    try:
        return decode_config(store.blobs.read(image.id, MAX_CONFIG))
    except ValueError as error:
        raise Corrupt(f"image {image.id}: its config can't be read: {str(error)[:200]}") from None


def find_named(store: Store, text: str) -> tuple[Image, Name | None]:
    """An image and, where it was found by one, its name.

    text: a reference (``:latest`` where it has no tag; a digest wins over a tag), an id, or a unique prefix
    of an id.  Raises NotFound (Docker's words), InvalidArgument (an ambiguous prefix).
    """
    reference: Reference | None
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        reference = None
        if not is_id(text):
            raise InvalidArgument(str(error)) from None
    if reference is not None and (name := _resolve(store, reference)) is not None:
        image = store.images.get(name.image)
        if image is not None:
            return image, name
    if is_id(text):
        found = store.images.find(text.removeprefix("sha256:"))
        if len(found) > 1:
            raise InvalidArgument(f"image id {text}: more than one image begins with it")
        if found:
            return found[0], None
    shown = reference.with_default_tag().familiar if reference is not None else text
    raise NotFound(f"No such image: {shown}")


def _resolve(store: Store, reference: Reference) -> Name | None:
    name = store.images.resolve(name_of(reference))
    if name is not None or reference.digest is None:
        return name
    # By digest: any name in that repository that leads there.
    for each in store.images.names(f"{reference.repository}:"):
        if each.target == reference.digest:
            return each
    return None


# --- lists --------------------------------------------------------------------------------------


def summarise(store: Store, image: Image, names: Sequence[Name], shared: int = -1) -> Summary:
    tags = [familiar(name.name) for name in names if "@" not in name.name]
    digests = dict.fromkeys(text for name in names if (text := digest_name(store, name)))
    return Summary(
        image.id, str(image.parent or ""), tuple(sorted(tags)), tuple(digests), image.created,
        image.size, image.labels, image.kind == "intermediate", image.created_by, image.platform,
        image.build, shared,
    )  # fmt: skip


def list_images(
    store: Store, *, everything: bool = False, filters: Mapping[str, Sequence[str]] | None = None
) -> list[Summary]:
    """Images, newest first; with ``everything`` the intermediate ones too, and the other platforms of indexes.

    filters, by name (see FILTERS), each with the values that were given: several labels must all hold,
    several references are alternatives.  Raises InvalidArgument, NotFound (before, since).
    """
    chosen = dict(filters or {})
    for name in chosen:
        if name not in FILTERS:
            raise InvalidArgument(f"invalid filter '{name}'", hint="filters: " + ", ".join(FILTERS))
    by_image: dict[str, list[Name]] = {}
    for each in store.images.names():
        by_image.setdefault(str(each.image), []).append(each)
    keep = _Filter(store, chosen)
    found = []
    images = store.images.all(None if everything else "image")
    others = set() if everything else _other_platforms(store, images, by_image)
    for image in images:
        if str(image.id) in others:
            continue
        summary = keep.names(summarise(store, image, by_image.get(str(image.id), ())))
        if keep.holds(summary):
            found.append(summary)
    return found


def _other_platforms(
    store: Store, images: Sequence[Image], by_image: Mapping[str, Sequence[Name]]
) -> set[str]:
    """Nameless images that a name stands for all the same: the other platforms of its index."""
    found: set[str] = set()
    for image in images:
        for name in by_image.get(str(image.id), ()):
            if name.target in (None, image.manifest):
                continue
            index = store.images.get_index(name.target) if name.target else None
            members = index.manifests if index else ()
            found.update(str(member) for _, _, member in members if member is not None)
    return found - by_image.keys()


class _Filter:
    """Filters, read once."""

    def __init__(self, store: Store, filters: Mapping[str, Sequence[str]]) -> None:
        self._references = list(filters.get("reference", ()))
        for pattern in self._references:
            try:
                patterns.check(pattern)
            except patterns.BadPattern:
                raise InvalidArgument(f"invalid reference filter {pattern!r}") from None
        self._labels = [_label(text) for text in filters.get("label", ())]
        self._without = [_label(text) for text in filters.get("label!", ())]
        self._dangling = [truth(text) for text in filters.get("dangling", ())]
        self._before = [find_named(store, text)[0].created for text in filters.get("before", ())]
        self._before += [moment(text) for text in filters.get("until", ())]
        self._since = [find_named(store, text)[0].created for text in filters.get("since", ())]

    def names(self, summary: Summary) -> Summary:
        """Only the names that a reference filter lets through."""
        if not self._references:
            return summary
        return replace(
            summary,
            names=tuple(name for name in summary.names if self._matches(name)),
            digests=tuple(name for name in summary.digests if self._matches(name)),
        )

    def _matches(self, name: str) -> bool:
        """Docker's reference.FamiliarMatch: over the whole familiar name, or over it without its tag."""
        bare = Reference.parse(name).familiar_name
        return any(patterns.match(p, name) or patterns.match(p, bare) for p in self._references)

    def holds(self, summary: Summary) -> bool:
        if self._references and not summary.names and not summary.digests:
            return False
        named = bool(summary.names or summary.digests)
        # dangling=false is for named images, and no step on the way to one is (daemon/images/images.go of moby).
        if any(not summary.dangling if wanted else not named for wanted in self._dangling):
            return False
        if any(summary.created >= limit for limit in self._before):
            return False
        if any(summary.created <= limit for limit in self._since):
            return False
        return has_labels(summary.labels, self._labels) and not any(
            has_labels(summary.labels, [label]) for label in self._without
        )


def has_labels(labels: Mapping[str, str], wanted: Iterable[tuple[str, str | None]]) -> bool:
    return all(key in labels and value in (None, labels[key]) for key, value in wanted)


def _label(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    return key, value if equals else None


def truth(text: str) -> bool:
    """A filter's yes or no.  Raises InvalidArgument."""
    if text.lower() in ("1", "true", "t"):
        return True
    if text.lower() in ("0", "false", "f"):
        return False
    raise InvalidArgument(f"invalid filter 'dangling=[{text}]'")


def moment(text: str) -> float:
    """A time (seconds since the epoch, RFC 3339), or how long ago (``24h``)."""
    try:
        return float(text)
    except ValueError:
        pass
    if (moment := seconds(text)) > 0:
        return moment
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        raise InvalidArgument(f"invalid time {text!r} in a filter") from None


# --- one image ----------------------------------------------------------------------------------


def inspect(store: Store, text: str) -> Details:
    """An image in full.  Raises as ``find_named``, and Corrupt."""
    image, _ = find_named(store, text)
    names = store.images.names_of(image.id)
    config = read_config(store, image)
    raw = json.loads(store.blobs.read(image.id, MAX_CONFIG))
    manifest = json.loads(store.blobs.read(image.manifest)) if image.manifest else None
    layers = tuple(
        LayerInfo(str(each.diff_id or ""), str(each.digest or ""), each.size, each.tar_size)
        for each in store.layers.chain(image.chain)
    )
    return Details(
        summarise(store, image, names), config, raw, layers, manifest, str(image.manifest or ""),
        max((name.created for name in names), default=0.0),
    )  # fmt: skip


def layer_blobs(layers: Iterable[Layer]) -> list[LayerBlob]:
    """Layers as manifests name them; a layer without a blob has no place there.  Raises NotFound."""
    found = []
    for layer in layers:
        if layer.diff_id is None or layer.digest is None:
            raise NotFound(f"layer {layer.id}: its blob is not in the store")
        found.append(
            LayerBlob(
                layer.diff_id, layer.digest, layer.size, compression_of(layer.media_type),
                media_type=layer.media_type,
            )
        )  # fmt: skip
    return found


def history(store: Store, text: str) -> list[HistoryLine]:
    """How an image came about, newest first.  Ids are those of intermediate images that are here."""
    image, _ = find_named(store, text)
    config = read_config(store, image)
    ids = _ids_by_length(store, image, config)
    sizes = [layer.tar_size or layer.size for layer in store.layers.chain(image.chain)]
    diff_ids = list(config.rootfs.diff_ids)
    lines: list[HistoryLine] = []
    layer = position = 0
    for number, line in enumerate(config.history):
        size = 0
        if not line.empty_layer and position < len(diff_ids):
            # An empty layer may have no layer of the store behind it.
            missing = len(diff_ids) - position > len(sizes) - layer
            if not (missing and diff_ids[position] == EMPTY_TAR) and layer < len(sizes):
                size = sizes[layer]
                layer += 1
            position += 1
        known = ids.get(number + 1, "")
        names = store.images.names_of(Digest(known)) if known else []
        lines.append(
            HistoryLine(
                known, seconds(line.created), line.created_by, size, line.comment,
                tuple(familiar(name.name) for name in names), line.empty_layer,
            )
        )  # fmt: skip
    if not lines:
        lines.append(HistoryLine(str(image.id), image.created, image.created_by, image.size, ""))
    return lines[::-1]


def _ids_by_length(store: Store, image: Image, config: ImageConfig) -> dict[int, str]:
    """Ids of the image and its parents, by how many lines of history each has."""
    ids = {len(config.history): str(image.id)}
    length = len(config.history)
    parent = image.parent
    while parent is not None and (each := store.images.get(parent)) is not None:
        try:
            count = len(read_config(store, each).history)
        except (Corrupt, NotFound):
            break
        if count >= length:
            break
        ids[count] = str(each.id)
        length, parent = count, each.parent
    return ids
