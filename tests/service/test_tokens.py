"""Tokens and the file that holds them."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import threading

import pytest

from pipeline.cli.main import main
from pipeline.service.token_book import TokenBook, TokenRequest, book_of, first_token
from pipeline.service.tokens import Quota, check_producer, check_scope, id_in
from schemas.errors import (
    ConfigError,
    ForbiddenError,
    NameTakenError,
    NotFoundError,
    UnauthenticatedError,
)

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> dt.datetime:
        return self.now


@pytest.fixture
def book(tmp_path):
    return TokenBook(tmp_path / "token.book")


def request(name: str = "a", *scopes: str, **more) -> TokenRequest:
    return TokenRequest(name=name, scopes=scopes or ("pull",), **more)


def test_a_token_is_known_by_its_text(book):
    token, text = book.create(request("learner", "pull", "curate"))
    assert text.startswith(f"pnk_{token.id}_")
    assert id_in(text) == token.id
    assert book.verify(text) == token
    assert TokenBook(book.path).verify(text) == token
    assert [one.name for one in book.tokens()] == ["learner"]


def test_other_texts_are_refused_alike(book):
    token, text = book.create(request())
    _, other = book.create(request("b"))
    swapped = f"pnk_{token.id}_" + other.split("_", 2)[2]
    said = set()
    wrongs = ["", "x", text[:-1], text + "x", f"{text} ", swapped, text.upper(), "x" * 10**6]
    wrongs += [f"pnk_{token.id}_", f"pnk_000000000000_{'a' * 43}", "\ud800", "pnk_é"]
    for wrong in wrongs:
        with pytest.raises(UnauthenticatedError) as error:
            book.verify(wrong)
        said.add(error.value.message)
    assert len(said) == 1


def test_the_file_holds_no_secret_and_is_its_owner_s(book):
    for name in "abc":
        _, text = book.create(request(name))
        data = book.path.read_text()
        assert text not in data
        assert text.split("_", 2)[2] not in data
        assert book.path.stat().st_mode & 0o777 == 0o600
    assert not list(book.path.parent.glob("*.tmp*"))
    assert len(list(book.path.parent.iterdir())) == 2  # the book and its lock


def test_expiry(tmp_path):
    clock = Clock()
    book = TokenBook(tmp_path / "book", clock)
    _, text = book.create(request(expires_in=dt.timedelta(hours=1)))
    clock.now += dt.timedelta(minutes=59)
    book.verify(text)
    clock.now += dt.timedelta(minutes=1)
    with pytest.raises(UnauthenticatedError, match="expired"):
        book.verify(text)
    book.create(request())  # its name is free again


def test_revocation_is_seen_by_whoever_has_the_file_open(book):
    token, text = book.create(request())
    reader = TokenBook(book.path)
    reader.verify(text)
    book.revoke(token.id)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        reader.verify(text)
    with pytest.raises(UnauthenticatedError):
        reader.by_id(token.id)
    with pytest.raises(NotFoundError):
        book.revoke(token.id)


def test_a_book_that_is_gone_or_damaged_lets_nobody_in(book):
    _, text = book.create(request())
    book.verify(text)
    data = book.path.read_bytes()
    for damaged in (b"", data[:-20], b"{}" * 3, b"[" * 100_000, data.replace(b'"tokens"', b'"x"')):
        book.path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="book of tokens"):
            book.verify(text)
    book.path.unlink()
    with pytest.raises(UnauthenticatedError):
        book.verify(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "x" * 129},
        {"scopes": ()},
        {"scopes": ("root",)},
        {"scopes": ("push", "pull"), "streams": ("lab",)},
        {"scopes": ("push",), "streams": ("a/b",)},
    ],
)
def test_what_is_no_token(book, wrong):
    wanted = TokenRequest(**{"name": "a", "scopes": ("pull",), **wrong})
    with pytest.raises(ConfigError):
        book.create(wanted)
    assert not book.path.exists()


def test_a_name_is_one_token_s(book):
    book.create(request())
    with pytest.raises(NameTakenError):
        book.create(request())
    book.revoke("a")
    book.create(request())


def test_threads_and_processes_lose_no_token(book):
    code = (
        "import sys; from pathlib import Path;"
        "from pipeline.service.token_book import TokenBook, TokenRequest\n"
        "for k in range(5):\n"
        "    TokenBook(Path(sys.argv[1])).create(TokenRequest(f'{sys.argv[2]}-{k}', ('pull',)))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(book.path), f"p{n}"]) for n in range(2)
    ]

    def create(number: int) -> None:
        for k in range(10):
            TokenBook(book.path).create(request(f"t{number}-{k}"))

    threads = [threading.Thread(target=create, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0]
    names = {token.name for token in book.tokens()}
    expected = {f"t{n}-{k}" for n in range(4) for k in range(10)}
    assert names == expected | {f"p{n}-{k}" for n in range(2) for k in range(5)}
    assert len({token.id for token in book.tokens()}) == 50


# -- scopes --------------------------------------------------------------------------------------


def test_scopes(book):
    for scope in ("push", "pull", "curate"):
        token, _ = book.create(request(scope, scope))
        for other in ("push", "pull", "curate", "admin"):
            if other == scope:
                check_scope(token, (other,))
            else:
                with pytest.raises(ForbiddenError):
                    check_scope(token, (other,))
    admin, _ = book.create(request("root", "admin"))
    for scope in ("push", "pull", "curate", "admin"):
        check_scope(admin, (scope,))
        check_scope(None, (scope,))


def test_streams(book):
    token, _ = book.create(request("lab", "push", streams=("lab",)))
    check_producer(token, "lab:arm-1")
    check_producer(token, "lab")
    for producer in ("laboratory", "x:lab", "LAB", ":lab", ""):
        with pytest.raises(ForbiddenError):
            check_producer(token, producer)
    free, _ = book.create(request("free", "push"))
    check_producer(free, "anything")
    reader, _ = book.create(request("reader", "pull"))
    with pytest.raises(ForbiddenError):
        check_producer(reader, "anything")


# -- the first token -----------------------------------------------------------------------------


def test_the_first_token(tmp_path):
    file = tmp_path / "wal" / "token"
    book = first_token(file)
    text = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert book.verify(text).scopes == ("admin",)
    again = first_token(file)
    assert file.read_text().strip() == text
    assert [token.id for token in again.tokens()] == [id_in(text)]


def test_a_token_file_made_elsewhere_is_taken(tmp_path):
    _, text = TokenBook(tmp_path / "elsewhere").create(request("x", "admin"))
    file = tmp_path / "token"
    file.write_text(f"{text}\n")
    file.chmod(0o600)
    assert first_token(file).verify(text).allows("push")


def test_a_revoked_first_token_stays_revoked(tmp_path):
    file = tmp_path / "token"
    book = first_token(file)
    text = file.read_text().strip()
    book.revoke(id_in(text))
    with pytest.raises(UnauthenticatedError):
        first_token(file).verify(text)


@pytest.mark.parametrize(
    ("content", "mode"), [("hunter2", 0o600), ("", 0o600), ("pnk_x_y", 0o600), (None, 0o644)]
)
def test_token_files_that_are_refused(tmp_path, content, mode):
    file = tmp_path / "token"
    text = first_token(tmp_path / "other") and (tmp_path / "other").read_text()
    file.write_text(text if content is None else content)
    file.chmod(mode)
    with pytest.raises(ConfigError) as error:
        first_token(file)
    assert "hunter2" not in str(error.value)


def test_an_id_is_no_secret_of_another(tmp_path):
    file = tmp_path / "token"
    text = (first_token(file), file.read_text().strip())[1]
    file.write_text(text[:-43] + "A" * 43)
    with pytest.raises(ConfigError, match="another of its id"):
        first_token(file)


# -- the command ---------------------------------------------------------------------------------


def cli(capsys, *arguments: str) -> tuple[int, dict]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command(tmp_path, capsys):
    store = str(tmp_path)
    code, made = cli(
        capsys, *("token", "create", store, "--name", "actor-1", "--scopes", "push"),
        *("--expires", "30d", "--streams", "lab", "--max-streams", "2"),
        *("--bytes-per-second", "10MB", "--unsealed-bytes", "1GB"),
    )  # fmt: skip
    assert code == 0
    text = made["token"]
    token = TokenBook(book_of(tmp_path / "wal" / "token")).verify(text)
    assert token.quota == Quota(max_streams=2, bytes_per_second=10**7, unsealed_bytes=10**9)
    assert token.streams == ("lab",)
    assert token.expires_at == token.created_at + dt.timedelta(days=30)
    code, listed = cli(capsys, "token", "list", store)
    assert [one["id"] for one in listed["tokens"]] == [token.id]
    assert "sha256" not in listed["tokens"][0]
    assert main(["token", "list", store]) == 0
    assert text not in capsys.readouterr().out
    file = str(tmp_path / "wal" / "token")
    code, gone = cli(capsys, "token", "revoke", "actor-1", "--token-file", file)
    assert (code, gone["state"]) == (0, "revoked")
    code, error = cli(capsys, "token", "revoke", store, "actor-1")
    assert (code, error["error"]["kind"]) == (2, "not_found")


def test_the_command_finds_the_book_of_a_log_elsewhere(tmp_path, capsys):
    """As a server with `--wal` keeps it: not in the store, where nothing is made."""
    store, wal = tmp_path / "store", tmp_path / "log"
    store.mkdir()
    first_token(wal / "token")
    at = (str(store), "--wal", str(wal))
    code, made = cli(capsys, "token", "create", *at, "--name", "actor-1")
    assert code == 0
    assert TokenBook(book_of(wal / "token")).verify(made["token"]).name == "actor-1"
    code, listed = cli(capsys, "token", "list", *at)
    assert [one["name"] for one in listed["tokens"]][1:] == ["actor-1"]
    assert cli(capsys, "token", "list", "--wal", str(wal)) == (0, listed)
    code, gone = cli(capsys, "token", "revoke", str(store), "actor-1", "--wal", str(wal))
    assert (code, gone["state"]) == (0, "revoked")
    assert list(store.iterdir()) == []


def test_a_book_that_is_new_is_said(tmp_path, capsys):
    book = str(tmp_path / "wal" / "token.book")
    for times, name in ((1, "a"), (0, "b")):
        assert main(["token", "create", str(tmp_path), "--name", name]) == 0
        assert capsys.readouterr().err.count(book) == times


@pytest.mark.parametrize("command", [["list"], ["revoke", "x"]], ids=lambda one: one[0])
def test_no_book_is_no_empty_book(tmp_path, capsys, command):
    arguments = [*command[:1], str(tmp_path), *command[1:]]
    code, said = cli(capsys, "token", *arguments)
    assert (code, said["error"]["kind"]) == (2, "not_found")
    assert "--wal" in said["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
def test_what_root_adds_to_belongs_to_the_service(tmp_path):
    """Else a token that root makes would lock the service out of its own book."""
    wal = tmp_path / "wal"
    wal.mkdir()
    os.chown(wal, 10001, 10002)
    book = first_token(wal / "token")
    book.create(request("more"))
    found = {one.name: (one.stat().st_uid, one.stat().st_gid) for one in wal.iterdir()}
    assert found == dict.fromkeys(("token", "token.book", ".token.book.lock"), (10001, 10002))


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--name", "x"],
        ["create", "STORE", "--wal", "/nowhere/at/all", "--name", "x"],
        ["create", "s3://bucket/store", "--name", "x"],
        ["create", "/nowhere/at/all", "--name", "x"],
        ["create", "STORE"],
        ["create", "STORE", "--name", "x", "--scopes", "root"],
        ["create", "STORE", "--name", "x", "--expires", "soon"],
        ["revoke", "STORE", "x", "y"],
        ["list"],
    ],
)
def test_the_command_refuses(tmp_path, capsys, arguments):
    given = [str(tmp_path) if one == "STORE" else one for one in arguments]
    code, said = cli(capsys, "token", *given)
    assert code in (1, 2)
    assert said["error"]["kind"] != "bug"
