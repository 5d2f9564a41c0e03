"""Actions as integers, from coarse to fine: what `cqn` and `arsq` choose among.

The range of each dim is cut into B parts, the part chosen into B again, and so on for L levels: B^L
equal cells, of which the base-B digits of a cell's number are the choices, coarsest first. Numbers
are exact integers; only where a cell begins is a float, and the same one on either way. Discrete
actions 0 to n - 1 are one level of n bins between -1/2 and n - 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.errors import ConfigError

MOST_CELLS = 1 << 20
"""Of one dim; actions that are stored as float32 still find their cell again."""


@dataclass(frozen=True)
class Codec:
    """Cells of D dims.

    Actions beyond the range belong to the cells at its ends.

    Raises:
        ConfigError: if there are too many cells, or a range is empty.
    """

    levels: int
    bins: int
    low: Tensor  # (D,) float64, in the units of the actions
    high: Tensor  # (D,) float64

    def __post_init__(self) -> None:
        if self.cells > MOST_CELLS:
            raise ConfigError(
                f"Expected at most {MOST_CELLS} cells of a dim, came {self.bins} bins at "
                f"{self.levels} levels, which are {self.cells}."
            )
        if not bool((self.low < self.high).all()):
            raise ConfigError(
                f"Expected ranges of actions that end above where they begin, came "
                f"{self.low.tolist()} to {self.high.tolist()}."
            )

    @property
    def cells(self) -> int:
        """B^L, the number of cells of a dim."""
        return int(self.bins**self.levels)

    @property
    def dims(self) -> int:
        """D."""
        return len(self.low)

    def begins(self, cells: Tensor) -> Tensor:
        """Returns where cells (..., D) begin, float64; number B^L begins where the last ends."""
        return self.low + (self.high - self.low) * (cells.double() / self.cells)

    def cell(self, actions: Tensor) -> Tensor:
        """Returns the cells that hold actions: begins(n) <= a < begins(n + 1).

        Args:
            actions: (..., D), any float dtype.

        Returns:
            (..., D) int64 from 0 to B^L - 1.
        """
        given = actions.double()
        share = (given - self.low) / (self.high - self.low)
        found = (share * self.cells).floor().clamp(0, self.cells - 1).long()
        # Near where a cell begins, the quotient may be a rounding off.
        found = found - (given < self.begins(found)).long()
        found = found + (given >= self.begins(found + 1)).long()
        return found.clamp(0, self.cells - 1)

    def centre(self, cells: Tensor) -> Tensor:
        """Returns the actions in the middle of cells, (..., D) float32."""
        return (self.low + (self.high - self.low) * ((cells.double() + 0.5) / self.cells)).float()

    def encode(self, actions: Tensor) -> Tensor:
        """Returns the choices that lead to actions, (..., D) to (..., L, D) int64 below B."""
        return self.choices(self.cell(actions))

    def decode(self, choices: Tensor) -> Tensor:
        """Returns the actions that choices lead to, (..., L, D) to (..., D) float32."""
        return self.centre(self.joined(choices))

    def choices(self, cells: Tensor) -> Tensor:
        """Returns the base-B digits of cells, (..., D) to (..., L, D), coarsest first."""
        digits = [
            cells // self.bins ** (self.levels - level - 1) % self.bins
            for level in range(self.levels)
        ]
        return torch.stack(digits, dim=-2)

    def joined(self, choices: Tensor) -> Tensor:
        """Inverse of `choices`."""
        cells = choices[..., 0, :]
        for level in range(1, self.levels):
            cells = cells * self.bins + choices[..., level, :]
        return cells

    def midpoints(self, cells: Tensor) -> Tensor:
        """Returns what is known of actions before each level, and after the last.

        Args:
            cells: (..., D).

        Returns:
            (..., L + 1, D) float32: the middle of the part chosen so far, as `middle` has it.
        """
        known = [
            middle(cells // self.bins ** (self.levels - level), self.bins**level)
            for level in range(self.levels + 1)
        ]
        return torch.stack(known, dim=-2)


def middle(numbers: Tensor, parts: int) -> Tensor:
    """Returns the middle of one of so many equal parts of the range from -1 to 1, float32."""
    return ((2 * numbers + 1).double() / parts - 1.0).float()
