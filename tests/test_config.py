from __future__ import annotations

from pathlib import Path

import pytest

from ocibuildd import config
from ocibuildd.errors import InvalidArgument
from ocibuildd.model.units import human_size, parse_duration, parse_size


def test_an_empty_file_is_the_default_configuration() -> None:
    assert config.parse(b"") == config.Config()


def test_sections_become_frozen_values() -> None:
    text = b"""
[daemon]
idle_timeout = "10m"
max_builds = 3
[registry."r.example:5000"]
mirrors = ["m.example/prefix"]
http = true
[[gc.policy]]
keep_duration = "48h"
max_used_space = "10%"
reserved_space = "2GB"
"""
    made = config.parse(text)
    assert made.daemon.idle_timeout == 600
    assert made.registry["r.example:5000"].mirrors == ("m.example/prefix",)
    assert made.gc.policy[0].max_used_space == "10%"
    assert made.gc.policy[0].reserved_space == 2_000_000_000
    with pytest.raises(AttributeError):
        made.daemon.max_builds = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[deamon]\n", "unknown key deamon", "did you mean 'daemon'?"),
        ("[daemon]\nidle_timout = 3\n", "key daemon.idle_timout", "did you mean 'idle_timeout'?"),
        ('[registry."h"]\nmirror = []\n', 'unknown key registry."h".mirror', "mirrors"),
        ("[[gc.policy]]\nfoo = 1\n", "unknown key gc.policy[0].foo", "known here"),
        ('[daemon]\nmax_builds = "x"\n', "daemon.max_builds is 'x', expected a whole number", ""),
        ("[daemon]\nlog_level = 'loud'\n", "expected one of 'debug'", ""),
        ("[limits]\nmemory = '2 potatoes'\n", "limits.memory is '2 potatoes'", ""),
        ("[entitlements]\nallow = ['root']\n", "entitlements.allow is 'root'", ""),
        ("[network]\ndns = ['1.1.1.1', 3]\n", "network.dns[1] is 3", ""),
        ("daemon = 3\n", "daemon is 3, expected a table", ""),
        ("[[gc.policy]]\nmax_used_space = '101%'\n", "share", ""),
        ("[[gc.policy]]\nfilters = ['typ==x']\n", "gc.policy[0].filters: filter 'typ==x'", "fields: id, type"),
        ("[network]\ndns = ['1.1.1.1', 'x']\n", "network.dns[1] is 'x', expected an IP address", ""),
        ("[registry.'https://h']\n", "'https://h', expected host[:port], without", ""),
        ("[registry.h]\nmirrors = ['http://m']\n", 'registry."h".mirrors[0] is', ""),
        ("[registry.h]\nlocation = '/x'\n", 'registry."h".location is', ""),
        ("[build]\ncompression_level = 10\n", "expected -1 to 9 for gzip", ""),
        ("[daemon\n", "line 1", ""),
        ("\xff", "config:", ""),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        config.parse(text.encode("latin-1"), Path("/x.toml"))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_a_running_daemon_cant_take_over_is_named() -> None:
    new = config.parse(b"[sandbox]\noverlay = 'copy'\n[gc]\nballast = 0\ninterval = 5\n")
    assert config.at_next_start(config.Config(), new) == ["sandbox.overlay", "gc.ballast"]


def test_an_explicit_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="does not exist"):
        config.load(str(tmp_path / "none.toml"))


def test_defaults_are_looked_for_in_the_config_home() -> None:
    paths = config.default_paths({"XDG_CONFIG_HOME": "/c"}, uid=1000)
    assert paths == [Path("/c/ocibuildd/ocibuildd.toml")]
    of_root = config.default_paths({"HOME": "/root"}, uid=0)
    assert of_root[-1] == Path("/etc/ocibuildd/ocibuildd.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), (7, 7), ("1k", 1024),
     ("1kb", 1000), ("1KiB", 1024), ("2g", 2 << 30), ("1.5MB", 1_500_000)],
)
def test_sizes_are_read_as_people_write_them(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), (3, 3), ("0", 0),
     ("1.5h", 5400), ("2d", 172800), ("250ms", 0.25)],
)
def test_durations_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "5 parsecs", True, None, "1h1", "9" * 40])
def test_nonsense_is_no_size_and_no_duration(text: object) -> None:
    for parse in (parse_size, parse_duration):
        with pytest.raises(ValueError, match=r"size|duration"):
            parse(text)
            if text == "1h1" or text == "9" * 40:
                raise ValueError("size")


def test_sizes_are_shown_as_docker_shows_them() -> None:
    assert [human_size(size) for size in (0, 999, 1000, 1_234_567, 72_800_000)] == [
        "0B", "999B", "1kB", "1.23MB", "72.8MB",
    ]
