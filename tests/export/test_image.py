"""Configs, manifests, indexes: pure, valid and the same every time."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from effort import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.errors import BuildError, InvalidArgument
from ocibuildd.export.annotations import parse_annotations
from ocibuildd.export.image import (
    DOCKER,
    EMPTY_GZIP,
    EMPTY_LAYER,
    OCI,
    Composer,
    Entry,
    LayerBlob,
    Line,
    compose,
    compression_of,
    from_config,
    index_bytes,
    manifest_bytes,
    rfc3339,
    types_for,
)
from ocibuildd.export.layout import (
    Packaged,
    PackagedIndex,
    docker_archive,
    oci_layout,
    tar_chunks,
    tar_size,
)
from ocibuildd.model.digest import EMPTY_TAR, Digest
from ocibuildd.model.oci import (
    DOCKER_LAYER_GZIP,
    MEDIA_LAYER_ZSTD,
    ContainerConfig,
    History,
    ImageConfig,
    Platform,
    RootFS,
    decode_config,
    decode_manifest,
    encode,
)
from ocibuildd.model.reference import Reference

SCHEMAS = Path(__file__).resolve().parents[3] / "shared/conformance/oci-schemas"
TEMPLATE = ImageConfig(
    architecture="amd64", os="linux", config=ContainerConfig(env=("A=b",), cmd=("/bin/sh",))
)


def layer(text: str, compression: Any = "gzip") -> LayerBlob:
    return LayerBlob(Digest.of(text.encode()), Digest.of(text.encode() * 2), len(text), compression)


def base(*created: str | None) -> ImageConfig:
    return ImageConfig(
        created=created[-1] if created else None,
        architecture="amd64",
        os="linux",
        rootfs=RootFS(diff_ids=tuple(Digest.of(str(n).encode()) for n in range(len(created)))),
        history=tuple(History(c, f"base {n}") for n, c in enumerate(created)),
    )


def history(composed: Any) -> list[tuple[str, str | None, bool]]:
    return [
        (h.created_by, h.created, h.empty_layer) for h in decode_config(composed.config).history
    ]


def test_the_empty_layer_is_the_one_that_everybody_has():
    assert gzip.decompress(EMPTY_GZIP) == bytes(1024)
    assert (
        EMPTY_LAYER.digest
        == "sha256:4f4fb700ef54461cfa02571ae0db9a0dc1e0cdb5577484a6d75e68dc38e8acc1"
    )
    assert hashlib.sha256(bytes(1024)).hexdigest() == EMPTY_TAR.hex


def test_layers_and_history_go_together():
    lines = [
        Line("COPY a /", True, layer("a"), "2024-01-01T00:00:00Z"),
        Line("ENV A=b"),
        Line("RUN b", True, layer("b"), "2024-01-01T00:00:05Z"),
    ]
    composed = compose(TEMPLATE, None, (), lines)
    config = decode_config(composed.config)
    assert (
        [each.diff_id for each in composed.layers]
        == list(config.rootfs.diff_ids)
        == [Digest.of(b"a"), Digest.of(b"b")]
    )
    assert [h[2] for h in history(composed)] == [False, True, False]
    assert config.created == "2024-01-01T00:00:05Z"


def test_a_step_that_changed_nothing_has_an_empty_layer_as_with_buildkit():
    composed = compose(TEMPLATE, None, (), [Line("RUN true", True, None, "2024-01-01T00:00:00Z")])
    assert composed.layers == (EMPTY_LAYER,)
    assert history(composed)[0][2] is False


def test_or_none_as_with_the_classic_builder():
    composed = compose(
        TEMPLATE, None, (), [Line("RUN true", True, None, "2024-01-01T00:00:00Z")], keep_empty=False
    )
    assert composed.layers == ()
    assert history(composed)[0][2] is True


def test_metadata_steps_get_the_time_of_the_first_new_layer():
    old = base("2020-01-01T00:00:00Z")
    lines = [Line("ENV A"), Line("RUN x", True, layer("x"), "2024-01-01T00:00:00Z"), Line("CMD x")]
    times = [h[1] for h in history(compose(TEMPLATE, old, [layer("0")], lines))]
    assert times == [
        "2020-01-01T00:00:00Z",
        "2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00Z",
    ]


def test_a_base_with_too_little_history_gets_lines_for_its_layers():
    composed = compose(TEMPLATE, base(), [layer("0"), layer("1")], [])
    lines = decode_config(composed.config).history
    assert [line.comment for line in lines] == ["buildkit.exporter.image.v0"] * 2


def test_a_base_with_too_much_history_has_the_rest_marked_empty():
    composed = compose(
        TEMPLATE, base("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"), [layer("0")], []
    )
    assert [h[2] for h in history(composed)] == [False, True]


def test_source_date_epoch_sets_our_times_and_leaves_the_bases():
    lines = [Line("RUN x", True, layer("x"), "2024-01-01T00:00:00Z")]
    composed = compose(TEMPLATE, base("2020-01-01T00:00:00Z"), [layer("0")], lines, epoch=1)
    assert [h[1] for h in history(composed)] == ["2020-01-01T00:00:00Z", "1970-01-01T00:00:01Z"]
    assert decode_config(composed.config).created == "1970-01-01T00:00:01Z"


MAYBE_TIMES = st.one_of(st.none(), st.just(""), st.integers(0, 10**9).map(rfc3339))
LINES = st.lists(
    st.builds(
        Line,
        st.sampled_from(["RUN x", 'ENV A="é"']),
        st.booleans(),
        st.none() | st.sampled_from("ab").map(layer),
        MAYBE_TIMES,
        st.sampled_from(["", "buildkit.dockerfile.v0"]),
        st.sampled_from(["", "somebody"]),
    ),
    max_size=6,
)
TEMPLATES = st.sampled_from(
    [TEMPLATE, ImageConfig(architecture="arm64", os="linux", variant="v8", author="me")]
)


def whole_history(old: list[History], ours: list[History]) -> list[History]:
    """BuildKit's ``normalizeLayersAndHistory`` of a history that is known as a whole."""
    lines = [*old, *ours]
    gap = next((n for n, each in enumerate(lines) if not each.created), len(lines))
    after = [each.created for each in lines[gap:] if each.created]
    created = (after or [lines[gap - 1].created if gap else None])[0]
    for number in range(gap, len(lines)):
        if not lines[number].created:
            lines[number] = msgspec.structs.replace(lines[number], created=created)
        created = lines[number].created
    return lines


