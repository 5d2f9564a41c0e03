"""Settings of learners and runs: frozen documents, filled from `key=value` pairs.

Each algorithm states its hyperparameters as one frozen document with a comment per field. What a
person types is checked here, once: an unknown key is refused with the nearest known one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from schemas.errors import ConfigError, UnknownNameError, suggest


class Settings(BaseModel):
    """Base of all settings: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _as_typed(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads `256,256`, as people type it, as several values."""
        kind = cls.model_fields[info.field_name or ""].annotation
        is_several = any(get_origin(one) is tuple for one in (kind, *get_args(kind)))
        if is_several and isinstance(value, str):
            parts = tuple(part.strip() for part in value.strip("()[] ").split(",") if part.strip())
            return parts if len(parts) > 1 or get_origin(kind) is tuple else value
        return value


class LearnerSettings(Settings):
    """What the hyperparameters of every algorithm have."""

    standardise: bool = False
    """Standardise observations by the data's mean and standard deviation."""


class StreamNeeds(Settings):
    """What an algorithm asks of the streams that it learns from; nothing, if not said."""

    batches: int = 1
    """Batches that one update takes, as one of so many times the rows."""
    history: int = 0
    """Steps of a window before its anchor."""
    window: int | None = None
    """Steps of a window from its anchor on; None learns from single transitions."""
    returns: Literal["to_go", "monte_carlo"] | None = None
    """Whether it reads `returns_to_go`."""
    frame_stack: int = 1
    """Observations up to each step, as an axis of their own; 1 adds none."""
    pictures: Literal["decode"] | None = None
    """`decode`, if it takes encoded pictures as they are stored, decoded when they are gathered."""
    demonstrations: int | None = None
    """How many of the offline sources are demonstrations, the first ones; None: all of them."""

    def stream(self) -> dict[str, Any]:
        """Returns the settings of streams that stand for it."""
        return self.model_dump(exclude={"batches", "demonstrations"}, exclude_defaults=True)


NO_NEEDS = StreamNeeds()

S = TypeVar("S", bound=Settings)


def read_settings(kind: type[S], values: Mapping[str, Any], where: str = "settings") -> S:
    """Builds settings from plain values or strings (`{"expectile": "0.9"}`).

    Raises:
        UnknownNameError: if a key is not a field, with the nearest fields.
        ConfigError: if a value does not fit its field.
    """
    for key in values:
        if key not in kind.model_fields:
            raise UnknownNameError(
                f"Expected a setting of {where}, came {key!r}; {suggest(key, kind.model_fields)}",
                where=key,
            )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or where
        if first["type"] == "missing":
            raise ConfigError(
                f"Expected {name}, which {where} has no default for, came none; set {name}=VALUE.",
                where=name,
            ) from error
        raise ConfigError(
            f"Expected {name} of {where} to be valid ({first['msg']}), came {first['input']!r}.",
            where=name,
        ) from error
