"""How conversions between formats are judged: what two episodes differ in, aspect by aspect.

`differences` names every aspect in which an episode that was written and read back differs from
the one that was written. Anything that no aspect explains is an error, whatever is declared.
"""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from connectors.base import ABOUT
from schemas.episode import Episode
from schemas.packed import Packed, Rows, Video, plain, spec_of
from schemas.spec import FieldSpec
from tests.encoded import film

LEAST_PSNR = 30.0
"""dB, mean over a field's frames: the bound of every lossy picture."""


@dataclass(frozen=True)
class Case:
    """One small dataset, and what is unusual about it."""

    name: str
    make: Callable[[], list[Episode]]
    needs: frozenset[str] = frozenset()
    """Aspects that a format must hold, or declare as refused, to take it at all."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def differences(one: Episode, two: Episode) -> set[str]:
    """Returns the aspects in which `two`, as it came back, differs from `one`, as it was written.

    Raises:
        AssertionError: if values differ in a way that no aspect explains.
    """
    found = {name for name in ABOUT if not _same(getattr(one, name), getattr(two, name))}
    steps = min(one.length, two.length)
    if one.length != two.length:
        # A format that needs an observation after every step gives up the last one without.
        assert one.final_observation != "present", "steps are lost"
        assert two.length == one.length - 1, "steps are lost"
        found.add("final_observation")
    if one.final_observation != two.final_observation:
        found.add("final_observation")
    for flag in ("terminated", "truncated"):
        if not np.array_equal(getattr(one, flag)[:steps], getattr(two, flag)[:steps]):
            found.add(flag)
    found |= _group("actions", one.flat_actions, two.flat_actions, steps)
    rewards = [{} if e.rewards is None else {"rewards": e.rewards} for e in (one, two)]
    found |= _group("rewards", rewards[0], rewards[1], steps)
    seen = min(len(next(iter(e.observations.values()))) for e in (one, two))
    if seen == steps + 1 and "copied" in (one.final_observation, two.final_observation):
        seen = steps
    found |= _group("observations", one.observations, two.observations, seen)
    if one.extras.keys() != two.extras.keys() or any(
        len(rows) != len(two.extras[name]) or _compare(rows, two.extras[name])
        for name, rows in one.extras.items()
    ):
        found.add("extras")
    return found


def matching(written: Sequence[Episode], came: Sequence[Episode]) -> list[int]:
    """Returns the place of each written episode among those that came, by what they hold.

    Where one came back as none of the others could, its own place is taken for it, so that
    `differences` says what is wrong.
    """
    places: list[int] = []
    for own, one in enumerate(written):
        free = [at for at in range(len(came)) if at not in places]
        near = sorted(free, key=lambda at: at != own)
        places.append(next((at for at in near if _agree(one, came[at])), near[0]))
    return places


def _agree(one: Episode, two: Episode) -> bool:
    try:
        differences(one, two)
    except AssertionError:
        return False
    return True


def _group(root: str, one: Mapping[str, Rows], two: Mapping[str, Rows], rows: int) -> set[str]:
    if not one or not two:
        return {root} if bool(one) != bool(two) else set()
    if one.keys() == two.keys():
        pairs, found = [(one[name], two[name]) for name in one], set()
    elif len(one) == len(two):
        # Episodes keep their arrays by name, so only those renamed are in another place.
        renamed = zip(_besides(one, two), _besides(two, one), strict=True)
        names = {**{name: name for name in one}, **dict(renamed)}
        pairs, found = [(one[name], two[names[name]]) for name in one], {"names"}
    else:
        dropped = {spec_of(one[name]).encoding for name in one.keys() - two.keys()}
        assert not two.keys() - one.keys(), f"{sorted(two)} came of {sorted(one)}"
        kinds = {"frames": "pictures", "video": "videos", "text": "texts", "ragged": "ragged"}
        found = {kinds[encoding] for encoding in dropped}
        pairs = [(one[name], two[name]) for name in two]
    for left, right in pairs:
        found |= _compare(left[:rows], right[:rows])
    return found


def _besides(one: Mapping[str, Rows], two: Mapping[str, Rows]) -> list[str]:
    return [name for name in one if name not in two]


def _compare(one: Rows, two: Rows) -> set[str]:
    found = set()
    left, right = spec_of(one), spec_of(two)
    if left.encoding != right.encoding:
        found.add("encodings")
    if left.dtype != right.dtype:
        found.add("dtypes")
    if isinstance(one, Packed) and isinstance(two, Packed) and list(one) == list(two):
        return found
    a, b = plain(one), plain(two)
    assert len(a) == len(b), f"{len(b)} rows came of {len(a)}"
    if a.dtype == object:
        same = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert same, "ragged rows differ"
        return found
    assert a.shape == b.shape, f"{b.shape} came of {a.shape}"
    if a.dtype.kind in "US" or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), "texts differ"
        if isinstance(one, Packed) and isinstance(two, Packed):
            found.add("encodings")
        return found
    if isinstance(two, Video) or (a.dtype == np.uint8 and a.ndim >= 3):
        assert psnr(a, b) >= LEAST_PSNR, f"pictures of {psnr(a, b):.1f} dB"
        return found | {"pixels"}
    assert "dtypes" in found, "values differ"
    coarse = min(np.finfo(x.dtype).precision if x.dtype.kind == "f" else 15 for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=10.0 ** (1 - coarse), atol=10.0 ** -(coarse + 1))
    return found


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two uint8 arrays in dB."""
    error = np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def _same(one: object, two: object) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return dict(one) == dict(two)
    return one == two


