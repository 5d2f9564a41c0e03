"""The file of tokens, as the server asks it and `penstock token` changes it.

One JSON file (mode 0600) that is replaced as a whole. Any process may add to it or revoke; a
running server sees that at the next request, for it looks whether the file is still the one it
read.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from pipeline.service.private_files import locked, signature, write_private
from pipeline.service.tokens import (
    MAX_TEXT,
    PREFIX,
    SCOPES,
    Quota,
    Token,
    digest,
    id_in,
    new_text,
)
from schemas.document import Document
from schemas.errors import ConfigError, NameTakenError, NotFoundError, UnauthenticatedError

MAX_BOOK_BYTES = 16 << 20
BOOK_SUFFIX = ".book"
_T = TypeVar("_T")


class Book(Document):
    """The file."""

    format: Literal["penstock-tokens"] = "penstock-tokens"
    format_version: Literal[1] = 1
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class TokenRequest:
    """What a new token is to be."""

    name: str
    scopes: Sequence[str]
    expires_in: dt.timedelta | None = None
    streams: Sequence[str] = ()
    quota: Quota = field(default_factory=Quota)


class TokenBook:
    """The tokens of one file; safe to use from several threads and processes."""

    def __init__(self, path: Path, now: Callable[[], dt.datetime] | None = None) -> None:
        """Args: the file, which may not be there yet, and a clock."""
        self.path = path
        self._now = now or (lambda: dt.datetime.now(dt.UTC))
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._known: dict[str, Token] = {}

    # -- asking ----------------------------------------------------------------------------------

    def verify(self, text: str) -> Token:
        """Returns the token that a text is.

        Raises:
            UnauthenticatedError: if it is none of this book, was revoked or has expired. The error
                does not say more of a text that is not the token's.
        """
        token_id = id_in(text)
        found = self._read().get(token_id) if token_id else None
        stated = found.sha256 if found is not None else "0" * 64
        is_same = hmac.compare_digest(digest(text), stated)
        if found is None or not is_same:
            raise UnauthenticatedError(
                "Expected a token that this service knows, came another text; ask for one made "
                "with `penstock token create`."
            )
        return self._usable(found)

    def by_id(self, token_id: str) -> Token:
        """Returns a token that was verified before, if it can still be used.

        Raises:
            UnauthenticatedError: if it cannot.
        """
        found = self._read().get(token_id)
        if found is None:
            raise UnauthenticatedError("Expected a token of this service, came one it forgot.")
        return self._usable(found)

    def tokens(self) -> list[Token]:
        """Returns all tokens, the oldest first."""
        return sorted(self._read().values(), key=lambda one: (one.created_at, one.id))

    # -- changing --------------------------------------------------------------------------------

    def create(self, wanted: TokenRequest) -> tuple[Token, str]:
        """Adds a token; returns it with its text, which is kept nowhere.

        Raises:
            ConfigError: if what is wanted is no token.
            NameTakenError: if a token that can be used has the name.
        """
        text = new_text()
        return self._add(text, wanted), text

    def adopt(self, text: str, wanted: TokenRequest) -> Token:
        """Adds a token whose text was made elsewhere; the one of this text if it is known.

        Raises:
            ConfigError: if the text is no token's, or another's of the same id.
        """
        token_id = id_in(text)
        if token_id is None:
            raise ConfigError(
                f"Expected the text of a token, {PREFIX}_ID_SECRET, came something else; make one "
                f"with `penstock token create`."
            )
        found = self._read().get(token_id)
        if found is None:
            return self._add(text, wanted)
        if not hmac.compare_digest(found.sha256, digest(text)):
            raise ConfigError(f"Expected the token {found.id} of the book, came another of its id.")
        return found

    def revoke(self, token: str) -> Token:
        """Revokes a token by id or name, at once and for ever.

        Raises:
            NotFoundError: if there is none that could be used.
        """
        now = self._now()

        def change(book: Book) -> tuple[Book, Token]:
            for at, one in enumerate(book.tokens):
                if token in (one.id, one.name) and one.revoked_at is None:
                    gone = one.model_copy(update={"revoked_at": now})
                    tokens = (*book.tokens[:at], gone, *book.tokens[at + 1 :])
                    return book.model_copy(update={"tokens": tokens}), gone
            raise NotFoundError(
                f"Expected the id or name of a token that is not revoked, came {token[:128]!r}; "
                f"`penstock token list` names them."
            )

        return self._change(change)

    # -- within ----------------------------------------------------------------------------------

    def _usable(self, token: Token) -> Token:
        state = token.state(self._now())
        if state != "valid":
            raise UnauthenticatedError(
                f"Expected a token that can be used, came {token.id} ({token.name}), which "
                f"{'was revoked' if state == 'revoked' else 'has expired'}; ask for a new one."
            )
        return token

    def _add(self, text: str, wanted: TokenRequest) -> Token:
        now = self._now()
        try:
            made = Token.model_validate(
                {
                    "id": id_in(text),
                    "name": wanted.name,
                    "sha256": digest(text),
                    "scopes": tuple(dict.fromkeys(wanted.scopes)),
                    "streams": tuple(wanted.streams),
                    "quota": wanted.quota,
                    "created_at": now,
                    "expires_at": None if wanted.expires_in is None else now + wanted.expires_in,
                }
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "token"
            raise ConfigError(
                f"Expected a token with a name of letters, digits, '.', '_' and '-', and scopes of "
                f"{', '.join(SCOPES)}; {place}: {first['msg']}."
            ) from None

        def change(book: Book) -> tuple[Book, Token]:
            for one in book.tokens:
                if one.name == made.name and one.state(now) == "valid":
                    raise NameTakenError(
                        f"Expected a name that no token has, came {made.name!r}, which is that of "
                        f"{one.id}; revoke that one or choose another name."
                    )
            return book.model_copy(update={"tokens": (*book.tokens, made)}), made

        return self._change(change)

    def _change(self, change: Callable[[Book], tuple[Book, _T]]) -> _T:
        """Replaces the file by what a change makes of it, one process at a time."""
        with _typed_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f".{self.path.name}.lock")):
                book, outcome = change(_load(self.path)[1])
                write_private(self.path, (book.model_dump_json(indent=1) + "\n").encode())
        return outcome

    def _read(self) -> dict[str, Token]:
        with self._lock, _typed_errors(self.path):
            if signature(self.path) != self._seen or not self._seen:
                self._seen, book = _load(self.path)
                self._known = {one.id: one for one in book.tokens}
            return self._known


def first_token(token_file: Path) -> TokenBook:
    """Returns the book beside a token file, which holds the text of an admin token in clear.

    The file (mode 0600) is made if it is not there; one that is there is kept, and its token is
    taken into the book.

    Raises:
        ConfigError: if the file can be read by others, or holds no token.
    """
    book = TokenBook(book_of(token_file))
    wanted = TokenRequest(name=f"first-{secrets.token_hex(4)}", scopes=("admin",))
    with _typed_errors(token_file):
        if not token_file.exists():
            _, text = book.create(wanted)
            write_private(token_file, f"{text}\n".encode())
            return book
        if token_file.stat().st_mode & 0o077:
            raise ConfigError(
                "Expected a token file that its owner alone can read (mode 0600), came one that "
                "others can; run chmod 600 on it.",
                where=str(token_file),
            )
        with token_file.open("rb") as file:
            text = file.read(MAX_TEXT + 2).decode("ascii", "replace").strip()
    book.adopt(text, wanted)
    return book


def book_of(token_file: Path) -> Path:
    """Returns where the book of a token file is."""
    return token_file.with_name(token_file.name + BOOK_SUFFIX)


def _load(path: Path) -> tuple[tuple[int, ...], Book]:
    """Returns a book with the signature of the file that it was read from."""
    seen = signature(path)
    if not seen:
        return (), Book()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BOOK_BYTES + 1)
        if len(data) > MAX_BOOK_BYTES:
            raise ConfigError("Expected a book of tokens, came over 16 MB.", where=str(path))
        return seen, Book.model_validate_json(data)
    except FileNotFoundError:
        return (), Book()
    except ValidationError:
        raise ConfigError(
            "Expected a book of tokens, came a file that is none; nobody is let in until it is "
            "restored, or removed and the tokens made anew.",
            where=str(path),
        ) from None


@contextlib.contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"Could not use the file of tokens: {error.strerror or error}; check the folder and "
            f"this user's rights, or name another with --token-file.",
            where=str(path),
        ) from error
