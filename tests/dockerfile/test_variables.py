"""ARG and ENV: scope, precedence, snapshots, predefined and build arguments, SOURCE_DATE_EPOCH."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dockerfile_images import Images, Lower

from ocibuildd import dockerfile as front
from ocibuildd.dockerfile import NamedContext
from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import GitSource, HttpSource, Plan, Run, StagePlan

Final = Callable[..., StagePlan]


def env_of(plan: Plan, text: str = "x") -> dict[str, str]:
    """The environment of the RUN that is ``text``, without PATH."""
    op = next(v.op for v in plan.vertices if isinstance(v.op, Run) and v.op.shell == text)
    return {key: value for key, value in op.env if key != "PATH"}


def created_by(stage: StagePlan) -> list[str]:
    return [item.created_by for item in stage.history]


def test_one_instruction_sees_one_snapshot(final: Final) -> None:
    stage = final("FROM a\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc")
    assert stage.image.config.env is not None
    assert stage.image.config.env[1:] == ("abc=bye", "def=hello", "ghi=bye")


def test_the_later_of_arg_and_env_wins(lower: Lower) -> None:
    plan = lower("FROM a\nARG v=arg\nRUN 1\nENV v=env\nRUN 2\nARG v=again\nRUN 3")
    assert [env_of(plan, text)["v"] for text in "123"] == ["arg", "env", "again"]


def test_an_env_of_the_base_yields_to_a_later_arg(lower: Lower) -> None:
    plan = lower("FROM a\nENV v=env\nARG v=arg\nRUN x", build_args={"v": "given"})
    assert env_of(plan)["v"] == "given"


def test_an_argument_counts_from_its_line_on(lower: Lower) -> None:
    plan = lower("FROM a\nRUN 1\nARG v=1\nRUN 2", build_args={"v": "2"})
    assert env_of(plan, "1") == {}
    assert env_of(plan, "2") == {"v": "2"}


def test_an_argument_does_not_leak_to_sibling_stages(lower: Lower) -> None:
    plan = lower("FROM a AS one\nARG v=1\nRUN 1\nFROM a\nCOPY --from=one / /\nRUN x", build_args={"v": "2"})
    assert env_of(plan) == {}


def test_children_inherit_arguments_but_an_env_comes_first(lower: Lower) -> None:
    plan = lower("FROM a AS one\nENV v=env\nARG v=arg w=2\nFROM one\nRUN x")
    assert env_of(plan) == {"w": "2", "v": "env"}


def test_several_arguments_stand_on_a_line(final: Final) -> None:
    stage = final('FROM a\nARG a b=1 c="2 3"\nRUN x', build_args={"a": "0"})
    assert created_by(stage) == ["ARG a=0 b=1 c=2 3", "RUN |3 a=0 b=1 c=2 3 /bin/sh -c x # buildkit"]


def test_an_argument_without_a_value_is_empty_in_the_history(final: Final) -> None:
    assert created_by(final("FROM a\nARG a\nRUN x")) == ["ARG a", "RUN |1 a= /bin/sh -c x # buildkit"]


def test_a_build_argument_without_a_value_leaves_the_default(lower: Lower) -> None:
    assert env_of(lower("FROM a\nARG v=default\nRUN x", build_args={"v": None}))["v"] == "default"


def test_defaults_may_use_what_is_known_by_then(lower: Lower) -> None:
    assert env_of(lower("FROM a\nENV e=1\nARG v=${e}2 w=$v\nRUN x")) == {"e": "1", "v": "12", "w": "12"}


def test_the_default_is_not_expanded_where_a_value_is_given(lower: Lower) -> None:
    assert env_of(lower("FROM a\nARG v=${x:?no}\nRUN x", build_args={"v": "1"})) == {"v": "1"}


def test_proxies_reach_steps_but_neither_history_nor_environment(final: Final, lower: Lower) -> None:
    args = {"HTTP_PROXY": "http://p", "no_proxy": "n"}
    plan = lower("FROM a\nRUN x", build_args=args)
    op = next(v.op for v in plan.vertices if isinstance(v.op, Run))
    assert env_of(plan) == {}
    assert dict(op.proxy_env) == {"HTTP_PROXY": "http://p", "http_proxy": "http://p", "NO_PROXY": "n", "no_proxy": "n"}
    assert created_by(final("FROM a\nRUN x", build_args=args)) == ["RUN /bin/sh -c x # buildkit"]


def test_a_declared_proxy_is_an_argument_like_any_other(final: Final) -> None:
    stage = final("FROM a\nARG HTTP_PROXY\nRUN x", build_args={"HTTP_PROXY": "p"})
    assert created_by(stage)[-1] == "RUN |1 HTTP_PROXY=p /bin/sh -c x # buildkit"


def test_unused_build_arguments_are_told(lower: Lower) -> None:
    args = {"used": "1", "meta": "1", "typo": "1", "HTTP_PROXY": "1", "BUILDKIT_X": "1", "SOURCE_DATE_EPOCH": "1", "TARGETOS": "x"}
    assert lower("ARG meta\nFROM a\nARG used", build_args=args).unused_args == ("typo",)


def test_sbom_arguments_never_enter_the_environment(lower: Lower) -> None:
    plan = lower("FROM a\nARG BUILDKIT_SBOM_SCAN_STAGE=true BUILDKIT_INLINE_CACHE=1\nRUN x")
    assert env_of(plan) == {"BUILDKIT_INLINE_CACHE": "1"}


def test_built_in_arguments_shape_the_steps(lower: Lower) -> None:
    args = {"BUILDKIT_SANDBOX_HOSTNAME": "box", "BUILDKIT_CACHE_MOUNT_NS": "ns"}
    plan = lower("FROM a\nRUN --mount=type=cache,target=/c x", build_args=args)
    op = next(v.op for v in plan.vertices if isinstance(v.op, Run))
    assert (op.hostname, op.mounts[0].cache_id) == ("box", "ns//c")
    plain = lower("FROM a\nRUN x").vertices[1].op
    assert isinstance(plain, Run)
    assert plain.hostname == "buildkitsandbox"


@pytest.mark.parametrize(
    "line",
    ["ENV a=$v", "LABEL a=$v", "WORKDIR /$v", "USER $v", "VOLUME /$v", "STOPSIGNAL $s", "EXPOSE $n", "COPY $v /$v", "ARG q=$v"],
)
def test_instructions_that_expand(final: Final, line: str) -> None:
    stage = final(f"FROM a\nENV v=x n=80 s=SIGINT\n{line}")
    assert "$" not in created_by(stage)[-1]


@pytest.mark.parametrize("line", ["RUN $v", "CMD $v", "ENTRYPOINT $v", 'CMD ["$v"]', "MAINTAINER $v", 'SHELL ["$v"]'])
def test_instructions_that_do_not_expand(final: Final, line: str) -> None:
    assert "$v" in created_by(final(f"FROM a\nENV v=x\n{line}"))[-1]


# --- SOURCE_DATE_EPOCH


def test_the_epoch_is_an_argument_or_a_global_default(lower: Lower) -> None:
    assert lower("FROM a", build_args={"SOURCE_DATE_EPOCH": "123"}).epoch == 123
    assert lower("ARG SOURCE_DATE_EPOCH=45\nFROM a").epoch == 45
    assert lower("FROM a").epoch is None


def test_an_epoch_that_means_nothing_is_refused(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match="invalid SOURCE_DATE_EPOCH: soon"):
        lower("FROM a", build_args={"SOURCE_DATE_EPOCH": "soon"})


def test_a_local_context_has_no_epoch(lower: Lower) -> None:
    plan = lower("FROM a\nARG SOURCE_DATE_EPOCH\nRUN x", build_args={"SOURCE_DATE_EPOCH": "context"})
    assert plan.epoch is None
    assert env_of(plan) == {}


@pytest.mark.parametrize(
    ("text", "options", "source"),
    [
        ("FROM a", {"context": GitSource("https://h/r.git")}, GitSource("https://h/r.git")),
        ("FROM scratch AS t\nARG v=2\nADD https://h/f-$v /\nFROM a", {}, HttpSource("https://h/f-2", "f-2")),
        ("FROM a", {"contexts": {"t": NamedContext("http", "https://h/x")}}, HttpSource("https://h/x", "context")),
    ],
)
def test_an_epoch_may_name_a_source(text: str, options: dict[str, object], source: object) -> None:
    value = "context" if "context" in options else "t"
    asked = front.LowerOptions(build_args={"SOURCE_DATE_EPOCH": value}, **options)  # type: ignore[arg-type]
    assert front.epoch_from(front.parse(text.encode()), asked) == source


def test_a_source_stage_of_the_epoch_holds_one_remote_add_only() -> None:
    asked = front.LowerOptions(build_args={"SOURCE_DATE_EPOCH": "t"})
    for body in ("RUN x", "ADD f /", "ADD https://h/a /\nADD https://h/b /", "ENV a=b"):
        dockerfile = front.parse(f"FROM scratch AS t\n{body}\nFROM a".encode())
        with pytest.raises(DockerfileError, match="SOURCE_DATE_EPOCH stage"):
            front.lower(dockerfile, asked, Images({}))


def test_an_epoch_that_the_build_layer_found_is_what_stages_see(lower: Lower) -> None:
    plan = lower("FROM a\nARG SOURCE_DATE_EPOCH\nRUN x", build_args={"SOURCE_DATE_EPOCH": "context"}, epoch=7)
    assert plan.epoch == 7
    assert env_of(plan) == {"SOURCE_DATE_EPOCH": "7"}
