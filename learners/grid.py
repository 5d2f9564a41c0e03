"""What the learners that choose actions from coarse to fine share: settings, cells, rows marked.

Rows of demonstrations are marked by the stream (`is_demonstration`), by the source that a row was
drawn from: all offline sources are demonstrations, or the first few; rollouts are none, unless
those that succeeded join them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from learners.base import Batch, Learner
from learners.codec import MOST_CELLS, Codec
from learners.normaliser import Normaliser
from learners.pixels import PixelLearner, PixelSettings
from learners.settings import StreamNeeds
from schemas.errors import ConfigError

WIDEST = 1 << 24
"""Parameters of the last layer, for each dim: a policy's file must not ask for any memory."""
NARROW = 1e-3
"""Half the range of a dim in which the data never move, or that part of where they are."""

Numbers = float | tuple[float, ...]


class GridSettings(PixelSettings):
    """Hyperparameters that all of them have."""

    levels: int = Field(default=3, ge=1, le=16)
    """How often a part of the range of actions is cut again; once where actions are discrete."""
    bins: int = Field(default=5, ge=2, le=4096)
    """Parts of each cut; as many as there are actions where they are discrete."""
    action_low: Numbers | None = None
    """Where the range of actions begins, in their units, for all dims or each; None: the data's."""
    action_high: Numbers | None = None
    """Where it ends."""
    demonstrations: int | None = Field(default=None, ge=1)
    """How many of the sources of data are demonstrations, the first ones; None: all of them."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added."""

    @model_validator(mode="after")
    def _cells_can_be_told_apart(self) -> GridSettings:
        if self.bins**self.levels > MOST_CELLS:
            raise ValueError(f"{self.bins}^{self.levels} cells are more than {MOST_CELLS}")
        if self.last_layer > WIDEST:
            raise ValueError(f"a last layer of {self.last_layer} numbers per dim is too large")
        return self

    @property
    def last_layer(self) -> int:
        """Parameters of the last layer for each dim."""
        return self.bins * self.levels


class GridLearner(PixelLearner):
    """A learner whose actions are cells of a `Codec`."""

    settings: GridSettings

    @classmethod
    def for_actions(cls, _normaliser: Normaliser) -> type[Learner]:
        """Returns this class: it learns actions of either kind."""
        return cls

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Says which sources are demonstrations, and how pictures come."""
        named = {"demonstrations": settings.demonstrations}
        return super().needs(settings).model_copy(update=named)

    def build(self, states: int, actions: int) -> None:
        """Makes the cells, the encoder of pictures and the networks."""
        self.codec = codec_of(self.settings, self.normaliser, self.scaler.device)
        self.make(self.add_encoder(states))

    @abstractmethod
    def make(self, features: int) -> None:
        """Makes networks and optimisers for observations of so many numbers."""

    def rates(self, **rates: float) -> dict[str, float]:
        """Returns the rates of networks by name, with that of the first for the encoder, too."""
        return rates if self.encoder is None else {**rates, "encoder": next(iter(rates.values()))}

    @property
    def is_discrete(self) -> bool:
        """Whether actions are integers."""
        return self.normaliser.choices is not None

    def cells(self, actions: Tensor) -> Tensor:
        """Returns the cells of actions on the unit box, (K, B, A) to (K, B, D) int64.

        Of discrete actions they are the actions themselves.
        """
        if self.is_discrete:
            return actions.argmax(dim=-1, keepdim=True)
        return self.codec.cell(actions)

    def rewards(self, rewards: Tensor) -> Tensor:
        """Returns rewards as they are learned from."""
        return rewards * self.settings.reward_scale + self.settings.reward_shift

    def demonstrated(self, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns 1 where a row counts and is of a demonstration, (K, B), and their weight (K,).

        A stream of one source does not say so: all of it is. Means over those rows of each of
        several processes, times its weight, are to the losses of all rows what they would be in
        one.
        """
        flags = batch.get("is_demonstration")
        if flags is None:
            flags = torch.ones_like(batch["mask"])
        found = mask * self.agents.split(torch.as_tensor(flags).to(mask))
        count, ranks = found.sum(dim=-1), self.agents.ranks
        if ranks.size == 1:
            return found, (count > 0).to(found)
        of_all = ranks.weight(mask.sum(dim=-1)).clamp(min=1e-6)  # by which descents weigh losses
        return found, ranks.weight(count) / of_all


def codec_of(settings: GridSettings, normaliser: Normaliser, device: str) -> Codec:
    """Returns the cells of a learner's actions, on the unit box of its normaliser.

    Raises:
        ConfigError: if the range that was set is none.
    """
    if normaliser.choices is not None:
        low = torch.tensor([-0.5], dtype=torch.float64, device=device)
        return Codec(1, normaliser.choices, low, low + normaliser.choices)
    begin = _one_each(settings.action_low, normaliser.action_low, "action_low")
    end = _one_each(settings.action_high, normaliser.action_high, "action_high")
    is_free = settings.action_low is None and settings.action_high is None
    half = np.where((begin == end) & is_free, NARROW * np.maximum(np.abs(begin), 1.0), 0.0)
    scale = normaliser.action_scale.astype(np.float64)
    middle = 0.0 if normaliser.action_centre is None else normaliser.action_centre
    low, high = (
        torch.as_tensor((one - middle) / scale, device=device) for one in (begin - half, end + half)
    )
    return Codec(settings.levels, settings.bins, low, high)


def _one_each(given: Numbers | None, of_data: np.ndarray, name: str) -> np.ndarray:
    """One number per dim, float64."""
    found = of_data.astype(np.float64)
    if given is None:
        return found
    asked = np.atleast_1d(np.asarray(given, np.float64))
    if len(asked) not in (1, len(found)):
        raise ConfigError(
            f"Expected {name} as one number, or one for each of {len(found)} dims, came {given}.",
            where=name,
        )
    return np.broadcast_to(asked, found.shape)
