"""`penstock ablate`: did the data that were removed or added help?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.learn import Device, Set, StreamSet, read_pairs
from pipeline.cli.output import Json, emit, note, say, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    from learners.ablate import AblateConfig
    from learners.comparison import Comparison


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "ablate",
        help="Train on versions in pairs of equal seeds, and tell which teach better.\n\n"
        "Example: penstock ablate --data ./store --data ./store@clean --algo bc "
        "--env Hopper-v5 --out ablations/clean\n\n"
        "The same again elsewhere: penstock ablate ablations/clean/ablation.json --out other",
    )(ablate)


def ablate(
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Of report and runs.")],
    document: Annotated[
        Path | None,
        typer.Argument(metavar="[ABLATION.JSON]", help="Run this one again, on its versions."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="STORE[@REF]", help="Two or more; the first is compared."),
    ] = None,
    algo: Annotated[str | None, typer.Option("--algo", help="An algorithm.")] = None,
    env: Annotated[str | None, typer.Option("--env", help="Where policies are judged.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="Pairs of runs; 5.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Updates of a run; 20,000.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="To judge each policy by; 20.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows of a batch; 256.")
    ] = None,
    discount: Annotated[
        float | None, typer.Option("--discount", help="Of rewards to come; 0.99.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the first pair; 0.")] = None,
    set: Set = None,
    stream: StreamSet = None,
    device: Device = "cpu",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Instead of DIR/ablation.svg.")
    ] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from learners.ablate import ablate as run_ablation
    from learners.ablate import again
    from pipeline.cli.progress import learning_bar
    from schemas.errors import UsageError

    given = {
        **{"data": tuple(data or ()), "algo": algo, "environment": env},
        **{"steps": steps, "episodes": episodes, "batch_size": batch_size},
        **{"discount": discount, "first_seed": seed},
        **{"settings": read_pairs(set), "stream": read_pairs(stream, "--stream")},
    }
    asked = {name: value for name, value in given.items() if value not in (None, (), {})}
    anywhere = {"out": out, "device": device, **({} if seeds is None else {"seeds": seeds})}
    if document is None:
        config = _config({**asked, **anywhere})
    elif asked:
        raise UsageError(
            f"Expected a document and no more than --out, --seeds and --device, came "
            f"{', '.join(sorted(asked))} as well, which the document says; leave them out, or "
            f"leave the document out."
        )
    else:
        config = again(document, anywhere)
    picture = _picture(plot, Path(out))
    with learning_bar("train A", config.steps, quiet=json) as advance:
        found = run_ablation(config, advance)
    _tell(config, found, picture, json)


def _config(asked: dict[str, Any]) -> AblateConfig:
    from learners.ablate import AblateConfig
    from learners.settings import read_settings
    from schemas.errors import UsageError

    for name, option in (("algo", "--algo"), ("environment", "--env")):
        if name not in asked:
            raise UsageError(f"Expected {option}, or the document of an ablation, came neither.")
    if len(asked.get("data", ())) < 2:
        raise UsageError("Expected two or more versions to compare (--data), came fewer.")
    return read_settings(AblateConfig, asked, "ablate")


def _picture(asked: Path | None, out: Path) -> Path | None:
    """Where the plot goes; None where nobody asked for it and it cannot be drawn."""
    from learners.plots import check_file
    from schemas.errors import MissingExtraError

    file = asked or out / "ablation.svg"
    try:
        check_file(file)
    except MissingExtraError as error:
        if asked is not None:
            raise
        note(f"penstock: no plot: {error.message}")
        return None
    return file


def _tell(config: AblateConfig, found: Comparison, picture: Path | None, json: bool) -> None:
    from learners.ablate import DOCUMENT
    from learners.ablation_report import HEAD, markdown, rows
    from learners.files import write_whole
    from learners.plots import plot_comparison

    folder = Path(config.out)
    if picture is not None:
        plot_comparison(found, picture)
    inside = picture is not None and picture.parent == folder
    page = markdown(config, found, picture.name if inside and picture is not None else None)
    write_whole(folder / "ablation.md", page.encode())
    if json:
        emit(
            {
                **found.document(),
                "algo": config.algo,
                "environment": config.environment,
                "seeds": config.seeds,
                "episodes": config.episodes,
                "steps": config.steps,
                "document": str(folder / DOCUMENT),
                "report": str(folder / "ablation.md"),
                "plot": None if picture is None else str(picture),
            }
        )
        return
    table(HEAD, rows(found))
    for sentence in found.sentences():
        say(sentence)
    say(str(folder / "ablation.md"))
