"""What a stream is asked for: one frozen document, checked before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from schemas.document import Document
from schemas.errors import ConfigError

Residency = Literal["auto", "mmap", "ram"]
Framework = Literal["torch", "numpy"]
Precision = Literal["float16", "float32", "float64", "keep"]


class StreamConfig(Document):
    """Everything that decides which batches a stream yields, and in what form."""

    sampler: str = "transition"
    """Name in the registry of samplers."""
    batch_size: int = Field(default=256, ge=1)
    """Rows of the global batch; a rank yields its share."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Order of the samples."""
    rank: int = Field(default=0, ge=0)
    """Which share of each global batch this stream yields."""
    world_size: int = Field(default=1, ge=1)
    """How many shares there are."""
    device: str = "cpu"
    """Where tensors end up."""
    residency: Residency = "auto"
    """Where rows are read from: the memory-mapped cache, or a copy of it in memory."""
    framework: Framework = "torch"
    """What batches are made of."""
    fields: tuple[str, ...] | None = None
    """Full field names; None takes all of the spec. Extras come only where named."""
    spec: str | None = None
    """Which spec of the version; needed only where it holds several."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Gamma: `discounts` is gamma, or 0 after a terminated step."""
    dtype: Precision = "float32"
    """What floating-point fields are cast to; integers and booleans stay as they are."""
    episode_ids: bool = False
    """Whether batches name the episode of each row."""
    cache_dir: str | None = None
    """Folder of the packed cache; by default `$PENSTOCK_CACHE`, else `~/.cache/penstock`."""
    verify: bool = True
    """Whether cached blocks are compared with their checksums when they are opened."""

    @model_validator(mode="after")
    def _fits(self) -> StreamConfig:
        if self.rank >= self.world_size:
            raise ValueError(f"rank {self.rank} is not below world_size {self.world_size}")
        if self.batch_size < self.world_size:
            raise ValueError(
                f"a batch of {self.batch_size} rows has none for some of {self.world_size} ranks"
            )
        if self.framework == "numpy" and self.device != "cpu":
            raise ValueError(f"NumPy arrays live on 'cpu', not on {self.device!r}")
        return self


def stream_config(settings: Mapping[str, Any]) -> StreamConfig:
    """Returns the checked settings of a stream.

    Raises:
        ConfigError: naming the first setting that does not fit.
    """
    try:
        return StreamConfig.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "stream"
        raise ConfigError(
            f"Expected valid stream settings, came {name}: {first['msg']}; "
            f"known settings: {', '.join(StreamConfig.model_fields)}.",
            where=name,
        ) from error
