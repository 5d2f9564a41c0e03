"""Progress bars on stderr, where a person watches; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def steps_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Shows episodes and steps as they are done; yields what to call, or None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[episodes]:,} episodes  {task.completed:,.0f} steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, episodes=0)
        done = 0

        def advance(episodes: int, steps: int) -> None:
            nonlocal done
            done += episodes
            bar.update(task, advance=steps, episodes=done)

        yield advance


@contextmanager
def count_bar(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Shows a count that runs to a known total; yields what to call with the count done."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def learning_bar(
    title: str, total: int, *, quiet: bool = False
) -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """Shows one bar per stage with its step, rate and newest losses.

    Yields what to call with a stage, the count done, the total and the losses.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _stage, _done, _total, _values: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[newest]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {title: bar.add_task(title, total=total, rate="", newest="")}

        def advance(stage: str, done: int, total: int, values: Mapping[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, rate="", newest="")
            bar.update(tasks[stage], completed=done, total=total, newest=newest(values))
            speed = bar.tasks[tasks[stage]].speed
            bar.update(tasks[stage], rate=f"{speed:,.0f}/s" if speed else "")

        yield advance


def newest(values: Mapping[str, float], most: int = 4) -> str:
    """Returns the newest values as a person reads them at a glance; losses first."""
    names = sorted(values, key=lambda name: "loss" not in name)
    return "  ".join(f"{name} {values[name]:.3g}" for name in names[:most])
