"""The solver with an executor that only pretends: what runs, when, and how often."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from patience import PATIENCE

from ocibuildd.errors import BuildError, NoSpace, StepFailed
from ocibuildd.model.graph import ContextSource, Copy, CopySource, Mkdir, Run, Scratch, Vertex
from ocibuildd.ports import Packed, Record, Result, Selection, Work
from ocibuildd.solver.job import Job
from ocibuildd.solver.solve import Solver


class Records:
    """A cache index in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}

    def get(self, key: str) -> Record | None:
        return self.rows.get(key)

    def put(self, record: Record) -> None:
        self.rows[record.key] = record

    def nearest(self, selector: str) -> Record | None:
        return next((r for r in reversed(self.rows.values()) if r.selector == selector), None)

    def seen(self, op: str) -> bool:
        return any(r.op == op for r in self.rows.values())

    def preimage(self, key: str) -> str:
        return self.rows[key].preimage


class World:
    """What executors share: layer numbers, what each command writes, gates that hold work up."""

    def __init__(self) -> None:
        self.layers = 0
        self.ran: list[str] = []
        self.committed: list[str] = []
        self.content: dict[str, str] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BuildError] = {}
        self.begun: dict[str, asyncio.Event] = {}

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    def started(self, name: str) -> asyncio.Event:
        return self.begun.setdefault(name, asyncio.Event())


class Executor:
    def __init__(self, world: World, vertices: Sequence[Vertex], files: str = "f"):
        self.world, self.vertices, self.files = world, vertices, files

    def at_hand(self, vertex: int) -> Result | None:
        return Result(directory="context")

    async def fetch(self, vertex: int, emit: Any) -> Result:
        raise AssertionError

    def selections(self, vertex: int) -> list[Selection]:
        op = self.vertices[vertex].op
        return [Selection("source 0", 1, ("f",))] if isinstance(op, Copy) else []

    async def checksum(self, vertex: int, selection: Selection, source: Result) -> Any:
        return {"digest": self.files, "files": {"f": self.files}}

    async def execute(self, vertex: int, inputs: Sequence[Result], emit: Any) -> Work:
        name = self.vertices[vertex].name
        self.world.ran.append(name)
        emit("log", stream=1, data=f"{name} speaks")
        self.world.started(name).set()
        if name in self.world.gates:
            await self.world.gates[name].wait()
        if name in self.world.errors:
            raise self.world.errors[name]
        if self.world.content.get(name) == "":
            return Work()
        self.world.layers += 1
        return Work(self.world.layers)

    async def commit(self, vertex: int, inputs: Sequence[Result], work: Work) -> Packed:
        name = self.vertices[vertex].name
        gate = self.world.gates.get(f"commit {name}")
        if gate is not None:
            await gate.wait()
        if f"commit {name}" in self.world.errors:
            raise self.world.errors[f"commit {name}"]
        self.world.committed.append(name)
        content = self.world.content.get(name, f"content of {name}")
        return {"empty": False, "digest": "d", "size": 1, "diff_id": "i", "tar_size": 1,
                "content": content, "entries": 1}


def chain(*commands: str) -> list[Vertex]:
    """scratch, then RUNs one upon the other."""
    vertices = [Vertex(Scratch())]
    for number, command in enumerate(commands):
        vertices.append(Vertex(Run((command,), ()), (number,), name=command))
    return vertices


class Lab:
    def __init__(self) -> None:
        self.world, self.records = World(), Records()
        self.solver = Solver(self.records, contextlib.nullcontext)
        self.events: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        self.released: list[str] = []
        self.count = 0

    def job(self, vertices: Sequence[Vertex], **options: Any) -> Job:
        self.count += 1
        name = f"b{self.count}"
        events = self.events[name] = []
        return Job(
            name, vertices, options.pop("executor", None) or Executor(self.world, vertices),
            lambda vertex, kind, **fields: events.append((vertex, kind, fields)),
            lambda chain: None, lambda: self.released.append(name), **options,
        )

    async def solve(self, vertices: Sequence[Vertex], **options: Any) -> dict[int, Result]:
        job = self.job(vertices, **options)
        async with asyncio.timeout(PATIENCE):
            return await self.solver.solve(job)

    def ran(self) -> list[str]:
        ran, self.world.ran = self.world.ran, []
        return ran


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_a_second_build_runs_nothing_and_gives_the_same(lab: Lab) -> None:
    first = await lab.solve(chain("a", "b"))
    assert lab.ran() == ["a", "b"]
    second = await lab.solve(chain("a", "b"))
    assert lab.ran() == []
    assert second[2].chain == first[2].chain == (1, 2)
    assert lab.released == ["b1", "b2"]


