"""Writes what connectors declare into the page about formats.

    python -m connectors.formats_page docs/formats.md

replaces what stands between the page's two marks; all else there is written by hand. Every line
comes from what the code itself says: the registry, the rules of detection, what sources guess and
sinks lose; only how a format's data become an episode is told here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from connectors import registry
from connectors.base import Loss
from connectors.detection import RULES, Kind, Rule
from schemas.errors import SourceError

_CODE = re.compile(r"(\w*(?:<\w+>|\{\w+\})|\w*_\w*\*?)")
"""What of a text Markdown would take for something else: `<...>`, `{...}` and names with `_`."""
BEGIN = "<!-- What follows is generated: python -m connectors.formats_page docs/formats.md -->"
END = "<!-- End of what is generated. -->"

EPISODES: Mapping[str, str] = {
    "d4rl": "Rows up to `terminals` (terminated) or `timeouts` (truncated). The final observation "
    "is the last of `next_observations`. `infos/<name>` become extras.",
    "minari": "Episodes as they are, T+1 observations nested as their space. Infos become extras, "
    "seed, options and attributes facts or columns; ids are kept under the dataset's own.",
    "rlds": "A record is an episode. `observation`, `action`, `reward`; `is_last` with "
    "`is_terminal` is terminated, without it truncated. A constant instruction is the task, other "
    "features of steps are extras, those of episodes facts or columns, the split a label.",
    "lerobot": "`observation.<name>`, `action`, `next.reward`; `next.done`, `next.truncated` and "
    "`next.success` say how it ended; the task by `task_index`; other features are extras, spans "
    "of splits the label `split`. Pictures and videos stay as they are. No final observation.",
    "robomimic": "`data/demo_<i>` with `obs/<name>`; the final observation is the last of "
    "`next_obs`. Attributes become facts or columns, `states` an extra, filter keys labels "
    "`mask_<name>`.",
    "d3rlpy": "`observations_<i>`, `actions_<i>`, `rewards_<i>`, `terminated_<i>`, or version 1's "
    "flat arrays. No final observation.",
    "rllib": "Rows of one `eps_id` in the order of `t`, or recorded episodes; the final "
    "observation is the last `new_obs`. Further columns of numbers become extras.",
    "vd4rl": "A file is an episode of T+1 rows; a row's action and reward led to its observation. "
    "`image` and other arrays are observations, `discount` an extra.",
    "torchrl": "Fields that stand under `next` too are observations; an episode ends at "
    "`terminated`, `truncated`, `done` or a change of trajectory. The final observation is the "
    "last under `next`.",
    "replay_zarr": "`data/action`, `data/reward`; everything else in `data` is an observation; "
    "`meta/episode_ends` cuts. Neither terminated nor truncated, no final observation.",
    "parquet": "One row per step: `episode_id`, `step`, `observation`, `action`, `reward`, "
    "`terminated`, `truncated`, `extra/<name>`; the final observation is `next_observation` of the "
    "last row. Facts, columns and labels are in `episodes.parquet`.",
    "ogbench": "One row per observation, cut at `terminals`; the last row has the final "
    "observation. `qpos`, `qvel`, `button_states` and others become extras of T+1 rows.",
    "gymnasium": "Collected live, T+1 observations, a recorded seed per episode.",
}
_NAMES: Mapping[str, str] = {
    "minari": "ns/name-v0",
    "rlds": "name/1.0.0",
    "lerobot": "user/name",
}
_KINDS: Mapping[Kind, str] = {
    "folder": "a folder",
    "hdf5": "an HDF5 file",
    "npz": "an npz file",
    "parquet": "a Parquet file",
    "pickle": "a pickle",
    "other": "a file",
}


def write(page: str) -> str:
    """Returns the page with what is generated in its place.

    Raises:
        SourceError: if the page lacks the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SourceError("Expected a page with the marks of its generated part, came one without.")
    return f"{before}{BEGIN}\n\n{sections()}\n{END}{after}"


def sections() -> str:
    """Returns a table of all formats and a section on each, as Markdown."""
    rows = [
        f"| [`{f.name}`](#{f.name}) | {_yes(f.is_read)} | {_yes(f.is_written)} | "
        f"{f'`{f.extra}`' if f.extra else ''} | {f.about} |"
        for f in registry.FORMATS.values()
    ]
    head = ["| format | read | written | extra | |", "|---|---|---|---|---|"]
    parts = ["\n".join([*head, *rows]), *map(_section, registry.FORMATS.values())]
    return "\n\n".join(parts) + "\n"


def _section(row: registry.Format) -> str:
    lines = [f"### `{row.name}`", "", f"{row.about}.", "", f"- **Where**: {_where(row)}."]
    rules = [rule for rule in RULES if rule.format == row.name]
    if rules:
        alike = groupby(
            rules, lambda rule: (rule.kind, rule.lacks, rule.when, len(rule.needs) == 1)
        )
        lines.append(f"- **Told by**: {'; or '.join(_told(list(group)) for _, group in alike)}.")
    lines.append(f"- **An episode**: {EPISODES[row.name]}")
    if row.is_read:
        lines += _listed("Guessed, where the data do not say", registry.source(row.name).guesses())
    if row.is_written:
        sink = registry.sink(row.name)
        losses = sink.losses()
        lines += _listed("Lost on export", _grouped(loss for loss in losses if not loss.refused))
        lines += _listed("Refused on export", [loss.says for loss in losses if loss.refused])
        options = [f"`{name}`: {says}" for name, says in _joined(sink.options())]
        lines += _listed("Metadata used on export (`--option NAME=VALUE`)", options)
    return "\n".join(lines)


def _where(row: registry.Format) -> str:
    if row.is_live:
        return f"`{row.name}:` and what to run"
    kinds = dict.fromkeys(_KINDS[rule.kind] for rule in RULES if rule.format == row.name)
    named = f", or a name, as in `{row.name}:{_NAMES[row.name]}`" if row.name in _NAMES else ""
    return f"{' or '.join(kinds)}; a path, a URL or a pattern{named}"


def _told(rules: list[Rule]) -> str:
    """What some rules, which differ in what they need at most, tell a format by."""
    rule = rules[0]
    said = [_KINDS[rule.kind]]
    needs = [" and ".join(f"`{name}`" for name in one.needs) for one in rules if one.needs]
    if needs:
        said.append(f"with {', or '.join(needs)}")
    if rule.lacks:
        said.append(f"without {', '.join(f'`{name}`' for name in rule.lacks)}")
    if rule.when:
        said.append(rule.when)
    return " ".join(said)


def _grouped(losses: Iterable[Loss]) -> Iterator[str]:
    """One line for all aspects of which the same is said."""
    return (f"{names}: {says}" for names, says in _joined({x.aspect: x.says for x in losses}, ""))


def _joined(said: Mapping[str, str], quote: str = "`") -> Iterator[tuple[str, str]]:
    """Names that mean the same as one, separated by commas."""
    for text in dict.fromkeys(said.values()):
        yield f"{quote}, {quote}".join(name for name in said if said[name] == text), text


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"  - {_escaped(line)}" for line in lines]
    return [f"- **{title}**:", *items] if items else []


def _escaped(text: str) -> str:
    """A text whose `<...>`, `*` and `{...}` Markdown leaves alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else _CODE.sub(r"`\1`", p) for p in parts)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else ""


def main() -> None:
    """Brings a page up to date."""
    page = Path(sys.argv[1])
    page.write_text(write(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
