"""The newest version of a branch that a run follows: as the store has it, or as a service says.

A service that is asked answers from where it stands, so a learner far from a bucket need not list
it; what it then reads is the store's own. A service that is away is an error at the step that would
have followed it: nothing is decided, and the next try asks again.
"""

from __future__ import annotations

from pipeline.store.reader import Version
from pipeline.store.store import Store
from pipeline.stream.feed import Feed
from pipeline.stream.online import wait_for
from schemas.errors import NotFoundError, TransientError, UsageError
from schemas.stream import StreamConfig


def with_offset(version: Version, config: StreamConfig) -> Version:
    """Returns a version of the followed branch that has what the service acknowledged.

    Args:
        version: any of the store.
        config: the stream's settings, with `follow`, `service` and `min_offset`.

    Raises:
        OutOfTimeError: if no version has it in time, or the service does not answer.
        TransientError: if the service is away.
        UsageError: if the service has another store.
    """
    assert config.follow is not None
    assert config.service is not None
    assert config.min_offset is not None
    # Flight comes with it, which only those who speak to a service need.
    from pipeline.service.client.control import ControlClient  # noqa: PLC0415 - see above

    status = ControlClient(config.service).status()
    if status["store"] != version.store.id:
        raise _another_store(version.store.url, config.service)
    return wait_for(Store(version.store), config.follow, config.min_offset, status["log"]["server"])


def newest(feed: Feed, config: StreamConfig) -> Version:
    """Returns the newest version of the branch that a stream follows.

    Args:
        feed: of the stream.
        config: the stream's settings, with `follow`.

    Raises:
        NotFoundError: if the branch is gone.
        TransientError, OutOfTimeError: if the service is away.
        UsageError: if the service has another store.
    """
    assert config.follow is not None
    if config.service is None:
        return feed.named(config.follow)
    # Flight comes with it, which only those who speak to a service need.
    from pipeline.service.client.control import ControlClient  # noqa: PLC0415 - see above

    client = ControlClient(config.service)
    head = client.head(config.follow)
    try:
        return feed.named(str(head["version"]))
    except NotFoundError as error:
        if client.status()["store"] != feed.store_id:
            raise _another_store(feed.store_url, config.service) from None
        raise TransientError(
            f"Expected the version {str(head['version'])[:12]} that the service names, the store "
            f"does not show it yet; try again.",
            where=feed.store_url,
        ) from error


def _another_store(url: str, service: str) -> UsageError:
    return UsageError(
        f"Expected a service of the store {url}, came one of another store; name the service that "
        f"serves it.",
        where=service,
    )