@settings(max_examples=60, deadline=None)
@given(st.lists(MAYBE_TIMES, max_size=3), LINES, TEMPLATES, st.booleans(), st.none() | st.just(0))
def test_each_image_of_a_growing_history_has_the_bytes_of_one_made_alone(
    old, lines, template, keep_empty, epoch
):
    layers = [layer(str(n)) for n in range(len(old))]
    composer = Composer(base(*old), layers, keep_empty=keep_empty, epoch=epoch)
    ours: list[History] = []
    for line in lines:
        composer.add(line)
        empty = not line.makes_layer or (line.layer is None and not keep_empty)
        layers += [] if empty else [line.layer or EMPTY_LAYER]
        created = line.created if epoch is None else rfc3339(epoch)
        ours.append(History(created, line.created_by, line.author, line.comment, empty_layer=empty))
        whole = whole_history(list(base(*old).history), ours)
        times = [each.created for each in whole if each.created]
        alone = msgspec.structs.replace(
            template,
            created=times[-1] if times else None,
            rootfs=RootFS(diff_ids=tuple(each.diff_id for each in layers)),
            history=tuple(whole),
        )
        composed = composer.image(template)
        assert composed.config == encode(alone)
        assert list(composed.layers) == layers


def test_an_image_for_each_line_of_a_history_is_linear():
    def cost(count: int) -> int:
        composer = Composer(base(None), [layer("0")])

        def grow() -> None:
            for number in range(count):
                makes = number % 2 == 1
                time = rfc3339(number) if number > count // 2 else None
                composer.add(Line(f"RUN {number}", makes, layer("x") if makes else None, time))
                composer.image(TEMPLATE)

        return calls(grow)

    cost(10)  # what is made once
    assert cost(400) < 2.2 * cost(200)


def test_the_same_input_gives_the_same_bytes():
    lines = [Line("RUN x", True, layer("x"), "2024-01-01T00:00:00Z")]
    one, two = (compose(TEMPLATE, None, (), lines) for _ in range(2))
    assert one == two
    annotations = {"b": "1", "a": "2"}
    assert manifest_bytes(one, OCI, annotations) == manifest_bytes(
        two, OCI, dict(sorted(annotations.items()))
    )


TIMES = [
    (0, "1970-01-01T00:00:00Z"),
    (1.5, "1970-01-01T00:00:01.5Z"),
    (1700000000.123457, "2023-11-14T22:13:20.123457Z"),
    (-1, "1969-12-31T23:59:59Z"),
]


@pytest.mark.parametrize(("seconds", "text"), TIMES)
def test_times_are_written_in_utc(seconds, text):
    assert rfc3339(seconds) == text


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (DOCKER_LAYER_GZIP, "gzip"),
        (MEDIA_LAYER_ZSTD, "zstd"),
        ("application/vnd.oci.image.layer.v1.tar", "none"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
    ],
)
def test_media_types_tell_the_compression(media_type, compression):
    assert compression_of(media_type) == compression


def test_zstd_needs_ocis_types():
    assert types_for(["gzip"], oci=False) is DOCKER
    assert types_for(["gzip", "zstd"], oci=False) is OCI


