"""A loop in the foreground ends when it is told to, whenever that is and whichever thread hears."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 200
BEGIN = """
import signal, sys, threading
from pipeline.jobs.schedule import repeat, stopped_by_signals
"""
MANY_ROUNDS = f"""
for _ in range({ROUNDS}):
    with stopped_by_signals() as stop:
        print("runs", flush=True)
        repeat(lambda: 0, float(sys.argv[1]), stop)
    print("ended", flush=True)
"""
ANOTHER_THREAD_HEARS = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with stopped_by_signals() as stop:
    print("runs", flush=True)
    repeat(lambda: 0, 3600.0, stop)
"""
TOLD_TWICE = """
def run():
    print("runs", flush=True)
    threading.Event().wait(3600)
try:
    with stopped_by_signals() as stop:
        repeat(run, 3600.0, stop)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of some lines; ended, if it has not."""
    command = [sys.executable, "-c", BEGIN + program, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("every", ["0", "0.0005", "3600"])
@pytest.mark.timeout(60)
def test_a_signal_at_any_moment_ends_the_loop(every: str) -> None:
    moments = random.Random(0)
    with running(MANY_ROUNDS, every) as process:
        for _ in range(ROUNDS):
            assert said(process) == "runs"
            time.sleep(moments.uniform(0, 0.002))
            process.send_signal(moments.choice([signal.SIGTERM, signal.SIGINT]))
            assert said(process) == "ended"
        assert process.wait(60) == 0


@pytest.mark.timeout(60)
def test_a_signal_that_another_thread_hears_ends_the_wait() -> None:
    with running(ANOTHER_THREAD_HEARS) as process:
        assert said(process) == "runs"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.timeout(60)
def test_a_second_signal_interrupts_a_run() -> None:
    with running(TOLD_TWICE) as process:
        assert said(process) == "runs"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert said(process) == "interrupted"
