"""What runs have in common that begin where an offline run ended, and learn from rollouts too.

Which rows the offline versions yield, and how, is taken over from the offline run; so are the
learner's settings, but for those that are changed. The policy's rate no longer decays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from learners.base import Learner
from learners.checkpoint import Checkpoint, last_checkpoint, load_checkpoint, restore
from learners.data import Sampling
from learners.sampling import PLACES, check_stream
from learners.settings import Settings
from schemas.errors import ConfigError, NameTakenError

SAMPLED_AS_BEFORE = ("batch_size", "discount", "sampler", "stream")
"""What is taken over from the offline run's sampling."""

AS_BEGUN = {
    "standardise": "was settled when inputs were scaled",
    "pixels": "was settled when inputs were chosen",
    "frames": "was settled when inputs were chosen",
    "discount": "is the offline stream's",
    "policy_decay": "has ended: the policy's rate stays constant",
}
"""Settings that do not change any more, and why. Those that shape networks are seen by these."""


class GoingOnConfig(Settings):
    """A run that begins where an offline run ended."""

    run: str
    """Folder of the offline run, or one of its checkpoint files."""
    environment: str
    """A registered Gymnasium name: where rollouts are played, and the policy is judged."""
    out: str | None = None
    """Folder of this run; None takes one within the offline run's."""
    env_steps: int = Field(default=10_000, gt=0)
    """Steps of rollouts, those of the warm-up included; the last episode is played to its end."""
    offline_fraction: float = Field(default=0.5, ge=0, lt=1)
    """Share of each batch that is drawn from the offline versions."""
    updates_per_step: float = Field(default=1.0, gt=0)
    """Updates for each step of rollouts beyond the warm-up."""
    exploration: Literal["none", "gaussian", "policy"] = "policy"
    """Noise on rollouts: none, of one scale, or the policy's own spread."""
    noise: float = Field(default=1.0, ge=0)
    """Standard deviation in the environment's units, or the factor on the policy's spread."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters that differ from the offline run's. The policy's rate stays constant."""
    stream: dict[str, Any] = Field(default_factory=dict)
    """Settings of the streams that differ from the offline run's: where rows lie."""
    seed: int = Field(default=0, ge=0)
    """Of rollouts and of the order of batches."""
    device: str = "cpu"
    """Where networks and batches live."""
    threads: int = Field(default=1, gt=0)
    """Torch's threads."""
    evaluate_episodes: int = Field(default=10, gt=0)
    """Episodes of one evaluation."""
    tensorboard: bool = False
    """Write event files for TensorBoard beside the tables."""
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""


def folder_of(config: GoingOnConfig, name: str) -> Path:
    """Returns the folder of a run: the one asked for, or one of a name in the offline run's."""
    if config.out is not None:
        return Path(config.out)
    run = Path(config.run)
    return (run.parent.parent if run.is_file() else run) / name


def check_beginning(config: GoingOnConfig, folder: Path) -> None:
    """Refuses to begin a run.

    Raises:
        NameTakenError: if the folder holds one.
        ConfigError: for settings of streams that say more than where rows lie.
    """
    if last_checkpoint(folder) is not None:
        raise NameTakenError(
            "Expected a folder without a run, came one that holds a run; resume it or choose "
            "another folder.",
            where=str(folder),
        )
    for name in config.stream:
        if name not in PLACES:
            raise ConfigError(
                f"Expected settings that say where rows lie ({', '.join(PLACES)}), came {name!r}; "
                f"which rows are drawn is taken over from the offline run.",
                where=name,
            )


def begun(config: GoingOnConfig) -> tuple[Checkpoint, Learner]:
    """Returns where an offline run ended, and the learner that goes on from there.

    Raises:
        NotFoundError: if there is no run.
        ConfigError: for settings that a run goes on with as it began.
    """
    base = load_checkpoint(Path(config.run))
    for name in sorted(config.settings.keys() & AS_BEGUN.keys()):
        raise ConfigError(
            f"Expected settings that may change on the way, came {name}, which {AS_BEGUN[name]}; "
            f"leave it out, or train another offline run.",
            where=name,
        )
    constant = {"policy_decay": 0} if "policy_decay" in base.settings else {}
    return base, restore(base, config.device, {**constant, **config.settings})


def sampling_of(
    config: GoingOnConfig, document: Mapping[str, Any], learner: Learner, *, episode_ids: bool
) -> Sampling:
    """Returns how batches are drawn.

    Args:
        config: of the run.
        document: of the checkpoint that it goes on from, an offline run's or its own.
        learner: that goes on.
        episode_ids: whether batches name their episodes.

    Raises:
        ConfigError: for settings of streams that do not fit.
    """
    said = document.get("sampling", document["config"])
    kept = {name: said[name] for name in SAMPLED_AS_BEFORE if name in said}
    stream = {**kept.pop("stream", {}), **config.stream}
    needs = learner.needs(learner.settings)
    check_stream(stream, kept["sampler"], needs)
    return Sampling(
        **kept,
        stream=stream,
        needs=needs,
        seed=config.seed,
        device=config.device,
        episode_ids=episode_ids,
        reads=learner.normaliser.reads,
    )


def sampled_as(sampling: Sampling) -> dict[str, Any]:
    """Returns what a later run takes over, as plain JSON."""
    return {name: getattr(sampling, name) for name in SAMPLED_AS_BEFORE}
