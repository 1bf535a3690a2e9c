"""Manifests that refer to others: the registry's own list, or the one under a tag that clients maintain."""

from __future__ import annotations

from typing import Any

import pytest

from ocibuildd.errors import NotFound, RegistryError, TooLarge, Unsupported
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import (
    MEDIA_CONFIG,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    decode_index,
    encode,
)
from ocibuildd.model.reference import Reference
from ocibuildd.registry import referrers
from ocibuildd.registry.referrers import (
    EMPTY,
    referrer_of,
    referrers_tag,
    with_referrer,
    without_referrer,
)

SUBJECT = Descriptor(MEDIA_MANIFEST, Digest.of(b"subject"), 7)
SBOM = "application/spdx+json"


def attached(number: int = 0, kind: str = SBOM, subject: Descriptor | None = SUBJECT) -> bytes:
    config = Descriptor("application/vnd.oci.empty.v1+json", Digest.of(b"{}"), 2)
    return encode(
        Manifest(
            media_type=MEDIA_MANIFEST, artifact_type=kind, config=config, subject=subject,
            annotations={"n": str(number)},
        )
    )  # fmt: skip


def at(ref: Reference, data: bytes) -> Reference:
    return Reference(ref.domain, ref.path, None, Digest.of(data))


async def attach(client: Any, ref: Reference, *manifests: bytes) -> None:
    for data in manifests:
        await client.push_manifest(at(ref, data), data, MEDIA_MANIFEST)


async def listed(client: Any, ref: Reference, kind: str = "") -> list[str]:
    index = await client.referrers(ref, SUBJECT.digest, kind)
    return [entry.annotations.get("n", "") for entry in index.manifests]


def test_the_tag_is_the_digest_within_bounds():
    assert referrers_tag(SUBJECT.digest) == "sha256-" + SUBJECT.digest.hex
    long = referrers_tag(Digest("sha512:" + "a" * 128))
    assert long == "sha512-" + "a" * 64


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (attached(kind=SBOM), SBOM),
        (attached(kind=""), "application/vnd.oci.empty.v1+json"),
        (encode(Index(media_type=MEDIA_INDEX, artifact_type="x/y", subject=SUBJECT)), "x/y"),
    ],
)
def test_a_referrers_entry_says_what_it_is(data, kind):
    found = referrer_of(data, MEDIA_MANIFEST if b"layers" in data else MEDIA_INDEX, "test")
    assert found is not None
    assert found.subject == SUBJECT.digest
    assert (found.descriptor.artifact_type, found.descriptor.digest) == (kind, Digest.of(data))


def test_what_has_no_subject_is_no_referrer():
    assert referrer_of(attached(subject=None), MEDIA_MANIFEST, "test") is None
    assert referrer_of(b"no json at all", "text/plain", "test") is None


def test_an_entry_is_added_and_taken_away_once(monkeypatch):
    entry = Descriptor(MEDIA_MANIFEST, Digest.of(b"a"), 1, artifact_type=SBOM)
    data = with_referrer(EMPTY, entry)
    assert data is not None
    index = decode_index(data)
    assert index.manifests == (entry,)
    assert with_referrer(index, entry) is None
    assert decode_index(without_referrer(index, entry.digest) or b"").manifests == ()
    assert without_referrer(EMPTY, entry.digest) is None
    monkeypatch.setattr(referrers, "MAX_MANIFESTS", 1)
    with pytest.raises(TooLarge):
        with_referrer(index, Descriptor(MEDIA_MANIFEST, Digest.of(b"b"), 1))


async def test_without_the_api_a_push_maintains_the_list_under_the_tag(client, registry, ref):
    await attach(client, ref, attached(1), attached(2, "other/type"), attached(1))
    data, kind = registry.manifests["app", referrers_tag(SUBJECT.digest)]
    assert kind == MEDIA_INDEX
    assert [d.artifact_type for d in decode_index(data).manifests] == [SBOM, "other/type"]
    assert await listed(client, ref) == ["1", "2"]
    assert await listed(client, ref, SBOM) == ["1"]


async def test_with_the_api_no_tag_is_written_and_all_pages_are_read(client, registry, ref):
    registry.referrers = True
    await attach(client, ref, *(attached(number) for number in range(5)))
    assert ("app", referrers_tag(SUBJECT.digest)) not in registry.manifests
    assert len((await client.referrers(ref, SUBJECT.digest)).manifests) == 5


async def test_what_is_deleted_leaves_the_list(client, registry, ref):
    await attach(client, ref, attached(1), attached(2))
    await client.delete(at(ref, attached(1)))
    assert await listed(client, ref) == ["2"]
    await client.delete(at(ref, attached(2)))
    assert await listed(client, ref) == []


async def test_a_tag_that_is_no_list_is_left_as_it_is(client, registry, ref):
    tag = referrers_tag(SUBJECT.digest)
    there = attached(subject=None)
    registry.add_manifest("app", tag, there)
    with pytest.raises(RegistryError, match="an index was expected"):
        await attach(client, ref, attached(1))
    assert registry.manifests["app", tag] == (there, MEDIA_MANIFEST)


async def test_two_pushes_at_once_both_stand_in_the_list(client, registry, ref):
    from asyncio import gather

    await gather(*(attach(client, ref, attached(number)) for number in range(6)))
    assert sorted(await listed(client, ref)) == [str(number) for number in range(6)]


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_list_that_cannot_be_read_is_an_error(client, registry, ref, faults, status):
    registry.break_("GET .*referrers", faults.status(status), times=9)
    with pytest.raises(RegistryError if status == 500 else Exception, match=f"HTTP {status}"):
        await client.referrers(ref, SUBJECT.digest)


async def test_deletion_that_is_switched_off_is_unsupported(client, registry, ref, faults):
    data = registry.add_image()
    registry.break_("DELETE", faults.status(405), times=9)
    with pytest.raises(Unsupported) as caught:
        await client.delete(at(ref, data))
    assert "must allow deletion" in caught.value.hint
    with pytest.raises(Unsupported) as caught:
        await client.delete(ref)
    assert "name it by its digest" in caught.value.hint


async def test_nothing_refers_to_what_nobody_knows(client, registry, ref):
    assert (await client.referrers(ref, Digest.of(b"?"))).manifests == ()
    with pytest.raises(NotFound):
        await client.delete(at(ref, b"?"))
    assert MEDIA_CONFIG not in {kind for _, kind in registry.manifests.values()}
