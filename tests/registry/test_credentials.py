"""Credentials files and helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from ocibuildd.errors import InvalidArgument, Unavailable
from ocibuildd.model.request import RegistryAuth
from ocibuildd.registry.credentials import Credentials, normalise, select

USER = RegistryAuth("user", "pa:ss")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def credentials(home: Path) -> Credentials:
    return Credentials(
        {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "PATH": f"{home}/bin:{os.environ['PATH']}",
        }
    )


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if isinstance(body, str) else json.dumps(body))


NAMES = [
    ("https://index.docker.io/v1/", "docker.io"),
    ("docker.io", "docker.io"),
    ("registry-1.docker.io", "docker.io"),
    ("https://host:5000/v2/", "host:5000"),
    ("host:5000", "host:5000"),
    ("http://host", "host"),
    ("quay.io/team", "quay.io/team"),
]


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_keys_name_registries_in_many_ways(key, name):
    assert normalise(key) == name


def test_the_longest_namespace_wins():
    auths = {
        "quay.io": RegistryAuth("a"),
        "quay.io/team": RegistryAuth("b"),
        "quay.io/team/app": RegistryAuth("c"),
    }
    for repository, user in (
        ("other", "a"),
        ("team/x", "b"),
        ("team/app", "c"),
        ("teams/app", "a"),
    ):
        assert select(auths, "quay.io", repository).username == user
    assert select(auths, "example.com") is None


async def test_dockers_file_is_read(home, credentials):
    write(
        home / ".docker/config.json",
        {"auths": {"https://index.docker.io/v1/": entry("user", "pa:ss")}},
    )
    assert await credentials.get("docker.io") == USER
    assert await credentials.get("example.com") == RegistryAuth()


@pytest.mark.parametrize("place", ["run/containers/auth.json", ".config/containers/auth.json"])
async def test_podmans_files_are_read(home, credentials, place):
    write(home / place, {"auths": {"quay.io/team": entry("user", "pa:ss")}})
    assert await credentials.get("quay.io", "team/app") == USER
    assert await credentials.get("quay.io", "other/app") == RegistryAuth()


async def test_identity_tokens_are_read(home, credentials):
    write(home / ".docker/config.json", {"auths": {"a.com": {"identitytoken": "id"}}})
    assert (await credentials.get("a.com")).identity_token == "id"


async def test_a_login_is_kept_private_and_leaves_the_rest_alone(home, credentials):
    write(
        home / ".docker/config.json", {"auths": {"b.com": entry("b", "b")}, "detachKeys": "ctrl-x"}
    )
    assert await credentials.store("a.com", USER) == str(home / ".docker/config.json")
    body = json.loads((home / ".docker/config.json").read_text())
    assert body["detachKeys"] == "ctrl-x"
    assert set(body["auths"]) == {"a.com", "b.com"}
    assert (home / ".docker/config.json").stat().st_mode & 0o777 == 0o600
    assert await credentials.get("a.com") == USER


async def test_docker_hub_is_kept_under_dockers_name_for_it(home, credentials):
    await credentials.store("docker.io", USER)
    assert list(json.loads((home / ".docker/config.json").read_text())["auths"]) == [
        "https://index.docker.io/v1/"
    ]


async def test_a_logout_forgets_everywhere(home, credentials):
    await credentials.store("a.com", USER)
    write(home / ".config/containers/auth.json", {"auths": {"a.com": entry("x", "y")}})
    assert await credentials.erase("a.com")
    assert await credentials.get("a.com") == RegistryAuth()
    assert not await credentials.erase("a.com")


def helper(home: Path, name: str, script: str) -> None:
    path = home / "bin" / f"docker-credential-{name}"
    write(path, "#!/bin/sh\n" + script)
    path.chmod(0o755)


STORE = """
cd "$HOME"; case $1 in
get) read server; test -f kept || { echo "credentials not found in native keychain"; exit 1; }; cat kept;;
store) cat > given; echo '{"ServerURL":"a.com","Username":"user","Secret":"pa:ss"}' > kept;;
erase) rm -f kept;;
esac
"""


async def test_a_credential_store_keeps_gives_and_erases(home, credentials):
    helper(home, "test", STORE)
    write(home / ".docker/config.json", {"credsStore": "test"})
    assert await credentials.get("a.com") == RegistryAuth()
    assert await credentials.store("a.com", USER) == "docker-credential-test"
    assert json.loads((home / "given").read_text()) == {
        "ServerURL": "a.com",
        "Username": "user",
        "Secret": "pa:ss",
    }
    assert "pa:ss" not in (home / ".docker/config.json").read_text()
    assert await credentials.get("a.com") == USER
    assert await credentials.erase("a.com")
    assert not (home / "kept").exists()


async def test_a_helper_of_one_registry_is_asked_for_that_one(home, credentials):
    helper(home, "one", 'echo \'{"ServerURL":"x","Username":"<token>","Secret":"id"}\'')
    write(home / ".docker/config.json", {"credHelpers": {"a.com": "one"}})
    assert (await credentials.get("a.com")).identity_token == "id"
    assert await credentials.get("b.com") == RegistryAuth()


@pytest.mark.parametrize("name", ["../evil", "a/b", "-x", "a b", "", 5, ["x"]])
async def test_a_helper_whose_name_could_be_a_path_is_refused(home, credentials, name):
    write(home / ".docker/config.json", {"credHelpers": {"a.com": name}})
    if not name:
        assert await credentials.get("a.com") == RegistryAuth()
        return
    with pytest.raises(InvalidArgument, match="helper"):
        await credentials.get("a.com")


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("echo broken; exit 3", "exit status 3"),
        ("echo not json", "not the JSON"),
        ("head -c 3000000 /dev/zero", "not the JSON|exit status"),
    ],
)
async def test_a_helper_that_fails_says_so(home, credentials, script, match):
    helper(home, "bad", script)
    write(home / ".docker/config.json", {"credHelpers": {"a.com": "bad"}})
    with pytest.raises(Unavailable, match=match):
        await credentials.get("a.com")


async def test_a_helper_that_is_not_installed_is_named(home, credentials):
    write(home / ".docker/config.json", {"credsStore": "nosuch"})
    with pytest.raises(Unavailable, match="docker-credential-nosuch"):
        await credentials.get("a.com")


async def test_a_helper_that_hangs_is_ended(home, credentials, monkeypatch):
    monkeypatch.setattr("ocibuildd.registry.credentials.HELPER_TIMEOUT", 0.2)
    helper(home, "slow", "exec sleep 60")
    write(home / ".docker/config.json", {"credsStore": "slow"})
    with pytest.raises(Unavailable, match="no answer"):
        await credentials.get("a.com")


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"auths":{"a.com":{"auth":"%%%"}}}', "x" * (5 << 20)]
)
async def test_a_file_that_can_not_be_read_is_named(home, credentials, text):
    write(home / ".docker/config.json", text)
    with pytest.raises(InvalidArgument, match="credentials file"):
        await credentials.get("a.com")


@pytest.mark.parametrize(
    "body", [{"auths": []}, {"auths": {"a.com": None}}, {"auths": {"a.com": {}}}, {}]
)
async def test_a_file_without_credentials_has_none(home, credentials, body):
    write(home / ".docker/config.json", body)
    assert await credentials.get("a.com") == RegistryAuth()
