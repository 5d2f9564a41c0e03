"""An ablation as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from learners.ablate import AblateConfig
from learners.comparison import Arm, Comparison
from learners.scores import Spread


def markdown(config: AblateConfig, found: Comparison, plot: str | None = None) -> str:
    """Returns the page: what was asked, the answers, the scores, how it was done.

    Args:
        config: what was run.
        found: what came out.
        plot: file name of a picture beside the page.
    """
    lines = [f"# {config.algo} on {len(found.arms)} versions", ""]
    lines += [f"- {sentence}" for sentence in found.sentences()]
    lines += ["", *score_table(found), ""]
    if plot is not None:
        lines += [f"![scores of each version and paired differences]({plot})", ""]
    lines += [
        f"{config.seeds} seeds from {config.first_seed} on, {config.steps:,} updates each on "
        f"batches of {config.batch_size}; equal seeds begin with the same weights. Last "
        f"checkpoints, {config.episodes} episodes in {config.environment} from the same starts. "
        f"Intervals are 95 % bootstrap intervals over seeds and episodes, differences are paired "
        f"by seed and start; each is an answer on its own, so of many versions some may look "
        f"better by chance.",
        "",
        "| | data | version |",
        "|---|---|---|",
        *(f"| {arm.letter} | `{arm.reference}` | `{arm.version.version}` |" for arm in found.arms),
        "",
    ]
    if config.settings:
        told = ", ".join(f"`{name}={value}`" for name, value in config.settings.items())
        lines += [f"Settings: {told}.", ""]
    return "\n".join(lines)


HEAD = ("", "data", "episodes", "steps", "return", "normalised", "success, %", "difference")


def rows(found: Comparison) -> list[tuple[str, ...]]:
    """Returns a row per version under `HEAD`."""
    told = ["", *(_difference(found, at) for at in range(len(found.differences)))]
    return [_row(arm, difference) for arm, difference in zip(found.arms, told, strict=True)]


def score_table(found: Comparison) -> list[str]:
    """Returns the lines of a Markdown table of all versions."""
    aligned = ["---", "---", *["--:"] * (len(HEAD) - 2)]
    return [_line(HEAD), _line(aligned), *(_line(row) for row in rows(found))]


def _row(arm: Arm, difference: str) -> tuple[str, ...]:
    score = arm.score
    return (
        arm.letter,
        arm.reference,
        f"{arm.size.episodes:,}",
        f"{arm.size.steps:,}",
        _spread(score.returns),
        _spread(score.normalized),
        _spread(score.success, 100.0),
        difference,
    )


def _difference(found: Comparison, at: int) -> str:
    one = found.differences[at]
    return _spread(one.found, 100.0 if one.score == "success" else 1.0)


def _spread(found: Spread | None, scale: float = 1.0) -> str:
    if found is None:
        return "-"
    low, high = (scale * end for end in found.interval)
    return f"{scale * found.mean:.1f} [{low:.1f}, {high:.1f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
