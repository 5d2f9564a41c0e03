"""Job files: an ingestion as YAML, checked key by key, with the line of whatever is wrong.

A file is read as plain data: the safe loader, at most a megabyte, at most ten thousand values once
its aliases are written out (a few lines of them can stand for gigabytes), no environment variables
put in. Relative paths in it are relative to it, so a job means the same from wherever it is
started; what the command line says holds against what the file says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from schemas.document import Document, keys_at
from schemas.errors import ConfigError, NotFoundError, UsageError, suggest
from schemas.gate import Gate
from schemas.jobs import JobFile

_Document = TypeVar("_Document", bound=Document)

MAX_BYTES = 2**20
MAX_VALUES = 10_000
SUFFIXES = (".yaml", ".yml")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_]+):(?!//)(.+)", re.DOTALL)


def job_of(sources: Sequence[str], flags: Mapping[str, Any]) -> JobFile:
    """Returns the job that a command line asks for.

    Args:
        sources: its positional arguments: sources, or one job file.
        flags: its options by the names of `JobFile`'s fields; those not given left out.

    Raises:
        NotFoundError: if a named file is not there.
        ConfigError: if a job or gate file does not validate; names the line.
        UsageError: if the command line itself does not.
    """
    given = dict(flags)
    if isinstance(given.get("gate"), str):
        given["gate"] = read_gate(Path(given["gate"]))
    if not is_job_file(sources):
        if "into" not in given:
            raise UsageError(
                "Expected --into STORE, came none; `penstock ingest --help` says more."
            )
        return _checked_flags({**given, "sources": tuple(sources)})
    file = Path(sources[0])
    node, stated = _read(file)
    for name in given.keys() & stated.keys():
        del stated[name]  # whatever it says there does not hold
    stated = {name: _resolve(name, value, file.parent) for name, value in stated.items()}
    if isinstance(stated.get("gate"), str):
        stated["gate"] = read_gate(Path(stated["gate"]))
    if given:
        _checked_flags({"sources": ("-",), "into": "-", **_engine_of(stated), **given})
    return _checked(JobFile, {**stated, **given}, file, node)


def is_job_file(sources: Sequence[str]) -> bool:
    """True if the arguments are one job file."""
    return len(sources) == 1 and sources[0].lower().endswith(SUFFIXES)


def read_gate(file: Path) -> Gate:
    """Returns the gate that a file states.

    Raises:
        NotFoundError: if it is not there.
        ConfigError: if it does not validate; names the line.
    """
    node, stated = _read(file)
    return _checked(Gate, stated, file, node)


# -- reading -------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """Returns a YAML file's mapping, and the node that knows its lines."""
    if not file.is_file():
        raise NotFoundError(f"Expected a YAML file at {file}, came none.", where=str(file))
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"Expected at most {MAX_BYTES:,} bytes of YAML.", where=str(file))
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        _check_nodes(node, file)
        loaded = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _wrong(file, mark.line + 1 if mark else 1, f"no YAML: {problem}") from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(loaded, dict):
        raise _wrong(file, 1, "expected keys with values")
    return node, loaded


def _check_nodes(node: yaml.Node | None, file: Path) -> None:
    """Refuses too many values, and keys that are there twice: YAML lets the last one win."""
    waiting = [node]
    values = 0
    while waiting:
        at = waiting.pop()
        values += 1
        if values > MAX_VALUES:
            raise _wrong(file, 1, f"expected at most {MAX_VALUES:,} values, aliases written out")
        if isinstance(at, yaml.SequenceNode):
            waiting += at.value
        elif isinstance(at, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in at.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _wrong(file, key.start_mark.line + 1, "expected a plain key")
                if key.value in seen:
                    raise _wrong(file, key.start_mark.line + 1, f"{key.value!r} is there twice")
                seen.add(key.value)
                waiting.append(value)


# -- checking ------------------------------------------------------------------------------------


def _checked(
    document: type[_Document], stated: Mapping[str, Any], file: Path, node: yaml.MappingNode
) -> _Document:
    try:
        return document.model_validate(dict(stated))
    except ValidationError as error:
        first = error.errors()[0]
        raise _wrong(file, _line(node, first["loc"]), _says(document, first)) from None


def _checked_flags(given: Mapping[str, Any]) -> JobFile:
    try:
        return JobFile.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "these options"
        raise UsageError(f"{flag}: {_says(JobFile, first)}.") from None


def _says(document: type[Document], error: Any) -> str:
    """Returns one of pydantic's errors as a sentence."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = keys_at(document, error["loc"][:-1])
        return f"unknown key {path!r}; {suggest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"expected the key {path!r}, came none"
    message = str(error["msg"]).removeprefix("Value error, ")
    came = error.get("input")
    shown = f", came {came!r}" if isinstance(came, str | int | float | bool) else ""
    return f"{path + ': ' if path else ''}{message[:1].lower()}{message[1:]}{shown}"


def _line(node: yaml.MappingNode, path: Sequence[str | int]) -> int:
    """Returns the line of the innermost part of a path that the file states."""
    at: yaml.Node = node
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(at, yaml.MappingNode):
            pairs = [(key, value) for key, value in at.value if key.value == str(part)]
            if not pairs:
                break
            line, at = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(at, yaml.SequenceNode) and isinstance(part, int):
            at = at.value[part]
            line = at.start_mark.line + 1
    return line


def _wrong(file: Path, line: int, says: str) -> ConfigError:
    stop = "" if says.endswith("?") else "."
    return ConfigError(f"{file}, line {line}: {says}{stop}", where=str(file))


# -- paths ---------------------------------------------------------------------------------------


def _engine_of(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags are checked together with."""
    return {name: stated[name] for name in ("engine", "dask", "runner") if name in stated}


def _resolve(name: str, value: Any, folder: Path) -> Any:
    """Returns a value with its relative paths put below the job file's folder."""
    if name == "sources" and isinstance(value, str):
        value = [value]
    if name == "sources" and isinstance(value, list):
        return [_source(one, folder) if isinstance(one, str) else one for one in value]
    if name in ("into", "gate", "metrics_file") and isinstance(value, str):
        return _path(value, folder)
    return value


def _source(value: str, folder: Path) -> str:
    if (folder / value).exists():
        return _path(value, folder)
    match = _NAMED.fullmatch(value)
    if match is None:
        return _path(value, folder)
    name, where = match.groups()
    # What is not there as a path may be a dataset by name, such as `minari:hopper/medium-v0`.
    is_path = where.startswith(("./", "../")) or (folder / where).exists()
    return f"{name}:{_path(where, folder)}" if is_path else value


def _path(value: str, folder: Path) -> str:
    if _URL.match(value):
        return value
    return os.path.normpath(folder / Path(value).expanduser())
