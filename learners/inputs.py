"""Batches as the tensors that networks take: fields joined, scaled, on the right device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.normaliser import Normaliser, Picture
from schemas.errors import SpecMismatchError, suggest
from schemas.nesting import escape

STEPWISE = (
    *("observations", "actions", "rewards", "next_observations"),
    *("terminated", "truncated", "discounts", "mask"),
    *("returns_to_go", "steps_to_go", "timesteps"),
)
"""Keys of batches that have an axis of steps where there are windows."""


class Scaler:
    """A normaliser's numbers on one device.

    Args:
        normaliser: the frozen numbers.
        device: where batches come from and networks live.
    """

    def __init__(self, normaliser: Normaliser, device: str) -> None:
        self.fields, self.choices = normaliser.fields, normaliser.choices
        self.is_plain = normaliser.is_plain
        self.device = device
        self.mean = torch.as_tensor(normaliser.mean, device=device)
        self.scale = torch.as_tensor(normaliser.scale, device=device)
        self.action_scale = torch.as_tensor(normaliser.action_scale, device=device)
        centre = normaliser.action_centre
        self.action_centre = None if centre is None else torch.as_tensor(centre, device=device)
        self.is_unit = centre is None and bool((normaliser.action_scale == 1).all())

    def states(self, observations: Any) -> Tensor:
        """Returns what networks see of observations, (B, O) float32."""
        joined = join(observations, self.fields).to(self.device)
        if joined.shape[1] != len(self.mean):
            raise SpecMismatchError(
                f"Expected observations of {len(self.mean)} numbers, came {joined.shape[1]}; "
                f"the learner was trained on other fields."
            )
        return joined if self.is_plain else (joined - self.mean) / self.scale

    def to_unit(self, actions: Any) -> Tensor:
        """Returns recorded actions on the unit box, (B, A) float32; discrete ones as 0 and 1."""
        recorded = join_actions(actions).to(self.device)
        if self.choices is not None:
            return one_hot(recorded, self.choices)
        if self.is_unit:
            return recorded
        if self.action_centre is not None:
            recorded = recorded - self.action_centre
        return recorded / self.action_scale

    def from_unit(self, actions: Tensor) -> Tensor:
        """Inverse of `to_unit`; of scores (B, n) of discrete actions the best, (B,) int64."""
        if self.choices is not None:
            return actions.argmax(dim=-1)
        scaled = self.spread(actions)
        return scaled if self.action_centre is None else scaled + self.action_centre

    def spread(self, widths: Tensor) -> Tensor:
        """Returns widths on the unit box, of noise say, in the environment's units."""
        return widths if self.is_unit else widths * self.action_scale


def one_hot(actions: Tensor, choices: int) -> Tensor:
    """Returns discrete actions (B, 1) as (B, n) float32, 1 where it is that action."""
    return (actions == torch.arange(choices, device=actions.device)).to(torch.float32)


def sampled(scores: Tensor, noise: Any) -> Tensor:
    """Draws discrete actions from softmax(scores), for standard normal numbers.

    Each number is the quantile of a Gumbel variable, and the largest sum of score and variable is
    drawn with that probability. Where all numbers are 0 it is the best score.

    Args:
        scores: (B, n).
        noise: (B, n), or more numbers than there are scores.

    Returns:
        (B,) int64 on the CPU.

    Raises:
        SpecMismatchError: if there are fewer numbers than scores.
    """
    choices = scores.shape[-1]
    drawn = torch.as_tensor(noise, dtype=torch.float64)[:, :choices]
    if drawn.shape[-1] < choices:
        raise SpecMismatchError(
            f"Expected an environment with {choices} actions as the data have, came one with "
            f"{drawn.shape[-1]}."
        )
    quantiles = torch.special.ndtr(drawn).clamp(1e-12, 1 - 1e-12)
    return (scores.cpu().double() - torch.log(-torch.log(quantiles))).argmax(dim=-1)


