"""Learner workers: `train`, `finetune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pipeline.cli.output import Json, emit, say
from pipeline.cli.reaching import TlsCa, TokenFile, read_token

if TYPE_CHECKING:
    from learners.run import Progress, RunResult

T = TypeVar("T")

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A hyperparameter.")
]
StreamSet = Annotated[
    list[str] | None,
    typer.Option("--stream", metavar="KEY=VALUE", help="A setting of the stream: sampler=shuffle."),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="BYTES", help="What the stream may hold: 4GB."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1.")]
Env = Annotated[str, typer.Option("--env", help="A registered Gymnasium environment.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]

TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Event files beside the tables, for TensorBoard.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "train",
        help="Train offline on a version.\n\n"
        "Example: penstock train iql --data ./store@clean --steps 20000 --out runs/iql\n\n"
        "Five seeds side by side, in runs/iql/seed-0 to seed-4: penstock train iql --data "
        "./store@clean --out runs/iql --seeds 5\n\n"
        "On a GPU, each update one call: penstock train iql --data ./store@clean --out runs/iql "
        "--device cuda --compile graph\n\n"
        "Two processes as one: torchrun --nproc-per-node 2 -m penstock train iql --data "
        "./store@clean --out runs/iql",
    )(train)
    app.command(
        "finetune",
        help="Go on online, with rollouts through the store.\n\n"
        "Example: penstock finetune runs/iql --env Hopper-v5 --into ./store --env-steps 10000\n\n"
        "Or beside actors: penstock finetune runs/iql --env Hopper-v5 --service "
        "grpc://127.0.0.1:8815",
    )(finetune)


def train(
    algo: str,
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="STORE[@REF][=WEIGHT]", help="A version; several make a mixture."
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="Folder of the run.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates.")] = 100_000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a batch.")] = 256,
    discount: Annotated[float, typer.Option("--discount", help="Of rewards to come.")] = 0.99,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and batches.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Independent runs.")] = 1,
    env: Annotated[str | None, typer.Option("--env", help="Evaluate here at the end.")] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Of an evaluation.")] = 10,
    evaluate_every: Annotated[
        int, typer.Option("--evaluate-every", min=0, help="Updates; 0 evaluates at the end alone.")
    ] = 0,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Updates that a crash may cost.")
    ] = 10_000,
    set: Set = None,
    stream: StreamSet = None,
    memory: Memory = None,
    device: Device = "cpu",
    compile: Annotated[
        str,
        typer.Option(
            "--compile", help="none, step (by torch.compile) or graph (captured on a GPU)."
        ),
    ] = "none",
    resume: Resume = False,
    tensorboard: TensorBoard = False,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    import functools

    from learners.ranks import this_rank
    from learners.settings import read_settings
    from learners.train import TrainConfig, train_seeds
    from learners.train import train as run_training

    asked = {
        "algo": algo,
        "data": tuple(data),
        "out": out,
        "steps": steps,
        "settings": read_pairs(set),
        "stream": _stream_settings(stream, memory),
        "batch_size": batch_size,
        "seed": seed,
        "discount": discount,
        "device": device,
        "compile": compile,
        "environment": env,
        "evaluate_episodes": episodes,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
        "tensorboard": tensorboard,
    }
    config = read_settings(TrainConfig, asked, "train")
    is_first = this_rank().is_first
    is_quiet = json or not is_first
    if seeds == 1:
        results = [_watched(algo, is_quiet, run_training, config)]
    else:
        together = functools.partial(train_seeds, seeds=seeds)
        results = _watched(f"{algo}, {seeds} seeds", is_quiet, together, config)
    if is_first:
        _tell(results, json)


def finetune(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of an offline run.")],
    env: Env,
    into: Annotated[
        str | None, typer.Option("--into", metavar="STORE", help="Takes the rollouts.")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option("--service", metavar="ADDRESS", help="Takes the rollouts of actors."),
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", min=0, help="Processes here, with --service.")
    ] = 1,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the run, with --service: for actors.")
    ] = None,
    max_policy_lag: Annotated[
        int | None, typer.Option("--max-policy-lag", min=0, help="Of rollouts, in updates.")
    ] = None,
    max_age: Annotated[
        float | None, typer.Option("--max-age", help="Of rollouts, in seconds.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option("--warmup-steps", min=0, help="Before the first update.")
    ] = None,
    log_rows: Annotated[
        bool, typer.Option("--log-rows", help="Keep digests of all batches, with --service.")
    ] = False,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    env_steps: Annotated[
        int, typer.Option("--env-steps", min=1, help="Steps of rollouts in all.")
    ] = 10_000,
    offline_fraction: Annotated[
        float, typer.Option("--offline-fraction", help="Of each batch, from the offline versions.")
    ] = 0.5,
    join_successes: Annotated[
        bool, typer.Option("--join-successes", help="Successful episodes count as demonstrations.")
    ] = False,
    updates_per_step: Annotated[
        float, typer.Option("--updates-per-step", help="Of the environment.")
    ] = 1.0,
    exploration: Annotated[
        str, typer.Option("--exploration", help="none, gaussian or policy (its own spread).")
    ] = "policy",
    noise: Annotated[
        float, typer.Option("--noise", help="Deviation of gaussian, or factor on the policy's.")
    ] = 1.0,
    branch: Annotated[str | None, typer.Option("--branch", help="Of the rollouts.")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="RUN2")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Of an evaluation.")] = 10,
    evaluate_every: Annotated[
        int | None,
        typer.Option("--evaluate-every", min=1, help="Steps of rollouts; not with --service."),
    ] = None,
    set: Set = None,
    stream: StreamSet = None,
    memory: Memory = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = False,
    resume: Resume = False,
    json: Json = False,
) -> None:
    import functools

    from learners.settings import read_settings
    from schemas.errors import UsageError

    asked = {
        "run": run,
        "environment": env,
        "into": into,
        "out": out,
        "env_steps": env_steps,
        "offline_fraction": offline_fraction,
        "updates_per_step": updates_per_step,
        "exploration": exploration,
        "noise": noise,
        "settings": read_pairs(set),
        "stream": _stream_settings(stream, memory),
        "seed": seed,
        "device": device,
        "evaluate_episodes": episodes,
        "tensorboard": tensorboard,
        "resume": resume,
        **({} if warmup_steps is None else {"warmup_steps": warmup_steps}),
    }
    if service is None:
        from learners.finetune import FinetuneConfig
        from learners.finetune import finetune as run_finetuning

        if into is None:
            raise UsageError("Expected --into STORE or --service ADDRESS, came neither.")
        alone = {
            "branch": branch,
            "join_successes": join_successes,
            "evaluate_every": evaluate_every or 0,
        }
        config = read_settings(FinetuneConfig, {**asked, **alone}, "finetune")
        _tell([_watched("finetune", json, run_finetuning, config)], json)
        return
    from learners.online import learn_online
    from learners.online_run import OnlineConfig

    if branch is not None or join_successes or evaluate_every is not None:
        raise UsageError(
            "Expected none of --branch, --join-successes and --evaluate-every with --service, "
            "whose branch takes the rollouts of actors; leave them out."
        )
    beside = {
        "service": service,
        "actors": actors,
        "name": name,
        "max_policy_lag": max_policy_lag,
        "max_age": max_age,
        "log_rows": log_rows,
    }
    learn = functools.partial(learn_online, token=read_token(token_file))
    online = read_settings(OnlineConfig, {**asked, **beside}, "finetune")
    _tell([_watched("finetune", json, learn, online)], json)


def _stream_settings(pairs: list[str] | None, memory: str | None) -> dict[str, Any]:
    settings = read_pairs(pairs, "--stream")
    return settings if memory is None else {**settings, "memory": memory}


def read_pairs(pairs: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Returns `key=value` pairs; values that read as JSON are taken so."""
    import json

    from schemas.errors import UsageError

    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"Expected {option} KEY=VALUE, came {pair!r}.")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _watched(title: str, quiet: bool, run: Callable[..., T], config: Any) -> T:
    """Runs with a bar on a terminal, which shows the newest losses."""
    from pipeline.cli.progress import learning_bar

    total = getattr(config, "env_steps", None) or config.steps
    with learning_bar(title, total, quiet=quiet) as advance:

        def report(progress: Progress) -> None:
            stage = "packing the cache" if progress.stage == "pack" else title
            advance(stage, progress.done, progress.total, progress.values)

        return run(config, report=report)


