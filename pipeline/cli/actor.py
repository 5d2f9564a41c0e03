"""`penstock actor`: plays by the newest policy of a run and pushes what it played."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, emit, say
from pipeline.cli.reaching import TlsCa, TokenFile, read_token


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "actor",
        help="Play by the newest policy of a run and push the episodes to a service.\n\n"
        "Example: penstock actor --env Hopper-v5 --policy iql-1 --service grpc://127.0.0.1:8815",
    )(actor)


def actor(
    env: Annotated[str, typer.Option("--env", help="A registered Gymnasium environment.")],
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="RUN",
            help="A run that publishes, or a run's folder; `scripted` plays "
            "InvertedDoublePendulum-v5 alone.",
        ),
    ],
    service: Annotated[str, typer.Option("--service", metavar="ADDRESS", help="Of either port.")],
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="End after so many, pushed; or --steps.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="End after the episode that has so many.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of this actor alone.")] = None,
    exploration: Annotated[
        str, typer.Option("--exploration", help="none, gaussian or policy (its own spread).")
    ] = "policy",
    noise: Annotated[
        float | None,
        typer.Option("--noise", min=0, help="Of gaussian; factor of policy. 1, scripted 0.1."),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Environments in lockstep.")] = 4,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds for a policy, and for the service.")
    ] = 300.0,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
    json: Json = False,
) -> None:
    import signal
    import sys
    import threading

    from learners.acting import SCRIPTED, ActingConfig, act
    from learners.settings import read_settings

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # By another thread: a signal may interrupt the code that holds the event's own lock.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    if until_stdin_ends:

        def watch() -> None:
            while sys.stdin.buffer.read(4096):
                pass
            stop.set()

        threading.Thread(target=watch, name="stdin", daemon=True).start()
    told = {
        "environment": env,
        "policy": policy,
        "service": service,
        "episodes": episodes,
        "steps": steps,
        "seed": seed,
        "exploration": "gaussian" if policy == SCRIPTED else exploration,
        "noise": noise if noise is not None else 0.1 if policy == SCRIPTED else 1.0,
        "slots": slots,
        "wait_seconds": wait,
    }
    config = read_settings(ActingConfig, told, "actor")
    done = act(config, read_token(token_file), stop)
    if json:
        emit(
            {
                "episodes": done.episodes,
                "steps": done.steps,
                "mean_return": done.mean_return,
                "policy_version": done.policy_version,
            }
        )
        return
    said = f"pushed {done.episodes:,} episodes, {done.steps:,} steps"
    if done.mean_return is not None:
        said += f", mean return {done.mean_return:.1f}"
    say(said)
