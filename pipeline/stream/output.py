"""What batches go through last: transforms, and the form they are handed out in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.stream.arrays import NUMPY, Arrays
from pipeline.stream.source import OpenVersion
from pipeline.stream.transforms import Transforms
from schemas.errors import needs_extra
from schemas.stream import StreamConfig
from schemas.transforms import FieldStatistics


@dataclass(frozen=True)
class Output:
    """The last steps of a batch."""

    transforms: Transforms | None
    form: Callable[[Mapping[str, Any]], Any] | None
    """Makes what is handed out; None hands out the mapping."""

    @classmethod
    def of(cls, config: StreamConfig, opened: Sequence[OpenVersion]) -> Output:
        """Returns what settings ask for.

        Args:
            config: of the stream, or what the streams of a mixture share.
            opened: the versions that the first batch is drawn from.

        Raises:
            UnknownNameError, ConfigError: if transforms do not fit the fields.
            MissingExtraError: if a library is not installed.
        """
        is_changed = bool(config.normalize or config.images)
        transforms = Transforms.of(config, opened, _arrays(config)) if is_changed else None
        return cls(transforms, _form(config))

    @property
    def is_plain(self) -> bool:
        """True if batches stay as they are."""
        return self.transforms is None and self.form is None

    def __call__(self, batch: dict[str, Any], step: int) -> Any:
        """Returns a batch as it is handed out.

        Args:
            batch: nested, the rows of this rank.
            step: its number.
        """
        if self.transforms is not None:
            batch = self.transforms(batch, step)
        return batch if self.form is None else self.form(batch)

    def state(self) -> dict[str, Any]:
        """Returns what a state carries of transforms, as plain values."""
        return {} if self.transforms is None else self.transforms.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; errors are those of `Transforms.load`."""
        if self.transforms is not None:
            self.transforms.load(state)

    def known(self) -> dict[str, FieldStatistics]:
        """Returns the statistics that are known without reading."""
        return {} if self.transforms is None else self.transforms.known()

    def know(self, statistics: Mapping[str, FieldStatistics]) -> None:
        """Inverse of `known`."""
        if self.transforms is not None:
            self.transforms.know(statistics)

    def describe(self) -> str:
        """Says what is done to batches."""
        said = "" if self.transforms is None else self.transforms.describe()
        return said + " Batches are TensorDicts." * (self.form is not None)


def _arrays(config: StreamConfig) -> Arrays:
    if config.framework == "numpy":
        return NUMPY
    # The splitter has said before how to install torch, if it is not there.
    from pipeline.stream.torch_transforms import TORCH  # noqa: PLC0415 - an optional extra

    return TORCH


def _form(config: StreamConfig) -> Callable[[Mapping[str, Any]], Any] | None:
    if config.output == "dict":
        return None
    with needs_extra("tensordict", "tensordict"):
        from pipeline.stream import tensordicts  # noqa: PLC0415 - an optional extra
    return tensordicts.as_tensordict
