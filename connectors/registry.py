"""Format names and the connectors behind them, loaded only when asked for.

Built-in formats are rows of `FORMATS`, lazy `"module:Class"` strings. Other packages add theirs
through the entry-point group `penstock.connectors`: the entry's name is the format's, its object a
class that has `discover` and `read`, or `losses` and `write`, or all four. A plug-in cannot take
the name of a built-in format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from connectors.base import Sink, Source
from schemas.errors import UnknownNameError, UsageError, missing_extra, suggest

GROUP = "penstock.connectors"
_SOURCE_METHODS = ("discover", "read")
_SINK_METHODS = ("losses", "write")
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9_]+):(?!//)(.+)", re.DOTALL)
"""`format:where`; a single letter is a Windows drive, `scheme://` a URL."""


@dataclass(frozen=True)
class Format:
    """One format."""

    name: str
    about: str
    source: str | None
    """`module:Class` that reads it; None where it is not read."""
    sink: str | None
    """`module:Class` that writes it; None where it is not written."""
    extra: str | None = None
    """Extra of this distribution that it needs, beyond the base install."""
    package: str | None = None
    """Package that the extra brings."""

    @property
    def is_read(self) -> bool:
        """True if it can be ingested."""
        return self.source is not None

    @property
    def is_written(self) -> bool:
        """True if it can be exported to."""
        return self.sink is not None


FORMATS: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            "d4rl",
            "D4RL: flat arrays in one HDF5 file",
            "connectors.d4rl:D4rlSource",
            "connectors.d4rl_sink:D4rlSink",
        ),
        Format(
            "minari",
            "Minari: HDF5, Arrow and Parquet storage",
            "connectors.minari:MinariSource",
            "connectors.minari_sink:MinariSink",
        ),
        Format(
            "rlds",
            "RLDS and Open X-Embodiment: TFDS folders of ArrayRecord or TFRecord files",
            "connectors.rlds:RldsSource",
            "connectors.rlds_sink:RldsSink",
            extra="rlds",
            package="tensorflow_datasets",
        ),
        Format(
            "robomimic",
            "robomimic: demonstrations in one HDF5 file",
            "connectors.robomimic:RobomimicSource",
            None,
        ),
        Format(
            "gymnasium",
            "live environment under random actions: gymnasium:Hopper-v5?episodes=10&seed=0",
            "connectors.gymnasium:GymnasiumSource",
            None,
            extra="sim",
            package="gymnasium",
        ),
    )
}


def formats() -> dict[str, Format]:
    """Returns all formats by name, plug-ins included (these are loaded to see what they can do).

    A plug-in that does not load is listed as neither read nor written, with its error.
    """
    found = dict(FORMATS)
    for name, entry in _plugins().items():
        found[name] = _describe(entry)
    return found


def source(name: str) -> Source:
    """Returns the connector that reads a format.

    Raises:
        UnknownNameError: if there is no such format, naming the nearest.
        UsageError: if the format is not read.
        MissingExtraError: if it needs a package that is not installed.
    """
    return cast(Source, _connector(name, "source", _SOURCE_METHODS, "read"))


def sink(name: str) -> Sink:
    """Returns the connector that writes a format; errors as in `source`."""
    return cast(Sink, _connector(name, "sink", _SINK_METHODS, "written"))


def detect(where: str) -> str:
    """Returns the name of the format at a path, by looking inside (see `connectors.detection`)."""
    from connectors.detection import detect as look_inside

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", where):
        raise UsageError(
            f"Expected a local path, came the URL {where}; name its format, or copy it here first.",
            where=where,
        )
    return look_inside(where)


def parse(text: str) -> tuple[str | None, str]:
    """Splits `format:where`; the format is None where only a path is given.

    `minari:hopper/medium-v0` becomes the path of that dataset in Minari's own folder. URLs and
    paths that exist as they stand are never split.

    Raises:
        UnknownNameError: if what stands before the colon is no format and the path does not exist.
    """
    match = _PREFIX.fullmatch(text)
    if match is None or Path(text).exists():
        return None, text
    name, where = match.groups()
    if name not in FORMATS and name not in _plugins():
        raise _unknown(name)
    if name == "minari":
        from connectors.minari_layout import locate

        return name, locate(where)
    return name, where


def _connector(name: str, role: str, methods: tuple[str, ...], verb: str) -> object:
    plugins = {} if name in FORMATS else _plugins()
    if name not in FORMATS and name not in plugins:
        raise _unknown(name)
    if name in plugins:
        found = plugins[name].load()
    else:
        row = FORMATS[name]
        target = row.source if role == "source" else row.sink
        found = _load(row, target) if target else None
    if found is None or not all(hasattr(found, method) for method in methods):
        able = [n for n, row in formats().items() if (row.source if role == "source" else row.sink)]
        raise UsageError(
            f"Expected a format that can be {verb}, {name!r} cannot; these can: {', '.join(able)}.",
            where=name,
        )
    return found()


def _load(row: Format, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if row.extra and row.package and (error.name or "").split(".")[0] == row.package:
            raise missing_extra(row.extra, row.package) from error
        raise


def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP) if e.name not in FORMATS}


def _describe(entry: EntryPoint) -> Format:
    about = f"plug-in {entry.value}"
    try:
        found = entry.load()
    except Exception as error:  # whatever a stranger's import raises, the list must be shown
        return Format(entry.name, f"{about} does not load: {error}", None, None)
    is_read = all(hasattr(found, method) for method in _SOURCE_METHODS)
    is_written = all(hasattr(found, method) for method in _SINK_METHODS)
    return Format(
        entry.name, about, entry.value if is_read else None, entry.value if is_written else None
    )


def _unknown(name: str) -> UnknownNameError:
    known = [*FORMATS, *_plugins()]
    return UnknownNameError(
        f"Expected the name of a format, came {name!r}; {suggest(name, known)}", where=name
    )
