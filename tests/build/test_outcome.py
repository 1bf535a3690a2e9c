"""The images of a plan's instructions: each the same however many were made before it, and at a steady price."""

from __future__ import annotations

from typing import Any

import pytest
from effort import calls

from ocibuildd.build.outcome import ImageMaker, VertexOutcome
from ocibuildd.model.digest import Digest
from ocibuildd.model.graph import HistoryItem, Location, Plan, StagePlan, Step
from ocibuildd.model.oci import (
    MEDIA_LAYER_GZIP,
    ContainerConfig,
    History,
    ImageConfig,
    Platform,
    RootFS,
)
from ocibuildd.ports import Layer

BASE = Digest.of(b"base")
PLATFORM = Platform("amd64", "linux")


def row(number: int) -> Layer:
    diff_id = BASE if number == 0 else Digest.of(b"%d" % number)
    return Layer(number, diff_id, diff_id, 1, 1, MEDIA_LAYER_GZIP, "", "")


def maker(count: int, **options: Any) -> tuple[ImageMaker, StagePlan]:
    """FROM an image whose history has no time; then ENV, ENV, RUN, in turns: a RUN's layer, or (every
    fourth) none.  Vertex 0 is the base, n the n-th instruction's where that is a RUN."""
    history = tuple(
        HistoryItem(f"RUN {n}" if n % 3 == 0 else f"ENV N={n}", n if n % 3 == 0 else None)
        for n in range(1, count + 1)
    )
    place = Location(1, 1)
    steps = tuple(
        Step(0, "", n, count, item.created_by, place, n // 3 * 3, ContainerConfig(labels={"n": str(n)}), n)
        for n, item in enumerate(history, 1)
    )
    base = ImageConfig(rootfs=RootFS(diff_ids=(BASE,)), history=(History(created_by="base"),))
    image = ImageConfig(architecture="amd64", os="linux")
    stage = StagePlan(0, "", base, image, history, None, steps, 0)
    made = [n for n in range(3, count + 1, 3) if n % 4]
    outcomes = {
        n: VertexOutcome((0, *(m for m in made if m <= n)), n if n in made else None, float(n))
        for n in range(0, count + 1, 3)
    }
    layers = {n: row(n) for n in (0, *made)}
    return ImageMaker(Plan((), (stage,), 0, PLATFORM), outcomes, layers, **options), stage


@pytest.mark.parametrize("keep_empty", [True, False])
def test_an_intermediate_image_is_the_same_whatever_was_made_before(keep_empty: bool) -> None:
    together, stage = maker(30, keep_empty=keep_empty)
    for number in (*range(30), 11, 4, 29):
        alone, _ = maker(30, keep_empty=keep_empty)
        assert together.intermediate(stage, number) == alone.intermediate(stage, number)
    assert together.final(stage) == maker(30, keep_empty=keep_empty)[0].final(stage)


def test_an_intermediate_image_has_the_layers_and_the_labels_of_its_config() -> None:
    made, stage = maker(12)
    image = made.intermediate(stage, 8)
    assert image.chain == (0, 3, 6, 9)
    assert [layer.diff_id for layer in image.composed.layers] == [row(n).diff_id for n in image.chain]
    assert image.labels == {"n": "9"}
    assert image.created_by == "RUN 9"


def test_the_intermediate_images_of_a_build_are_linear() -> None:
    def cost(count: int) -> int:
        made, stage = maker(count)
        return calls(lambda: [made.intermediate(stage, number) for number in range(count)])

    cost(10)  # what is made once
    assert cost(400) < 2.2 * cost(200)
