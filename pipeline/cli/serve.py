"""`penstock serve`: the online service over one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, StoreArg


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "serve",
        help="Take rollouts in, serve versions and episodes, until told to end.\n\n"
        "Prints one JSON line when it is ready: "
        '{"data": "grpc://...", "control": "http://...", "token_file": ...}.\n\n'
        "Example: penstock serve ./store --port 8815 --http-port 8816",
    )(serve)


def serve(
    store: StoreArg,
    host: Annotated[str, typer.Option("--host", help="Where both ports listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="Of the data; 0 takes a free one.", min=0, max=65535)
    ] = 8815,
    http_port: Annotated[
        int, typer.Option("--http-port", help="Of control and pages.", min=0, max=65535)
    ] = 8816,
    wal: Annotated[
        Path | None,
        typer.Option("--wal", metavar="DIR", help="The log, on this machine; STORE/wal."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The first token; WAL/token.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in everyone who reaches the ports.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="In PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="In PEM.")] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="A further name of the control port."),
    ] = None,
    branch: Annotated[str, typer.Option("--branch", help="Where rollouts go.")] = "main",
    new_spec: Annotated[
        str | None,
        typer.Option("--new-spec", metavar="NAME", help="For rollouts that fit no other."),
    ] = None,
    seal_every: Annotated[
        str, typer.Option("--seal-every", metavar="TIME", help="Such as 5s, 500ms or 1m.")
    ] = "5s",
    seal_bytes: Annotated[
        str, typer.Option("--seal-bytes", metavar="SIZE", help="After so much, earlier.")
    ] = "64MiB",
    max_unsealed_bytes: Annotated[
        str, typer.Option("--max-unsealed-bytes", metavar="SIZE", help="Of the log.")
    ] = "8GiB",
    disk_reserve_bytes: Annotated[
        str, typer.Option("--disk-reserve-bytes", metavar="SIZE", help="Room to leave.")
    ] = "1GiB",
    max_streams: Annotated[int, typer.Option("--max-streams", min=1, help="Open at a time.")] = 256,
    compact_every: Annotated[
        str, typer.Option("--compact-every", metavar="TIME", help="Join small parts.")
    ] = "5m",
    drain: Annotated[
        str, typer.Option("--drain", metavar="TIME", help="For streams, when told to end.")
    ] = "10s",
    json: Json = False,
) -> None:
    import os
    import sys

    # Arrow's own allocator keeps what other threads freed; the C library's can be told to let go.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

    from pipeline.service.extra import check_installed

    check_installed()

    from pipeline.cli.output import emit
    from pipeline.jobs.summary import describe
    from pipeline.service import serve as service
    from pipeline.service.config import log_folder, service_config
    from pipeline.service.logs import log_to
    from pipeline.store.store import open_store
    from schemas.sizes import parse_bytes

    _check_place(store)
    settings: dict[str, Any] = {
        **{"host": host, "port": port, "http_port": http_port, "wal": log_folder(store, wal)},
        **{"token_file": token_file, "no_token": no_token, "tls_cert": tls_cert},
        **{"tls_key": tls_key, "allowed_hosts": tuple(allowed_hosts or ()), "branch": branch},
        **{"new_spec": new_spec, "seal_every": seconds(seal_every)},
        **{"seal_bytes": parse_bytes(seal_bytes), "max_streams": max_streams},
        **{"max_unsealed_bytes": parse_bytes(max_unsealed_bytes)},
        **{"disk_reserve_bytes": parse_bytes(disk_reserve_bytes)},
        **{"compact_every": seconds(compact_every), "drain_seconds": seconds(drain)},
    }
    config = service_config(settings)
    log_to()

    def ready(places: dict[str, str | None]) -> None:
        emit(places)
        sys.stdout.flush()  # whoever started the service waits for it

    service.serve(open_store(store, create=True), config, describe, ready)


def seconds(text: str) -> float:
    """Returns a time such as 500ms, 5s, 2m or 1h in seconds."""
    from schemas.errors import UsageError

    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = text.rstrip("hms")
    try:
        value = float(number) * units[text[len(number) :]]
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < 1e9:
        raise UsageError(f"Expected a time such as 500ms, 5s or 2m, came {text!r}.")
    return value


def _check_place(store: str) -> None:
    """Refuses to make a store of a name that other commands would take for STORE@REF."""
    from pipeline.store.store import open_store, parse_ref
    from schemas.errors import NotFoundError, UsageError

    place, ref = parse_ref(store)
    if place == store:
        return
    try:
        open_store(store)
    except NotFoundError:
        raise UsageError(
            f"Expected the place of a store, came one with the reference {ref!r}; a service "
            f"serves all branches, and --branch names that of the rollouts.",
            where=store,
        ) from None