# -- the datasets --------------------------------------------------------------------------------


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _episode(number: int, steps: int = 6, *, final: bool = True, **changes: Any) -> Episode:
    rng = _rng(number)
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(steps + final, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "truncated": True,
        **changes,
    }
    return Episode(f"case/{number}", **arrays)


def _plain_set() -> list[Episode]:
    ended = {"terminated": True, "truncated": False}
    return [_episode(1), _episode(2, 5, **ended), _episode(3, 7)]


def _doubles() -> list[Episode]:
    rng = _rng(4)
    return [
        _episode(k, 5, observations=rng.normal(size=(6, 3)), rewards=rng.normal(size=5))
        for k in (10, 11)
    ]


def _named() -> list[Episode]:
    return [_episode(k, observations={"state": _rng(k).normal(size=(7, 4))}) for k in (20, 21)]


def _nested() -> list[Episode]:
    def observed(k: int) -> dict[str, Any]:
        rng = _rng(k)
        return {
            "robot": {"joints": rng.normal(size=(7, 4)).astype(np.float32)},
            "goal": rng.normal(size=(7, 2)).astype(np.float32),
            "contacts": rng.integers(0, 9, (7, 1)),
        }

    return [_episode(k, observations=observed(k)) for k in (30, 31)]


def _without_final() -> list[Episode]:
    ended = {"terminated": True, "truncated": False}
    return [_episode(40, final=False), _episode(41, final=False, **ended)]


def _some_final() -> list[Episode]:
    ended = {"terminated": True, "truncated": False}
    return [_episode(45), _episode(46, final=False, **ended), _episode(47, final=False)]


def _final_or_terminated() -> list[Episode]:
    ended = {"terminated": True, "truncated": False}
    return [_episode(48), _episode(49, final=False, **ended)]


def _unended() -> list[Episode]:
    return [_episode(50, truncated=False), _episode(51)]


def _discrete() -> list[Episode]:
    return [_episode(k, actions=_rng(k).integers(0, 4, 6)) for k in (60, 61)]


def _two_actions() -> list[Episode]:
    def acted(k: int) -> dict[str, Any]:
        rng = _rng(k)
        return {
            "arm": rng.uniform(-1, 1, (6, 2)).astype(np.float32),
            "grip": rng.integers(0, 2, 6),
        }

    return [_episode(k, actions=acted(k)) for k in (70, 71)]


def _facts() -> list[Episode]:
    said = {
        "task": "stack the blöcks",
        "policy": "scripted",
        "policy_version": "3",
        "kind": "rollout",
        "seed": 7,
        "fps": 20.0,
        "collected_at": dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
    }
    people = (("ann", True, "val"), ("ben", False, "train"))
    return [
        _episode(
            80 + at,
            success=success,
            columns={"operator": name, "total_steps": at},
            labels={"split": split},
            **said,
        )
        for at, (name, success, split) in enumerate(people)
    ]


def _no_rewards() -> list[Episode]:
    return [_episode(k, rewards=None) for k in (90, 91)]


def _no_actions() -> list[Episode]:
    return [_episode(k, actions=None) for k in (95, 96)]


