"""Requests that mean harm: what they learn, and what they change, is nothing."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.service.answers import place, scrub
from pipeline.service.control import control_app
from pipeline.service.state import ControlState
from pipeline.store.store import open_store
from schemas.errors import DamagedStoreError, PenstockError
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service.ports import ARROW, Port, body_of, episode, service_in
from tests.store.makers import hashes

FILTERS = (
    *("1=1; DROP VIEW episodes", "length > 1; SELECT 1", "length > 1 -- x", "'' OR ''=''"),
    *("read_csv('/etc/passwd')", "length in (select 1)", "__import__('os')", "length.__class__"),
    *("open('/etc/passwd')", "task == '/etc/passwd", "${7*7}", "{{7*7}}", "length > 1 union all"),
    *("(" * 5000, "not " * 5000 + "success", "1" * 5000 + " > length", "length > 1e999"),
    *("task like '" + "%a" * 2000 + "'", "\x00", "\U0001f600", "a" * 16000),
    *("quantile(length, 'x')", "quantile(quantile(length, 1), 1)", "length / 0 > 1", "task > 3"),
)
NAMES = (
    *("..", ".", "../x", "..%2fx", "%2e%2e%2fx", "%2e%2e", "/etc/passwd", "%2fetc%2fpasswd"),
    *("a%00b", "a%0ab", "-x", "_head", "%c3%a9", "a" * 129, "refs%2fbranches%2fmain", "a%5cb"),
    *("main:1/../..", "0" * 32, "con:1", "main%3A..", "%252e%252e%252fx", ".token.book.lock"),
)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with service_in(tmp_path_factory.mktemp("hostile")) as found:
        yield found


@pytest.fixture
def unchanged(port: Port):
    """Makes sure that a test leaves the store's files as they were."""
    before = hashes(Path(port.store.url))
    yield
    assert hashes(Path(port.store.url)) == before


def checked(port: Port, answer) -> dict:
    """A refusal that is no fault and tells nothing; its error."""
    assert 400 <= answer.status_code < 500 or answer.status_code in (501, 503), answer.text
    return silent(port, answer)


def silent(port: Port, answer) -> dict:
    """A refusal that tells no path and no traceback; its error."""
    assert_tells_nothing(port, answer)
    error = answer.json()["error"]
    assert set(error) == {"kind", "message", "where"}
    assert error["kind"] not in ("bug", "error")
    return error


def assert_tells_nothing(port: Port, answer) -> None:
    for said in (
        *(str(port.state.config.wal), port.store.url, str(Path(port.store.url).parent)),
        *("Traceback", 'File "', "/site-packages/", "/pipeline/", ".py"),
    ):
        assert said not in answer.text


@pytest.mark.parametrize("text", FILTERS, ids=range(len(FILTERS)))
def test_filters_are_a_language_of_their_own(port: Port, unchanged, text: str):
    answers = [
        port.ask("GET", "/v1/versions/main/episodes", params={"where": text}),
        port.ask("POST", "/v1/curate", json={"where": text, "preview": True}),
        port.ask("POST", "/v1/curate", json={"where": "length > 1", "by": text, "top": 1,
                                             "preview": True}),
        port.ask("GET", "/v1/versions/main/episodes", params={"columns": text}),
        port.ask("GET", "/v1/versions/main/episodes", params={"sort": text}),
    ]  # fmt: skip
    for answer in answers[2:]:
        checked(port, answer)
    for answer in answers[:2]:
        if answer.status_code != 200:
            checked(port, answer)
    harmless = ("like '", "1e999", "/ 0")  # sound filters that keep few or none
    if not any(part in text for part in harmless):
        assert {answer.status_code for answer in answers[:2]} == {400}


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_nowhere_else(port: Port, unchanged, name: str):
    for method, path in (
        *[("GET", f"/v1/versions/{name}"), ("GET", f"/v1/versions/{name}/episodes")],
        *[("PUT", f"/v1/tags/{name}"), ("DELETE", f"/v1/tags/{name}")],
    ):
        more = {"json": {"ref": "main"}} if method == "PUT" else {}
        answer = port.ask(method, path, **more)
        if answer.status_code == 200:  # what the client itself made of the dots
            assert answer.request.url.path in ("/v1/versions", "/v1/tags", "/healthz")
        else:
            checked(port, answer)
    checked(port, port.ask("POST", "/v1/curate", json={"where": "length > 1", "branch": name}))
    checked(port, port.ask("PUT", "/v1/tags/fine", json={"ref": name}))
    checked(port, port.ask("GET", "/v1/versions", params={"ref": name}))
    checked(port, port.ask("GET", "/v1/quarantine", params={"ref": name}))


