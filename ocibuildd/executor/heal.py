"""A local image that lost a layer's blob (it was damaged, and put aside) is pulled again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import BuildError
from ..model.oci import Platform
from ..model.request import RegistryAuth

if TYPE_CHECKING:
    from .image import ImagePuller, ResolvedImage


async def made_whole(
    puller: ImagePuller, local: ResolvedImage, platform: Platform, auth: Mapping[str, RegistryAuth] | None
) -> ResolvedImage:
    """The image as it is, where nothing is lost; else what the registry has under its digest, to be fetched,
    or as it is where the registry hasn't: what is unpacked can still be used."""
    reference = local.reference
    if reference is None or not puller.store.layers.lacking_blobs(local.chain):
        return local
    what = f"image {reference.familiar}: the blob of a layer is lost"
    exact = replace(reference, tag=None, digest=local.target or local.digest)
    try:
        found = await puller.resolve(exact, platform, pull="always", auth=auth)
    except BuildError as error:
        told = f"{what} and can't be pulled again ({error.message}): what is unpacked of it is used"
        return replace(local, warnings=(told,))
    return replace(found, reference=reference, warnings=(f"{what}: it is pulled again",))