def _with_extras() -> list[Episode]:
    def more(k: int) -> dict[str, Any]:
        rng = _rng(k)
        said = Packed.texts(["reach"] * 3 + ["grasp"] * 3)
        return {
            "qpos": rng.normal(size=(6, 5)),
            "physics": rng.normal(size=(7, 2)),
            "said": said,
        }

    return [_episode(k, extras=more(k)) for k in (100, 101)]


def _extras_without_final() -> list[Episode]:
    physics = {k: _rng(k).normal(size=(7, 2)) for k in (105, 106)}
    return [_episode(k, final=False, extras={"physics": rows}) for k, rows in physics.items()]


def smooth_pictures(seed: int, rows: int, size: int = 32) -> np.ndarray:
    """(rows, size, size, 3) uint8 of soft, moving blobs: what cameras and codecs are made for."""
    rng = _rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    frames = []
    for at in range(rows):
        waves = [np.sin(6 * (x * a + y * b) + at / 5 + c) for a, b, c in rng.uniform(0, 1, (3, 3))]
        frames.append(np.stack([127 + 100 * wave for wave in waves], -1))
        rng = _rng(seed)
    return np.array(frames, np.uint8)


def encoded(frames: np.ndarray, form: str) -> Packed:
    """Pictures as PNG or JPEG rows."""
    rows = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, form)
        rows.append(buffer.getvalue())
    return Packed.of(FieldSpec("|u1", frames.shape[1:], "frames"), rows)


def _raw_pictures() -> list[Episode]:
    return [
        _episode(
            k,
            observations={
                "state": _rng(k).normal(size=(7, 4)).astype(np.float32),
                "image": smooth_pictures(k, 7),
            },
        )
        for k in (110, 111)
    ]


def _encoded_pictures(form: str) -> Callable[[], list[Episode]]:
    def make() -> list[Episode]:
        return [
            _episode(
                k,
                observations={
                    "state": _rng(k).normal(size=(7, 4)).astype(np.float32),
                    "image": encoded(smooth_pictures(k, 7), form),
                },
            )
            for k in (120, 121)
        ]

    return make


def _camera() -> list[Episode]:
    return [_episode(k, observations=encoded(smooth_pictures(k, 7), "PNG")) for k in (125, 126)]


def _texts() -> list[Episode]:
    return [
        _episode(
            k,
            observations={
                "state": _rng(k).normal(size=(7, 4)).astype(np.float32),
                "said": Packed.texts([f"wörd {at}" for at in range(7)]),
            },
        )
        for k in (130, 131)
    ]


def _ragged() -> list[Episode]:
    def points(k: int) -> Packed:
        return Packed.ragged([_rng(k + at).normal(size=(at % 3 + 1, 2)) for at in range(7)])

    return [
        _episode(
            k,
            observations={
                "state": _rng(k).normal(size=(7, 4)).astype(np.float32),
                "points": points(k),
            },
        )
        for k in (140, 141)
    ]


def _videos() -> list[Episode]:
    return [
        _episode(
            k,
            observations={
                "state": _rng(k).normal(size=(7, 4)).astype(np.float32),
                "image": film(7, k - 160),
            },
        )
        for k in (160, 161)
    ]


def _terminated_failures() -> list[Episode]:
    return [_episode(155, terminated=True, truncated=False, success=False)]


def _at_rest() -> list[Episode]:
    """A true final observation that is the one before it."""
    seen = _rng(156).normal(size=(7, 3)).astype(np.float32)
    seen[-1] = seen[-2]
    return [_episode(156, observations=seen, final_observation="present")]


def _sorted_out() -> list[Episode]:
    """Labels of every kind, and two splits in turn."""
    given: tuple[dict[str, Any], ...] = (
        {"split": "val", "mask_better": True, "grade": 2},
        {"split": "train", "mask_better": False, "grade": 1},
        {"split": "val", "mask_better": True, "reviewer": "ann"},
    )
    return [_episode(170 + at, labels=labels) for at, labels in enumerate(given)]


def _rates() -> list[Episode]:
    return [_episode(180, fps=10.0), _episode(181, fps=20.0)]


def _one_step() -> list[Episode]:
    return [_episode(k, 1) for k in (185, 186)]


def _one_step_without_final() -> list[Episode]:
    return [_episode(187, 3), _episode(188, 1, final=False)]


