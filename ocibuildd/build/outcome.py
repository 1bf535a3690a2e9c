"""What a build made, as images: the one that was asked for, and one for each instruction.  Pure.

An intermediate image is the image as it stood after one instruction: the same config and history, cut
off there.  Times in history come from when each layer was first made, so that a build that is wholly
cached gives the very same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from ..export.image import Composed, Composer, LayerBlob, Line, from_config, layer_blob, rfc3339
from ..model.digest import EMPTY_TAR
from ..model.graph import HistoryItem, Plan, StagePlan
from ..model.oci import ImageConfig
from ..ports import Layer, LayerId

NOP = "/bin/sh -c #(nop)"
"""How the classic builder marks instructions that run nothing."""


@dataclass(frozen=True, slots=True)
class VertexOutcome:
    """What images need to know of a vertex: its chain, the layer that it added (None = none) and when
    that was first made (seconds since the epoch)."""

    chain: tuple[LayerId, ...]
    layer: LayerId | None
    created: float


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An image that the build made.  ``step``: index in the stage's steps, None = the stage's own;
    ``labels``: as its config has them."""

    composed: Composed
    chain: tuple[LayerId, ...]
    created_by: str
    stage: int
    step: int | None
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Part:
    """A stage's image as far as it is put together.

    count: lines of its own history.  dated: one of them has a time.  chain: the layers that the config names
    (without empty ones), of that base and those steps: who shared a step with another build may stand on other
    layers of the same content."""

    composer: Composer
    chain: list[LayerId]
    vertices: set[int] = field(default_factory=set)
    count: int = 0
    text: str = ""
    dated: bool = False


class ImageMaker:
    """Makes the images of one plan.  layers: every layer of every chain, by id.

    keep_empty: a step that changed nothing has an empty layer all the same (BuildKit's way); False: as
    Docker's classic builder, without empty layers and with history in its words."""

    def __init__(
        self, plan: Plan, outcomes: Mapping[int, VertexOutcome], layers: Mapping[LayerId, Layer], *,
        keep_empty: bool = True,
    ):
        self._plan = plan
        self._outcomes = outcomes
        self._layers = layers
        self._blobs: dict[LayerId, LayerBlob] = {}
        self._parts: dict[int, _Part] = {}
        self._keep_empty = keep_empty

    def final(self, stage: StagePlan) -> MadeImage:
        """The image of a stage."""
        return self._make(stage, stage.image, len(stage.history), None)

    def intermediate(self, stage: StagePlan, number: int) -> MadeImage:
        """The image as it stood after the stage's step of this index."""
        parent = self._parent(stage) if number == 0 and not self._keep_empty else None
        if parent is not None:  # Docker's FROM of a stage is that stage's image itself
            return replace(self.final(parent), stage=stage.index, step=0)
        step = stage.steps[number]
        template = msgspec.structs.replace(stage.image, config=step.config)
        return self._make(stage, template, step.history, number)

    def _parent(self, stage: StagePlan) -> StagePlan | None:
        """The stage that a FROM names."""
        words = [word for word in stage.steps[0].text.split()[1:] if not word.startswith("--")]
        name = words[0].lower() if words else ""
        found = [
            each for each in self._plan.stages
            if each.index < stage.index and name == each.name.lower()
        ]
        return found[-1] if name and found else None

    def base_chain(self, stage: StagePlan) -> tuple[LayerId, ...]:
        """The layers that a stage stands on, lowest first."""
        if stage.base is None or stage.base_vertex is None:
            return ()
        return self._outcomes[stage.base_vertex].chain

    def _make(
        self, stage: StagePlan, template: ImageConfig, until: int, step: int | None
    ) -> MadeImage:
        part = self._part(stage, until)
        created = None
        if self._plan.epoch is None and not part.dated:
            # No layer of its own: the base's time; without any, always the same.
            created = stage.base.created if stage.base is not None else None
            created = created or rfc3339(0)
        composed = part.composer.image(template, created=created)
        labels = template.config.labels or {}
        return MadeImage(composed, tuple(part.chain), part.text, stage.index, step, labels)

    def _part(self, stage: StagePlan, until: int) -> _Part:
        """The stage's image with so many lines of history: the one before and what is new."""
        part = self._parts.get(stage.index)
        if part is None or part.count > until:
            part = self._parts[stage.index] = self._start(stage)
        for item in stage.history[part.count : until]:
            self._add(part, item)
        return part

    def _start(self, stage: StagePlan) -> _Part:
        """The base alone."""
        chain = self.base_chain(stage)
        layers: tuple[LayerBlob, ...] = ()
        if stage.base is not None and stage.base_vertex is not None:
            layers = from_config(stage.base, b"", [self._blob(each) for each in chain]).layers
        composer = Composer(stage.base, layers, keep_empty=self._keep_empty, epoch=self._plan.epoch)
        return _Part(composer, list(chain))

    def _add(self, part: _Part, item: HistoryItem) -> None:
        """The next line of a stage's own history."""
        outcome = self._outcomes.get(item.vertex) if item.vertex is not None else None
        layer = created = None
        if outcome is not None and outcome.layer is not None and item.vertex not in part.vertices:
            layer = self._blob(outcome.layer)
            part.chain.append(outcome.layer)
        if outcome is not None and outcome.created:
            created = rfc3339(outcome.created)
        if item.vertex is not None:
            part.vertices.add(item.vertex)
        text, comment = item.created_by, item.comment
        if not self._keep_empty:
            text, comment = classic_text(text, layer), ""
        part.composer.add(Line(text, item.vertex is not None, layer, created, comment, item.author))
        part.count += 1
        part.text = text
        part.dated = part.dated or created is not None

    def _blob(self, layer: LayerId) -> LayerBlob:
        blob = self._blobs.get(layer)
        if blob is None:
            blob = self._blobs[layer] = layer_blob(self._layers[layer])
        return blob


def classic_text(text: str, layer: LayerBlob | None) -> str:
    """A line of history as Docker's classic builder writes it.  layer: what the instruction made.

    What was copied is named by its content, so that the same files give the same image however the
    instruction names them.  Source: builder/dockerfile of moby (dispatchers.go, copy.go)."""
    word, _, rest = text.removesuffix(" # buildkit").partition(" ")
    if word == "RUN":
        return rest
    if word in ("COPY", "ADD"):
        words = [each for each in rest.split(" ") if not each.startswith("--")]
        whole = len(words) == 2 and not words[0].strip("./")
        kind = "multi" if len(words) > 2 else "dir" if whole else "file"
        content = layer.diff_id.hex if layer is not None else EMPTY_TAR.hex
        flags = "".join(f"{each} " for each in rest.split(" ") if each.startswith("--"))
        return f"{NOP} {word} {flags}{kind}:{content} in {words[-1]} "
    return f"{NOP} {word} {rest}" if word == "WORKDIR" else f"{NOP}  {word} {rest}"
