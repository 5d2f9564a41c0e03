"""What streams must have in common to be mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.stream.loader import Stream
from schemas.errors import ConfigError, UsageError
from schemas.stream import StreamConfig, stream_config

_SHARED = (
    *("rank", "world_size", "device", "framework", "discount", "dtype"),
    *("output", "normalize", "statistics", "images"),
)


def joint_config(streams: Sequence[Stream], batch_size: int, seed: int) -> StreamConfig:
    """Returns the form and size of a mixture's batches.

    Raises:
        ConfigError: if there is no stream.
        UsageError: if streams differ in what batches have in common, or have runs of their own.
    """
    if not streams:
        raise ConfigError("Expected at least one stream to mix, came none.")
    first = streams[0].config
    for stream in streams:
        if stream.config.run is not None:
            raise UsageError(
                f"Expected streams that leave the run to the mixture, came one with run="
                f"{stream.config.run!r}; name the run of the mixture, Mixture(..., run=)."
            )
        for name in _SHARED:
            mine, came = getattr(first, name), getattr(stream.config, name)
            if mine != came:
                raise UsageError(
                    f"Expected streams with the same {name}, came {mine!r} and {came!r}."
                )
    return stream_config({**first.model_dump(), "batch_size": batch_size, "seed": seed})


def check_forms(drawn: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Refuses rows of several sources that differ in names, dtypes or shapes.

    Args:
        drawn: columns by flat name, one mapping per source.

    Raises:
        UsageError: naming the first field that differs.
    """
    forms = [{name: (a.dtype, a.shape[1:]) for name, a in found.items()} for found in drawn]
    for form in forms[1:]:
        differing = [n for n in sorted(forms[0] | form) if forms[0].get(n) != form.get(n)]
        differing.sort(key=lambda name: name.startswith("next_"))  # what fields= may name first
        if differing:
            name = differing[0]
            raise UsageError(
                f"Expected streams with equal fields, came {name!r} as "
                f"{_said(forms[0].get(name))} and {_said(form.get(name))}; choose common ones "
                f"with fields=."
            )


def _said(form: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if form is None else f"{form[0]}{list(form[1])}"