def _dtypes() -> list[Episode]:
    """One array of every dtype, with what is special about it."""

    def observed(k: int) -> dict[str, Any]:
        rng = _rng(k)
        whole = {
            np.dtype(kind).name: rng.integers(0, 100, (7, 2)).astype(kind)
            for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
        }
        special = np.array([[np.nan, np.inf], [-np.inf, -0.0], *rng.normal(size=(5, 2))])
        real = {np.dtype(kind).name: special.astype(kind) for kind in ("f2", "f4", "f8")}
        return {**whole, **real, "bool": rng.random((7, 2)) < 0.5, "scalar": rng.normal(size=7)}

    return [_episode(k, observations=observed(k)) for k in (190, 191)]


def _odd_names() -> list[Episode]:
    names = ("joint.pos", "top view", "Größe", "a~b", "image")
    return [
        _episode(k, observations={name: _rng(k + at).normal(size=(7, 2)) for at, name in en})
        for k, en in ((195, list(enumerate(names))), (196, list(enumerate(names))))
    ]


def _other_pictures() -> list[Episode]:
    """Raw arrays that a picture format may take for pictures: small, grey, deep, in a row."""

    def observed(k: int) -> dict[str, Any]:
        frames = smooth_pictures(k, 7, 32)
        return {
            "tiny": frames[:, :5, :4],
            "grey": frames[..., 0],
            "one_channel": frames[..., :1],
            "four_channels": np.concatenate([frames, frames[..., :1]], -1),
            "channels_first": np.moveaxis(frames, -1, 1),
            "depth": frames[..., :1].astype(np.uint16) * 200,
            "stacked": np.stack([frames, frames], 1),
        }

    return [_episode(k, observations=observed(k)) for k in (200, 201)]


def _depths() -> list[Episode]:
    """Pictures of 16 bits as PNG, beside grey ones of 8."""

    def rows(frames: np.ndarray, dtype: str) -> Packed:
        buffers = [io.BytesIO() for _ in frames]
        for frame, buffer in zip(frames, buffers, strict=True):
            Image.fromarray(frame).save(buffer, "PNG")
        spec = FieldSpec(dtype, frames.shape[1:], "frames")
        return Packed.of(spec, [buffer.getvalue() for buffer in buffers])

    def observed(k: int) -> dict[str, Any]:
        grey = smooth_pictures(k, 7, 16)[..., 0]
        return {"depth": rows(grey.astype(np.uint16) * 201, "<u2"), "grey": rows(grey, "|u1")}

    return [_episode(k, observations=observed(k)) for k in (205, 206)]


def _empty_texts() -> list[Episode]:
    return [_episode(210, task=""), _episode(211, task="reach")]


def _two_specs() -> list[Episode]:
    return [_episode(150), _episode(151, observations=_rng(151).normal(size=(7, 9)))]


CASES = (
    Case("plain", _plain_set),
    Case("doubles", _doubles),
    Case("named", _named),
    Case("nested", _nested, frozenset({"names"})),
    Case("without_final", _without_final),
    Case("some_final", _some_final),
    Case("final_or_terminated", _final_or_terminated),
    Case("unended", _unended),
    Case("discrete", _discrete),
    Case("two_actions", _two_actions, frozenset({"names"})),
    Case("facts", _facts),
    Case("no_rewards", _no_rewards, frozenset({"rewards"})),
    Case("no_actions", _no_actions, frozenset({"actions"})),
    Case("extras", _with_extras),
    Case("extras_without_final", _extras_without_final),
    Case("raw_pictures", _raw_pictures, frozenset({"names", "pictures"})),
    Case("png", _encoded_pictures("PNG"), frozenset({"names", "pictures"})),
    Case("jpeg", _encoded_pictures("JPEG"), frozenset({"names", "pictures"})),
    Case("camera", _camera, frozenset({"pictures"})),
    Case("texts", _texts, frozenset({"names", "texts"})),
    Case("ragged", _ragged, frozenset({"names", "ragged"})),
    Case("videos", _videos, frozenset({"names", "pictures", "videos"})),
    Case("terminated_failures", _terminated_failures),
    Case("at_rest", _at_rest),
    Case("sorted_out", _sorted_out),
    Case("rates", _rates),
    Case("one_step", _one_step),
    Case("one_step_without_final", _one_step_without_final),
    Case("dtypes", _dtypes, frozenset({"names"})),
    Case("odd_names", _odd_names, frozenset({"names"})),
    Case("other_pictures", _other_pictures, frozenset({"names"})),
    Case("depths", _depths, frozenset({"names", "pictures"})),
    Case("empty_texts", _empty_texts),
    Case("two_specs", _two_specs, frozenset({"specs"})),
)