def test_dockers_types_are_dockers_throughout():
    composed = compose(TEMPLATE, None, (), [Line("x", True, layer("x"))])
    manifest = decode_manifest(manifest_bytes(composed, DOCKER))
    types = {manifest.media_type, manifest.config.media_type, manifest.layers[0].media_type}
    assert all(t.startswith("application/vnd.docker.") for t in types)


def test_layers_that_are_not_the_configs_are_refused():
    composed = compose(TEMPLATE, None, (), [Line("x", True, layer("x")), Line("y", True, None)])
    config = decode_config(composed.config)
    assert from_config(config, composed.config, [layer("x")]) == composed
    with pytest.raises(BuildError, match="no layer with diff id"):
        from_config(config, composed.config, [layer("other")])


# --- schemas ----------------------------------------------------------------------------------------


def validate(name: str, data: bytes) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMAS.is_dir():
        pytest.skip("the OCI schemas are not here")
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT4

    def retrieve(uri: str) -> Any:
        return Resource(json.loads((SCHEMAS / uri.rpartition("/")[2]).read_text()), DRAFT4)

    schema = json.loads((SCHEMAS / name).read_text())
    registry = Registry(retrieve=retrieve)
    jsonschema.Draft4Validator(schema, registry=registry).validate(json.loads(data))


def packaged(number: int = 0, platform: Platform | None = None) -> Packaged:
    composed = compose(
        TEMPLATE,
        None,
        (),
        [Line("x", True, None), Line(f"ENV A={number}")],
        created="2024-01-01T00:00:00Z",
    )
    return Packaged(
        manifest_bytes(composed, OCI, {"a": "b"}),
        OCI.manifest,
        composed.config,
        composed.layers,
        (Reference.parse(f"host:5000/x:{number}"),),
        platform,
    )


def test_what_we_write_is_valid_by_ocis_schemas():
    one = packaged()
    index = index_bytes(
        [Entry(one.manifest, Platform("amd64", "linux"), annotations={"x": "y"})], OCI, {"c": "d"}
    )
    validate("config-schema.json", one.config)
    validate("image-manifest-schema.json", one.manifest)
    validate("image-index-schema.json", index)
    files = {m.name: m.data for m in docker_archive([one])}
    validate("image-index-schema.json", files["index.json"])
    validate("image-layout-schema.json", files["oci-layout"])
    with pytest.raises(Exception, match="schemaVersion"):
        validate("image-manifest-schema.json", one.manifest.replace(b"schemaVersion", b"schema"))


def test_every_digest_and_size_in_a_layout_is_true():
    files = {m.name: m.data for m in oci_layout([packaged(0), packaged(1)]) if not m.directory}
    assert len(json.loads(files["index.json"])["manifests"]) == 2
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]


def test_an_index_is_named_in_place_of_its_images():
    one = packaged(0, Platform("amd64", "linux"))
    index = index_bytes([Entry(one.manifest, one.platform)])
    files = {
        m.name: m.data for m in oci_layout([one], [PackagedIndex(index, OCI.index, one.names)])
    }
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == Digest.of(index)


def test_the_tar_is_as_long_as_it_says():
    members = docker_archive([packaged()])
    assert sum(map(len, tar_chunks(members, None))) == tar_size(members)


# --- annotations ------------------------------------------------------------------------------------

OPTIONS = [
    ("a=b", ("manifest", ""), {"a": "b"}),
    ("index:a=b=c", ("index", ""), {"a": "b=c"}),
    ("manifest[linux/amd64]:a=b", ("manifest", "linux/amd64"), {"a": "b"}),
    ("index,manifest-descriptor:a=b", ("manifest-descriptor", ""), {"a": "b"}),
    ("org.x:y=z", ("manifest", ""), {"org.x:y": "z"}),
]


@pytest.mark.parametrize(("option", "place", "values"), OPTIONS)
def test_annotations_find_their_level(option, place, values):
    assert parse_annotations([option], {}).at(*place) == values


def test_annotations_come_as_output_attributes_too():
    found = parse_annotations(
        [],
        {
            "annotation.a": "1",
            "annotation-index.b": "2",
            "annotation-manifest[linux/arm64].c": "3",
            "name": "x",
        },
    )
    assert (found.at("manifest"), found.at("index")) == ({"a": "1"}, {"b": "2"})
    assert found.at("manifest", "linux/arm64") == {"a": "1", "c": "3"}


@pytest.mark.parametrize("option", ["novalue", "=x", "index[linux/amd64]:a=b", "a\0=b"])
def test_a_bad_annotation_is_refused(option):
    with pytest.raises(InvalidArgument):
        parse_annotations([option], {})


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_annotation_is_too_strange(option):
    try:
        found = parse_annotations([option], {option: "x"})
    except InvalidArgument as error:
        assert error.message
    else:
        assert found is not None