@pytest.mark.parametrize(
    "body",
    [
        *["", "{", "[]", "null", '"x"', "1", "[" * 100_000, '{"a":' * 50_000],
        *['{"where": 1}', '{"where": "length > 1", "preview": "true"}', '{"preview": 1}'],
        *['{"top": "3", "by": "length"}', '{"top": 3.0, "by": "length"}', '{"top": NaN}'],
        *['{"top": -1}', '{"top": 99999999999999999999}', '{"seed": Infinity}'],
        *['{"unknown": 1}', '{"where": "length > 1", "exclude": "abc"}', '{"exclude": [1]}'],
        *['{"__proto__": {}}', '{"where": null, "preview": true}', "\ud83d", "\x00"],
    ],
)
def test_json_is_strict(port: Port, unchanged, body: str):
    headers = {"content-type": "application/json"}
    content = body.encode("utf-8", "surrogatepass")
    answer = port.ask("POST", "/v1/curate", content=content, headers=headers)
    assert answer.status_code == 400
    checked(port, answer)
    checked(port, port.ask("PUT", "/v1/tags/x", content=b'{"ref": 1}', headers=headers))


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=-1", "limit=1e3", "limit=99999999", "limit=x", "unknown=1"),
        *("ref=", "ref=main&limit="),
    ],
)
def test_queries_are_strict(port: Port, unchanged, query: str):
    for path in ("/v1/versions", "/v1/quarantine"):
        checked(port, port.ask("GET", f"{path}?{query}"))


@pytest.mark.timeout(size(300, 3600))
def test_mutated_arrow_streams(port: Port):
    rng = random.Random(7)
    sound = body_of(episode("fuzz", length=6))
    accepted = 0
    count = size(100, 20_000)
    for _ in range(count):
        body = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.3:
            del body[rng.randrange(len(body)) :]
        answer = port.ask("POST", "/v1/rollouts", "push", content=bytes(body), headers=ARROW)
        if answer.status_code == 200:
            accepted += 1  # a mutated number is a number
        else:
            checked(port, answer)
    assert port.ask("GET", "/healthz", None).status_code == 200
    assert accepted < count
    tell("fuzzed bodies", bodies=count, taken=accepted)


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\0", b"\0" * 64],
        *[b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 64, b"\xff" * 200, b"PAR1" * 10],
    ],
)
def test_bodies_that_are_no_arrow_stream(port: Port, unchanged, body: bytes):
    answer = port.ask("POST", "/v1/rollouts", content=body, headers=ARROW)
    assert answer.status_code == 422
    checked(port, answer)


@pytest.mark.parametrize(
    "header",
    [
        *[b"", b"{}", b"[]", b"\xff", b"{" * 2000, b'{"producer": "../x"}', b"null"],
        *[b'{"producer":"a","epoch":-1,"sequence":0,"episode_id":"x","start":0}'],
        *[b'{"producer":"a","epoch":1e99,"sequence":0,"episode_id":"x","start":0}'],
        *[b'{"producer":"a","epoch":1,"sequence":0,"episode_id":"","start":0}'],
    ],
)
def test_headers_that_are_none(port: Port, unchanged, header: bytes):
    import io

    import pyarrow as pa

    from schemas.puts import puts_of

    (put,) = puts_of(episode("x"), producer="a", epoch=1)
    for metadata in ({"penstock": header}, {"other": header}):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, put.rows.schema) as writer:
            writer.write_batch(put.rows, custom_metadata=metadata)
        answer = port.ask("POST", "/v1/rollouts", content=sink.getvalue(), headers=ARROW)
        assert answer.status_code == 422
        checked(port, answer)


