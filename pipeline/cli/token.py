"""The tokens of a service: `token create`, `token list`, `token revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, comma_names, emit, note, say, table

if TYPE_CHECKING:
    from pipeline.service.token_book import TokenBook
    from pipeline.service.tokens import Token

StorePlace = Annotated[
    str | None,
    typer.Argument(metavar="[STORE]", help="A folder that `penstock serve` serves."),
]
Wal = Annotated[
    Path | None,
    typer.Option("--wal", metavar="DIR", help="The service's log, if not in STORE/wal."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="The service's, if not WAL/token."),
]


def register(app: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Make, list and revoke tokens of a service.\n\n"
        "Example: penstock token create ./store --name actor-1 --scopes push --expires 30d",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(
        "create",
        help="Make a token and print its text, this once.\n\n"
        "Example: penstock token create ./store --name actor-1 --scopes push --expires 30d",
    )(create)
    group.command(
        "list", help="List all tokens, without their texts.\n\nExample: penstock token list ./store"
    )(list_)
    group.command(
        "revoke",
        help="Revoke a token at once and for ever, also in servers that run.\n\n"
        "Example: penstock token revoke ./store actor-1",
    )(revoke)
    app.add_typer(group, name="token")


def create(
    store: StorePlace = None,
    name: Annotated[str, typer.Option("--name", help="Who is to have it.")] = "",
    scopes: Annotated[
        str, typer.Option("--scopes", help="Of push, pull, curate and admin: a,b.")
    ] = "push",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="Such as 12h or 30d.")
    ] = None,
    streams: Annotated[
        str | None, typer.Option("--streams", help="Streams that it may push to, a,b; all.")
    ] = None,
    max_streams: Annotated[
        int | None, typer.Option("--max-streams", min=1, help="Open at a time.")
    ] = None,
    bytes_per_second: Annotated[
        str | None, typer.Option("--bytes-per-second", metavar="SIZE", help="Such as 10MB.")
    ] = None,
    unsealed_bytes: Annotated[
        str | None, typer.Option("--unsealed-bytes", metavar="SIZE", help="Not in the store yet.")
    ] = None,
    wal: Wal = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    from pipeline.cli.maintain import time_span
    from pipeline.service.token_book import TokenRequest
    from pipeline.service.tokens import Quota
    from schemas.errors import UsageError
    from schemas.sizes import parse_bytes

    if not name:
        raise UsageError("Expected --name, who is to have the token.")
    wanted = TokenRequest(
        name=name,
        scopes=comma_names(scopes),
        expires_in=None if expires is None else time_span(expires),
        streams=comma_names(streams),
        quota=Quota(
            max_streams=max_streams,
            bytes_per_second=None if bytes_per_second is None else parse_bytes(bytes_per_second),
            unsealed_bytes=None if unsealed_bytes is None else parse_bytes(unsealed_bytes),
        ),
    )
    book = _book(store, wal, token_file)
    is_new = not book.path.exists()
    token, text = book.create(wanted)
    if is_new:
        note(f"A new book of tokens: {book.path}; a server that has --wal elsewhere reads another.")
    if json:
        emit({**_told(token), "token": text})
    else:
        say(text)
        note(f"{token.name} ({token.id}) may {', '.join(token.scopes)}; this is shown once.")


def list_(
    store: StorePlace = None, wal: Wal = None, token_file: TokenFile = None, json: Json = False
) -> None:
    found = _known_book(store, wal, token_file).tokens()
    if json:
        emit({"tokens": [_told(token) for token in found]})
        return
    rows = [
        (
            *(one.id, one.name, _state(one), " ".join(one.scopes)),
            *(" ".join(one.streams) or None, one.created_at, one.expires_at),
        )
        for one in found
    ]
    table(("id", "name", "state", "scopes", "streams", "made", "expires"), rows)


def revoke(
    where: Annotated[
        list[str], typer.Argument(metavar="[STORE] TOKEN", help="The token's id or name.")
    ],
    wal: Wal = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    from schemas.errors import UsageError

    if len(where) > 2:
        raise UsageError(f"Expected [STORE] TOKEN, came {len(where)} arguments.")
    book = _known_book(where[0] if len(where) == 2 else None, wal, token_file)
    token = book.revoke(where[-1])
    if json:
        emit(_told(token))
    else:
        say(f"revoked {token.id} ({token.name})")


def _book(store: str | None, wal: Path | None, token_file: Path | None) -> TokenBook:
    """Returns the book of the server that has these settings."""
    from pipeline.service.config import log_folder, token_place
    from pipeline.service.token_book import TokenBook, book_of
    from schemas.errors import NotFoundError, UsageError

    if store is None and wal is None and token_file is None:
        raise UsageError(
            "Expected the folder of a store, --wal DIR or --token-file FILE, as the service has "
            "them, came none."
        )
    if token_file is not None:
        return TokenBook(book_of(token_file))
    folder = log_folder(store or "", wal)
    if wal is not None and not wal.is_dir():
        raise NotFoundError("Expected the folder of a service's log, came none.", where=str(wal))
    if wal is None and not folder.parent.is_dir():
        raise NotFoundError("Expected the folder of a store, came none.", where=store)
    return TokenBook(book_of(token_place(folder, None)))


def _known_book(store: str | None, wal: Path | None, token_file: Path | None) -> TokenBook:
    """Returns the book of a server that has one.

    Raises:
        NotFoundError: if there is none.
    """
    from schemas.errors import NotFoundError

    book = _book(store, wal, token_file)
    if not book.path.is_file():
        raise NotFoundError(
            "Expected a book of tokens, came none; name the log's folder by --wal, or the token "
            "file by --token-file, as the service has them.",
            where=str(book.path),
        )
    return book


def _told(token: Token) -> dict[str, object]:
    return {**token.model_dump(exclude={"sha256"}), "state": _state(token)}


def _state(token: Token) -> str:
    import datetime as dt

    return token.state(dt.datetime.now(dt.UTC))