def named_pictures(observations: Any, pictures: Sequence[Picture]) -> list[Tensor]:
    """Returns the pictures of a batch, as they are stored: uint8, each (B, ..., *shape).

    Args:
        observations: nested like the space.
        pictures: the fields.

    Raises:
        SpecMismatchError: if a field is not there, or of another shape or dtype.
    """
    named = _as_fields(observations, [picture.name for picture in pictures], _is_picture)
    found = []
    for picture in pictures:
        given = None if picture.name not in named else torch.as_tensor(named[picture.name])
        is_it = given is not None and given.dtype == torch.uint8
        if given is None or not is_it or given.shape[-len(picture.shape) :] != picture.shape:
            came = "none" if given is None else f"{given.dtype} {list(given.shape[1:])}"
            raise SpecMismatchError(
                f"Expected uint8 pictures of {list(picture.shape)} in {picture.name}, came {came}; "
                f"the learner was trained on other fields."
            )
        found.append(given)
    return found


def join(observations: Any, fields: Sequence[str]) -> Tensor:
    """Joins the named fields of a batch into one (B, O) float32 tensor.

    Args:
        observations: a tensor or array (B, ...), or a nested mapping or tuple of such.
        fields: full names, as in `Normaliser.fields`.

    Raises:
        SpecMismatchError: if a field is not there.
    """
    named = _as_fields(observations, fields, _is_float)
    missing = [name for name in fields if name not in named]
    if missing:
        raise SpecMismatchError(
            f"Expected the observation fields {', '.join(fields)}, "
            f"came {', '.join(named) or 'none'}; the learner was trained on other fields "
            f"({missing[0]}: {suggest(missing[0], named)})."
        )
    parts = [_flat(named[name]) for name in fields]
    if not parts:  # all that is seen is pictures
        return torch.zeros(len(next(iter(named.values()))), 0)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def join_actions(actions: Any) -> Tensor:
    """Returns a batch's actions as (B, A) float32.

    Raises:
        SpecMismatchError: if actions are nested; these learners act through one array.
    """
    if isinstance(actions, Mapping | tuple) or actions is None:
        raise SpecMismatchError("Expected actions as one array, came nested or absent actions.")
    return _flat(actions)


def at_step(batch: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Returns one step of the fields of windows, (B, T, ...) to (B, ...)."""
    return {name: _at_step(batch[name], step) for name in STEPWISE if name in batch}


def float_fields(observations: Any) -> tuple[str, ...]:
    """Returns the sorted full names of a batch's float fields: what a learner takes in.

    Raises:
        SpecMismatchError: if there is none.
    """
    named = _named("observations", observations)
    found = tuple(sorted(name for name, array in named.items() if _is_float(array)))
    if not found:
        raise SpecMismatchError(
            f"Expected at least one float observation field, came {', '.join(named) or 'none'}."
        )
    return found


def _named(root: str, value: Any) -> dict[str, Any]:
    """Full names of the leaves of nested mappings and tuples of tensors or arrays."""
    if isinstance(value, Mapping):
        parts = [(escape(str(key)), child) for key, child in value.items()]
    elif isinstance(value, tuple):
        parts = [(str(index), child) for index, child in enumerate(value)]
    else:
        return {root: value}
    leaves: dict[str, Any] = {}
    for part, child in parts:
        leaves.update(_named(f"{root}/{part}", child))
    return leaves


def _as_fields(
    observations: Any, fields: Sequence[str], is_kind: Callable[[Any], bool]
) -> dict[str, Any]:
    """The leaves of observations by full name; an unnamed one has that of the only field.

    Formats name a single array in ways of their own; its size is checked later.
    """
    named = _named("observations", observations)
    is_unnamed = set(named) == {"observations"} and len(fields) == 1
    if is_unnamed and is_kind(named["observations"]):
        return {fields[0]: named["observations"]}
    return named


def _at_step(value: Any, step: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _at_step(child, step) for name, child in value.items()}
    if isinstance(value, tuple):
        return tuple(_at_step(child, step) for child in value)
    return value[:, step]


def _is_float(array: Any) -> bool:
    if isinstance(array, Tensor):
        return array.is_floating_point()
    return bool(np.asarray(array).dtype.kind == "f")


def _is_picture(array: Any) -> bool:
    return bool(torch.as_tensor(array).dtype == torch.uint8)


def _flat(array: Any) -> Tensor:
    tensor = torch.as_tensor(array)
    return tensor.reshape(len(tensor), -1).to(torch.float32)
