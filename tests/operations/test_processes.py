"""What belongs to a process as a whole: signals, own packages, the limit on open files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from operations.own_packages import PACKAGES, check_own_packages, foreign_packages
from operations.resource_limits import raise_open_file_limit
from operations.signals import handle_signals


async def test_the_first_signal_drains_and_the_second_ends_at_once():
    drained = trio.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(handle_signals, drain=drained.set, stop=nursery.cancel_scope.cancel))
            nursery.start_soon(trio.sleep_forever)

            os.kill(os.getpid(), signal.SIGTERM)
            await drained.wait()
            assert not nursery.cancel_scope.cancel_called

            os.kill(os.getpid(), signal.SIGINT)

    assert nursery.cancel_scope.cancelled_caught


async def test_a_drain_that_is_over_ends_the_nursery_and_gives_the_signals_back():
    before = signal.getsignal(signal.SIGTERM)
    drained = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(handle_signals, drain=drained.set, stop=nursery.cancel_scope.cancel))
        assert signal.getsignal(signal.SIGTERM) is not before
        nursery.cancel_scope.cancel()

    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_packages_are_recognised():
    assert foreign_packages() == []
    check_own_packages("kas")


@pytest.mark.parametrize("has_init", [True, False])
def test_a_package_of_another_installation_ends_the_command_with_both_paths(tmp_path, has_init):
    foreign = tmp_path / "agent"
    foreign.mkdir()
    (foreign / ("__init__.py" if has_init else "notes.py")).write_text("")
    home = Path(sys.modules["operations"].__file__).parent.parent
    script = "from operations.own_packages import check_own_packages; check_own_packages('kas'); print('went on')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{home}" if has_init else str(home)}
    if not has_init:
        # A folder without __init__.py never comes before a package; alone, it is what is found.
        (tmp_path / "operations").symlink_to(home / "operations")
        environment["PYTHONPATH"] = str(tmp_path)

    result = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd="/", env=environment, capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 2
    assert "went on" not in result.stdout
    assert str(foreign) in result.stderr
    assert str(home / "agent" / "__init__.py") in result.stderr
    assert "Traceback" not in result.stderr


def test_a_package_that_is_missing_is_named():
    (line,) = foreign_packages([*PACKAGES, "no_such_package_here"])

    assert "no_such_package_here" in line
    assert line.endswith("found at nowhere")


def test_the_soft_limit_on_open_files_is_raised_to_the_hard_one():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1] if before[1] != resource.RLIM_INFINITY else 1_048_576
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))

        assert raise_open_file_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
        assert raise_open_file_limit() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_limit_that_cannot_be_raised_is_a_warning(monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("not permitted")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    assert raise_open_file_limit() == 256
    assert "could not be raised" in caplog.text


def test_no_limit_at_all_is_left_alone(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    assert raise_open_file_limit() == sys.maxsize
