"""Progress bars on stderr, where a person watches; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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
def stages_bar(
    title: str, total: int, *, quiet: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Shows one bar per stage; yields what to call with a stage, the count done and the total."""
    if quiet or not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        tasks = {title: bar.add_task(title, total=total)}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance
