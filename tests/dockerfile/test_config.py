"""The instructions that write the image config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dockerfile_images import base_image

from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import StagePlan
from ocibuildd.model.oci import ContainerConfig, Healthcheck

Final = Callable[..., StagePlan]
Config = Callable[..., ContainerConfig]
CMD = base_image(cmd=("old",), entrypoint=("oldentry",))


@pytest.fixture
def config(final: Final) -> Config:
    """``config(lines, …)`` → the final container config."""
    return lambda lines, **options: final(f"FROM a\n{lines}", **options).image.config


def test_env_in_both_forms_and_with_quotes(config: Config) -> None:
    env = config("ENV a=1 b=\"2 3\" c='$a' d=e\\ f\nENV g  h  i=j\nENV a=9").env
    assert env is not None
    assert env[1:] == ("a=9", "b=2 3", "c=$a", "d=e f", "g=h  i=j")


def test_labels_are_sorted_and_add_up(config: Config) -> None:
    labels = config("LABEL b=1 a=\"x y\"\nLABEL c d e\nLABEL b=2", labels={"z": "0"}).labels
    assert labels == {"a": "x y", "b": "2", "c": "d e", "z": "0"}
    assert list(config("LABEL b=1 a=2").labels or ()) == ["a", "b"]


def test_an_entrypoint_drops_an_inherited_cmd_only(config: Config) -> None:
    images = {"a": CMD}
    assert config("ENTRYPOINT e", images=images).cmd is None
    assert config("CMD c\nENTRYPOINT e", images=images).cmd == ("/bin/sh", "-c", "c")
    assert config("CMD c", images=images).entrypoint == ("oldentry",)


def test_a_cmd_of_the_parent_stage_is_inherited_too(config: Config) -> None:
    assert config("CMD c\nFROM a AS x\nCMD d\nFROM x\nENTRYPOINT e").cmd is None


def test_an_empty_entrypoint_takes_the_inherited_one_away(config: Config) -> None:
    assert config("ENTRYPOINT []", images={"a": CMD}).entrypoint is None


def test_the_shell_form_is_wrapped_by_the_shell_of_its_line(config: Config) -> None:
    made = config('CMD a b\nSHELL ["/bin/bash", "-c"]\nENTRYPOINT c')
    assert (made.cmd, made.entrypoint) == (("/bin/sh", "-c", "a b"), ("/bin/bash", "-c", "c"))
    assert made.args_escaped


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80", ["80/tcp"]),
        ("80/udp 81/TCP", ["80/udp", "81/tcp"]),
        ("8000-8002/sctp", ["8000/sctp", "8001/sctp", "8002/sctp"]),
        ("127.0.0.1:80:8080", ["8080/tcp"]),
        ("[::1]:80:81", ["81/tcp"]),
        ("80:90", ["90/tcp"]),
        ("$P", ["80/tcp", "81/tcp"]),
        ('"$P"', None),
        ("0", ["0/tcp"]),
    ],
)
def test_ports(config: Config, text: str, wanted: list[str] | None) -> None:
    lines = f'ENV P="80 81"\nEXPOSE {text}'
    if wanted is None:
        with pytest.raises(DockerfileError, match="invalid containerPort"):
            config(lines)
    else:
        assert list(config(lines).exposed_ports or ()) == sorted(wanted)


@pytest.mark.parametrize("text", ["x", "80/http", "65536", "9-8", "/tcp", "1.2.3.4.5:80:80", "80-82:90-91", "-1"])
def test_broken_ports_are_refused(config: Config, text: str) -> None:
    with pytest.raises(DockerfileError, match="invalid"):
        config(f"EXPOSE {text}")


def test_users_volumes_and_signals(config: Config) -> None:
    made = config('USER u:g\nVOLUME /a /b\nVOLUME ["/c d"]\nSTOPSIGNAL SIGTERM')
    assert (made.user, list(made.volumes or ()), made.stop_signal) == ("u:g", ["/a", "/b", "/c d"], "SIGTERM")


@pytest.mark.parametrize("signal", ["9", "65", "SIGKILL", "kill", "RTMIN+3", "SIGRTMAX-14"])
def test_signals_by_number_and_name(config: Config, signal: str) -> None:
    assert config(f"STOPSIGNAL {signal}").stop_signal == signal


@pytest.mark.parametrize("signal", ["0", "SIGNOPE", "RTMIN+99", "999999999999999999999"])
def test_an_unknown_signal_is_refused(config: Config, signal: str) -> None:
    with pytest.raises(DockerfileError, match="invalid signal"):
        config(f"STOPSIGNAL {signal}")


def test_a_healthcheck_with_everything(config: Config, final: Final) -> None:
    line = "HEALTHCHECK --interval=5s --timeout=1m30s --start-period=0s --start-interval=1.5s --retries=0 CMD a b"
    assert config(line).healthcheck == Healthcheck(
        ("CMD-SHELL", "a b"), 5 * 10**9, 90 * 10**9, 0, 15 * 10**8, 0
    )
    assert final(f"FROM a\n{line}").history[0].created_by == (
        "HEALTHCHECK {Test:[CMD-SHELL a b] Interval:5s Timeout:1m30s StartPeriod:0s StartInterval:1.5s Retries:0}"
    )


def test_a_healthcheck_in_the_exec_form_and_none(config: Config) -> None:
    assert config('HEALTHCHECK CMD ["a", "b"]').healthcheck == Healthcheck(("CMD", "a", "b"))
    assert config("HEALTHCHECK none").healthcheck == Healthcheck(("NONE",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK RUN x", 'Unknown type "RUN" in HEALTHCHECK'),
        ("HEALTHCHECK --interval=1us CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --interval=soon CMD x", 'invalid duration "soon"'),
        ("HEALTHCHECK --interval=5 CMD x", "missing unit in duration"),
        ("HEALTHCHECK --retries=-1 CMD x", "cannot be negative"),
        ("HEALTHCHECK --retries=x CMD x", "invalid syntax"),
        ("SHELL bash", "SHELL requires the arguments to be in JSON form"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("USER", "USER requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ('VOLUME [" "]', "VOLUME specified can not be an empty string"),
        ("VOLUME $nope", "VOLUME specified can not be an empty string"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =x", "ENV names can not be blank"),
        ("LABEL", "LABEL requires at least one argument"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ENV --x a=b", "unknown flag: --x"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --link=1 a b", "expecting boolean value for flag --link, not: 1"),
        ("COPY --link --link a b", "duplicate flag specified: --link"),
        ("COPY --chown a b", "missing a value on flag: --chown"),
        ("COPY --Link a b", "unknown flag: --Link"),
        ("COPY --=x a b", "unknown flag: --"),
        ("RUN --device=a/b=c,d x", "invalid field 'd' must be a key=value pair"),
        ("RUN --device=a/b=c,nmae=d x", "unexpected key 'nmae' in 'nmae=d'"),
        ("RUN --device=name=a,name=b x", "device name already set to a"),
        ("RUN --device=a,required=maybe x", "invalid value for required: maybe"),
        ("HEALTHCHECK CMD\u00a0x", "Unknown type"),
    ],
)
def test_what_is_wrong_is_said(config: Config, line: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        config(line)


@pytest.mark.parametrize("flag", ["--link", "--link=true", "--link=TRUE", '--"link"', "--link=\\true"])
def test_a_boolean_flag_needs_no_value(final: Final, flag: str) -> None:
    assert final(f"FROM a\nCOPY {flag} a b").history[-1].created_by == "COPY a b # buildkit"


def test_text_is_quoted_as_in_go(final: Final) -> None:
    last = final('FROM a\nCMD ["\U0001fa77", "\U0001f600", "\\u00a0\\u0007", "\\ud800"]').history[-1]
    assert last.created_by == 'CMD ["\U0001fa77" "\U0001f600" "\\u00a0\\a" "\ufffd"]'


def test_the_maintainer_is_the_author(final: Final) -> None:
    stage = final("FROM a\nMAINTAINER Me <me@h>")
    assert (stage.image.author, stage.history[0].created_by) == ("Me <me@h>", "MAINTAINER Me <me@h>")


def test_history_has_a_line_an_instruction(final: Final) -> None:
    stage = final('FROM a\nCMD ["a\\tb", "ü"]\nEXPOSE 81 80\nVOLUME /a /b\nSHELL ["s", "-c"]\nONBUILD RUN x\nLABEL a=b')
    assert [item.created_by for item in stage.history] == [
        'CMD ["a\\tb" "ü"]', "EXPOSE [80/tcp 81/tcp]", "VOLUME [/a /b]", "SHELL [s -c]", "LABEL a=b",
    ]  # fmt: skip
    assert all(item.vertex is None for item in stage.history)
    assert {item.comment for item in stage.history} == {"buildkit.dockerfile.v0"}


def test_undecodable_bytes_never_reach_the_config(final: Final) -> None:
    stage = final(b'FROM a\nENV a=\xff\nLABEL l=\xff\nMAINTAINER \xff\nCMD ["\xff"]\nUSER \xff\nONBUILD RUN \xff')
    texts: list[Any] = [stage.image.author, *(item.created_by for item in stage.history)]
    config = stage.image.config
    texts += [*(config.env or ()), *(config.cmd or ()), *(config.on_build or ()), config.user, str(config.labels)]
    assert len(texts) > 10
    for text in texts:
        assert text.encode().decode() == text
