"""What the demo shows at its end: a table, `report.json`, two plots."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.cli.demo_stages import DemoReport
from pipeline.cli.output import say, table
from schemas.plain import plain


def write_report(report: DemoReport, folder: Path) -> None:
    """Writes `report.json`, `quality.png` and `learning.png`."""
    (folder / "report.json").write_text(json.dumps(plain(report), indent=1))
    _quality(report).savefig(folder / "quality.png", dpi=130)
    _learning(report).savefig(folder / "learning.png", dpi=130)


def tell(report: DemoReport) -> None:
    """Prints what was found."""
    metrics = report.metrics
    say(
        f"\n{report.environment}: {metrics['episodes_added']:,} demonstrations, "
        f"{metrics['steps_added']:,} steps; a second ingest added "
        f"{metrics['episodes_added_again']}.\n"
    )
    table(
        ("action noise (known)", "episodes", "action_divergence", "return"),
        [
            (f"{r['noise']:g}", r["episodes"], r["action_divergence"], r["episode_return"])
            for r in report.ranking["levels"]
        ],
    )
    say(f"rank correlation of score and known noise: {report.ranking['spearman']:.3f}\n")
    curated = report.curated
    say(f"curated {curated['episodes']} of {curated['of']} episodes: {curated['resolved']}\n")
    rows = [
        (
            seed["seed"],
            *(seed[name]["mean_return"] for name in ("bc", "iql_offline", "iql_finetuned")),
        )
        for seed in report.seeds
    ]
    means = report.summary
    rows.append(("mean", means["bc"], means["iql_offline"], means["iql_finetuned"]))
    table(("seed", "BC", "IQL offline", "IQL fine-tuned online"), rows)
    say(
        f"fine-tuned above offline in {means['finetuned_above_offline']} and above BC in "
        f"{means['finetuned_above_bc']} of {means['seeds']} seeds (last checkpoints)\n"
    )
    table(("stage", "seconds"), list(report.stages.items()))


def _quality(report: DemoReport) -> Figure:
    """Scores against the known noise, one dot per episode."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    points = report.ranking["points"]
    axes.scatter(points["noise"], points["action_divergence"], s=14, alpha=0.6)
    axes.set(
        xlabel="known action noise (standard deviation)",
        ylabel="action_divergence",
        title=f"rank correlation {report.ranking['spearman']:.2f}",
    )
    return figure


def _learning(report: DemoReport) -> Figure:
    """Returns while fine-tuning, with BC and IQL offline as levels, one colour per seed."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, seed in enumerate(report.seeds):
        colour = f"C{number}"
        offline = seed["iql_offline"]["mean_return"]
        steps = [0.0, *(point["env_steps"] for point in seed["curve"])]
        returns = [offline, *(point["mean_return"] for point in seed["curve"])]
        axes.plot(steps, returns, marker="o", color=colour, label=f"IQL, seed {seed['seed']}")
        axes.axhline(seed["bc"]["mean_return"], color=colour, linestyle=":", linewidth=1)
    axes.set(
        xlabel="environment steps of fine-tuning",
        ylabel="mean return",
        title="IQL from offline to online (dotted: BC)",
    )
    axes.legend()
    return figure
