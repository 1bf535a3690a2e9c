"""POST /build and its neighbours, driven as clients that are not the docker CLI do it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import socket
import tarfile
import time
from urllib.parse import quote

import pytest
from docker_engine import BASE, Engine, Files, Page, tar_of
from fixtures import Daemon

from .conftest import Serve


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("dockerfile=../Dockerfile", "forbidden path outside the build context: ../Dockerfile ()"),
        ("dockerfile=a/../../x", "forbidden path outside the build context: a/../../x ()"),
        ("dockerfile=/etc/passwd", "Cannot locate specified Dockerfile: /etc/passwd"),
        ("dockerfile=nosuch", "Cannot locate specified Dockerfile: nosuch"),
        ("buildargs={bad", "error reading build args: invalid character 'b' looking for beginning of object key string"),
        ("buildargs=" + quote('{"a": 1}'), "error reading build args: json: cannot unmarshal number into Go value of type string"),
        ("labels=" + quote('{"a":"x\ny"}'), "error reading labels: invalid character '\\n' in string literal"),
        ("cachefrom=[1]", "error reading cachefrom: json: cannot unmarshal number into Go value of type string"),
        ("ulimits=[1]", "error reading ulimit settings: json: cannot unmarshal number into Go value of type units.Ulimit"),
        ("ulimits=" + quote('[{"Name":"nofile","Soft":"x"}]'),
         "json: cannot unmarshal string into Go struct field Ulimit.Soft of type int64"),
        ("shmsize=" + "9" * 20, f'strconv.ParseInt: parsing "{"9" * 20}": value out of range'),
        ("memory=1", "Minimum memory limit allowed is 6MB"),
        ("memswap=1", "You should always set the Memory limit when using Memoryswap limit, see usage"),
        ("memory=67108864&memswap=1", "Minimum memoryswap limit should be larger than memory limit, see usage"),
        ("cpuperiod=1", "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        ("cpuquota=1", "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ("dockerfile=%00", "forbidden path outside the build context: \0 ()"),
        ("labels=[1]", "error reading labels: json: cannot unmarshal array into Go value of type map[string]string"),
        ("ulimits=x", "error reading ulimit settings: invalid character 'x' looking for beginning of value"),
        ("cachefrom=x", "error reading cachefrom"),
        ("shmsize=abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("shmsize=-5", "SHM size can not be less than 0"),
        ("t=sha256:x", "refusing to create an ambiguous tag using digest algorithm as name"),
        ("version=3", 'invalid version "3"'),
        ("outputs=x", "invalid character 'x' looking for beginning of value"),
        ("t=UPPER", "repository name must be lowercase"),
        ("t=good&t=a:b:c", "invalid reference format"),
        ("t=" + "f" * 64, "cannot specify 64-byte hexadecimal strings"),
        ("target=nosuch", "failed to reach build target nosuch in Dockerfile"),
        ("platform=foobar", "unknown operating system"),
        ("networkmode=nosuch", "network nosuch not found (not supported"),
        ("networkmode=container:x", "No such container: x"),
        ("extrahosts=bad", 'bad format for add-host: "bad"'),
        ("extrahosts=:1.2.3.4", 'bad format for add-host: ":1.2.3.4"'),
        ("extrahosts=a:", 'invalid IP address in add-host: ""'),
        ("extrahosts=a:x", 'invalid IP address in add-host: "x"'),
        ("securityopt=label%3Dx", "does not support setting security options on build"),
        ("isolation=hyperv", "Unsupported isolation"),
        ("remote=foo", "remoteURL (foo) could not be recognized as URL"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_is_built(
    engine: Engine, query: str, message: str
) -> None:
    answer = engine.build(BASE, query)
    assert 400 <= answer.status < 500
    assert message in answer.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("# nothing\n", "file with no instructions"),
        (BASE + "BOGUS x", "dockerfile parse error on line 2: unknown instruction: BOGUS"),
        (BASE + "ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
        (BASE + "ENV =b", "ENV names can not be blank"),
        (BASE + "LABEL =", "LABEL names can not be blank"),
        (BASE + "COPY a", "COPY requires at least two arguments"),
        (BASE + "ONBUILD", "ONBUILD requires at least one argument"),
        (BASE + "ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        (BASE + "ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        (BASE + 'ENV x=""\nVOLUME $x', "VOLUME specified can not be an empty string"),
        (BASE + "COPY https://a.example/x /", "source can't be a URL for COPY"),
    ],
)
def test_a_bad_dockerfile_is_a_plain_error(engine: Engine, text: str, message: str) -> None:
    answer = engine.build(text)
    assert answer.status == 400
    assert message in answer.error


def test_before_api_1_42_a_parse_error_was_worded_otherwise(engine: Engine) -> None:
    answer = engine.build(BASE + "BOGUS x", version="/v1.41")
    assert answer.error == "dockerfile parse error line 2: unknown instruction: BOGUS"


MANY = "with more than one source file, the destination must be a directory and end with a /"
EXCLUDED = "failed: file not found in build context or excluded by .dockerignore: stat"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("RUN exit 23", "The command '/bin/sh -c exit 23' returned a non-zero code: 23"),
        ("COPY nosuch /", f"COPY {EXCLUDED} nosuch: file does not exist"),
        ("ADD /etc/nosuch /", f"ADD {EXCLUDED} etc/nosuch: file does not exist"),
        ("COPY hidden /", f"COPY {EXCLUDED} hidden: file does not exist"),
        ("COPY no*.txt /", "COPY failed: no source files were specified"),
        ("ADD ../../ test/", "ADD failed: forbidden path outside the build context: ../../ "),
        ("ADD one two test", f"When using ADD {MANY}"),
        ('COPY ["one", "two", "test"]', f"When using COPY {MANY}"),
        ("COPY ??? test", f"When using COPY {MANY}"),
        ("USER nosuch\nRUN true", "unable to find user nosuch: no matching entries in passwd"),
    ],
)
def test_a_step_that_fails_ends_the_stream_with_an_error(
    engine: Engine, step: str, message: str
) -> None:
    files: Files = {
        "Dockerfile": f"{BASE}{step}\n", "one": "1", "two": "2", "hidden": "h", ".dockerignore": "hidden",
    }  # fmt: skip
    answer = engine.build(files)
    assert answer.status == 200
    assert answer.text.startswith("Step 1/")
    assert message in answer.error
    assert answer.messages[-1]["errorDetail"]["message"] == answer.error


def test_a_build_of_nothing_is_an_error(engine: Engine) -> None:
    assert "No image was generated" in engine.build("FROM scratch\n").error


def test_names_of_files_may_be_unclean_and_lead_nowhere(engine: Engine) -> None:
    files: Files = {
        "./Dockerfile": BASE + "COPY . /c\nRUN find /c -type f | sort\n", "d/./f": "1", "/abs": "2",
        "d/../e": "3", "../../up": "4", "..two": "5",
    }  # fmt: skip
    text = engine.build(files, "nocache=1").text
    for name in ("/c/abs", "/c/d/f", "/c/e", "/c/up", "/c/..two"):
        assert f"{name}\n" in text


def test_unclean_names_are_no_reason_to_find_another_image(engine: Engine) -> None:
    def built(data: str) -> list[str]:
        return engine.build({"Dockerfile": BASE + "COPY dir /dir/\n", "dir/./file": data}).images

    assert built("abc") == built("abc") != built("def")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd"])
def test_a_dockerfile_that_is_a_link_out_of_the_context_is_not_there(
    engine: Engine, target: str
) -> None:
    answer = engine.build({"Dockerfile": (tarfile.SYMTYPE, target)})
    assert answer.error == "Cannot locate specified Dockerfile: Dockerfile"


def test_links_in_the_context_stay_in_it(engine: Engine) -> None:
    files: Files = {
        "Dockerfile": BASE + "COPY link/f /x\nRUN cat /x\n", "real/f": "inside\n",
        "link": (tarfile.SYMTYPE, "/../../real"),
    }  # fmt: skip
    assert "inside\n" in engine.build(files, "nocache=1").text


def test_the_lower_case_dockerfile_is_found_and_the_upper_case_one_wins(engine: Engine) -> None:
    lower = BASE + "RUN echo from dockerfile\n"
    assert "from dockerfile" in engine.build({"dockerfile": lower}).text
    both: Files = {"dockerfile": lower, "Dockerfile": BASE + "RUN echo from Dockerfile\n"}
    assert "from Dockerfile" in engine.build(both).text


def test_a_body_may_be_a_lone_dockerfile(engine: Engine) -> None:
    assert "Successfully built" in engine("POST", "/build", BASE.encode()).text


def test_each_stage_tells_its_image_and_the_next_stands_on_it(engine: Engine) -> None:
    text = BASE.strip() + " AS parent\nENV stage=bar\nONBUILD ENV foo=bar\nFROM parent\n"
    answer = engine.build(text)
    parent, child = answer.images
    assert "Step 4/4 : FROM parent\n# Executing 1 build trigger\n" in answer.text
    assert answer.text.endswith(f"Successfully built {child[7:19]}\n")
    body = json.loads(engine("GET", f"/images/{child}/json").body)
    assert body["Parent"] == parent


def test_stages_that_nothing_needs_are_built_too_up_to_the_target(engine: Engine) -> None:
    text = (
        BASE.strip() + " AS one\nONBUILD RUN echo foo > some\nONBUILD ENV bar=baz\n"
        "FROM one\nRUN cat some\nFROM one\nRUN cat some\nFROM busybox AS never\nRUN exit 1\n"
    )
    answer = engine.build(text, "target=2")
    assert len(answer.images) == 3
    body = json.loads(engine("GET", f"/images/{answer.images[2]}/json").body)
    assert "bar=baz" in body["Config"]["Env"]


def test_triggers_are_told_without_steps_of_their_own(engine: Engine) -> None:
    engine.build(BASE + "ONBUILD RUN echo one\nONBUILD RUN echo two\n", "t=api/onbuild")
    answer = engine.build("FROM api/onbuild\nRUN echo three\n", "nocache=1")
    assert answer.text.startswith("Step 1/2 : FROM api/onbuild\n# Executing 2 build triggers\n")
    assert "ONBUILD" not in answer.text
    assert all(f"{word}\n" in answer.text for word in ("one", "two", "three"))


def test_labels_are_steps_at_the_end(engine: Engine) -> None:
    answer = engine.build(BASE + "ENV a=b\n", "labels=" + quote('{"z": "1", "b": "2"}'))
    assert "Step 3/4 : LABEL b=2\n" in answer.text
    assert "Step 4/4 : LABEL z=1\n" in answer.text
    assert len(answer.images) == 1


def test_how_files_are_named_does_not_change_the_image(engine: Engine) -> None:
    one = engine.build({"Dockerfile": BASE + "COPY file1.txt /tmp/\n", "file1.txt": "t"})
    two = engine.build({"Dockerfile": BASE + "COPY file*.txt /tmp/\n", "file1.txt": "t"})
    assert one.images == two.images


def test_what_ran_last_is_told_as_the_containers_command(engine: Engine) -> None:
    engine.build(BASE + "RUN echo\tone\t\ttwo\n", "t=api/tabs")
    body = json.loads(engine("GET", "/images/api/tabs/json").body)
    assert body["ContainerConfig"]["Cmd"] == ["/bin/sh", "-c", "echo\tone\t\ttwo"]


def test_an_emptied_command_is_a_list_and_one_never_set_is_null(engine: Engine) -> None:
    engine.build("FROM scratch\nENTRYPOINT [\"/x\"]\nCMD []\n", "t=api/cleared")
    config = json.loads(engine("GET", "/images/api/cleared/json").body)["Config"]
    assert (config["Cmd"], config["Entrypoint"]) == ([], ["/x"])
    engine.build("FROM scratch\nMAINTAINER x\n", "t=api/unset")
    assert json.loads(engine("GET", "/images/api/unset/json").body)["Config"]["Cmd"] is None


def test_a_run_of_nothing_does_nothing(engine: Engine) -> None:
    assert "Successfully built" in engine.build(BASE + "RUN []\n").text


def test_containers_are_kept_only_in_words_with_rm_false(engine: Engine) -> None:
    assert "Removing intermediate container" in engine.build(BASE + "RUN echo rm1\n").text
    kept = engine.build(BASE + "RUN echo rm2\n", "rm=0").text
    assert "Running in" in kept
    assert "Removing" not in kept


# --- remote contexts


@pytest.fixture(scope="module")
def server(serve: Serve) -> str:
    """The URL of an HTTP server with contexts and Dockerfiles."""
    archive = tar_of({"Dockerfile": BASE + "RUN echo wrong\n", "custom": BASE + "RUN echo right\n"})
    host = serve({
        "/context.tar": Page(archive, "application/x-tar"),
        "/context.tgz": Page(gzip.compress(archive)),
        "/dockerfile": Page(f"{BASE}RUN echo lone\n".encode(), "text/plain"),
        "/untyped": Page(f"{BASE}RUN echo lone\n".encode()),
        "/page": Page(b"<!doctype html>", "text/html; charset=utf-8"),
    })  # fmt: skip
    return f"http://{host}"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("remote={}/context.tar", "wrong"),
        ("remote={}/context.tar&dockerfile=custom", "right"),
        ("remote={}/context.tgz&dockerfile=custom", "right"),
        ("remote={}/dockerfile&dockerfile=ignored", "lone"),
        ("remote={}/untyped", "lone"),
    ],
)
def test_a_remote_context_is_fetched(engine: Engine, server: str, query: str, said: str) -> None:
    path = "/build?nocache=1&" + query.format(server)
    answer = engine("POST", path, headers={"Content-Type": "application/json"})
    assert f"\n{said}\n" in answer.text
    assert "ignored" not in answer.text


def test_a_remote_context_of_another_type_is_no_dockerfile(engine: Engine, server: str) -> None:
    for _ in range(2):  # the second answer is the kept one's
        answer = engine("POST", f"/build?remote={server}/page")
        wanted = f"error detecting content type for remote {server}/page: unsupported Content-Type"
        assert answer.error.startswith(f'{wanted} "text/html; charset=utf-8"')


def test_a_remote_context_that_is_not_there_is_a_plain_error(engine: Engine, server: str) -> None:
    assert engine("POST", f"/build?remote={server}/nosuch").status == 404


def test_a_request_may_have_long_arguments_and_many_credentials(engine: Engine) -> None:
    arguments = quote(json.dumps({"LONG": "x" * 100_000}))
    registries = {f"h{n}.example": {"username": "u", "password": "p" * 1000} for n in range(30)}
    headers = {
        "Content-Type": "application/x-tar",
        "X-Registry-Config": base64.urlsafe_b64encode(json.dumps(registries).encode()).decode(),
    }
    files: Files = {"Dockerfile": BASE + "ARG LONG\nRUN echo ${#LONG}\n"}
    answer = engine("POST", f"/build?buildargs={arguments}", tar_of(files), headers)
    assert "\n100000\n" in answer.text


def test_a_files_name_may_be_any_bytes_and_its_time_far_away(engine: Engine) -> None:
    """The second build is told what changed: in names that no JSON can hold."""
    odd = tarfile.TarInfo(os.fsdecode(b"a\xffb"))
    odd.mtime = 2**40
    for files in ((), (odd,)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            dockerfile = tarfile.TarInfo("Dockerfile")
            text = f"{BASE}COPY . /odd/\nRUN ls /odd\n".encode()
            dockerfile.size = len(text)
            archive.addfile(dockerfile, io.BytesIO(text))
            for each in files:
                archive.addfile(each)
        answer = engine("POST", "/build", out.getvalue(), {"Content-Type": "application/x-tar"})
        assert "Successfully built" in answer.text


# --- the protocol


def test_versions_out_of_range_are_refused(engine: Engine) -> None:
    new, old = engine("GET", "/v1.99/version"), engine("GET", "/v1.1/version")
    assert new.error == "client version 1.99 is too new. Maximum supported API version is 1.44"
    assert "client version 1.1 is too old" in old.error
    assert (new.status, old.status) == (400, 400)


@pytest.mark.parametrize("path", ["/_ping", "/v1.24/_ping", "/v1.44/_ping"])
def test_a_ping_is_answered_with_what_clients_negotiate_by(engine: Engine, path: str) -> None:
    for method, body in (("HEAD", b""), ("GET", b"OK")):
        answer = engine(method, path)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["Api-Version"] == "1.44"
        assert answer.headers["Ostype"] == "linux"


def test_errors_carry_the_version_too(engine: Engine) -> None:
    answer = engine("GET", "/v1.41/nosuch")
    assert (answer.status, answer.error) == (404, "page not found")
    assert answer.headers["Api-Version"] == "1.44"


def test_a_client_of_http_1_0_gets_its_stream(engine: Engine) -> None:
    body = tar_of({"Dockerfile": BASE + "RUN echo old\n"})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(engine.path)
        client.sendall(b"POST /build HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert b"Successfully built" in answer


def test_a_client_that_leaves_in_the_middle_of_its_context_harms_nobody(engine: Engine) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(engine.path)
        head = b"POST /build HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + b"5\r\nhello\r\n")
    assert engine("GET", "/_ping").status == 200


def test_what_is_no_archive_fails_inside_the_stream_of_a_load(engine: Engine) -> None:
    answer = engine("POST", "/images/load", b"abc")
    assert answer.status == 200
    assert "errorDetail" in answer.messages[-1]


def test_each_message_stands_on_a_line_of_its_own(engine: Engine) -> None:
    answer = engine.build(BASE + "ENV a=b\n")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body.count(b"\r\n") == len(answer.messages)


def test_squash_leaves_the_base_and_one_layer(engine: Engine, daemon: Daemon) -> None:
    text = BASE + "RUN echo 1 > /a; echo 2 > /b\nRUN rm /b; echo 3 > /c\n"
    image = engine.build(text, "squash=1&t=api/squash").images[-1]
    layers = json.loads(engine("GET", f"/images/{image}/json").body)["RootFS"]["Layers"]
    assert len(layers) == 2
    assert daemon.ok("run", "api/squash", "sh", "-c", "cat /a /c; ls /b; true").out == "1\n3\n"


def test_a_builds_names_are_events(engine: Engine) -> None:
    image = engine.build(BASE + "ENV event=1\n", "t=api/event:one").images[-1]
    until = int(time.time()) + 1
    events = engine("GET", f"/events?since=0&until={until}").messages
    named = [event for event in events if event["Action"] != "prune"]  # dockerd names nothing there
    assert any(
        (event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]["name"])
        == ("tag", image, "api/event:one")
        for event in named
    )
