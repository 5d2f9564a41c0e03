"""What a stream draws, said in words."""

from __future__ import annotations

import numpy as np

from pipeline.stream.samplers import Draw, Drawn, sampler_named
from pipeline.stream.shuffle import Shuffle
from pipeline.stream.source import OpenVersion
from pipeline.stream.weighted import Weights
from schemas.stream import StreamConfig


def describe_draw(opened: OpenVersion) -> str:
    """Says which samples are drawn and what each holds."""
    config, table = opened.config, opened.table
    said = sampler_named(config.sampler).says
    if isinstance(table, Weights):
        said += (
            f" ({table.column!r}; as good as {table.effective:,.0f} of {len(opened.index):,} "
            f"transitions drawn evenly)"
        )
    if isinstance(table, Shuffle):
        together = min(table.window, len(table.sizes))
        said += (
            f" (first all chunks, {len(table.sizes):,}, then the rows of each {together} together)"
        )
    if config.sampler == "prioritised":
        said += f" (alpha {config.priority_alpha:g}, beta {config.priority_beta:g})"
    return ", ".join([said, *_shape(config), *_goals(opened), *_returns(config)])


def describe_spread(opened: OpenVersion, asked: Draw, drawn: Drawn) -> str:
    """Says how many episodes share a batch, for some batches that were drawn."""
    owners = opened.index.owner[drawn.numbers]
    distinct = np.mean([len(np.unique(row)) for row in owners])
    return (
        f"The next {asked.steps} batches hold rows of {distinct:.1f} distinct episodes each, on "
        f"average. "
    )


def describe_version(opened: OpenVersion) -> str:
    """Says what of a version is streamed, from where and how cast."""
    version, index, layout = opened.version, opened.index, opened.layout
    left_out = (
        f", {index.left_out} last steps left out because they were cut off and their next "
        f"observation is not known"
        if index.left_out
        else ""
    )
    for count, why in (
        (index.not_kept, "outside the steps that are kept"),
        (index.unfinished, "of episodes that were cut off and whose end is not known"),
        (index.too_short, "whose window would leave the episode"),
    ):
        left_out += f", {count:,} more {why}" if count else ""
    cast = [
        f"{field.name} from {np.dtype(field.source_dtype)} to {np.dtype(field.dtype)}"
        for field in layout.fields
        if field.dtype != field.source_dtype
    ]
    lacks = f" Some episodes have no {' and no '.join(sorted(opened.lacks))}." * bool(opened.lacks)
    if opened.added:
        lacks += f" Added to steps, and laid over what came: {', '.join(sorted(opened.added))}."
    if opened.not_streamed:
        lacks += f" Not streamed, as rows differ in size: {', '.join(opened.not_streamed)}."
    return (
        f"Version {version.branch}:{version.number} ({version.id[:8]}) of {version.store.url}: "
        f"{len(index):,} transitions of {len(index.episode_ids):,} episodes{left_out}. "
        f"Rows are read from {opened.place}, {layout.size} bytes each. "
        f"Cast: {', '.join(cast) or 'nothing'}.{lacks} Discount {opened.config.discount}."
    )


def _shape(config: StreamConfig) -> list[str]:
    found = []
    if config.has_steps:
        found.append(f"windows of {config.history} steps before and {config.window or 1} from on")
    if config.action_chunk is not None:
        found.append(f"chunks of {config.action_chunk} actions")
    if config.frame_stack > 1:
        found.append(f"{config.frame_stack} stacked frames")
    if config.is_windowed:
        padded = {"repeat": "the nearest step repeated", "zero": "zeros", "none": "none drawn"}
        found.append(f"outside the episode {padded[config.pad]}")
    if config.n_step > 1:
        found.append(f"{config.n_step} steps per transition, fewer at an episode's end")
    return found


def _goals(opened: OpenVersion) -> list[str]:
    if opened.goals is None:
        return []
    shares = opened.goals.shares.items()
    kinds = " and ".join(f"{float(share):.4g} {kind}" for kind, share in shares)
    relabelled = ", rewards 0 where the goal is reached and else -1"
    return [f"goals of {opened.goals.field!r} ({kinds}{relabelled * opened.config.goal_rewards})"]


def _returns(config: StreamConfig) -> list[str]:
    if config.returns is None:
        return []
    how = "discounted" if config.returns == "monte_carlo" else "undiscounted"
    return [f"{how} returns to go of finished episodes"]