async def test_the_next_step_runs_while_the_layer_is_written(lab: Lab) -> None:
    gate = lab.world.gate("commit a")
    solving = asyncio.ensure_future(lab.solve(chain("a", "b")))
    await asyncio.wait_for(lab.world.started("b").wait(), PATIENCE)
    assert "a" not in lab.world.committed
    assert not solving.done()
    gate.set()
    result = await solving
    assert result[2].chain == (1, 2)
    assert sorted(lab.world.committed) == ["a", "b"]


async def test_a_step_that_might_hit_waits_for_the_content_before_it(lab: Lab) -> None:
    lab.world.content |= {"a": "same", "changed": "same"}
    first = await lab.solve(chain("a", "b"))
    lab.ran()
    second = await lab.solve(chain("changed", "b"))
    assert lab.ran() == ["changed"]
    assert second[2].chain == first[2].chain


async def test_a_step_whose_parent_gave_other_content_runs(lab: Lab) -> None:
    await lab.solve(chain("a", "b"))
    lab.ran()
    await lab.solve(chain("changed", "b"))
    assert lab.ran() == ["changed", "b"]


async def test_a_step_that_changed_nothing_adds_no_layer_and_no_key(lab: Lab) -> None:
    lab.world.content["true"] = ""
    result = await lab.solve(chain("true", "b"))
    assert result[1].chain == ()
    assert result[2].chain == (1,)
    lab.ran()
    await lab.solve(chain("b"))
    assert lab.ran() == []


async def test_two_builds_share_a_run_and_what_follows_its_unwritten_layer(lab: Lab) -> None:
    gate = lab.world.gate("commit a")
    both = [asyncio.ensure_future(lab.solve(chain("a", "b"))) for _ in range(2)]
    await asyncio.wait_for(lab.world.started("b").wait(), PATIENCE)
    third = asyncio.ensure_future(lab.solve(chain("a", "b")))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*both, third)
    assert lab.ran() == ["a", "b"]


async def test_who_joins_late_sees_what_was_said_before(lab: Lab) -> None:
    gate = lab.world.gate("a")
    first = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    second = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(first, second)
    said = [fields["data"] for _, kind, fields in lab.events["b2"] if kind == "log"]
    assert said == ["a speaks"]


