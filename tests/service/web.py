"""A store that is worth looking at, behind a control port, for tests of pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.jobs.measure import measure_version
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.metrics import MeasureConfig
from tests.service.ports import Port, service_in

METRICS = ("integrity", "idle_fraction", "action_divergence", "transition_diversity", "smoothness")
HOSTILE = "<script>alert('x')</script>\"'/../%00 \N{RIGHT-TO-LEFT OVERRIDE}gro"
"""An id that would do harm if a page took it at its word."""


def seen(name: str, number: int, **changes: Any) -> Episode:
    """An episode with pictures, whose return and length tell successes from failures."""
    random = np.random.default_rng(number)
    length = 20 + number % 30
    is_good = number % 3 != 0
    path = np.cumsum(random.normal(size=(length + 1, 3)), axis=0).astype(np.float32)
    pictures = np.zeros((length + 1, 24, 32, 3), np.uint8)
    for step in range(length + 1):
        column = step * 31 // length
        pictures[step, :, : column + 1] = (40 + number % 200, 120, 200)
    told: dict[str, Any] = {
        "observations": {"state": path, "camera": pictures},
        "actions": (np.diff(path, axis=0)[:, :2] + random.normal(size=(length, 2)) * 0.1).astype(
            np.float32
        ),
        "rewards": random.normal(loc=0.5 if is_good else -0.2, size=length).astype(np.float32),
        "terminated": True,
        "success": is_good,
        "task": ("push", "reach")[number % 2],
        "kind": ("demonstration", "rollout")[number % 4 == 0],
    }
    return Episode(name, **{**told, **changes})


def filled(store: Store, count: int = 40) -> None:
    """Gives a store's main branch some episodes, a hostile one among them, and their scores."""
    store.append([seen(f"seen-{number:03d}", number) for number in range(count)], "some to see")
    store.append(
        [seen(HOSTILE, 7, task="<img src=x onerror=alert(1)>", policy=HOSTILE)],
        "<b>hostile</b> & 'quoted'",
    )
    store.append([seen("seen-000", 1)], "one that is refused: its id is taken")
    measure_version(store, "main", MeasureConfig(metrics=METRICS))


@contextlib.contextmanager
def pages_in(folder: Path, **settings: Any) -> Iterator[Port]:
    """A control port over such a store."""
    filled(open_store(folder / "store", create=True))
    with service_in(folder, is_filled=False, **settings) as port:
        yield port


class Parsed(HTMLParser):
    """What a page holds, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]

    def links(self) -> list[str]:
        return [one["href"] or "" for one in self.all("a") if "href" in one]
