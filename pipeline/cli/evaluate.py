"""`penstock evaluate`: what runs' last checkpoints do, one or several seeds at once."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, emit, say, table

if TYPE_CHECKING:
    from learners.judge import GroupScore, Judged
    from learners.scores import Spread

Copies = Annotated[
    int,
    typer.Option("--copies", min=1, help="Of the environment, moving together; change no return."),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "evaluate",
        help="Returns of runs' last policies; several seeds together, with an interval.\n\n"
        "Example: penstock evaluate runs/iql --env Hopper-v5 --episodes 20\n\n"
        "Several seeds: penstock evaluate runs/iql/seed-* --env Hopper-v5, or the folder of them.",
    )(evaluate)


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or of seeds.")
    ],
    env: Annotated[str, typer.Option("--env", help="A registered Gymnasium environment.")],
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Of each run.")] = 10,
    copies: Copies = 8,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")] = "cpu",
    json: Json = False,
) -> None:
    from learners.judge import Judging, find_runs, judge, summarise
    from learners.run import threads
    from pipeline.cli.progress import count_bar

    found = find_runs(runs)
    how = Judging(env, episodes, copies=copies, device=device)
    judged: list[Judged] = []
    with count_bar("episodes", episodes * len(found), quiet=json) as advance, threads(1):
        for number, run in enumerate(found):
            before = number * episodes
            judged.append(judge(run, how, lambda done, before=before: advance(before + done)))  # type: ignore[misc]
    groups = summarise(judged)
    if json:
        told = [_facts(one) for one in judged]
        emit(told[0] if len(told) == 1 else _several(told, groups, how.environment, episodes))
    else:
        _say(judged, groups)


def _facts(judged: Judged) -> dict[str, Any]:
    from learners.run import RunResult
    from pipeline.cli.learn import run_facts

    evaluation = judged.evaluation
    result = RunResult(judged.run, judged.algo, judged.step, 0.0, judged.data, evaluation)
    return {
        **run_facts(result),
        "environment": evaluation.environment,
        "episodes": len(evaluation.returns),
        "lengths": list(evaluation.lengths),
        "successes": None if evaluation.successes is None else list(evaluation.successes),
        "seed": evaluation.seed,
    }


def _several(
    runs: list[dict[str, Any]], groups: list[GroupScore], environment: str, episodes: int
) -> dict[str, Any]:
    told = [_group_facts(group) for group in groups]
    alone = told[0] if len(told) == 1 else {}
    return {
        "runs": runs,
        **{name: value for name, value in alone.items() if name != "runs"},
        "groups": told,
        "environment": environment,
        "episodes": episodes,
    }


def _group_facts(group: GroupScore) -> dict[str, Any]:
    parts = {"normalized": group.normalized, "success": group.success}
    return {
        "algo": group.algo,
        "runs": list(group.runs),
        "seeds": len(group.runs),
        "mean_return": group.returns.mean,
        "interval": group.returns.interval,
        "iqm": group.returns.iqm,
        "iqm_interval": group.returns.iqm_interval,
        "normalized_score": group.normalized.mean if group.normalized else None,
        "success": group.success.mean if group.success else None,
        "over_seeds": {
            "return": asdict(group.returns),
            **{name: asdict(part) if part else None for name, part in parts.items()},
        },
    }


def _say(judged: list[Judged], groups: list[GroupScore]) -> None:
    rows = []
    for one in judged:
        found = one.evaluation
        rows.append(
            (
                one.run,
                one.algo,
                one.step,
                _value(found.mean_return, found.interval),
                None if found.normalized_score is None else f"{found.normalized_score:.1f}",
                None
                if found.success is None
                else _value(found.success, found.success_interval, 100, " %"),
            )
        )
    table(("run", "algorithm", "updates", "return, 95 %", "normalised", "success, 95 %"), rows)
    for group in groups:
        if len(group.runs) > 1:
            say(_sentence(group))


def _sentence(group: GroupScore) -> str:
    said = [f"return {_spread(group.returns)}"]
    if group.normalized is not None:
        said.append(f"normalised {_spread(group.normalized)}")
    if group.success is not None:
        said.append(f"success {_spread(group.success, 100, ' %')}")
    return (
        f"{group.algo} over {len(group.runs)} seeds, last checkpoints: {'; '.join(said)} "
        f"(mean [95 % over seeds and episodes], mean of the middle half of seeds)"
    )


def _spread(found: Spread, scale: float = 1.0, unit: str = "") -> str:
    return (
        f"{_value(found.mean, found.interval, scale, unit)}, middle {scale * found.iqm:.1f}{unit}"
    )


def _value(
    mean: float, interval: tuple[float, float] | None, scale: float = 1.0, unit: str = ""
) -> str:
    if interval is None:
        return f"{scale * mean:.1f}{unit}"
    low, high = interval
    return f"{scale * mean:.1f}{unit} [{scale * low:.1f}, {scale * high:.1f}]"
