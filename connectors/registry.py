"""Format names and the connectors behind them, loaded only when asked for.

Built-in formats are rows of `FORMATS`, lazy `"module:Class"` strings. Other packages add theirs
through the entry-point group `penstock.connectors`: the entry's name is the format's, its object a
class that has `discover` and `read`, or `losses` and `write`, or all four. A plug-in cannot take
the name of a built-in format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
NAMED = ("minari", "rlds", "lerobot")
"""Formats whose datasets have names."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
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
    is_live: bool = False
    """True where there is no file: `where` says what to run."""

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
            "lerobot",
            "LeRobot v3.0 and v2.1: Parquet, pictures and MP4 videos",
            "connectors.lerobot:LerobotSource",
            "connectors.lerobot_sink:LerobotSink",
        ),
        Format(
            "robomimic",
            "robomimic: demonstrations in one HDF5 file",
            "connectors.robomimic:RobomimicSource",
            "connectors.robomimic_sink:RobomimicSink",
        ),
        Format(
            "d3rlpy",
            "d3rlpy: replay buffers in one HDF5 file, versions 1 and 2.1",
            "connectors.d3rlpy:D3rlpySource",
            None,
        ),
        Format(
            "rllib",
            "RLlib: Parquet of steps, or of episodes in msgpack",
            "connectors.rllib:RllibSource",
            None,
            extra="rllib",
            package="msgpack",
        ),
        Format(
            "vd4rl",
            "V-D4RL: one npz file of pictures per episode",
            "connectors.vd4rl:Vd4rlSource",
            None,
        ),
        Format(
            "torchrl",
            "TorchRL: replay buffers in memory maps, as steps (TED) or flat",
            "connectors.torchrl:TorchrlSource",
            None,
        ),
        Format(
            "replay_zarr",
            "diffusion policy and UMI: replay buffers in Zarr, a folder or a zip",
            "connectors.replay_zarr:ReplayZarrSource",
            "connectors.replay_zarr_sink:ReplayZarrSink",
        ),
        Format(
            "parquet",
            "plain table of steps: Parquet, Arrow or Feather, one row per step",
            "connectors.parquet:ParquetSource",
            "connectors.parquet_sink:ParquetSink",
        ),
        Format(
            "ogbench",
            "OGBench: flat arrays in one npz file, no rewards",
            "connectors.ogbench:OgbenchSource",
            "connectors.ogbench_sink:OgbenchSink",
        ),
        Format(
            "gymnasium",
            "live environment under random actions: gymnasium:Hopper-v5?episodes=10&seed=0",
            "connectors.gymnasium:GymnasiumSource",
            None,
            extra="sim",
            package="gymnasium",
            is_live=True,
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
    """Returns the connector that reads a format, at local paths and at URLs.

    Raises:
        UnknownNameError: if there is no such format, naming the nearest.
        UsageError: if the format is not read.
        MissingExtraError: if it needs a package that is not installed.
    """
    from connectors.places import PlacedSource

    return PlacedSource(cast(Source, _connector(name, "source", _SOURCE_METHODS, "read")))


def sink(name: str) -> Sink:
    """Returns the connector that writes a format; errors as in `source`."""
    return cast(Sink, _connector(name, "sink", _SINK_METHODS, "written"))


def detect(where: str) -> str:
    """Returns the name of the format at a path or URL, by looking inside (`connectors.detection`).

    A URL is copied here for that, as reading it would.
    """
    from connectors import places
    from connectors.detection import detect as look_inside

    return places.on_copy(where, look_inside)


def expand(sources: Iterable[str], format: str | None = None) -> list[tuple[str, str]]:
    """Returns `(format, where)` of every dataset that some sources name, in their order.

    A source is a path, a URL or `format:where`; patterns with `*`, `?`, `[...]` and `**` stand for
    all paths or URLs that match, sorted; a folder that holds nothing but HDF5 files stands for
    them.

    Args:
        sources: what the user named.
        format: of all of them; by default each is looked into.

    Raises:
        NotFoundError: if nothing matches.
        SourceError: if one is of no known format.
    """
    named = [one for text in sources for one in datasets_in(text, format)]
    return [(identify(where, wanted), where) for wanted, where in named]


def datasets_in(text: str, format: str | None = None) -> list[tuple[str | None, str]]:
    """Returns `(format, where)` of what one source stands for, see `expand`; looks into none.

    Raises:
        NotFoundError: if nothing matches.
    """
    from connectors import patterns

    named, where = parse(text)
    wanted = format or named
    if _is_live(wanted):
        return [(wanted, where)]
    return [
        (wanted, one) for path in patterns.matching(where) for one in patterns.datasets_in(path)
    ]


def identify(where: str, format: str | None = None) -> str:
    """Returns the format of one dataset, after a first look in a process that can be killed.

    Raises:
        NotFoundError: if nothing is there and no format is given.
        SourceError: if it is of no known format, or makes its library hang.
    """
    from connectors import guard, places

    if format is None or not _is_live(format):
        places.on_copy(where, guard.check)
    return format or detect(where)


def _is_live(name: str | None) -> bool:
    return name is not None and name in FORMATS and FORMATS[name].is_live


def parse(text: str) -> tuple[str | None, str]:
    """Splits `format:where`; the format is None where only a path is given.

    The name of a dataset, `minari:hopper/medium-v0`, becomes its path in the folder of its format's
    own library (`connectors.named`). URLs and paths that exist as they stand are never split.

    Raises:
        UnknownNameError: if what stands before the colon is no format and the path does not exist.
    """
    match = _PREFIX.fullmatch(text)
    if match is None or Path(text).exists():
        return None, text
    name, where = match.groups()
    if name not in FORMATS and name not in _plugins():
        raise _unknown(name)
    if name in NAMED and not _URL.match(where):
        from connectors.named import locate

        return name, locate(name, where)
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