async def test_a_failure_is_every_waiting_builds_and_is_not_cached(lab: Lab) -> None:
    lab.world.errors["a"] = StepFailed("no")
    gate = lab.world.gate("a")
    both = [asyncio.ensure_future(lab.solve(chain("a"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    gate.set()
    found = await asyncio.gather(*both, return_exceptions=True)
    assert [type(each) for each in found] == [StepFailed, StepFailed]
    del lab.world.errors["a"]
    lab.ran()
    await lab.solve(chain("a"))
    assert lab.ran() == ["a"]


@pytest.mark.parametrize("kind", ["started", "log", "done"])
async def test_a_build_whose_events_cannot_be_told_fails_and_no_other(lab: Lab, kind: str) -> None:
    gate = lab.world.gate("a")
    mute, other = lab.job(chain("a")), lab.job(chain("a"))
    tell = mute.event

    def event(vertex: int, what: str, **fields: Any) -> None:
        if (vertex, what) == (1, kind):
            raise UnicodeError("no such text")
        tell(vertex, what, **fields)

    mute.event = event
    both = asyncio.gather(*map(lab.solver.solve, (mute, other)), return_exceptions=True)
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    gate.set()
    failed, built = await asyncio.wait_for(both, PATIENCE)
    assert isinstance(failed, UnicodeError) and built[1].chain == (1,)
    assert sorted(lab.released) == ["b1", "b2"]


async def test_a_layer_that_cant_be_written_fails_the_build_in_the_end(lab: Lab) -> None:
    lab.world.errors["commit a"] = NoSpace("full")
    with pytest.raises(NoSpace):
        await lab.solve(chain("a", "b"))
    assert not any(record.kind == "regular" for record in lab.records.rows.values())
    assert lab.released == ["b1"]


async def test_cancelling_stops_what_nobody_else_waits_for(lab: Lab) -> None:
    lab.world.gate("a")
    solving = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    solving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await solving
    assert lab.released == ["b1"]


async def test_a_run_outlives_the_build_that_began_it(lab: Lab) -> None:
    gate = lab.world.gate("a")
    first = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    second = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert lab.released == []  # its executor is still at work
    gate.set()
    assert (await second)[1].chain == (1,)
    assert sorted(lab.released) == ["b1", "b2"]
    assert lab.ran() == ["a"]


async def test_what_is_wanted_while_it_is_being_stopped_starts_anew(lab: Lab) -> None:
    gate = lab.world.gate("a")
    first = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    first.cancel()
    second = asyncio.ensure_future(lab.solve(chain("a")))
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert (await second)[1].chain
    assert sorted(lab.released) == ["b1", "b2"]


async def test_no_cache_neither_looks_nor_joins(lab: Lab) -> None:
    def again(name: str) -> list[Vertex]:
        return [Vertex(Scratch()), Vertex(Run((name,), ()), (0,), name=name, ignore_cache=True)]

    await lab.solve(chain("a"))
    await lab.solve(again("a"))
    await lab.solve(again("a"))
    assert lab.ran() == ["a", "a", "a"]


async def test_a_changed_file_is_the_reason(lab: Lab) -> None:
    vertices = [
        Vertex(Scratch()), Vertex(ContextSource(), name="context"),
        Vertex(Copy((CopySource(1, ("f",)),), "/f"), (0, 1), name="COPY f /f"),
        Vertex(Mkdir("/w"), (2,), name="WORKDIR /w"),
    ]
    await lab.solve(vertices, executor=Executor(lab.world, vertices, "one"))
    job = lab.job(vertices, executor=Executor(lab.world, vertices, "two"))
    await lab.solver.solve(job)
    assert [reason.text for reason in job.traces[2].reasons] == ["f changed its content"]


async def test_files_of_a_stage_that_were_summed_up_before_are_told_too(lab: Lab) -> None:
    def copying(before: str) -> list[Vertex]:
        return [
            Vertex(Scratch()), Vertex(Run(("made",), ()), (0,), name="made"),
            Vertex(Run((before,), ()), (0,), name=before),
            Vertex(Copy((CopySource(1, ("f",)),), "/f"), (2, 1), name="COPY --from=made f /f"),
        ]

    for before, files in (("a", "f"), ("b", "f"), ("b", "g")):
        if files == "g":
            lab.world.content["made"] = "other"
            lab.records.rows = {key: row for key, row in lab.records.rows.items() if row.description != "made"}
        vertices = copying(before)
        job = lab.job(vertices, executor=Executor(lab.world, vertices, files))
        await lab.solver.solve(job)
    assert [reason.text for reason in job.traces[3].reasons] == ["f changed its content"]


async def test_closing_ends_every_build(lab: Lab) -> None:
    lab.world.gate("a")
    solving = asyncio.ensure_future(lab.solve(chain("a")))
    await asyncio.wait_for(lab.world.started("a").wait(), PATIENCE)
    closing = asyncio.ensure_future(lab.solver.close())
    with pytest.raises(BuildError):
        await solving
    await asyncio.wait_for(closing, PATIENCE)


async def test_many_builds_of_many_steps_all_end(lab: Lab) -> None:
    commands: Callable[[int], list[str]] = lambda n: [f"c{(n + i) % 7}" for i in range(10)]  # noqa: E731
    results = await asyncio.gather(*(lab.solve(chain(*commands(n))) for n in range(20)))
    assert all(len(result) == 11 for result in results)
    assert len(lab.released) == 20
