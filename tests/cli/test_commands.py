from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Answer, FakeDaemon, Outcome

Cli = Callable[..., Outcome]
IMAGE = {
    "id": "sha256:" + "ab" * 32, "parent": "", "names": ["app:1", "r.example:5000/x/app:2"],
    "digests": ["app@sha256:" + "cd" * 32], "created": 1.0, "size": 72_800_000, "shared": 800_000,
    "created_by": "RUN\tmake\x1b[31m", "labels": {"k": "v"}, "intermediate": False,
    "platform": "linux/amd64", "build": "",
}


def test_images_are_a_table_of_names(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": [IMAGE]})
    lines = cli("images").out.splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[1].split()[:3] == ["app", "1", "abababababab"]
    assert lines[2].split()[:2] == ["r.example:5000/x/app", "2"]
    assert lines[1].endswith("72.8MB")


def test_what_a_daemon_says_cannot_move_the_cursor(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": [IMAGE]})
    done = cli("images", "-a")
    assert "\x1b" not in done.out
    assert "\\x1b[31m" in done.out


def test_quiet_prints_each_id_once(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": [IMAGE]})
    assert cli("images", "-q").out == "abababababab\n"
    assert cli("images", "-q", "--no-trunc").out == IMAGE["id"] + "\n"  # type: ignore[operator]


def test_filters_and_patterns_reach_the_daemon(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": []})
    cli("image", "ls", "-a", "--filter", "label=a=b&c", "app*")
    query = fake.last("/v1/images").query
    assert query == "all=1&filter=label%3Da%3Db%26c&filter=reference%3Dapp%2A"


@pytest.mark.parametrize(
    ("template", "out"),
    [
        ("{{.Repository}}:{{.Tag}}", "app:1\nr.example:5000/x/app:2\n"),
        ("table {{.ID}}\\t{{.Size}}", "IMAGE ID       SIZE\nabababababab   72.8MB\nabababababab   72.8MB\n"),
        ("{{if .Labels}}{{upper .Tag}}{{else}}none{{end}}", "1\n2\n"),
    ],
)
def test_formats_are_go_templates(fake: FakeDaemon, cli: Cli, template: str, out: str) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": [IMAGE]})
    assert cli("images", "--format", template).out == out


def test_an_unknown_field_of_a_format_gets_a_suggestion(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["GET /v1/images"] = Answer({"images": [IMAGE]})
    done = cli("images", "--format", "{{.Repositry}}")
    assert done.code == 125
    assert "Repository" in done.err


def test_inspect_prints_a_list_and_goes_on_after_a_missing_one(fake: FakeDaemon, cli: Cli) -> None:
    def inspect(request: Any) -> Answer:
        if "gone" in request.query:
            return Answer({"code": "not-found", "message": "No such image: gone"}, 404)
        return Answer({"Id": "sha256:1", "Config": {"Env": ["A=b", "C"]}})

    fake.answers["GET /v1/images/inspect"] = inspect
    done = cli("inspect", "gone", "app")
    assert done.code == 1
    assert "No such image: gone" in done.err
    assert json.loads(done.out)[0]["Id"] == "sha256:1"
    assert cli("inspect", "-f", "{{.Config.Env}}", "app").out == "[A=b C]\n"


def test_an_error_of_the_daemon_is_told_with_its_hint(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["POST /v1/images/tag"] = Answer(
        {"code": "not-found", "message": "no image \x1b[1mx", "hint": "try y"}, 404
    )
    done = cli("tag", "x", "y")
    assert (done.code, done.out) == (1, "")
    assert done.err == "ERROR: no image \\x1b[1mx\nhint: try y\n"


def test_removal_says_what_went(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["DELETE /v1/images"] = Answer(
        {"removed": [{"untagged": "a:1"}, {"deleted": "sha256:9"}]}
    )
    assert cli("rmi", "-f", "a:1").out == "Untagged: a:1\nDeleted: sha256:9\n"
    assert fake.last("/v1/images").query == "name=a:1&force=1"


def test_push_and_pull_tell_of_each_blob_and_end_with_the_digest(fake: FakeDaemon, cli: Cli) -> None:
    lines = [
        {"type": "status", "id": "aa", "text": "pushing", "current": 1, "total": 2},
        {"type": "status", "id": "aa", "text": "pushed", "current": 2, "total": 2},
        {"type": "done", "name": "r/x:1", "digest": "sha256:d", "size": 5, "tag": "1"},
    ]
    fake.answers["POST /v1/images/push"] = Answer(lines=lines)
    done = cli("push", "r/x:1")
    assert done.out.splitlines()[1:] == ["aa: pushing", "aa: pushed", "1: digest: sha256:d size: 5"]
    fake.answers["POST /v1/images/pull"] = Answer(lines=[{**lines[2], "new": False}])
    assert "Image is up to date for r/x:1" in cli("pull", "r/x:1").out


def test_an_error_in_the_middle_of_a_transfer_ends_it(fake: FakeDaemon, cli: Cli) -> None:
    error = {"type": "error", "error": {"code": "unauthorized", "message": "denied"}}
    fake.answers["POST /v1/images/pull"] = Answer(lines=[{"type": "status", "text": "a"}, error])
    done = cli("pull", "x")
    assert done.code == 1
    assert "denied" in done.err


def test_a_daemon_that_dies_in_the_middle_is_told_of(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["POST /v1/images/pull"] = Answer(lines=[{"type": "status", "text": "a"}], cut=True)
    done = cli("pull", "x")
    assert done.code == 1
    assert "closed the connection" in done.err


def test_save_writes_a_whole_file_or_none(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    fake.answers["GET /v1/images/save"] = Answer(raw=b"tar")
    assert cli("save", "-o", tmp_path / "a.tar", "x", "y").code == 0
    assert (tmp_path / "a.tar").read_bytes() == b"tar"
    assert fake.last("/v1/images/save").query == "name=x&name=y&format=docker"
    fake.answers["GET /v1/images/save"] = Answer(raw=b"ta", cut=True)
    assert cli("save", "-o", tmp_path / "b.tar", "x").code == 1
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["a.tar"]


def test_load_and_import_send_the_file(fake: FakeDaemon, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"x" * 3_000_000)
    fake.answers["POST /v1/images/load"] = Answer({"loaded": [{"name": "a:1", "image": "i"}]})
    assert cli("load", "-i", tmp_path / "t").out == "Loaded image: a:1\n"
    assert len(fake.last("/v1/images/load").body) == 3_000_000
    fake.answers["POST /v1/images/import"] = Answer({"image": "sha256:1"}, 201)
    assert cli("import", "-c", "ENV A=b", tmp_path / "t", "n").out == "sha256:1\n"
    assert fake.last("/v1/images/import").query == "name=n&change=ENV%20A%3Db"


def test_an_error_before_a_large_body_is_read_is_the_answer(
    fake: FakeDaemon, cli: Cli, tmp_path: Path
) -> None:
    fake.answers["POST /v1/images/load"] = Answer({"code": "no-space", "message": "full"}, 507)
    (tmp_path / "t").write_bytes(b"x")
    assert "full" in cli("load", "-i", tmp_path / "t").err


def test_a_prune_that_nobody_confirmed_does_nothing(
    fake: FakeDaemon, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = cli("system", "prune")
    assert done.code == 1
    assert "-f" in done.err
    assert not fake.requests


def test_system_prune_as_scripts_call_it(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["POST /v1/prune"] = Answer(
        {"deleted": [{"kind": "image", "id": "sha256:1", "bytes": 10}], "space": 12_000}
    )
    done = cli("system", "prune", "-af")
    assert done.code == 0
    assert "Total reclaimed space: 12kB" in done.out
    assert fake.last("/v1/prune").json["all"] is True


def test_a_prune_counts_what_went(fake: FakeDaemon, cli: Cli) -> None:
    images = [{"kind": "image", "id": name, "bytes": 1} for name in ("a", "b")]
    mount = {"kind": "mount", "id": "c", "bytes": 1}
    fake.answers["POST /v1/prune"] = Answer({"deleted": [*images, mount], "space": 3})
    assert cli("prune", "-f").out == "Deleted: 2 images, 1 mount\nTotal reclaimed space: 3B\n"


def test_help_keeps_its_columns(cli: Cli) -> None:
    lines = cli("build", "--help").out.split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith("  -o, --output"))
    assert lines[at].index("What to make") == lines[at + 1].index("[,dest=PATH")


def test_run_knows_the_networks_there_are(fake: FakeDaemon, cli: Cli) -> None:
    done = cli("run", "--network", "hots", "busybox")
    assert (done.code, fake.requests) == (125, [])
    assert "network mode 'hots': expected default, none or host" in done.err


def test_a_prune_says_what_is_still_being_deleted(fake: FakeDaemon, cli: Cli) -> None:
    fake.answers["POST /v1/prune"] = Answer({"deleted": [], "space": 12_000, "pending": 2_000})
    assert "reclaimed space: 12kB\n2kB of it are still being deleted\n" in cli("system", "prune", "-af").out


def test_doctor_ends_badly_when_something_is_missing(fake: FakeDaemon, cli: Cli) -> None:
    item = {"name": "newuidmap", "level": "missing", "found": "none", "cost": "c", "fix": "apt x"}
    fake.answers["GET /v1/doctor"] = Answer({"requirements": [item]})
    done = cli("doctor")
    assert done.code == 1
    assert "to mend it: apt x" in done.out


def test_login_checks_first_and_stores_only_what_is_good(
    fake: FakeDaemon, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "home" / ".docker" / "config.json"
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    fake.answers["POST /v1/login"] = Answer({"code": "unauthorized", "message": "no"}, 401)
    assert cli("login", "-u", "me", "--password-stdin", "r.example").code == 1
    assert not path.exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))
    fake.answers["POST /v1/login"] = Answer({"status": "ok", "identity_token": ""})
    assert cli("login", "-u", "me", "--password-stdin", "https://r.example/v2/").code == 0
    assert json.loads(path.read_text())["auths"]["r.example"]["auth"] == "bWU6c2VjcmV0"
    assert path.stat().st_mode & 0o077 == 0
    assert cli("logout", "r.example").code == 0
    assert json.loads(path.read_text())["auths"] == {}


def test_credentials_go_with_the_registry_that_they_are_for(
    fake: FakeDaemon, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "home" / ".docker" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"auths": {"r.example:5000": {"auth": "bWU6c2VjcmV0"}}}))
    fake.answers["POST /v1/images/pull"] = Answer(lines=[{"type": "done", "name": "x"}])
    cli("pull", "r.example:5000/x")
    assert fake.last("/v1/images/pull").json["auth"] == {"username": "me", "password": "secret"}
    cli("pull", "other.example/x")
    assert "auth" not in fake.last("/v1/images/pull").json


def test_version_without_a_daemon_says_so_and_starts_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OCIBUILD_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = cli("version")
    assert done.code == 1
    assert "Version:" in done.out
    assert "can't connect" in done.err


def test_a_configured_daemon_is_never_started(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIBUILD_HOST", "unix:///nonexistent/d.sock")
    done = cli("images")
    assert done.code == 1
    assert "/nonexistent/d.sock" in done.err


def test_another_scheme_is_refused(cli: Cli) -> None:
    done = cli("--host", "tcp://1.2.3.4:2375", "images")
    assert done.code == 1
    assert "expected unix:///" in done.err


def test_commands_and_groups_that_do_not_exist_get_a_suggestion(cli: Cli) -> None:
    assert "did you mean build?" in cli("biuld").err
    assert "did you mean prune?" in cli("image", "prun").err
    assert cli("nonsense").code == 125


def test_help_is_everywhere(cli: Cli) -> None:
    for argv in (["--help"], ["image"], ["help", "build"], ["system", "df", "--help"], ["run", "-h"]):
        done = cli(*argv)
        assert done.code == 0
        assert "Usage:" in done.out


@pytest.mark.parametrize("argv", [["--version"], ["build", "-q", "-t", "x", "."], ["images", "-q"]])
def test_nothing_slow_is_imported_for_a_short_command(argv: list[str]) -> None:
    script = (
        f"import sys; from ocibuild.main import main; main({argv!r});"
        "print(sorted(set(sys.modules) & {'json', 're', 'socket', 'asyncio', 'dataclasses', 'typing',"
        " 'http.client', 'argparse', 'subprocess'}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(_source())!r}); {script}"],
        capture_output=True, text=True, check=True, env={"OCIBUILD_HOST": "unix:///nonexistent"},
    )
    assert done.stdout.splitlines()[-1] == "[]"


def _source() -> Path:
    import ocibuild

    return Path(ocibuild.__file__).parents[1]
