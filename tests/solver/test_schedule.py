"""The schedule against examples, and against a simple model with cancellation and failures."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ocibuildd.solver.schedule import Evaluate, Finish, Resolve, Schedule, Start, Stop

CHAIN = [(), (0,), (1,)]


def test_a_vertex_is_evaluated_once_all_its_inputs_are_resolved():
    schedule = Schedule()
    assert schedule.add("a", [(), (), (0, 1)]) == [Evaluate("a", 0), Evaluate("a", 1)]
    assert schedule.resolved("a", 0) == []
    assert schedule.resolved("a", 1) == [Evaluate("a", 2)]
    assert schedule.resolved("a", 2) == [Finish("a")]


def test_an_empty_build_is_finished_at_once():
    assert Schedule().add("a", []) == [Finish("a")]


def test_an_input_that_comes_after_is_refused():
    with pytest.raises(ValueError, match="inputs come before"):
        Schedule().add("a", [(1,), ()])


def test_identical_work_of_two_builds_runs_once():
    schedule = Schedule()
    schedule.add("a", [()])
    schedule.add("b", [()])
    assert schedule.wants("a", 0, "k") == [Start("k", "a", 0)]
    assert schedule.wants("b", 0, "k") == []
    assert schedule.finished("k") == [
        Resolve("k", "a", 0), Finish("a"), Resolve("k", "b", 0), Finish("b"),
    ]


def test_a_cancelled_build_leaves_a_run_that_somebody_else_waits_for():
    schedule = Schedule(limit=1)
    schedule.add("a", [()])
    schedule.add("b", [()])
    schedule.wants("a", 0, "k")
    schedule.wants("b", 0, "k")
    assert schedule.cancel("a") == []
    assert schedule.cancel("b") == [Stop("k")]
    assert schedule.running == 1
    assert schedule.stopped("k") == []
    assert schedule.running == 0


def test_work_that_is_wanted_while_it_is_being_stopped_starts_anew():
    schedule = Schedule()
    schedule.add("a", [()])
    schedule.wants("a", 0, "k")
    assert schedule.cancel("a") == [Stop("k")]
    schedule.add("b", [()])
    assert schedule.wants("b", 0, "k") == []
    assert schedule.stopped("k") == [Start("k", "b", 0)]


def test_a_failed_run_fails_every_build_that_waits_and_no_other():
    schedule = Schedule()
    for name in "abc":
        schedule.add(name, [()])
    schedule.wants("a", 0, "k")
    schedule.wants("b", 0, "k")
    schedule.wants("c", 0, "other")
    assert schedule.failed("k") == [Finish("a", 0), Finish("b", 0)]
    assert schedule.finished("other") == [Resolve("other", "c", 0), Finish("c")]


def test_a_failure_stops_the_other_runs_of_the_build():
    schedule = Schedule()
    schedule.add("a", [(), ()])
    schedule.wants("a", 0, "k")
    schedule.wants("a", 1, "l")
    assert schedule.failed("k") == [Finish("a", 0), Stop("l")]


def test_slots_are_given_to_the_build_with_the_fewest_running():
    schedule = Schedule(limit=2)
    schedule.add("a", [(), (), ()])
    schedule.add("b", [()])
    assert schedule.wants("a", 0, "a0") == [Start("a0", "a", 0)]
    assert schedule.wants("a", 1, "a1") == [Start("a1", "a", 1)]
    assert schedule.wants("a", 2, "a2") == []
    assert schedule.wants("b", 0, "b0") == []
    assert Start("b0", "b", 0) in schedule.finished("a0")


def test_a_build_has_its_own_limit():
    schedule = Schedule()
    schedule.add("a", [(), ()], limit=1)
    assert schedule.wants("a", 0, "k") == [Start("k", "a", 0)]
    assert schedule.wants("a", 1, "l") == []
    assert Start("l", "a", 1) in schedule.finished("k")


def test_two_vertices_of_one_build_may_share_a_run():
    schedule = Schedule()
    schedule.add("a", [(), (), (0, 1)])
    schedule.wants("a", 0, "k")
    assert schedule.wants("a", 1, "k") == []
    actions = schedule.finished("k")
    assert actions == [Resolve("k", "a", 0), Resolve("k", "a", 1), Evaluate("a", 2)]


class Model(RuleBasedStateMachine):
    """Any number of builds over a few keys; the model knows only sets."""

    LIMIT = 3

    def __init__(self):
        super().__init__()
        self.schedule = Schedule(limit=self.LIMIT)
        self.builds: dict[str, list[tuple[int, ...]]] = {}
        self.done: dict[str, set[int]] = {}
        self.evaluate: set[tuple[str, int]] = set()
        self.waiting: dict[tuple[str, int], str] = {}
        self.running: set[str] = set()
        self.stopping: set[str] = set()
        self.unlimited: set[str] = set()
        self.count = 0

    def take(self, actions):
        for action in actions:
            match action:
                case Evaluate(build, vertex):
                    assert set(self.builds[build][vertex]) <= self.done[build]
                    assert (build, vertex) not in self.evaluate
                    self.evaluate.add((build, vertex))
                case Start(key, build, vertex):
                    assert key not in self.running
                    assert self.waiting[build, vertex] == key
                    self.running.add(key)
                case Stop(key):
                    assert key in self.running
                    assert key not in self.waiting.values()
                    self.stopping.add(key)
                case Resolve(key, build, vertex):
                    assert self.waiting.pop((build, vertex)) == key
                    self.done[build].add(vertex)
                case Finish(build, failed):
                    if failed is None:
                        assert self.done[build] == set(range(len(self.builds[build])))
                    self.forget(build)

    def forget(self, build):
        del self.builds[build]
        self.evaluate = {pair for pair in self.evaluate if pair[0] != build}
        self.waiting = {pair: key for pair, key in self.waiting.items() if pair[0] != build}

    @rule(data=st.data(), size=st.integers(1, 5), limit=st.integers(0, 2))
    def add(self, data, size, limit):
        graph = [
            tuple(data.draw(st.lists(st.integers(0, i - 1), max_size=2))) if i else ()
            for i in range(size)
        ]
        self.count += 1
        name = f"b{self.count}"
        self.builds[name], self.done[name] = graph, set()
        if not limit:
            self.unlimited.add(name)
        self.take(self.schedule.add(name, graph, limit=limit))

    def some(self, data, things):
        things = sorted(things)
        return data.draw(st.sampled_from(things)) if things else None

    @rule(data=st.data())
    def resolve(self, data):
        if pair := self.some(data, self.evaluate):
            self.evaluate.discard(pair)
            self.done[pair[0]].add(pair[1])
            self.take(self.schedule.resolved(*pair))

    @rule(data=st.data(), key=st.sampled_from("uvwxyz"))
    def want(self, data, key):
        if pair := self.some(data, self.evaluate):
            self.evaluate.discard(pair)
            self.waiting[pair] = key
            self.take(self.schedule.wants(*pair, key))

    @rule(data=st.data())
    def finish(self, data):
        if key := self.some(data, self.running):
            self.running.discard(key)
            self.stopping.discard(key)
            self.take(self.schedule.finished(key))

    @rule(data=st.data())
    def fail(self, data):
        if key := self.some(data, self.running - self.stopping):
            self.running.discard(key)
            self.take(self.schedule.failed(key))
            assert key not in self.waiting.values()

    @rule(data=st.data())
    def stop(self, data):
        if key := self.some(data, self.stopping):
            self.running.discard(key)
            self.stopping.discard(key)
            self.take(self.schedule.stopped(key))

    @rule(data=st.data())
    def cancel(self, data):
        if build := self.some(data, self.builds):
            self.forget(build)
            self.take(self.schedule.cancel(build))

    @invariant()
    def no_more_runs_than_slots(self):
        assert self.schedule.running == len(self.running) <= self.LIMIT

    @invariant()
    def a_run_that_nobody_waits_for_is_being_stopped(self):
        wanted = set(self.waiting.values())
        assert self.running - wanted <= self.stopping

    @invariant()
    def no_slot_is_idle_while_somebody_could_use_it(self):
        for (build, _), key in self.waiting.items():
            if build in self.unlimited and key not in self.running:
                assert len(self.running) == self.LIMIT

    def teardown(self):
        """Whatever is left can be brought to its end."""
        for _ in range(1000):
            if self.evaluate:
                pair = min(self.evaluate)
                self.evaluate.discard(pair)
                self.done[pair[0]].add(pair[1])
                self.take(self.schedule.resolved(*pair))
            elif self.running:
                key = min(self.running)
                self.running.discard(key)
                stopping = key in self.stopping
                self.stopping.discard(key)
                self.take(self.schedule.stopped(key) if stopping else self.schedule.finished(key))
        assert not self.builds
        assert self.schedule.running == 0


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, database=None
)
