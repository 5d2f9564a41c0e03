"""Penstock: carries experience to learners.

The front door of the library: `open_store`, `Stream`, `Mixture`, `Episode`, `RolloutClient`,
loaded when first asked for. `python -m penstock` is the command line.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.stream.ranks import stream_ranks

__version__ = "0.1.0"
__all__ = [
    *("Episode", "Mixture", "RolloutClient", "Stream", "__version__", "open_store"),
    "stream_ranks",
]

_HOMES = {
    "Episode": "schemas.episode",
    "Mixture": "pipeline.stream.mixture",
    "RolloutClient": "pipeline.service.client.client",
    "Stream": "pipeline.stream.loader",
    "open_store": "pipeline.store.store",
    "stream_ranks": "pipeline.stream.ranks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    check_not_shadowed()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def check_not_shadowed() -> None:
    """Raises if a module of the user's hides one of ours.

    A `pipeline.py` in the working folder would be imported in place of our package and fail in
    ways that name neither.
    """
    home = Path(__file__).resolve().parent
    for package in ("schemas", "connectors", "pipeline", "learners"):
        found = importlib.util.find_spec(package)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin is not None and origin.parent.parent != home:
            raise ImportError(
                f"Expected Penstock's own package {package!r} in {home}, came {origin}: rename "
                f"that file or start Python elsewhere."
            )


def _main() -> None:
    check_not_shadowed()
    from pipeline.cli.main import run

    run()


if __name__ == "__main__":
    _main()
