"""Requests of any kind to every route, by somebody who may do all: an answer, and never a bug."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pipeline.store.policies import publish
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service.ports import ARROW, Port, body_of, episode, service_in
from tests.service.publishing import OCTETS, policy
from tests.service.test_hostile import FILTERS, NAMES, assert_tells_nothing, silent
from tests.service.test_matrix import EXPECTED
from tests.service.test_pages import FORM
from tests.service.web import seen

COUNT = size(400, 20_000)
KINDS = ({"content-type": "application/json"}, ARROW, OCTETS, FORM)
JSON = KINDS[0]
SOUND: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "/v1/rollouts": (ARROW, {}),
    "/v1/policies/{run}/{step}": (OCTETS, {}),
    "/v1/curate": (JSON, {"ref": "main", "where": "length > 1", "preview": True}),
    "/v1/tags/{name}": (JSON, {"ref": "main"}),
    "/v1/learners/{run}": (JSON, {"step": 1, "version": "0" * 32}),
    "/versions/{ref}/tag": (FORM, {"tag": "good"}),
    "/versions/{ref}/select": (FORM, {"where": "length > 1", "branch": "few"}),
    "/tokens/revoke": (FORM, {"id": "0" * 12}),
}
KEYS = (
    *("where", "columns", "sort", "limit", "offset", "ref", "branch", "tag", "id", "field", "one"),
    *("two", "top", "by", "seed", "preview", "exclude", "message", "token", "ack", "after", "at"),
    *("step", "version", "insert_room", "room_since", "valid_seconds", "run", "name", "page"),
)
WORDS = (
    *("main", "main:1", "main:0", "filmed", "known", "e3", "filmed:1", "run", "length > 1"),
    *("task == 'push' and not success", "episode_return", "-length", "episode_id,task", "0", "1"),
    *(
        "-1",
        "25",
        "1e3",
        "9" * 30,
        "nan",
        "true",
        "null",
        "",
        " ",
        "observations/camera",
        "durable",
    ),
    *("0" * 32, "\x00", "\u00e9\u0301", "\U0001f600", "a" * 3000, "%", "&", "=", "\r\nx: y"),
    *FILTERS[:8],
    *NAMES,
)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with service_in(tmp_path_factory.mktemp("fuzz"), request_seconds=20.0) as found:
        found.store.tag("known", "main")
        publish(found.store.catalog, "run", 1, policy(1))
        found.store.append([seen("filmed", 1)], branch="filmed")
        yield found


def text(chance: random.Random) -> str:
    """A word that means something, or something like it."""
    letters = list(chance.choice(WORDS))
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at = chance.randrange(len(letters) + 1)
        new = chance.choice((string.printable, "\x00\u20ac\u202e\ufffd\U0001f4a9", "'\"();%/.:,<>"))
        letters[at : at + chance.randrange(3)] = chance.choice(new)
    return "".join(letters)


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    kind = chance.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return text(chance)
    if kind == 3:
        return chance.choice((0, 1, -1, 3, 25, 2**31, 2**63, 10**40, 0.5, 1e308, float("nan")))
    if kind < 6:
        return chance.choice((True, False, None))
    many = range(chance.randrange(4))
    if kind == 6:
        return [value(chance, depth + 1) for _ in many]
    return {chance.choice(KEYS): value(chance, depth + 1) for _ in many}


def body(chance: random.Random, kind: dict[str, str], sound: dict[str, Any]) -> bytes:
    """A body that is near to what its kind says, or far from it."""
    many = chance.choice((0, 0, 1, 2, 5))
    if kind is ARROW:
        found = body_of(episode(f"fuzz-{chance.randrange(40)}", length=6))
    elif kind is OCTETS:
        found = policy(1)
    elif kind is FORM:
        pairs = {**sound, **{chance.choice(KEYS): text(chance) for _ in range(many)}}
        found = str(httpx.QueryParams(pairs)).encode()
    else:
        said = {**sound, **{chance.choice(KEYS): value(chance) for _ in range(many)}}
        found = json.dumps(said).encode()
    changed = bytearray(found)
    for _ in range(chance.choice((0, 0, 0, 1, 4))):
        at = chance.randrange(len(changed) + 1)
        changed[at : at + chance.randrange(3)] = bytes([chance.randrange(256)])
    return bytes(
        changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed
    )


def request(chance: random.Random, port: Port) -> tuple[str, str, dict[str, Any]]:
    """A route with something for every part of it."""
    method, path = chance.choice(list(EXPECTED))
    kind, sound = SOUND.get(path, (JSON, {}))
    for part in ("ref", "name", "run", "step"):
        safe = chance.choice(("", ":", "/%:."))
        path = path.replace(f"{{{part}}}", quote(text(chance), safe=safe))
    if chance.random() < 0.05:
        method = chance.choice(("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"))
    pairs = {chance.choice(KEYS): text(chance) for _ in range(chance.choice((0, 0, 1, 2, 5)))}
    more: dict[str, Any] = {"params": pairs} if pairs else {}
    headers = {"origin": port.url}
    if method in ("PUT", "POST", "PATCH"):
        if chance.random() < 0.3:
            kind, sound = chance.choice(KINDS), {}
        headers |= kind
        more["content"] = body(chance, kind, sound)
    return method, path, {**more, "headers": headers}


@pytest.mark.timeout(size(300, 3600))
def test_no_request_meets_a_bug(port: Port) -> None:
    chance = random.Random(11)
    statuses: Counter[int] = Counter()
    reached: set[tuple[str, int]] = set()
    for _ in range(COUNT):
        method, path, more = request(chance, port)
        answer = port.ask(method, path, **more)
        statuses[answer.status_code] += 1
        reached.add((method, answer.status_code // 100))
        if answer.status_code >= 400 and method != "HEAD":
            assert answer.status_code < 500 or answer.status_code == 503, (path, more, answer.text)
            if answer.headers["content-type"].startswith("text/html"):
                assert_tells_nothing(port, answer)  # a page that shows what was wrong in its form
            else:
                silent(port, answer)
    assert {("GET", 2), ("GET", 4), ("POST", 2), ("POST", 4), ("PUT", 4)} <= reached, statuses
    assert port.ask("GET", "/readyz", None).status_code == 200
    port.state.log.seal()
    assert port.store.doctor().problems == []
    audit = Path(port.state.config.wal / "audit.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kind"] != "bug" for line in audit)
    told = {f"answers_{status}": count for status, count in statuses.items()}
    tell("fuzzed requests", requests=COUNT, **told)