def test_other_columns_are_refused(port: Port, unchanged):
    import io

    import pyarrow as pa

    for table in (
        pa.table({"a": [1]}),
        pa.table({"a": pa.array(["x", "y"]).dictionary_encode()}),
        pa.table({"a": [{"b": [1]}]}),
    ):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        answer = port.ask("POST", "/v1/rollouts", content=sink.getvalue(), headers=ARROW)
        assert answer.status_code == 422
        checked(port, answer)


def test_damage_of_any_file_tells_nothing(tmp_path):
    """Damage of every file that a request reads, one after the other."""
    with service_in(tmp_path) as port:
        statuses = set()
        for path in sorted(one for one in Path(port.store.url).rglob("*") if one.is_file()):
            data = path.read_bytes()
            for damaged in (b"", data[: len(data) // 2], b"{}"):
                path.write_bytes(damaged)
                try:
                    opened = open_store(port.store.url)
                except PenstockError:
                    continue
                for answer in answers_of(replace(port.state, store=opened), port.texts["admin"]):
                    statuses.add(answer.status_code)
                    if answer.status_code != 200:
                        silent(port, answer)
            path.write_bytes(data)
        assert {200, 500} <= statuses


def answers_of(state: ControlState, token: str) -> list[httpx.Response]:
    """What a state's app answers, asked without a port."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(control_app(state))
        headers = {"authorization": f"Bearer {token}"}
        url = "http://127.0.0.1"
        async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as app:
            places = ("", "/main", "/main/episodes")
            return [await app.get(f"/v1/versions{one}") for one in places]

    return asyncio.run(ask())


def test_a_bug_tells_its_request_alone(tmp_path):
    def broken(*_):
        raise RuntimeError(f"secret of {tmp_path}")

    with service_in(tmp_path, describe=broken) as port:
        answer = port.ask("GET", "/v1/versions/main")
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["kind"] == "bug"
        assert answer.headers["x-request-id"] in error["message"]
        assert "secret" not in answer.text
        assert str(tmp_path) not in answer.text


def test_damage_is_named_by_its_file_alone(tmp_path):
    def broken(*_):
        raise DamagedStoreError(f"Expected {tmp_path}/a/b.json, came none.", where=f"{tmp_path}/x")

    with service_in(tmp_path, describe=broken) as port:
        error = port.ask("GET", "/v1/versions/main").json()["error"]
    expected = {"kind": "damaged_store", "message": "Expected b.json, came none.", "where": "x"}
    assert error == expected


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Could not read '/srv/data/store/refs/x.json': denied", "Could not read 'x.json': denied"),
        ("at s3://bucket/secret/place, came", "at place, came"),
        ("the field observations/state/x fits", "the field observations/state/x fits"),
        ("length / 2 > 3 / 4", "length / 2 > 3 / 4"),
        ("file:///etc/hosts", "hosts"),
        ("no room on '/data'", "no room on 'data'"),
        ("length /2 > 1", "length /2 > 1"),
        ("(/home/user/token)", "(token)"),
    ],
)
def test_paths_are_cut_to_names(text: str, clean: str):
    assert scrub(text) == clean


def test_places_are_cut_to_names():
    assert place("/srv/store") == "store"
    assert place("s3://bucket/key?x=secret") == "key"
    assert place("observations/state") == "observations/state"
    assert json.dumps(place("/")) == '""'
