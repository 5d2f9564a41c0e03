"""What a stream is asked for: one frozen document, checked before any file is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from schemas.document import Document, keys_at
from schemas.errors import ConfigError, suggest
from schemas.sizes import parse_bytes
from schemas.transforms import FieldStatistics, ImageTransform, Scaling

Residency = Literal["auto", "mmap", "ram", "windowed", "gpu"]
Framework = Literal["torch", "numpy"]
Output = Literal["dict", "tensordict"]
Precision = Literal["float16", "float32", "float64", "keep"]
Pad = Literal["repeat", "zero", "none"]
Returns = Literal["to_go", "monte_carlo"]

GOAL_KINDS = ("current", "final", "future", "geometric", "episode", "random")
"""Where a goal may be taken from."""

_OF_SAMPLERS = {
    **dict.fromkeys(("window", "history", "action_chunk", "frame_stack", "pad"), "window"),
    "weights": "weighted",
    "shuffle_window": "shuffle",
    **dict.fromkeys(("priority_alpha", "priority_beta"), "prioritised"),
}
"""Settings that one sampler alone reads; windows go with any but the uniform transitions."""
_WITHOUT_WINDOWS = ("transition", "length_proportional")


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
    """Where rows are read from: the memory-mapped cache, a copy of it in memory or on the GPU, or,
    for the sampler `shuffle`, a buffer that is filled from the store; `auto` copies what fits the
    budget, where that gains something, and maps the rest."""
    memory: int | None = Field(default=None, ge=1)
    """Budget of memory in bytes, or as a text such as `4GB`; None takes a share of what is free."""
    pictures: Literal["cache", "decode"] = "cache"
    """Whether encoded pictures are decoded once, where records are kept, or each time that they are
    gathered, so that far more of them fit the disk (`mmap`) or the memory (`windowed`, which does
    so with videos, too)."""
    device_memory: int | None = Field(default=None, ge=1)
    """The same of the GPU, for records that stay there."""
    prefetch: int | None = Field(default=None, ge=0, le=64)
    """Gathers of many batches each that are made ahead in a thread; None makes 2 for a GPU, and
    none where batches stay on the CPU."""
    framework: Framework = "torch"
    """What batches are made of."""
    output: Output = "dict"
    """Whether batches are plain mappings or a `TensorDict`."""
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
    run: str | None = None
    """Name of the run that decides which versions are read, for all ranks and for a replay."""
    follow: str | None = None
    """Branch whose newest version the run reads from each decided step on."""
    follow_every: int = Field(default=1000, ge=1)
    """Steps from one decision to the next."""
    service: str | None = None
    """Address of a service that is asked for the newest version of `follow`, in the store's place;
    its token is that of the environment variable PENSTOCK_TOKEN."""
    min_offset: int | None = Field(default=None, ge=0)
    """As `service` acknowledged it: opening waits up to 30 s for a version of `follow` that has it,
    and reads that one."""

    n_step: int = Field(default=1, ge=1, le=10_000)
    """Steps that a transition spans; fewer where the episode ends before."""
    weights: str | None = None
    """Episode column that the sampler `weighted` draws by."""
    window: int | None = Field(default=None, ge=1, le=65_536)
    """Steps of a window from its anchor on."""
    history: int = Field(default=0, ge=0, le=65_536)
    """Steps of a window before its anchor."""
    action_chunk: int | None = Field(default=None, ge=1, le=65_536)
    """Actions from each step on, as an axis of their own."""
    frame_stack: int = Field(default=1, ge=1, le=1024)
    """Observations up to each step, as an axis of their own; 1 adds none."""
    pad: Pad = "repeat"
    """What stands where a window leaves its episode; `none` draws only windows that fit."""
    returns: Returns | None = None
    """Whether batches carry `returns_to_go`: plain sums, or discounted (`monte_carlo`); with
    them `steps_to_go`, how many rewards each holds, and `timesteps`, how many came before."""
    goals: str | dict[str, float] | None = None
    """Where goals are taken from: one of `GOAL_KINDS`, or a probability for each of several."""
    goal_field: str | None = None
    """Observation field that goals are of; needed only where there are several."""
    goal_discount: float | None = Field(default=None, ge=0, lt=1)
    """Gamma of `geometric` goals; `discount` by default."""
    goal_rewards: bool = True
    """Whether rewards are relabelled with the goals: 0 where the goal is reached, else -1."""
    shuffle_window: int = Field(default=16, ge=1)
    """Chunks whose rows are shuffled together; a chunk is what one block of the store holds."""
    priority_alpha: float = Field(default=0.6, ge=0, le=10)
    """Power of priorities that the sampler `prioritised` draws by."""
    priority_beta: float = Field(default=0.4, ge=0, le=1)
    """Power of its importance weights; 1 undoes the priorities in full."""
    normalize: dict[str, Scaling] = Field(default={})
    """How fields are scaled, by full name: by the statistics of the version."""
    statistics: dict[str, FieldStatistics] | None = None
    """Statistics to scale by in place of the version's own, for each field of `normalize`."""
    images: dict[str, ImageTransform] = Field(default={})
    """How image fields are resized, cut, moved and scaled, by full name."""

    @property
    def ahead(self) -> int:
        """Gathers that are made ahead."""
        if self.sampler == "prioritised":
            return 0  # the next batch waits for the priorities of this one
        if self.prefetch is not None:
            return self.prefetch
        return 0 if self.device == "cpu" else 2

    @property
    def is_windowed(self) -> bool:
        """True if rows of a batch are more than one transition."""
        return self.has_steps or self.action_chunk is not None or self.frame_stack > 1

    @property
    def has_steps(self) -> bool:
        """True if batches have an axis of steps."""
        return self.window is not None or self.history > 0

    @property
    def reach(self) -> tuple[int, int]:
        """Steps that a row of a batch has before its anchor, and from the anchor on."""
        before = self.history + self.frame_stack - 1
        return before, (self.window or 1) + (self.action_chunk or 1) - 1

    @property
    def goal_shares(self) -> dict[str, Fraction]:
        """Probability of each kind of goal, exact; empty without goals."""
        if self.goals is None:
            return {}
        asked = {self.goals: 1.0} if isinstance(self.goals, str) else self.goals
        exact = {kind: Fraction(str(asked[kind])) for kind in GOAL_KINDS if kind in asked}
        return {kind: share / sum(exact.values()) for kind, share in exact.items() if share}

    @property
    def geometric_discount(self) -> float:
        """Gamma of `geometric` goals."""
        return self.discount if self.goal_discount is None else self.goal_discount

    def order(self) -> dict[str, Any]:
        """Returns the sampler's settings that differ from their defaults, as plain values."""
        found = {
            name: getattr(self, name)
            for name in _ORDER
            if getattr(self, name) != type(self).model_fields[name].default
        }
        found |= self.model_dump(mode="json", include=_CONTENT, exclude_defaults=True)
        if "geometric" in self.goal_shares:
            found["goal_discount"] = self.geometric_discount
        return found

    @field_validator("device", mode="before")
    @classmethod
    def _as_name(cls, given: object) -> object:
        # A torch.device, as programs hold it; torch itself is not loaded here.
        return str(given) if type(given).__module__ == "torch" else given

    @field_validator("memory", "device_memory", mode="before")
    @classmethod
    def _as_bytes(cls, given: object) -> object:
        return parse_bytes(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _settings_fit_the_sampler(self) -> StreamConfig:
        for name, sampler in _OF_SAMPLERS.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if not given or self.sampler == sampler:
                continue
            if sampler != "window" or self.sampler in _WITHOUT_WINDOWS:
                raise ValueError(
                    f"{name} is a setting of the sampler {sampler!r}, not of {self.sampler!r}"
                )
        if self.sampler == "weighted" and self.weights is None:
            raise ValueError("the sampler 'weighted' needs weights='COLUMN'")
        if self.sampler == "window" and not self.is_windowed:
            raise ValueError(
                "the sampler 'window' needs window=, history=, action_chunk= or frame_stack="
            )
        if self.pad == "zero" and self.frame_stack > 1 and self.has_steps:
            raise ValueError("stacked frames within windows are padded by pad='repeat' or 'none'")
        if self.n_step > 1 and self.has_steps:
            raise ValueError("n_step is of single transitions; a window holds its steps one by one")
        return self

    @model_validator(mode="after")
    def _windowed_is_enough(self) -> StreamConfig:
        if self.pictures == "decode" and self.residency not in ("auto", "mmap", "windowed"):
            raise ValueError(
                f"pictures stay encoded in the mapped cache or the buffer of 'windowed', not in a "
                f"copy ({self.residency!r}); use residency='mmap', or pictures='cache'"
            )
        if self.residency != "windowed":
            return self
        if self.sampler != "shuffle":
            raise ValueError(
                f"residency 'windowed' holds a few chunks at a time, and the sampler "
                f"{self.sampler!r} draws from all; use sampler='shuffle', or residency='mmap'"
            )
        for name, is_asked in (
            ("n_step", self.n_step > 1),
            ("returns", self.returns is not None),
            ("goals of kind 'random'", "random" in self.goal_shares),
        ):
            if is_asked:
                raise ValueError(
                    f"{name} need the rows of all chunks, and residency 'windowed' holds a few at "
                    f"a time; use residency='mmap'"
                )
        return self

    @model_validator(mode="after")
    def _is_on_a_gpu(self) -> StreamConfig:
        if self.residency == "gpu" and not self.device.startswith("cuda"):
            raise ValueError(
                f"residency 'gpu' keeps all records on the device of the batches, and "
                f"{self.device!r} is none of CUDA; use device='cuda', or residency='ram'"
            )
        if self.prefetch and self.sampler == "prioritised":
            raise ValueError(
                "the sampler 'prioritised' waits for the priorities of each batch; leave "
                "prefetch= out"
            )
        return self

    @model_validator(mode="after")
    def _follows_what_is_there(self) -> StreamConfig:
        default = type(self).model_fields["follow_every"].default
        if self.follow_every != default and self.follow is None:
            raise ValueError("follow_every needs follow=, the branch that is followed")
        if self.service is not None and self.follow is None:
            raise ValueError("service needs follow=, the branch whose newest version it tells")
        if self.min_offset is not None and self.service is None:
            raise ValueError("min_offset needs service=, whose offset it is")
        return self

    @model_validator(mode="after")
    def _goals_fit(self) -> StreamConfig:
        if self.goals is None:
            for name in ("goal_field", "goal_discount"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs goals=")
            return self
        asked = {self.goals: 1.0} if isinstance(self.goals, str) else self.goals
        for kind, share in asked.items():
            if kind not in GOAL_KINDS:
                raise ValueError(f"no goals {kind!r}; {suggest(kind, GOAL_KINDS)}")
            if not (share >= 0 and math.isfinite(share)):
                raise ValueError(f"probability {share} of goals {kind!r}")
        if not sum(asked.values()) > 0:
            raise ValueError("no kind of goals has a probability above 0")
        if "geometric" in asked and self.geometric_discount >= 1:
            raise ValueError("geometric goals need goal_discount= below 1")
        if self.n_step > 1 and self.goal_rewards:
            raise ValueError(
                "rewards of goals are of single steps; n_step needs goal_rewards=False"
            )
        return self

    @model_validator(mode="after")
    def _transforms_fit(self) -> StreamConfig:
        for name in self.normalize:
            if name.split("/", 1)[0] == "rewards":
                raise ValueError("normalize is of what networks take in, not of rewards")
            image = self.images.get(name)
            if image is not None and image.scale:
                raise ValueError(f"{name} is scaled by normalize= and by images=; choose one")
        if self.statistics is not None and self.statistics.keys() != self.normalize.keys():
            raise ValueError("statistics= needs one entry for each field of normalize=")
        return self

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
        if self.framework == "numpy" and self.output == "tensordict":
            raise ValueError("a TensorDict holds tensors; use framework='torch'")
        return self


_ORDER = (
    *("discount", "n_step", "weights", "window", "history", "action_chunk", "frame_stack", "pad"),
    *("returns", "goals", "goal_field", "goal_rewards", "shuffle_window"),
    *("priority_alpha", "priority_beta"),
)
"""Settings that a state must have in common with the stream that continues it."""
_CONTENT = {"normalize", "statistics", "images"}
"""The same of what is done to batches."""


_ELSEWHERE = {
    "shuffle": "say sampler='shuffle' for epochs",
    "num_workers": "give workers to a DataLoader over as_iterable_dataset()",
    "gamma": "say discount=",
    **dict.fromkeys(("horizon", "sequence_length"), "say window="),
    "delta_timestamps": "say window=, history=, action_chunk= or frame_stack=, in steps",
    **dict.fromkeys(("transform", "transforms", "image_transforms"), "say normalize= or images="),
}
"""What other libraries call it, and how it is said here."""


def stream_config(settings: Mapping[str, Any]) -> StreamConfig:
    """Returns the checked settings of a stream.

    Raises:
        ConfigError: naming the first setting that does not fit.
    """
    try:
        return StreamConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> ConfigError:
    """What was wrong with the first setting, in a sentence."""
    first = error.errors(include_url=False)[0]
    *path, last = first["loc"] or ("stream",)
    name = ".".join(map(str, first["loc"])) or "stream"
    if first["type"] == "extra_forbidden":
        hint = _ELSEWHERE.get(name) or suggest(str(last), keys_at(StreamConfig, path))
        said = f"Expected a setting of a stream, came {name!r}; {hint}"
    elif first["type"] == "value_error":
        of = f"{name}: " if first["loc"] else ""
        fault = f"{of}{first['ctx']['error']}"
        said = f"Expected stream settings that fit each other, came others: {fault}"
    else:
        wanted = first["msg"].removeprefix("Input should be ")
        wanted = wanted.replace("a valid integer", "an integer").replace("valid ", "")
        said = f"Expected {name} to be {wanted}, came {shortened(first['input'])}"
    return ConfigError(said if said.endswith("?") else f"{said}.", where=name)


def shortened(given: object) -> str:
    """Returns a value as it is written, cut short."""
    said = repr(given)
    return said if len(said) <= 80 else f"{said[:77]}..."
