"""Every route against every kind of token: the whole table, and nothing beside it."""

from __future__ import annotations

import time

import pytest
from fastapi.routing import APIRoute

from pipeline.service.access import RULES
from pipeline.service.token_book import TokenRequest
from pipeline.store.policies import publish
from tests.service.ports import ARROW, Port, body_of, episode, service_in
from tests.service.publishing import OCTETS, policy
from tests.service.web import seen

WHO = ("none", "garbage", "expired", "revoked", "push", "pull", "curate", "admin", "browser")
EXPECTED = {
    ("GET", "/healthz"): "everyone",
    ("GET", "/readyz"): "everyone",
    ("GET", "/metrics"): "pull admin",
    ("GET", "/v1/openapi.json"): "push pull curate admin",
    ("POST", "/v1/session"): "everyone",
    ("DELETE", "/v1/session"): "push pull curate admin",
    ("GET", "/v1/status"): "push pull curate admin",
    ("GET", "/v1/versions"): "pull admin",
    ("GET", "/v1/versions/{ref}"): "pull admin",
    ("GET", "/v1/versions/{ref}/episodes"): "pull admin",
    ("GET", "/v1/quarantine"): "pull admin",
    ("GET", "/v1/branches"): "pull curate admin",
    ("GET", "/v1/tags"): "pull curate admin",
    ("PUT", "/v1/tags/{name}"): "curate admin",
    ("DELETE", "/v1/tags/{name}"): "curate admin",
    ("POST", "/v1/curate"): "curate admin",
    ("POST", "/v1/rollouts"): "push admin",
    ("GET", "/v1/learners"): "pull admin",
    ("POST", "/v1/learners/{run}"): "pull admin",
    ("GET", "/v1/policies"): "push pull admin",
    ("GET", "/v1/policies/{run}"): "push pull admin",
    ("PUT", "/v1/policies/{run}/{step}"): "curate admin",
    ("GET", "/"): "pull admin",
    ("GET", "/sign-in"): "everyone",
    ("POST", "/sign-in"): "everyone",
    ("POST", "/sign-out"): "push pull curate admin",
    ("GET", "/static/{name}"): "everyone",
    ("GET", "/history/{name}"): "pull admin",
    ("GET", "/diff"): "pull admin",
    ("GET", "/versions/{ref}"): "pull admin",
    ("POST", "/versions/{ref}/tag"): "curate admin",
    ("GET", "/versions/{ref}/select"): "pull admin",
    ("POST", "/versions/{ref}/select"): "curate admin",
    ("GET", "/versions/{ref}/episodes"): "pull admin",
    ("GET", "/versions/{ref}/episode"): "pull admin",
    ("GET", "/versions/{ref}/strip"): "pull admin",
    ("GET", "/live"): "pull admin",
    ("GET", "/live/figures"): "pull admin",
    ("GET", "/quarantine"): "pull admin",
    ("GET", "/tokens"): "admin",
    ("POST", "/tokens/revoke"): "admin",
}
"""Who may what, written a second time on purpose."""


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with service_in(tmp_path_factory.mktemp("matrix")) as found:
        found.store.tag("known", "main")
        publish(found.store.catalog, "run", 1, policy(1))
        found.store.append([seen("filmed", 1)], branch="filmed")
        yield found


def test_the_app_has_these_routes_and_no_other(port: Port):
    from pipeline.service.control import control_app

    app = control_app(port.state)
    assert all(isinstance(route, APIRoute) for route in app.routes)
    found = {(m, r.path) for r in app.routes if isinstance(r, APIRoute) for m in r.methods}
    assert found == set(EXPECTED) == set(RULES)


def is_form(method: str, path: str) -> bool:
    return method == "POST" and not path.startswith("/v1/")


