"""Follows the instructions of a plan as their vertices end: makes each one's intermediate image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class _Rest:
    """The steps of a stage that are to be told of.  history: lines of it whose vertices have ended."""

    steps: deque[NumberedStep] = field(default_factory=deque)
    history: int = 0


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
        self._open: dict[int, _Rest] = {}
        for entry in number_steps(plan):
            self._open.setdefault(entry.stage.index, _Rest()).steps.append(entry)
        self._waiting: dict[int, list[int]] | None = None
        """Stages by the vertex that their next step lacks; None before the first vertex ended."""

    def ended(self, vertex: int, outcome: VertexOutcome, *, cached: bool) -> None:
        """A vertex has its final result."""
        missing = [layer for layer in outcome.chain if layer not in self._known]
        for layer in self._layers(missing) if missing else ():
            self._known[layer.id] = layer
        self._outcomes[vertex] = outcome
        self._cached[vertex] = cached
        if self._waiting is None:
            self._waiting = {}
            stages: Sequence[int] = tuple(self._open)
        else:
            stages = sorted(self._waiting.pop(vertex, ()))
        for stage in stages:
            self._advance(stage, self._waiting)

    def finish(self) -> MadeImage:
        """All vertices have ended: what is left of the steps, and the image that was asked for."""
        for stage in tuple(self._open):
            self._advance(stage, {})
        return self.maker.final(self._plan.stages[self._plan.target])

    def _advance(self, stage: int, waiting: dict[int, list[int]]) -> None:
        rest = self._open[stage]
        while rest.steps:
            lacks = self._lacks(rest)
            if lacks is not None:
                waiting.setdefault(lacks, []).append(stage)
                return
            entry = rest.steps.popleft()
            made = self.maker.intermediate(entry.stage, entry.index)
            self.images.append(made)
            vertex = entry.step.vertex
            cached = self._cached.get(vertex, False) if vertex is not None else False
            self._tell(entry, made, cached)

    def _lacks(self, rest: _Rest) -> int | None:
        """A vertex that the next step's image waits for; each line of history is looked at once."""
        entry = rest.steps[0]
        for vertex in (entry.step.vertex, entry.stage.base_vertex):
            if vertex is not None and vertex not in self._outcomes:
                return vertex
        while rest.history < entry.step.history:
            vertex = entry.stage.history[rest.history].vertex
            if vertex is not None and vertex not in self._outcomes:
                return vertex
            rest.history += 1
        return None
