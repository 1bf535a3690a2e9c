"""A step on a terminal of its own, as ``ocibuild run -it`` has it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios

import pytest
from patience import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def on_terminal(box, script: str, typed: bytes = b"", size=(24, 80), **changes):
    """Run a script on a terminal; (outcome, what was shown).  What is typed is so at its first words."""
    shown, unread = bytearray(), [typed] if typed else []
    masters: list[int] = []
    ended = asyncio.Event()

    def event(message, fds):
        assert message == {"event": "tty"}
        masters.extend(fds)
        fcntl.ioctl(fds[0], termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.set_blocking(fds[0], False)
        asyncio.get_running_loop().add_reader(fds[0], read)

    def read():
        try:
            data = os.read(masters[0], 65536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(masters[0])
            ended.set()
        elif unread:
            os.write(masters[0], unread.pop())
        shown.extend(data)

    spec = box.spec("/bin/sh", "-c", script, tty=True, limits={"timeout": PATIENCE}, **changes)
    outcome = await box.client.call("run", spec, [], event)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    os.close(masters[0])
    return outcome, shown.decode().replace("\r\n", "\n")


async def test_a_step_has_a_controlling_terminal_of_its_own_devpts(box):
    outcome, shown = await on_terminal(box, "tty; test -t 0 && test -t 1 && echo yes; ls /dev/pts; exit 3")
    assert outcome["exit_code"] == 3
    assert shown.split() == ["/dev/pts/0", "yes", "0", "ptmx"]


async def test_what_is_typed_arrives_and_the_size_is_the_callers(box):
    _, shown = await on_terminal(box, "echo type; read line; echo got $line; stty size", b"hello\n", size=(33, 99))
    assert "got hello" in shown
    assert "33 99" in shown


async def test_a_user_owns_its_terminal_and_console_is_it(box):
    _, shown = await on_terminal(box, "stat -c %u /dev/pts/0; echo there > /dev/console", user="app")
    assert shown.split() == ["1000", "there"]


async def test_job_control_works(box):
    outcome, shown = await on_terminal(box, "echo type; cat; echo after", b"\x03", user="app")
    assert outcome["exit_code"] in {0, 130}
    assert "^C" in shown
