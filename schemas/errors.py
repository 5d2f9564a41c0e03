"""Every error Penstock raises on purpose, as one tree.

An error is one sentence (what was expected, what came, where, what to do) with a stable `kind`
that scripts can match on and the `exit_code` the command line ends with. Anything else that
escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar


class PenstockError(Exception):
    """Base of the tree; never raised itself."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None) -> None:
        # What a source states may be no text that a log or a table takes.
        message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.message = message
        self.where = where
        if where is not None and where not in message:
            self.add_note(f"[{where}]")  # a traceback shows it, as the command line does

    def __reduce__(self) -> tuple[object, ...]:
        # Engines carry errors between processes; the default would lose `where` and `code`.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(cls: type[PenstockError], message: str, state: dict[str, object]) -> PenstockError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


# -- what the user typed (exit code 2) ---------------------------------------------------------


class UsageError(PenstockError):
    """A wrong argument, option or combination."""

    kind = "usage"
    exit_code = 2


class NotFoundError(UsageError):
    """A path, store, version, branch, tag or episode that is not there."""

    kind = "not_found"


class UnknownNameError(UsageError):
    """A name outside a known set: a format, a column, a metric, an environment."""

    kind = "unknown_name"


class ConfigError(UsageError):
    """A configuration that does not validate."""

    kind = "bad_config"


class FilterError(UsageError):
    """A filter that does not parse or does not type-check."""

    kind = "bad_filter"


class UnscoredError(UsageError):
    """A filter over a metric that some candidates have no score for."""

    kind = "unscored"


class MissingExtraError(UsageError):
    """An optional dependency that is not installed."""

    kind = "missing_extra"


class SpecMismatchError(UsageError):
    """Episodes whose fields do not fit the spec of the version they should join."""

    kind = "spec_mismatch"


class NameTakenError(UsageError):
    """A name of a branch, tag or spec that is in use, or closed for ever."""

    kind = "name_taken"


class AccessDeniedError(UsageError):
    """Storage that refuses these credentials, or something that they have no permission for."""

    kind = "no_permission"


class UnauthenticatedError(UsageError):
    """A request to a service without a token that it knows."""

    kind = "unauthenticated"


class ForbiddenError(UsageError):
    """A request that its token does not allow, or that another web page seems to have made."""

    kind = "forbidden"


class TooLargeError(UsageError):
    """Something longer than the receiver takes; it was not read."""

    kind = "too_large"


# -- try again later (exit codes 4 and 5) ------------------------------------------------------


class LockHeldError(PenstockError):
    """Another run of the same job holds its lock."""

    kind = "lock_held"
    exit_code = 4


class TransientError(PenstockError):
    """Storage or contention trouble that a later try may not meet."""

    kind = "transient"
    exit_code = 5


class OutOfTimeError(TransientError):
    """A job that did not end within the time it was given."""

    kind = "timeout"


class BusyError(TransientError):
    """A limit of a service that others, or the sender itself, use up at the moment."""

    kind = "busy"

    def __init__(self, message: str, *, retry_after: float = 1.0, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.retry_after = retry_after
        """Seconds after which a try makes sense."""


class ResendError(TransientError):
    """Puts that do not follow what the service has of their producer, or were not all kept.

    A client begins a new epoch and sends its open episodes again from their first steps; what had
    arrived after all is not stored twice.
    """

    kind = "resend"


class LogFailedError(TransientError):
    """A service's log that could not be written; the service must be started again."""

    kind = "log_failed"


class DiskFullError(TransientError):
    """A disk or quota with no room left; nothing half-written is used."""

    kind = "disk_full"


# -- what exists but cannot be trusted (exit code 6) -------------------------------------------


class UntrustedError(PenstockError):
    """Something exists but cannot be trusted whole."""

    kind = "untrusted"
    exit_code = 6


class SourceError(UntrustedError):
    """A source that cannot be read or contradicts itself as a whole."""

    kind = "bad_source"


class GateError(UntrustedError):
    """Episodes that the job's quality gate refuses as a whole; nothing of them is committed."""

    kind = "gate_refused"

    def __init__(
        self, message: str, *, reasons: Sequence[str] = (), where: str | None = None
    ) -> None:
        super().__init__(message, where=where)
        self.reasons = list(reasons)


class DamagedStoreError(UntrustedError):
    """A store file that is missing, short, or fails its checksum."""

    kind = "damaged_store"


class LinkedSourceChangedError(UntrustedError):
    """A file that episodes are linked to which is gone, or holds other content than it did."""

    kind = "linked_source_changed"


class DamagedCacheError(UntrustedError):
    """A cache file that is short or fails its checksum; it can be deleted and is made again."""

    kind = "damaged_cache"


class FilesExpiredError(UntrustedError):
    """Files that were marked for deletion, or are deleted, because nothing kept them."""

    kind = "files_expired"


class ConditionalWritesError(UntrustedError):
    """Storage that lets two writers create the same object, so that commits could be lost."""

    kind = "no_conditional_writes"


class DamagedLogError(UntrustedError):
    """A service's log with a hole in it, or with records that fail their checksums."""

    kind = "damaged_log"


class PutError(UntrustedError):
    """Steps sent to a service that are not what they say they are; none of them is kept."""

    kind = "bad_put"


class IdConflictError(UntrustedError):
    """An episode whose id is known with other content."""

    kind = "id_conflict"


class DivergedError(UntrustedError):
    """A learner whose losses are no numbers any more; its last checkpoint is from before."""

    kind = "diverged"


class EpisodeError(UntrustedError):
    """One episode that must not enter a version; `code` says why.

    Codes: `length_mismatch nan inf bad_dtype bad_timestamp gap flags_inconsistent unreadable
    id_conflict refused` (by a service, which says why).
    """

    kind = "bad_episode"

    def __init__(self, message: str, *, code: str, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.code = code


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the nearest known names, or lists a short set of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(choice) for choice in near)}?"
    if not choices:
        return "there are none"
    shown = ", ".join(choices[:12])
    return f"known: {shown}{', ...' if len(choices) > 12 else ''}"


def missing_extra(extra: str, package: str) -> MissingExtraError:
    """Returns the error that says how to install an optional dependency."""
    return MissingExtraError(
        f"This needs the package {package!r}, which is not installed; "
        f"install it with: pip install 'penstock[{extra}]'."
    )


@contextlib.contextmanager
def needs_extra(extra: str, package: str) -> Iterator[None]:
    """Says how to install a package where importing what needs it fails for the lack of it.

    Raises:
        MissingExtraError: in place of the import's own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise missing_extra(extra, package) from None
