"""Follows the instructions of a plan as their vertices end: makes each one's intermediate image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..model.graph import Plan, StagePlan, Step
from ..ports import Layer, LayerId
from .outcome import ImageMaker, MadeImage, VertexOutcome


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """An instruction with its number in the whole build, from 1."""

    number: int
    stage: StagePlan
    index: int
    step: Step


def number_steps(plan: Plan) -> list[NumberedStep]:
    """All instructions in the order of the plan's stages."""
    pairs = [(stage, index) for stage in plan.stages for index in range(len(stage.steps))]
    return [
        NumberedStep(number, stage, index, stage.steps[index])
        for number, (stage, index) in enumerate(pairs, 1)
    ]


class StepFollower:
    """``ended`` for each vertex whose result is final; tells of each instruction once its image is known.

    layers: a chain's rows.  tell(step, image, cached)."""

    def __init__(
        self, plan: Plan, layers: Callable[[Sequence[LayerId]], list[Layer]],
        tell: Callable[[NumberedStep, MadeImage, bool], None], *, keep_empty: bool = True,
    ):
        self._known: dict[LayerId, Layer] = {}
        self._outcomes: dict[int, VertexOutcome] = {}
        self._cached: dict[int, bool] = {}
        self._layers = layers
        self._tell = tell
        self._plan = plan
        self.maker = ImageMaker(plan, self._outcomes, self._known, keep_empty=keep_empty)
        self.images: list[MadeImage] = []
        self._open: dict[int, list[NumberedStep]] = {}
        for entry in number_steps(plan):
            self._open.setdefault(entry.stage.index, []).append(entry)

    def ended(self, vertex: int, outcome: VertexOutcome, *, cached: bool) -> None:
        """A vertex has its final result."""
        missing = [layer for layer in outcome.chain if layer not in self._known]
        for layer in self._layers(missing) if missing else ():
            self._known[layer.id] = layer
        self._outcomes[vertex] = outcome
        self._cached[vertex] = cached
        for steps in self._open.values():
            self._advance(steps)

    def finish(self) -> MadeImage:
        """All vertices have ended: what is left of the steps, and the image that was asked for."""
        for steps in self._open.values():
            self._advance(steps)
        return self.maker.final(self._plan.stages[self._plan.target])

    def _advance(self, steps: list[NumberedStep]) -> None:
        while steps and self._ready(steps[0]):
            entry = steps.pop(0)
            made = self.maker.intermediate(entry.stage, entry.index)
            self.images.append(made)
            vertex = entry.step.vertex
            cached = self._cached.get(vertex, False) if vertex is not None else False
            self._tell(entry, made, cached)

    def _ready(self, entry: NumberedStep) -> bool:
        needed = [entry.step.vertex, entry.stage.base_vertex]
        needed += [item.vertex for item in entry.stage.history[: entry.step.history]]
        return all(vertex is None or vertex in self._outcomes for vertex in needed)
