"""FROM: names, arguments, platforms, inheritance, reachability, cycles, ONBUILD and named contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dockerfile_images import DIGEST, PATH, Images, Lower, base_image

from ocibuildd import dockerfile as front
from ocibuildd.dockerfile import NamedContext
from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import (
    ContextSource,
    Copy,
    GitSource,
    HttpSource,
    ImageSource,
    Run,
    Scratch,
    StagePlan,
)
from ocibuildd.model.oci import Platform

Final = Callable[..., StagePlan]
ARM = Platform("arm64", "linux")


def runs(plan: Any) -> list[str]:
    return [vertex.op.shell for vertex in plan.vertices if isinstance(vertex.op, Run)]


def images(plan: Any) -> list[str]:
    return [vertex.op.ref for vertex in plan.vertices if isinstance(vertex.op, ImageSource)]


# --- names and targets


def test_only_needed_stages_are_lowered(lower: Lower) -> None:
    plan = lower("FROM a AS one\nRUN one\nFROM b AS two\nRUN two\nFROM c\nCOPY --from=one /x /\nRUN three")
    assert runs(plan) == ["one", "three"]
    assert images(plan) == ["docker.io/library/a:latest", "docker.io/library/c:latest"]


@pytest.mark.parametrize("target", ["one", "ONE", "0"])
def test_a_target_is_a_name_in_any_case_or_a_number(lower: Lower, target: str) -> None:
    assert runs(lower("FROM a AS One\nRUN one\nFROM b\nRUN two", target=target)) == ["one"]


def test_an_unknown_target_names_the_nearest(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match='target stage "biuld" could not be found \\(did you mean build\\?\\)'):
        lower("FROM a AS build\nFROM b", target="biuld")


def test_the_last_stage_of_a_name_wins(lower: Lower) -> None:
    plan = lower("FROM a AS x\nRUN one\nFROM b AS x\nRUN two\nFROM c\nCOPY --from=x /f /")
    assert runs(plan) == ["two"]


def test_copy_from_takes_names_in_any_case_numbers_and_images(lower: Lower) -> None:
    plan = lower("FROM a AS one\nRUN x\nFROM b\nCOPY --from=ONE /f /1\nCOPY --from=0 /f /2\nCOPY --from=tool:3 /f /3")
    copies = [vertex for vertex in plan.vertices if isinstance(vertex.op, Copy)]
    assert copies[0].inputs[1] == copies[1].inputs[1]
    assert "docker.io/library/tool:3" in images(plan)


def test_a_stage_can_only_be_copied_from_after_it(lower: Lower) -> None:
    text = "FROM a AS x\nCOPY --from=1 /f /\nFROM b AS y"
    with pytest.raises(DockerfileError, match="it needs to be defined before current stage"):
        lower(text, target="x")


def test_cycles_are_refused(lower: Lower) -> None:
    text = "FROM a AS x\nCOPY --from=1 /f /\nFROM b AS y\nCOPY --from=x /f /"
    with pytest.raises(DockerfileError, match="circular dependency detected on stage: x"):
        lower(text)


def test_an_index_beyond_the_stages_is_refused(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match="invalid stage index 7"):
        lower("FROM a\nCOPY --from=7 /f /")


@pytest.mark.parametrize("name", ["1x", "a/b", "-a", "ä"])
def test_a_stage_name_has_a_form(name: str) -> None:
    with pytest.raises(DockerfileError, match="invalid name for build stage"):
        front.parse(f"FROM a AS {name}".encode())


@pytest.mark.parametrize("line", ["FROM", "FROM a b", "FROM a AS b c", "FROM a in b"])
def test_from_has_one_word_or_three(line: str) -> None:
    with pytest.raises(DockerfileError, match="FROM requires either one or three arguments"):
        front.parse(line.encode())


# --- inheritance


def test_a_stage_inherits_everything_of_the_one_it_is_from(final: Final) -> None:
    stage = final("FROM a AS x\nENV e=1\nARG g=2\nWORKDIR /w\nUSER u\nSHELL [\"/b\",\"-c\"]\nFROM x\nRUN cmd $g")
    op = next(step for step in reversed(stage.steps) if step.text.startswith("RUN"))
    assert stage.image.config.user == "u"
    assert stage.image.config.working_dir == "/w"
    assert stage.history[-1].created_by == "RUN |1 g=2 /b -c cmd $g # buildkit"
    assert op.config.shell == ("/b", "-c")


def test_scratch_has_no_layer_and_no_base(lower: Lower) -> None:
    plan = lower("FROM scratch\nLABEL a=b")
    assert plan.vertices == ()
    assert (plan.stages[0].base, plan.stages[0].vertex) == (None, None)


def test_run_on_scratch_stands_on_the_empty_file_system(lower: Lower) -> None:
    plan = lower('FROM scratch\nRUN ["/x"]')
    assert isinstance(plan.vertices[0].op, Scratch)
    assert plan.vertices[1].inputs == (0,)


def test_the_base_config_carries_over_but_not_created_history_and_triggers(final: Final) -> None:
    base = base_image(user="u", cmd=("c",), labels={"l": "1"}, env=("A=1",), stop_signal="SIGINT", on_build=("RUN x",))
    stage = final("FROM base", images={"base": base})
    config = stage.image.config
    assert (config.user, config.cmd, config.labels, config.stop_signal) == ("u", ("c",), {"l": "1"}, "SIGINT")
    assert (config.on_build, stage.image.created, stage.image.history) == (None, None, ())
    assert stage.base is base


def test_path_is_added_where_the_base_has_none(final: Final) -> None:
    assert final("FROM a", images={"a": base_image(env=("A=1",))}).image.config.env == ("A=1", PATH)


def test_an_image_without_layers_is_scratch_with_a_config(lower: Lower) -> None:
    from msgspec.structs import replace

    from ocibuildd.model.oci import RootFS

    empty = replace(base_image(user="u"), rootfs=RootFS(), history=())
    plan = lower("FROM e\nCOPY x /", images={"e": empty})
    assert not images(plan)
    assert plan.stages[0].image.config.user == "u"


def test_identical_sources_are_one_vertex(lower: Lower) -> None:
    plan = lower("FROM a AS x\nCOPY 1 /\nFROM a\nCOPY 2 /\nCOPY --from=x /1 /")
    assert len(images(plan)) == 1
    assert sum(isinstance(vertex.op, ContextSource) for vertex in plan.vertices) == 1


def test_inputs_come_before_what_uses_them(lower: Lower) -> None:
    plan = lower("FROM a AS x\nRUN 1\nFROM b\nCOPY --from=x / /\nRUN --mount=from=x,target=/m --mount=target=/c 2")
    assert all(i < n for n, vertex in enumerate(plan.vertices) for i in vertex.inputs)


# --- global arguments and platforms


def test_global_arguments_are_for_from_lines_until_declared_again(final: Final) -> None:
    stage = final("ARG V=3\nFROM a:$V\nRUN 1 $V\nARG V\nRUN 2 $V")
    assert [item.created_by for item in stage.history] == [
        "RUN /bin/sh -c 1 $V # buildkit", "ARG V=3", "RUN |1 V=3 /bin/sh -c 2 $V # buildkit",
    ]  # fmt: skip


def test_a_global_argument_may_use_one_before(lower: Lower) -> None:
    assert images(lower("ARG A=1\nARG B=${A}2\nFROM x:$B")) == ["docker.io/library/x:12"]


def test_an_empty_base_name_is_refused_with_the_way_out(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match="base name \\(\\$X\\) should not be blank") as caught:
        lower("FROM $X")
    assert "ARG" in caught.value.hint


def test_a_broken_base_name_is_refused_even_in_an_unneeded_stage(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match=r'failed to parse stage name "A B"|must be lowercase'):
        lower("FROM Bad AS x\nFROM a")


def test_platform_arguments_are_global_and_overridable(final: Final) -> None:
    text = "FROM a\nARG TARGETPLATFORM TARGETARCH BUILDOS TARGETSTAGE TARGETOSVERSION\nRUN x"
    stage = final(text, build_args={"BUILDOS": "plan9"}, target="")
    assert stage.history[-1].created_by == (
        "RUN |5 TARGETPLATFORM=linux/amd64 TARGETARCH=amd64 BUILDOS=plan9 TARGETSTAGE=default TARGETOSVERSION= "
        "/bin/sh -c x # buildkit"
    )


def test_a_platform_of_a_stage_reaches_the_image(lower: Lower) -> None:
    plan = lower("FROM --platform=$BUILDPLATFORM a AS x\nRUN 1\nFROM b\nCOPY --from=x / /", platform=ARM, implicit_platform=False)
    wanted = {v.op.ref.split("/")[-1]: str(v.op.platform) for v in plan.vertices if isinstance(v.op, ImageSource)}
    assert wanted == {"a:latest": "linux/amd64", "b:latest": "linux/arm64"}


def test_the_output_has_the_target_platform(final: Final) -> None:
    stage = final("FROM a", platform=Platform("arm", "linux", variant="v7"), implicit_platform=False)
    assert (stage.image.os, stage.image.architecture, stage.image.variant) == ("linux", "arm", "v7")


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("$NOPE", "empty platform value from expression \\$NOPE"),
        ("linux/*", "wildcards not yet supported"),
        ("linux/$NOPE", 'failed to parse platform linux/\\$NOPE: "" is an invalid component'),
        ("$BULIDPLATFORM", "did you mean BUILDPLATFORM\\?"),
    ],
)
def test_a_broken_platform_is_refused(lower: Lower, platform: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        lower(f"FROM --platform={platform} a")


# --- names of steps


def test_vertices_are_named_as_in_buildkits_progress(lower: Lower) -> None:
    plan = lower('FROM a AS build\nENV d=/w\nWORKDIR $d\nRUN make "$d"\nFROM b\nCOPY --from=build /x $d\nCOPY y /')
    assert [vertex.name for vertex in plan.vertices] == [
        f"[build 1/3] FROM docker.io/library/a:latest@{DIGEST}",
        f"[stage-1 1/3] FROM docker.io/library/b:latest@{DIGEST}",
        "[build 2/3] WORKDIR /w",
        '[build 3/3] RUN make "/w"',
        "[stage-1 2/3] COPY --from=build /x $d".replace("$d", ""),
        "[internal] load build context",
        "[stage-1 3/3] COPY y /",
    ]


def test_a_single_stage_needs_no_name(lower: Lower) -> None:
    plan = lower("FROM a\n" + "RUN x\n" * 10)
    assert plan.vertices[1].name == "[ 2/11] RUN x"


def test_steps_know_the_image_after_them(final: Final) -> None:
    stage = final("FROM a\nENV a=1\nRUN x\nCMD c")
    assert [(step.number, step.total, step.text) for step in stage.steps][1:] == [
        (2, 4, "ENV a=1"), (3, 4, "RUN x"), (4, 4, "CMD c"),
    ]  # fmt: skip
    assert [step.makes_layer for step in stage.steps] == [False, False, True, False]
    assert [step.history for step in stage.steps] == [0, 1, 2, 3]
    assert stage.steps[2].config.cmd is None
    assert stage.steps[3].config.cmd == ("/bin/sh", "-c", "c")


# --- ONBUILD


def test_triggers_of_the_base_run_right_after_from(lower: Lower) -> None:
    base = base_image(on_build=("RUN from-base", "ENV a=1"))
    plan = lower("FROM base\nRUN own $a", images={"base": base})
    assert runs(plan) == ["from-base", "own $a"]
    assert plan.stages[0].image.config.on_build is None
    assert plan.vertices[1].name == "[2/4] ONBUILD RUN from-base"


def test_triggers_of_a_stage_run_in_its_children_only(lower: Lower) -> None:
    plan = lower("FROM a AS x\nONBUILD RUN trigger\nFROM x AS y\nRUN y\nFROM y\nRUN z")
    assert runs(plan) == ["trigger", "y", "z"]
    assert plan.stages[0].image.config.on_build == ("RUN trigger",)
    assert plan.stages[1].image.config.on_build is None


def test_a_trigger_may_copy_from_a_stage_or_an_image_that_nobody_else_needs() -> None:
    dockerfile = front.parse(b"FROM a AS tools\nRUN t\nFROM base")
    options, known = front.LowerOptions(), Images({"base": base_image(on_build=("COPY --from=tools /t /", "COPY --from=img / /"))})
    asked: dict[tuple[str, str], front.ResolvedImage] = {}
    rounds = []
    while missing := front.required_images(dockerfile, options, asked):
        rounds.append([ref.rpartition("/")[2] for ref, _ in missing])
        asked |= {(ref, str(platform)): known.get((ref, "")) for ref, platform in missing}
    assert rounds == [["base:latest"], ["a:latest", "img:latest"]]
    assert "t" in runs(front.lower(dockerfile, options, asked))


def test_triggers_keep_their_here_documents(final: Final) -> None:
    stage = final("FROM a\nONBUILD RUN <<E\nx\nE\n")
    assert stage.image.config.on_build == ("RUN <<E\nx\nE",)


@pytest.mark.parametrize("trigger", ["ONBUILD RUN x", "FROM x", "MAINTAINER x"])
def test_some_instructions_are_no_triggers(trigger: str) -> None:
    with pytest.raises(DockerfileError, match="isn't allowed"):
        front.parse(f"FROM a\nONBUILD {trigger}".encode())


def test_a_broken_trigger_of_a_base_is_told_with_its_text(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match="unknown instruction: NOPE") as caught:
        lower("FROM base", images={"base": base_image(on_build=("NOPE x",))})
    assert "NOPE x" in caught.value.hint


# --- named contexts


def test_a_context_beats_a_stage_and_an_image(lower: Lower) -> None:
    contexts = {"tool": NamedContext("image", "other:1"), "b": NamedContext("image", "b2:2")}
    plan = lower("FROM a AS tool\nRUN never\nFROM b\nCOPY --from=tool /x /", contexts=contexts)
    assert runs(plan) == []
    assert sorted(images(plan)) == ["docker.io/library/b2:2", "docker.io/library/other:1"]


@pytest.mark.parametrize("name", ["alpine", "alpine:latest", "docker.io/library/alpine", "alpine::linux/amd64"])
def test_a_context_replaces_an_image_by_any_of_its_names(lower: Lower, name: str) -> None:
    assert images(lower("FROM alpine", contexts={name: NamedContext("image", "x")})) == ["docker.io/library/x:latest"]


def test_a_context_for_another_platform_does_not(lower: Lower) -> None:
    plan = lower("FROM alpine", contexts={"alpine::linux/arm64": NamedContext("image", "x")})
    assert images(plan) == ["docker.io/library/alpine:latest"]


def test_contexts_come_in_every_kind(lower: Lower) -> None:
    contexts = {
        "dir": NamedContext("local", ignore=("x",)), "repo": NamedContext("git", "https://h/r.git#v1:sub"),
        "web": NamedContext("http", "https://h/a.tgz"), "oci": NamedContext("oci-layout", "/l:tag"),
    }  # fmt: skip
    text = "FROM scratch\n" + "".join(f"COPY --from={name} / /{name}\n" for name in contexts)
    plan = lower(text, contexts=contexts)
    ops = [vertex.op for vertex in plan.vertices]
    assert ContextSource("dir", ("x",)) in ops
    assert GitSource("https://h/r.git", "v1", "sub") in ops
    assert HttpSource("https://h/a.tgz", "context") in ops
    assert any(isinstance(op, Copy) and op.unpack for op in ops)
    assert "oci-layout:///l:tag" in images(plan)


def test_the_main_context_may_be_remote(lower: Lower) -> None:
    plan = lower("FROM scratch\nCOPY x /", context=GitSource("https://h/r.git"))
    copy = next(vertex for vertex in plan.vertices if isinstance(vertex.op, Copy))
    assert plan.vertices[copy.inputs[1]].op == GitSource("https://h/r.git")


def test_a_context_may_be_the_target_itself(lower: Lower) -> None:
    plan = lower("FROM a AS x\nRUN never", target="x", contexts={"x": NamedContext("image", "y")})
    assert plan.stages[plan.target].vertex is not None
    assert runs(plan) == []


# --- caching


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({"no_cache": True}, [True, True]), ({"no_cache_filter": ("X",)}, [True, False]), ({}, [False, False])],
)
def test_no_cache_marks_steps_by_stage(lower: Lower, options: dict[str, Any], wanted: list[bool]) -> None:
    plan = lower("FROM a AS x\nRUN 1\nFROM x AS y\nRUN 2", **options)
    assert [vertex.ignore_cache for vertex in plan.vertices if isinstance(vertex.op, Run)] == wanted
