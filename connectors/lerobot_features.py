"""LeRobot's features and our fields: names, dtypes and shapes, there and back without loss.

A dot in a feature's name is a `/` in ours:

| feature | field |
|---|---|
| `observation`, `observation.images.top` | `observations`, `observations/images/top` |
| `action`, `action.gripper` | `actions`, `actions/gripper` |
| `next.reward` | rewards |
| `next.done`, `next.truncated`, `next.terminated`, `next.success` | end flags, success |
| any other, such as `complementary_info.x` | extra `complementary_info/x` |

A feature *below another of its kind* (`action.gripper` beside `action`) would be a part and the
whole at once, so it becomes an extra under its dotted name, as does any part beside its whole.
Extras whose own name would mean something else are written with `extras.` before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schemas.errors import SourceError
from schemas.spec import RAW_KINDS

AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that LeRobot fills in itself."""
FLAGS = ("next.done", "next.truncated", "next.terminated", "next.success")
REWARD = "next.reward"
TASK_EXTRA = "task"
"""Extra that holds a text per step where a task changes within an episode."""
_EXTRAS = "extras."
_MOST_FEATURES = 4096

Role = Literal["observation", "action", "reward", "flag", "extra", "automatic"]


@dataclass(frozen=True)
class Feature:
    """One feature of `info.json`."""

    name: str
    dtype: str
    """A NumPy name, `string`, `image` or `video`."""
    shape: tuple[int, ...]
    role: Role
    field: str
    """Our name of it: `observations/...`, `actions`, `rewards`; of an extra, without `extras/`."""
    is_scalar: bool
    """Rows have no axis; LeRobot itself cannot tell them from rows of one value."""
    is_depth: bool
    """A video of depths, whose frames are not pictures of 8 bits."""

    @property
    def is_video(self) -> bool:
        """True if its frames are in MP4 files."""
        return self.dtype == "video"

    @property
    def is_held(self) -> bool:
        """True if its dtype is one that an episode can hold."""
        return self.dtype in ("string", "image") or (
            not self.is_depth if self.is_video else _is_number(self.dtype)
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of numbers; 0 for others."""
        if not _is_number(self.dtype):
            return 0
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.float64))


def parse_features(stated: object, where: str) -> dict[str, Feature]:
    """Reads the `features` of an `info.json`.

    Raises:
        SourceError: if they are not a mapping of names to dtype and shape.
    """
    if not isinstance(stated, dict) or not 0 < len(stated) <= _MOST_FEATURES:
        raise SourceError(f"Expected features in the info.json of {where}.", where=where)
    found = {}
    for name, about in stated.items():
        dtype = about.get("dtype") if isinstance(about, dict) else None
        shape = about.get("shape") if isinstance(about, dict) else None
        is_shape = isinstance(shape, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in shape
        )
        if not isinstance(dtype, str) or not is_shape or not name.isprintable() or not name:
            raise SourceError(
                f"Expected a dtype and a shape of the feature {name!r} in {where}, came "
                f"{str(about)[:80]}.",
                where=where,
            )
        role, field = _placed(name, stated)
        details = about.get("info") or about.get("video_info") or {}
        details = details if isinstance(details, dict) else {}
        found[name] = Feature(
            name=name,
            dtype=dtype,
            shape=tuple(shape or ()),
            role=role,
            field=field,
            is_scalar=details.get("row_shape") == [] or role in ("reward", "flag", "automatic"),
            is_depth=details.get("video.is_depth_map") is True,
        )
    return found


def _placed(name: str, known: Iterable[str]) -> tuple[Role, str]:
    """Returns the role of a feature and our name of it."""
    if name in AUTOMATIC:
        return "automatic", name
    if name == REWARD:
        return "reward", "rewards"
    if name in FLAGS:
        return "flag", name
    is_part = any(name.startswith(f"{other}.") for other in known if other not in AUTOMATIC)
    for root, role in (("observation", "observation"), ("action", "action")):
        if name == root or (name.startswith(f"{root}.") and not is_part):
            return role, f"{root}s{_slashed(name)[len(root) :]}"  # type: ignore[return-value]
    plain = name.removeprefix(_EXTRAS) or name
    return "extra", plain if is_part else _slashed(plain)


def feature_names(fields: Iterable[str], extras: Iterable[str]) -> dict[str, str]:
    """Returns the feature that each field and `extras/<name>` is written as; inverse of reading."""
    names = {}
    for field in fields:
        if field == "rewards":
            names[field] = REWARD
            continue
        root, _, rest = field.partition("/")
        names[field] = root.removesuffix("s") + (f".{_dotted(rest)}" if rest else "")
    wholes = [*names.values()]
    for extra in extras:
        dotted = _dotted(extra)
        is_part = "." in extra and any(extra.startswith(f"{whole}.") for whole in wholes)
        names[f"extras/{extra}"] = dotted if is_part or not _is_taken(dotted) else _EXTRAS + dotted
    return names


def _is_taken(name: str) -> bool:
    """True if a feature of this name would not be read as an extra of this name."""
    root = name.split(".")[0]
    return name in AUTOMATIC or root in ("observation", "action", "next", "extras", "task")


def _slashed(name: str) -> str:
    return "/".join(part.replace("/", "~1") or "~3" for part in name.split("."))


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _is_number(dtype: str) -> bool:
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        return False
    return found.kind in RAW_KINDS and found.itemsize <= 8


def numbers(features: Mapping[str, Feature]) -> int:
    """Bytes of one step's numbers."""
    return sum(feature.row_bytes for feature in features.values())


def names_of(metadata: Mapping[str, Any], feature: str, shape: list[int]) -> Any:
    """The names of a feature's axes that the source's own metadata state, if its shape is this."""
    stated = metadata.get("features")
    about = stated.get(feature) if isinstance(stated, dict) else None
    fits = isinstance(about, dict) and list(about.get("shape") or []) == shape
    return about.get("names") if fits and isinstance(about, dict) else None
