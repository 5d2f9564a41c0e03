"""The newest version of a branch that a run follows: as the store has it, or as a service says.

A service that is asked answers from where it stands, so a learner far from a bucket need not list
it; what it then reads is the store's own. A service that is away is an error at the step that would
have followed it: nothing is decided, and the next try asks again.
"""

from __future__ import annotations

from pipeline.store.reader import Version
from pipeline.stream.feed import Feed
from schemas.errors import NotFoundError, TransientError, UsageError
from schemas.stream import StreamConfig


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
            raise UsageError(
                f"Expected a service of the store {feed.store_url}, came one of another store; "
                f"name the service that serves it.",
                where=config.service,
            ) from None
        raise TransientError(
            f"Expected the version {str(head['version'])[:12]} that the service names, the store "
            f"does not show it yet; try again.",
            where=feed.store_url,
        ) from error
