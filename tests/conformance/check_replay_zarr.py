"""Opens a replay buffer that Penstock wrote as diffusion policy and UMI do, with Zarr 2.

    python check_replay_zarr.py FOLDER_OR_ZIP TRUTH.npz

Follows `ReplayBuffer.copy_from_path` and `copy_from_store`: the arrays of `meta` are read, those of
`data` copied to memory store to store. The truth holds `data/<key>` and `meta/episode_ends`.
"""

from __future__ import annotations

import sys

import zarr
from differences import report


def main(where: str, truth: str) -> int:
    """Compares; returns the exit code."""
    opened = zarr.ZipStore(where, mode="r") if where.endswith(".zip") else where
    source = zarr.open_group(opened, mode="r")
    memory = zarr.MemoryStore()
    group = zarr.group(store=memory)
    group.create_group("data")
    found = {f"meta/{key}": value[:] for key, value in source["meta"].items()}
    for key in source["data"]:
        zarr.copy_store(source.store, memory, source_path=f"/data/{key}", dest_path=f"/data/{key}")
        found[f"data/{key}"] = group["data"][key][:]
    return report(truth, found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
