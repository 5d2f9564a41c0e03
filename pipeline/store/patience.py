"""Trying again: the same request, a little later each time, at moments nobody else chose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from schemas.errors import TransientError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to keep trying."""

    tries: int = 10
    first: float = 0.1
    """Longest wait before the second try, seconds; doubled for each later one."""
    longest: float = 5.0

    async def ask(
        self, request: Callable[[], Awaitable[T]], passes: Callable[[Exception], bool], where: str
    ) -> T:
        """Makes a request until it is answered.

        Args:
            request: makes it once.
            passes: True for an error that a later try may not meet.
            where: the object, for the error.

        Raises:
            TransientError: if no try was answered; any of them may have had its effect.
        """
        jitter = random.Random()
        for failed in range(self.tries):
            try:
                return await request()
            except Exception as error:
                if not passes(error):
                    raise
                last = error
            # Waits are drawn from the whole range: writers that collided do not meet again.
            await asyncio.sleep(jitter.uniform(0, min(self.longest, self.first * 2**failed)))
        said = str(last.__cause__ or last) or type(last).__name__
        raise TransientError(
            f"Expected an answer, came none in {self.tries} tries ({said}); run it again later.",
            where=where,
        ) from last
