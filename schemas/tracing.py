"""The `traceparent` of W3C's Trace Context: which request of which trace a call belongs to.

https://www.w3.org/TR/trace-context/#traceparent-header. It is passed on and logged, nothing else.
"""

from __future__ import annotations

import re

HEADER = "traceparent"
_FORM = re.compile(r"\A([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\Z")


def traceparent_of(text: str | None) -> str | None:
    """Returns a `traceparent` as it is; None for what is none, which the standard has ignored."""
    found = None if text is None else _FORM.match(text)
    if found is None or found[1] == "ff" or not (int(found[2], 16) and int(found[3], 16)):
        return None
    return text
