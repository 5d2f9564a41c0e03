"""Which data teach better: one learner on several versions, in pairs of equal seeds.

Run k on every version begins with the same weights, draws its batches with the same seed and is
judged on the same starts, so that most of what differs by chance is common to a pair and leaves
their difference. The difference of each version from the first is resampled over seeds and
episodes. The versions are pinned, and each run goes on or is taken over where the folder holds it
already: an ablation that was stopped, or is to have more seeds, is run again.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from learners.base import learner_class
from learners.comparison import Arm, Comparison, Size, compare
from learners.data import Pinned, pin
from learners.environments import make_environment
from learners.files import write_whole
from learners.judge import Judged, Judging, judge
from learners.run import Progress, check_same, threads
from learners.settings import Settings, read_settings
from learners.train import TrainConfig, train_seeds
from schemas.errors import ConfigError, NotFoundError, UntrustedError

DOCUMENT = "ablation.json"
LETTERS = string.ascii_uppercase
FIXED = (
    *("algo", "data", "environment", "steps", "settings", "stream"),
    *("sampler", "batch_size", "discount", "first_seed"),
)
"""What an ablation that goes on must share with its beginning; seeds and episodes may differ."""

COMMON = {
    *("algo", "steps", "settings", "batch_size", "discount", "sampler", "stream"),
    *("device", "threads"),
}
"""What all of its runs have as the ablation says."""

Told = Callable[[str, int, int, Mapping[str, float]], None]
"""Told a stage, how much of it is done, the total, and the newest losses."""


class AblateConfig(Settings):
    """One ablation."""

    algo: str
    """Name of an algorithm."""
    data: tuple[str, ...] = Field(min_length=2, max_length=len(LETTERS))
    """`STORE[@REF]` of each version; the others are compared with the first."""
    environment: str
    """A registered Gymnasium name, where the policies are judged."""
    out: str
    """Folder of the ablation: its document, its report and its runs."""
    seeds: int = Field(default=5, ge=2)
    """Pairs of runs. Fewer than five say little."""
    first_seed: int = Field(default=0, ge=0)
    """Of the first pair; of weights and batches alike."""
    steps: int = Field(default=20_000, gt=0)
    """Updates of each run."""
    episodes: int = Field(default=20, gt=0)
    """That each policy is judged on."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters that differ from the algorithm's defaults."""
    batch_size: int = Field(default=256, gt=0)
    """Rows of one batch."""
    discount: float = Field(default=0.99, gt=0, le=1)
    """Gamma."""
    sampler: str = "transition"
    """How the stream draws."""
    stream: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the stream."""
    device: str = "cpu"
    """Where networks and batches live."""
    threads: int = Field(default=1, gt=0)
    """Torch's threads."""


def ablate(config: AblateConfig, told: Told | None = None) -> Comparison:
    """Trains and judges what is not there yet, and compares.

    Raises:
        ConfigError: if the folder holds another ablation.
        NotFoundError: if a store or version is not there.
        UnknownNameError: for an unknown algorithm, setting or environment.
    """
    make_environment(config.environment).close()  # what is wrong with it is said before training
    learner_class(config.algo)
    folder = Path(config.out)
    pinned = _pinned(config, folder)
    _write(folder, config, pinned, None)
    say = told or (lambda _stage, _done, _total, _values: None)
    judged = {
        letter: _runs(config, letter, version, say)
        for letter, version in zip(LETTERS, pinned, strict=False)
    }
    arms = [
        Arm(letter, reference, version, _size(version), judged[letter])
        for letter, reference, version in zip(judged, config.data, pinned, strict=True)
    ]
    found = compare(arms)
    _write(folder, config, pinned, found)
    return found


def again(document: Path, changes: Mapping[str, Any]) -> AblateConfig:
    """Returns what an `ablation.json` says, on the versions it was run on.

    Args:
        document: the file.
        changes: settings that differ: another folder, more seeds.

    Raises:
        NotFoundError: if there is no such file.
        UntrustedError: if it is damaged.
    """
    told = _read(document)
    if told is None:
        raise NotFoundError("Expected the document of an ablation, came none.", where=str(document))
    data = [f"{one['store']}@{one['version']}" for one in told["versions"]]
    return read_settings(AblateConfig, {**told["config"], "data": data, **changes}, "ablate")


def _runs(config: AblateConfig, letter: str, version: Pinned, say: Told) -> tuple[Judged, ...]:
    """Trains all seeds on one version, side by side, and judges each."""

    def training(progress: Progress) -> None:
        stage = "packing the cache" if progress.stage == "pack" else f"train {letter}"
        say(stage, progress.done, progress.total, progress.values)

    common = config.model_dump(include=COMMON)
    data = (f"{version.store}@{version.version}",)
    out = Path(config.out) / letter
    given = {"data": data, "out": str(out), "seed": config.first_seed, "resume": True}
    results = train_seeds(TrainConfig(**{**common, **given}), config.seeds, training)
    how = Judging(config.environment, config.episodes, device=config.device)
    total = config.seeds * config.episodes
    judged: list[Judged] = []
    with threads(config.threads):
        for number, result in enumerate(results):

            def judging(done: int, before: int = number * config.episodes) -> None:
                say(f"judge {letter}", before + done, total, {})

            judged.append(judge(Path(result.run), how, judging, reuse=True))
    return tuple(judged)


def _pinned(config: AblateConfig, folder: Path) -> tuple[Pinned, ...]:
    """Pins the versions, or takes those that the folder's ablation began with."""
    told = _read(folder / DOCUMENT)
    if told is not None:
        check_same(told["config"], config.model_dump(mode="json"), FIXED)
        return tuple(Pinned(**one) for one in told["versions"])
    pinned = pin(config.data)
    if any(one.weight != 1.0 for one in pinned):
        raise ConfigError(
            "Expected versions without weights; commit the episodes of a mixture as a version.",
            where="data",
        )
    return pinned


def _size(pinned: Pinned) -> Size:
    table = pinned.open().episodes(columns=["episode_id", "length"])
    ids: list[str] = table["episode_id"].to_pylist()
    return Size(frozenset(ids), sum(table["length"].to_pylist()))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        found["config"], found["versions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UntrustedError(
            f"Expected the document of an ablation, came: {error}.", where=str(path)
        ) from error
    return found


def _write(
    folder: Path, config: AblateConfig, pinned: tuple[Pinned, ...], found: Comparison | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "config": config.model_dump(mode="json"),
        "versions": [one.document() for one in pinned],
        **({} if found is None else {"result": found.document()}),
    }
    write_whole(folder / DOCUMENT, (json.dumps(told, indent=1) + "\n").encode())
