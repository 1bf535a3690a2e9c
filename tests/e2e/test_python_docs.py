"""The examples of docs/python.md are run as they stand there, the registry's name and the paths aside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
DOCKERFILE = (
    'FROM busybox\nARG WHO\nRUN --mount=type=secret,id=token test -z "$T" && echo hello $WHO\n'
)
SAID = (
    ["hello you", "sha256:", "steps cached", "registry.example/app:1", "pushed sha256:"],
    ["step-failed 7", "did not complete successfully", "Dockerfile.broken line 2"],
    ["application/vnd.oci.image.manifest.v1+json sha256:"],
    ["sha256:", "bytes would be freed"],
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("python")
    (where / "Dockerfile").write_text(DOCKERFILE)
    (where / "Dockerfile.broken").write_text("FROM busybox\nRUN exit 7\n")
    return where


def test_the_examples_of_the_page_do_what_they_say(daemon: Any, registry: str, place: Path) -> None:
    assert len(EXAMPLES) == len(SAID)
    for example, words in zip(EXAMPLES, SAID, strict=True):
        code = example.replace("registry.example", registry).replace(
            "/tmp/app.tar", f"{place}/app.tar"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=daemon.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for word in words:
            assert word.replace("registry.example", registry) in done.stdout