def spare(port: Port) -> str:
    """The id of a token that nobody needs."""
    name = f"spare-{time.monotonic_ns()}"
    return port.state.book.create(TokenRequest(name=name, scopes=("pull",)))[0].id


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path"), EXPECTED, ids=" ".join)
def test_who_may_what(port: Port, method: str, path: str, who: str):
    bodies = {
        "/v1/session": {"json": {"token": port.texts["pull"]}},
        "/v1/tags/{name}": {"json": {"ref": "main:1"}},
        "/v1/curate": {"json": {"where": "length > 1", "preview": True}},
        "/v1/rollouts": {"content": body_of(episode(f"m-{who}")), "headers": dict(ARROW)},
        "/v1/learners/{run}": {"json": {"step": 1, "version": "0" * 32}},
        "/v1/policies/{run}/{step}": {"content": policy(1), "headers": dict(OCTETS)},
        "/sign-in": {"data": {"token": port.texts["pull"]}},
        "/versions/{ref}/tag": {"data": {"tag": f"t-{who}"}},
        "/versions/{ref}/select": {"data": {"where": "length > 1", "branch": f"b-{who}"}},
        "/tokens/revoke": {"data": {"id": spare(port)}},
    }
    queries = {
        "/diff": {"one": "main:1", "two": "main:1"},
        "/versions/{ref}/episode": {"id": "e3"},
        "/versions/{ref}/strip": {"id": "filmed", "field": "observations/camera"},
    }
    more = bodies.get(path, {}) if method in ("POST", "PUT") else {}
    more |= {"params": queries[path]} if path in queries else {}
    if who == "garbage":
        more["headers"] = {**more.get("headers", {}), "authorization": "Bearer " + "x" * 60}
    if (method, path) == ("DELETE", "/v1/tags/{name}"):
        port.store.tag("known", "main:1")
    names = {"/static/{name}": "penstock.css", "/history/{name}": "main"}
    name = names.get(path, f"t-{who}")
    name = "known" if method == "DELETE" else name
    place = path.format(ref="filmed" if "strip" in path else "main", name=name, run="run", step=1)
    if who == "browser":  # an admin signed in
        _, cookie = port.state.sessions.begin(port.texts["admin"])
        said = {"origin": port.url, "cookie": f"penstock_session={cookie}"}
        more["headers"] = {**more.get("headers", {}), **said}
    is_token = who in port.texts
    answer = port.ask(method, place, who if is_token else None, **more)
    allowed = EXPECTED[method, path]
    if allowed == "everyone" or who in (*allowed.split(), "browser"):
        assert answer.status_code == (303 if is_form(method, path) else 200), answer.text
        return
    is_known = who in ("push", "pull", "curate", "admin")
    assert answer.status_code == (403 if is_known else 401)
    assert answer.json()["error"]["kind"] == ("forbidden" if is_known else "unauthenticated")
    assert ("www-authenticate" in answer.headers) is not is_known


@pytest.mark.parametrize("header", ["Basic YWRtaW46YWRtaW4=", "Bearer", "", "Token x"])
def test_other_ways_to_say_who(port: Port, header: str):
    answer = port.ask("GET", "/v1/versions", None, headers={"authorization": header})
    assert answer.status_code == 401


def test_a_token_in_the_url_is_none(port: Port):
    text = port.texts["admin"]
    for query in ({"token": text}, {"access_token": text}):
        answer = port.ask("GET", "/v1/versions", None, params=query)
        assert answer.status_code == 401


def test_a_wrong_token_is_not_helped_by_a_session(port: Port):
    headers = {"authorization": "Bearer nonsense", "cookie": "penstock_session=x"}
    assert port.ask("GET", "/v1/versions", None, headers=headers).status_code == 401


def test_revocation_reaches_a_running_server(port: Port):
    from pipeline.service.token_book import TokenBook, TokenRequest

    elsewhere = TokenBook(port.state.config.wal / "token.book")
    token, text = elsewhere.create(TokenRequest(name="soon-gone", scopes=("pull",)))
    headers = {"authorization": f"Bearer {text}"}
    assert port.ask("GET", "/v1/versions", None, headers=headers).status_code == 200
    elsewhere.revoke(token.name)
    assert port.ask("GET", "/v1/versions", None, headers=headers).status_code == 401


def test_a_token_held_to_streams(port: Port):
    from pipeline.service.token_book import TokenRequest

    wanted = TokenRequest(name="lab", scopes=("push",), streams=("lab",))
    _, text = port.state.book.create(wanted)
    headers = {**ARROW, "authorization": f"Bearer {text}"}
    for producer, status in (("lab:arm-1", 200), ("lab", 200), ("laboratory", 403), ("x", 403)):
        body = body_of(episode(f"of-{producer}"), producer=producer)
        answer = port.ask("POST", "/v1/rollouts", None, content=body, headers=headers)
        assert answer.status_code == status, answer.text


def test_a_token_held_to_a_rate(port: Port):
    from pipeline.service.token_book import TokenRequest
    from pipeline.service.tokens import Quota

    quota = Quota(bytes_per_second=1)
    wanted = TokenRequest(name="slow", scopes=("push",), quota=quota)
    _, text = port.state.book.create(wanted)
    headers = {**ARROW, "authorization": f"Bearer {text}"}
    answers = [
        port.ask("POST", "/v1/rollouts", None, content=body_of(episode(n)), headers=headers)
        for n in ("slow-1", "slow-2")
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) >= 1


def test_a_token_held_to_what_is_not_sealed(port: Port):
    from pipeline.service.token_book import TokenRequest
    from pipeline.service.tokens import Quota

    wanted = TokenRequest(name="little", scopes=("push",), quota=Quota(unsealed_bytes=1))
    _, text = port.state.book.create(wanted)
    headers = {**ARROW, "authorization": f"Bearer {text}"}

    def push(name: str) -> int:
        body = body_of(episode(name), producer="little")
        return port.ask("POST", "/v1/rollouts", None, content=body, headers=headers).status_code

    assert [push("little-1"), push("little-2")] == [200, 429]
    port.state.log.seal()
    assert push("little-3") == 200