REGRETS = {
    "success": "share of training episodes that failed",
    "normalized": "1 - normalised score of training episodes",
    "best_return": "mean return of training episodes below their best",
}


def _tell(results: list[RunResult], json: bool) -> None:
    told = [run_facts(result) for result in results]
    if json:
        emit(told[0] if len(told) == 1 else {"runs": told})
        return
    for facts in told:
        said = f"{facts['run']}: {facts['algo']}, {facts['steps']:,} updates"
        if facts["updates_per_second"]:
            said += f" at {facts['updates_per_second']:,.0f}/s"
        if facts["mean_return"] is not None:
            low, high = facts["interval"]
            said += f", return {facts['mean_return']:.1f} [{low:.1f}, {high:.1f}]"
        if facts["normalized_score"] is not None:
            said += f", normalised {facts['normalized_score']:.1f}"
        if facts["success"] is not None:
            said += f", success {100 * facts['success']:.0f} %"
        if facts["regret"] is not None:
            regret = facts["regret"]
            said += f", regret {regret['value']:.3g} ({REGRETS[regret['kind']]})"
        say(said)


def run_facts(result: RunResult) -> dict[str, Any]:
    """Returns what commands say of a run, under the names that stay put."""
    evaluation = result.evaluation
    return {
        "run": result.run,
        "algo": result.algo,
        "steps": result.steps,
        "updates_per_second": result.updates_per_second,
        "returns": list(evaluation.returns) if evaluation else [],
        "mean_return": evaluation.mean_return if evaluation else None,
        "interval": evaluation.interval if evaluation else None,
        "normalized_score": evaluation.normalized_score if evaluation else None,
        "success": evaluation.success if evaluation else None,
        "success_interval": evaluation.success_interval if evaluation else None,
        "regret": asdict(result.regret) if result.regret else None,
        "data": [pinned.version for pinned in result.data],
    }
