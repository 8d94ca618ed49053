"""Each example does what it says, and leaves nothing behind: warnings are errors there too."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
STRICT = [sys.executable, "-X", "dev", "-W", "error"]


def run(*arguments: str) -> str:
    """The output of a program, which must end well."""
    done = subprocess.run([*STRICT, *arguments], capture_output=True, text=True, timeout=150, cwd=EXAMPLES, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_stock_client_uses_an_endpoint_through_the_installed_plugin() -> None:
    assert run("asyncio_plugin.py").splitlines() == [
        "tools         service.translate, service.count",
        "one call      {'text': 'olleh'}",
        "many at once  ['lla meht fo txet tsegnol eht', 'txet regnol a', 'trohs']",
        "a stream      [0, 1, 2, 3, 4]",
    ]


def test_the_agent_on_trio_does_its_task() -> None:
    printed = run("trio_agent.py")
    assert "weather(Lisbon) -> {'city': 'Lisbon'" in printed
    assert "train(Paris, Reykjavik) -> None" in printed
    assert printed.count("chronicle was too slow") == 2
    assert printed.count("price of a ticket") > 4
    assert printed.endswith("   => Yes.\n\nEvery connection is closed, and nothing is left running.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_ctrl_c_leaves_the_agent_cleanly() -> None:
    arguments = [*STRICT, "-u", "trio_agent.py"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=EXAMPLES) as agent:
        assert agent.stdout is not None
        while "price of a ticket" not in agent.stdout.readline():
            assert agent.poll() is None
        agent.send_signal(signal.SIGINT)
        printed, errors = agent.communicate(timeout=60)
    assert printed.endswith("\nInterrupted.\nEvery connection is closed, and nothing is left running.\n")
    assert agent.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_microphone_is_transcribed_while_it_is_spoken_into_and_switched_off_when_the_listener_leaves(
    backend: str,
) -> None:
    printed = run("live_transcript.py", "--backend", backend)
    one, other = printed.split("60 s are spoken")
    assert [line for line in one.splitlines() if line.startswith("   this")]
    assert "the speaker is done" in one
    assert one.endswith("   nothing\n   That was all.\n")
    assert "There is no more time." in other
    assert "nobody listens" in other
    assert other.endswith("Every connection is closed, and nothing is left running.\n")


def test_the_library_function_is_tested_on_both_backends() -> None:
    printed = run("-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", "both_backends.py")
    assert "8 passed" in printed
    for backend in ("asyncio", "trio"):
        assert f"test_the_quickest_tool_answers[{backend}] PASSED" in printed


def test_the_quick_start_tells_the_same_twice() -> None:
    printed = run("quickstart.py")
    assert printed.count("50 right answers") == 2
    assert printed.count("countdown(start=5)     -> 5 4 3 2 1 0") == 2


def test_threads_share_a_client_through_a_portal() -> None:
    words = "eno owt eerht ruof evif xis neves thgie | 0 1 2 3"
    assert run("other_threads.py").splitlines() == [f"asyncio  {words}", f"trio     {words}"]
