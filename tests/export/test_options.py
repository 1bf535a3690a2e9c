"""What outputs ask for, as their attributes have it."""

from __future__ import annotations

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.export.options import Shape, compression, flag, made_as, shape_of, unused
from ocibuildd.model.request import OutputSpec

GZIP = ("gzip", -1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("", True), ("1", True), ("true", True), ("T", True), ("0", False), ("False", False)],
)
def test_a_flag_is_what_go_takes_for_one(text, value):
    assert flag({"push": text}, "push", not value) is value


def test_a_flag_that_is_none_is_an_error_and_a_missing_one_its_default():
    with pytest.raises(InvalidArgument, match="non-bool value specified for push: 'maybe'"):
        flag({"push": "maybe"}, "push")
    assert flag({}, "push", True)


@pytest.mark.parametrize(
    ("attrs", "found"),
    [
        ({}, ("gzip", 7)),
        ({"compression": "zstd"}, ("zstd", -1)),
        ({"compression": "uncompressed"}, ("none", -1)),
        ({"compression": "zstd", "compression-level": "19"}, ("zstd", 19)),
        ({"compression-level": "0"}, ("gzip", 0)),
    ],
)
def test_compressions_have_levels(attrs, found):
    assert compression(attrs, "gzip", 7) == found


@pytest.mark.parametrize(
    "attrs",
    [
        {"compression": "estargz"},
        {"compression": "brotli"},
        {"compression-level": "10"},
        {"compression-level": "-1"},
        {"compression-level": "fast"},
        {"compression": "zstd", "compression-level": "23"},
        {"compression-level": "9" * 400},
    ],
)
def test_a_compression_that_there_is_not_is_an_error(attrs):
    with pytest.raises(InvalidArgument, match="expected"):
        compression(attrs, "gzip", -1)


def test_new_layers_are_what_the_first_output_that_says_so_wants():
    outputs = [
        OutputSpec("local", "/x"),
        OutputSpec("oci", "-", {"compression": "zstd", "compression-level": "3"}),
        OutputSpec("docker", "-", {"compression": "gzip"}),
    ]
    assert made_as(outputs, "gzip", -1) == ("zstd", 3)
    assert made_as(outputs[:1], "gzip", 4) == ("gzip", 4)


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (None, Shape()),
        (OutputSpec("image"), Shape()),
        (OutputSpec("docker", "-"), Shape(oci=False)),
        (OutputSpec("image", "", {"oci-mediatypes": "false"}), Shape(oci=False)),
        (OutputSpec("image", "", {"compression": "gzip"}), Shape()),
        (OutputSpec("oci", "-", {"compression": "zstd"}), Shape(compression="zstd")),
        (OutputSpec("oci", "-", {"force-compression": "true"}), Shape(compression="gzip")),
    ],
)
def test_layers_stay_as_they_are_unless_another_compression_is_wanted(output, shape):
    assert shape_of(output, (), GZIP) == shape


def test_annotations_need_oci_types_and_index_annotations_an_index():
    docker = OutputSpec("docker", "-", {"annotation.a": "b"})
    assert shape_of(docker, (), GZIP).oci
    with pytest.raises(InvalidArgument, match="not supported for single platform"):
        shape_of(None, ("index:a=b",), GZIP)
    assert shape_of(None, ("index:a=b",), GZIP, platforms=2).annotations.at("index") == {"a": "b"}


def test_attributes_that_mean_nothing_are_told():
    attrs = {"name": "x", "annotation-index.a": "b", "compresion": "zstd", "registry.insecur": ""}
    assert unused(OutputSpec("image", "", attrs)) == ["compresion", "registry.insecur"]
    assert unused(OutputSpec("image", "", {"registry.insecure": "true"})) == []
