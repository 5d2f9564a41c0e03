"""Times one conversion in a process of its own: `python -P bench_case.py FILE SOURCE TARGET`.

FILE is a Python file with a function `convert(source, target)`. It is loaded first, its imports
with it, then the conversion is timed: CPU seconds of this process and of the children it waited
for. Nothing but the standard library is used here, because other projects' environments run it too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import sys
import time


def measured(file: str, source: str, target: str) -> dict[str, float]:
    """Returns seconds and the peak of memory of one conversion.

    Raises:
        ImportError: if the file cannot be loaded.
    """
    spec = importlib.util.spec_from_file_location("case", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"Expected a Python file, came {file}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, began = os.times(), time.perf_counter()
    module.convert(source, target)
    wall, after = time.perf_counter() - began, os.times()
    return {
        "cpu_s": sum(after[:4]) - sum(before[:4]),
        "system_s": after.system - before.system,
        "wall_s": wall,
        "peak_mb": _peak_kilobytes() / 1024,
    }


def _peak_kilobytes() -> int:
    """Most memory held at once; `getrusage` would count what started this process as well."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - nothing to import
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(*sys.argv[1:4])) + "\n")
