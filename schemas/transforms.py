"""What is done to the fields of a batch once it is drawn: scaled numbers, cut pictures.

Checked documents only; `pipeline.stream.transforms` does what they say.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.document import Document

Scaling = Literal["standard", "range"]
"""To mean 0 and standard deviation 1, or from smallest and largest value to [-1, 1]."""
ImageLayout = Literal["hwc", "chw"]
Size = tuple[int, int]
"""Height and width in pixels."""

MOST_PIXELS = 16_384
"""Along one side."""


class ImageTransform(Document):
    """What is done to an image field, in the order in which it stands here."""

    layout: ImageLayout = "hwc"
    """Order of the axes as they are stored; a field of two axes is height and width."""
    resize: Size | None = None
    """To this size, by a triangle filter that averages what shrinks; pixels become floats."""
    crop: Size | None = None
    """To this size."""
    crop_at: Literal["center", "random"] = "center"
    """Where: in the middle, or at a place drawn for each row."""
    shift: int = Field(default=0, ge=0, le=MOST_PIXELS)
    """Pixels by which each row is moved at most along both axes, the edge repeated (DrQ)."""
    scale: bool = False
    """Whether integers become floats in [0, 1]."""
    to_layout: ImageLayout | None = None
    """Order of the axes in batches; None leaves it as it is stored."""

    @property
    def is_random(self) -> bool:
        """True if rows are cut or moved at random."""
        return self.shift > 0 or (self.crop is not None and self.crop_at == "random")

    @model_validator(mode="after")
    def _fits(self) -> ImageTransform:
        for name in ("resize", "crop"):
            for side in getattr(self, name) or ():
                if not 1 <= side <= MOST_PIXELS:
                    raise ValueError(f"{name} to {side} pixels")
        if self.crop_at == "random" and self.crop is None:
            raise ValueError("crop_at='random' needs crop=(HEIGHT, WIDTH)")
        if self.shift and self.crop_at == "random":
            raise ValueError("a random crop moves rows already; leave out shift= or crop_at=")
        return self


class FieldStatistics(Document):
    """Statistics of a field's real entries in one version, as `penstock stats` shows them."""

    version: str | None = None
    """Id of the version that they are of; of several, joined by `+`."""
    count: int = Field(ge=1)
    """Rows."""
    mean: tuple[float, ...]
    """One number per value of a row, or one for all of a row of more than 64."""
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @model_validator(mode="after")
    def _aligned(self) -> FieldStatistics:
        sizes = {len(part) for part in (self.mean, self.std, self.min, self.max)}
        if len(sizes) != 1:
            raise ValueError("mean, std, min and max of different lengths")
        return self
