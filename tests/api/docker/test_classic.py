"""Events come out as the classic builder's stream."""

from __future__ import annotations

from typing import Any

from ocibuildd.api.docker.classic import ClassicStream, describe


def run(*events: dict[str, Any], **options: Any) -> str:
    stream = ClassicStream("b", **options)
    out = ""
    for event in events:
        for message in stream.feed(event):
            out += (
                message.get("stream", "") or f"<{message.get('aux') or message.get('errorDetail')}>"
            )
    return out


STEPS = [
    {"type": "build.step", "step": 1, "total": 2, "vertex": "0", "text": "FROM busybox"},
    {"type": "build.step", "step": 2, "total": 2, "vertex": "1", "text": "RUN echo hi"},
]
BASE = {
    "type": "step.done",
    "step": 1,
    "vertex": "0",
    "image": "sha256:" + "a" * 64,
    "cached": True,
}


def test_a_run_shows_its_container_its_output_and_its_image() -> None:
    text = run(
        *STEPS,
        BASE,
        {"type": "vertex.started", "vertex": "1"},
        {"type": "vertex.log", "vertex": "1", "stream": 1, "data": "hi\n"},
        {"type": "vertex.log", "vertex": "1", "stream": 2, "data": "oh\n"},
        {"type": "step.done", "step": 2, "vertex": "1", "image": "sha256:" + "b" * 64},
        {"type": "build.done", "image": "sha256:" + "b" * 64, "names": ["x:latest"]},
    )
    lines = text.split("\n")
    assert lines[:3] == ["Step 1/2 : FROM busybox", " ---> aaaaaaaaaaaa", "Step 2/2 : RUN echo hi"]
    assert lines[3].startswith(" ---> Running in ")
    assert "hi\n\x1b[91moh\n\x1b[0mRemoving intermediate container" in text
    assert text.endswith(
        f"<{{'ID': 'sha256:{'b' * 64}'}}>Successfully built bbbbbbbbbbbb\nSuccessfully tagged x:latest\n"
    )


def test_a_step_from_the_cache_says_so_and_has_no_container() -> None:
    text = run(
        *STEPS,
        BASE,
        {
            "type": "step.done",
            "step": 2,
            "vertex": "1",
            "image": "sha256:" + "b" * 64,
            "cached": True,
        },
    )
    assert "Step 2/2 : RUN echo hi\n ---> Using cache\n ---> bbbbbbbbbbbb\n" in text
    assert "Running in" not in text


def test_a_later_step_that_is_early_waits_for_its_turn() -> None:
    stream = ClassicStream("b")
    for event in STEPS:
        stream.feed(event)
    assert stream.feed({"type": "vertex.started", "vertex": "1"}) == []
    assert stream.feed({"type": "vertex.log", "vertex": "1", "stream": 1, "data": "early\n"}) == []
    texts = [message["stream"] for message in stream.feed(BASE)]
    assert texts.index("Step 1/2 : FROM busybox") < texts.index("early\n")


def test_a_failing_step_ends_with_dockers_words_and_its_code() -> None:
    error = {
        "code": "step-failed",
        "message": "…",
        "details": {"exit_code": 3, "command": "/bin/sh -c exit 3", "vertex": "1"},
    }
    stream = ClassicStream("b")
    for event in (*STEPS, BASE, {"type": "vertex.started", "vertex": "1"}):
        stream.feed(event)
    last = stream.feed({"type": "build.failed", "error": error})[-1]
    assert last["errorDetail"] == {
        "message": "The command '/bin/sh -c exit 3' returned a non-zero code: 3",
        "code": 3,
    }
    assert last["error"] == last["errorDetail"]["message"]


def test_a_quiet_build_says_its_id_alone() -> None:
    assert (
        run(*STEPS, BASE, {"type": "build.done", "image": "sha256:b"}, quiet=True) == "sha256:b\n"
    )


def test_a_step_that_says_nothing_is_seen_to_run() -> None:
    stream = ClassicStream("b")
    for event in (*STEPS, BASE):
        stream.feed(event)
    messages = stream.feed({"type": "vertex.started", "vertex": "1"})
    assert messages[-1]["stream"].startswith(" ---> Running in ")


def test_a_step_whose_result_is_known_is_not_seen_to_run() -> None:
    started = {"type": "vertex.started", "vertex": "1", "cached": True}
    done = {"type": "step.done", "step": 2, "vertex": "1", "image": "sha256:b", "cached": True}
    assert "Running" not in run(*STEPS, BASE, started, done)


def test_triggers_have_no_steps_of_their_own() -> None:
    steps = [
        {"type": "build.step", "step": 1, "vertex": "0", "text": "FROM x", "line": 1},
        {"type": "build.step", "step": 2, "vertex": "1", "text": "RUN a", "line": 1},
        {"type": "build.step", "step": 3, "vertex": "2", "text": "RUN b", "line": 2},
    ]
    ends = [
        {"type": "step.done", "step": number, "vertex": str(number - 1), "image": f"sha256:{number}"}
        for number in (1, 2, 3)
    ]
    text = run(*steps, *ends)
    assert text.startswith("Step 1/2 : FROM x\n# Executing 1 build trigger\n ---> Running in ")
    assert "Step 2/2 : RUN b\n" in text
    assert "RUN a" not in text


def test_each_stage_tells_its_image_once() -> None:
    steps = [
        {"type": "build.step", "step": 1, "vertex": "0", "text": "FROM x", "stage": "0"},
        {"type": "build.step", "step": 2, "vertex": "1", "text": "FROM y", "stage": "1"},
    ]
    ends = [
        {"type": "step.done", "step": number, "vertex": str(number - 1), "image": "sha256:a"}
        for number in (1, 2)
    ]
    text = run(*steps, *ends, {"type": "build.done", "image": "sha256:a"})
    assert text.count("<{'ID': 'sha256:a'}>") == 2


def test_images_that_cannot_be_had_are_told_in_dockers_words() -> None:
    name = "docker.io/library/x:1"
    denied = describe({"code": "unauthorized", "message": f"{name}: no"})
    assert denied == (
        "pull access denied for x, repository does not exist or may require 'docker login': no"
    )
    missing = describe({"code": "not-found", "message": f"{name}: no"})
    assert missing == "manifest for x:1 not found: manifest unknown: no"


def test_a_quiet_build_that_fails_tells_what_it_did() -> None:
    error = {"code": "step-failed", "message": "…", "details": {"vertex": "1"}}
    log = {"type": "vertex.log", "vertex": "1", "stream": 1, "data": "why\n"}
    started = {"type": "vertex.started", "vertex": "1"}
    text = run(*STEPS, BASE, started, log, {"type": "build.failed", "error": error}, quiet=True)
    assert text.startswith("Step 1/2 : FROM busybox\n")
    assert "why\n<" in text
