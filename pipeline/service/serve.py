"""One server process: both ports over one log, from recovery to a graceful end.

It ends when it is told to (SIGTERM, SIGINT) or when the log fails. Told to, it takes no more
streams, asks those that are open to end, acknowledges what came, seals, and goes; whatever takes
longer than it may is left, for nothing that was acknowledged can be lost by that.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from pipeline.service.config import ServiceConfig
from pipeline.service.flight import DataServer, data_port
from pipeline.service.listening import control_port
from pipeline.service.logs import facts_of
from pipeline.service.process_limits import bound_process
from pipeline.service.running import running
from pipeline.service.state import ControlState
from pipeline.service.upkeep import Upkeep
from pipeline.store.store import Store, Version
from schemas.errors import LogFailedError, PenstockError

logger = logging.getLogger(__name__)
LAST_SECONDS = 15.0
"""How long the last seal and the end of the ports may take beyond the streams' own time."""
_LOOK_SECONDS = 0.05


class _End:
    """Why and when the process ends.

    No event says so: its lock may be held by the very code that a signal interrupts.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.failure: LogFailedError | None = None
        self._code = 0

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Ends gracefully; at once if asked again."""
        if self.wanted:
            os._exit(130)
        self.wanted = True

    def on_failure(self, error: LogFailedError) -> None:
        """Ends: the log can write no more."""
        self.failure = error
        self.wanted = True

    def within(self, seconds: float) -> None:
        """Ends the process after so many seconds, whatever still goes on."""

        def leave() -> None:
            time.sleep(seconds)
            logger.warning("left what did not end", extra={"seconds": seconds})
            os._exit(LogFailedError.exit_code if self.failure else 0)

        threading.Thread(target=leave, name="penstock-end", daemon=True).start()


def serve(
    store: Store,
    config: ServiceConfig,
    describe: Callable[[Store, Version], dict[str, Any]],
    ready: Callable[[dict[str, str | None]], None],
) -> None:
    """Serves a store until the process is told to end; call it in the main thread.

    Args:
        store: what is served.
        config: settings.
        describe: returns the facts of a version that `penstock show --json` prints.
        ready: told the addresses of both ports, and the place of the first token, once both listen.

    Raises:
        LockHeldError: if another service has the log's folder.
        DamagedLogError: if the log cannot be trusted.
        ConfigError, UsageError: if the ports or tokens cannot be had.
        LogFailedError: if the log could not be written.
    """
    end = _End()
    bound = bound_process(config.max_streams)
    logger.info("address space bounded", extra={"bytes": bound})
    before = {
        number: signal.signal(number, end.on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    gc.disable()  # until all is there that stays
    try:
        with running(store, config, describe, end.on_failure) as state:
            upkeep = Upkeep(store, config.branch, config.compact_every)
            with control_port(state) as control, data_port(state) as (server, data):
                token = str(config.token_path) if config.token_path is not None else None
                _keep()
                ready({"data": data, "control": control, "token_file": token})
                # A signal that reached another thread does not wake this one, which alone heeds it.
                while not end.wanted:
                    time.sleep(_LOOK_SECONDS)
                end.within(config.drain_seconds + LAST_SECONDS)
                _drain(server, config.drain_seconds if end.failure is None else 1.0)
                upkeep.stop(1.0)
                if end.failure is None:
                    _seal(state)
    finally:
        gc.enable()
        for number, handler in before.items():
            signal.signal(number, handler)
    if end.failure is not None:
        raise end.failure


def _keep() -> None:
    """Looks no more for circles among what is there by now: modules, and what the log held.

    To go through them took a tenth of a second again and again, in which no put was taken.
    """
    gc.freeze()
    gc.enable()


def _drain(server: DataServer, seconds: float) -> None:
    """Asks the streams to end; returns when they have, or when their time is over."""
    server.streams.leave()
    until = time.monotonic() + seconds
    while len(server.streams) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


def _seal(state: ControlState) -> None:
    """Seals what is left; what cannot be sealed now is after the next start."""
    try:
        state.log.seal()
    except PenstockError as error:
        logger.warning("the last episodes stay in the log", extra=facts_of(error))
