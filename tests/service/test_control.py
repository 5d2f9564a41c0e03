"""What the control port does for those who may."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pipeline.store.store import open_store
from schemas.identity import digest
from schemas.puts import puts_of
from tests.service.ports import ARROW, Port, body_of, episode, service_in
from tests.store.makers import score


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with service_in(tmp_path_factory.mktemp("control")) as found:
        yield found


def test_health_asks_for_no_token(port: Port):
    assert port.ask("GET", "/healthz", None).json() == {"alive": True}
    ready = port.ask("GET", "/readyz", None)
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "checks": {"log": "ok", "store": "ok"}}


def test_a_full_disk_is_not_ready(tmp_path):
    with service_in(tmp_path, disk_reserve_bytes=2**62) as port:
        answer = port.ask("GET", "/readyz", None)
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"log": "disk_full", "store": "ok"}


def test_a_store_that_is_gone_is_not_ready(tmp_path):
    with service_in(tmp_path) as port:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        answer = port.ask("GET", "/readyz", None)
        assert answer.status_code == 503
        assert answer.json()["checks"]["store"] != "ok"


def test_versions_and_episodes(port: Port):
    listed = port.ask("GET", "/v1/versions", params={"limit": 1}).json()["versions"]
    assert listed[0]["branch"] == "main"
    shown = port.ask("GET", "/v1/versions/main:1").json()
    assert (shown["number"], shown["episodes"]) == (1, 10)
    found = port.ask(
        "GET",
        "/v1/versions/main:1/episodes",
        params={"where": "task == 'push'", "columns": "episode_id,task", "sort": "-episode_id"},
    ).json()
    assert found["of"] == 5
    assert [row["episode_id"] for row in found["episodes"]] == ["e9", "e7", "e5", "e3", "e1"]
    first = port.ask("GET", "/v1/versions/main:1/episodes", params={"limit": 3}).json()
    assert (len(first["episodes"]), first["of"]) == (3, 10)


def test_tags(port: Port):
    made = port.ask("PUT", "/v1/tags/v1", "curate", json={"ref": "main:1"})
    assert made.json()["number"] == 1
    assert port.ask("GET", "/v1/tags").json()["tags"]["v1"]["number"] == 1
    again = port.ask("PUT", "/v1/tags/v1", json={"ref": "main:1"})
    assert again.status_code == 200
    assert port.ask("DELETE", "/v1/tags/v1", "curate").json() == {"deleted": "v1"}
    gone = port.ask("DELETE", "/v1/tags/v1")
    assert (gone.status_code, gone.json()["error"]["kind"]) == (404, "not_found")


def test_curation(port: Port):
    asked = {"ref": "main:1", "where": "length > 3", "top": 4, "by": "episode_return"}
    told = port.ask("POST", "/v1/curate", json={**asked, "preview": True}).json()
    assert (told["episodes"], told["of"]) == (4, 10)
    assert "best" not in port.ask("GET", "/v1/branches").json()["branches"]
    made = port.ask("POST", "/v1/curate", json={**asked, "branch": "best", "tag": "best-1"})
    assert made.json()["episodes"] == 4
    assert port.ask("GET", "/v1/branches").json()["branches"]["best"]["episodes"] == 4
    assert len(open_store(port.store.url).version("best-1")) == 4
    before = len(port.store.log("best"))
    taken = port.ask("POST", "/v1/curate", json={**asked, "branch": "best", "tag": "best-1"})
    assert (taken.status_code, taken.json()["error"]["kind"]) == (409, "name_taken")
    assert len(port.store.log("best")) == before
    neither = port.ask("POST", "/v1/curate", json=asked)
    assert (neither.status_code, neither.json()["error"]["kind"]) == (400, "usage")


def test_many_at_once(port: Port):
    """Readers, curators and actors together: each gets its answer, nothing is lost."""
    headers = {"authorization": f"Bearer {port.texts['admin']}"}

    def work(number: int) -> set[int]:
        ask = port.client.request
        found = set()
        for turn in range(2):
            name = f"many-{number}-{turn}"
            asked = {"ref": "main:1", "where": f"length > {turn}", "branch": f"many-{number}"}
            body = body_of(episode(name), producer=f"many-{number}")
            for method, path, more in (
                ("GET", "/v1/versions/main/episodes", {}),
                ("POST", "/v1/curate", {"json": asked}),
                ("PUT", f"/v1/tags/{name}", {"json": {"ref": f"many-{number}"}}),
                ("POST", "/v1/rollouts", {"content": body}),
            ):
                own = {**headers, **(ARROW if "content" in more else {})}
                found.add(ask(method, path, headers=own, **more).status_code)
        return found

    with ThreadPoolExecutor(6) as pool:
        assert set().union(*pool.map(work, range(6))) == {200}
    port.state.log.seal()
    names = {f"many-{number}-{turn}" for number in range(6) for turn in range(2)}
    assert names <= set(port.store.version("main").episodes()["episode_id"].to_pylist())
    assert names <= port.store.tags().keys()
    assert all(len(port.store.log(f"many-{number}")) >= 2 for number in range(6))


def test_rollouts(port: Port):
    sent = episode("pushed", 3)
    body = body_of(sent, producer="counted:arm-1")
    answer = port.ask("POST", "/v1/rollouts", "push", content=body, headers=ARROW)
    assert answer.status_code == 200, answer.text
    assert answer.json()["episode_id"] == "pushed"
    assert answer.json()["ack"] == "durable"
    assert answer.json()["offset"] <= port.ask("GET", "/v1/status").json()["log"]["durable_offset"]
    port.state.log.seal()
    stored = port.store.version("main").episode("pushed")
    assert digest(stored) == digest(sent)
    text = port.ask("GET", "/metrics").text
    assert 'penstock_put_steps_total{stream="counted"} 12.0' in text
    assert f'penstock_put_bytes_total{{stream="counted"}} {float(len(body))}' in text
    for name in ("put_ack_seconds", "wal_fsync_seconds", "wal_group_size", "commit_seconds"):
        count = re.search(rf"^penstock_{name}_count ([0-9.]+)$", text, re.MULTILINE)
        assert count is not None
        assert float(count[1]) >= 1


def test_an_answer_that_waits_for_the_version(tmp_path):
    with service_in(tmp_path, seal_every=0.05) as port:
        body, query = body_of(episode("soon")), {"ack": "store"}
        port.ask("POST", "/v1/rollouts", "push", content=body, headers=ARROW, params=query)
        found = port.ask("GET", "/v1/versions/main/episodes", params={"columns": "episode_id"})
        assert found.json()["episodes"][-1] == {"episode_id": "soon"}


def test_those_who_wait_for_a_version_hold_up_nobody(tmp_path):
    with service_in(tmp_path, seal_every=3600) as port:
        sent = [body_of(episode(f"w{k}"), producer=f"actor-{k}") for k in range(12)]
        headers = {**ARROW, "authorization": f"Bearer {port.texts['push']}"}
        with ThreadPoolExecutor(len(sent)) as pool:
            query = {"ack": "store"}
            waiting = [
                pool.submit(port.client.post, "/v1/rollouts", content=one, headers=headers,
                            params=query) for one in sent
            ]  # fmt: skip
            while port.state.log.status()["unsealed_episodes"] < len(sent):
                assert port.ask("GET", "/v1/versions").status_code == 200
            assert not any(one.done() for one in waiting)
            while not all(one.done() for one in waiting):
                port.state.log.seal()  # of what is durable by now, which may be all but the last
            assert [one.result().status_code for one in waiting] == [200] * len(sent)


def test_what_is_sent_again_is_kept_once(port: Port):
    for _ in range(2):
        body = body_of(episode("twice"))
        answer = port.ask("POST", "/v1/rollouts", content=body, headers=ARROW)
        assert answer.status_code == 200
    other = body_of(episode("twice", 1))
    answer = port.ask("POST", "/v1/rollouts", content=other, headers=ARROW)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (409, "id_conflict")
    port.state.log.seal()
    ids = port.store.version("main").episodes()["episode_id"].to_pylist()
    assert ids.count("twice") == 1


@pytest.mark.parametrize(
    "changes",
    [{"end": False, "facts": None}, {"episode_id": "other"}, {"start": 1}],
    ids=["no end", "two episodes", "not from the start"],
)
def test_rollouts_that_are_no_whole_episode(port: Port, changes):
    sent = episode("half", 3)
    body = body_of(sent, **changes)
    if "episode_id" in changes:
        body = _spliced(sent)
    answer = port.ask("POST", "/v1/rollouts", "push", content=body, headers=ARROW)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "bad_put")


def _spliced(one) -> bytes:
    """An episode whose first put belongs to another."""
    import io

    import pyarrow as pa

    puts = list(puts_of(one, producer="a", epoch=1, put_bytes=256))
    assert len(puts) > 1
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, puts[0].rows.schema) as writer:
        for number, put in enumerate(puts):
            header = put.header.model_copy(update={} if number else {"episode_id": "x"})
            writer.write_batch(put.rows, custom_metadata={"penstock": header.encoded()})
    return sink.getvalue()


def test_metrics_have_their_names(port: Port):
    text = port.ask("GET", "/metrics", "pull").text
    for name in (
        *("put_steps_total", "put_bytes_total", "put_rejected_total", "put_ack_seconds"),
        *("wal_fsync_seconds", "wal_group_size", "wal_unsealed_bytes", "seal_lag_seconds"),
        *("commit_seconds", "commit_conflicts_total", "pull_bytes_total", "pull_wait_seconds"),
        *("learner_staleness_versions", "sample_insert_ratio", "quality_action_divergence"),
        "build_info",
    ):
        assert f"# TYPE penstock_{name} " in text
    ids = [token.id for token in port.state.book.tokens()]
    assert not [one for one in ids if one in text]


def test_the_metrics_tell_of_lost_races_and_of_what_was_measured(tmp_path, monkeypatch):
    with service_in(tmp_path) as port:
        gauge = 'penstock_quality_action_divergence{stream="main"} '
        assert f"{gauge}NaN" in port.ask("GET", "/metrics").text
        mine, other = port.store.catalog.objects, open_store(port.store.url)
        create = mine.put_if_absent

        def late(key: str, data: bytes) -> bool:
            if "branches/main" in key and other.version("main").number == 1:
                other.append([episode("quicker")])
            return create(key, data)

        monkeypatch.setattr(mine, "put_if_absent", late)
        for put in puts_of(episode("slower"), producer="p", epoch=1):
            port.state.log.wait(port.state.log.put(put.header, put.rows))
        assert port.state.log.seal().version.number == 3
        assert "penstock_commit_conflicts_total 1.0" in port.ask("GET", "/metrics").text
        score(other, {"quicker": 0.25, "slower": 0.75})
        assert f"{gauge}0.5" in port.ask("GET", "/metrics").text


def test_status_openapi_and_quarantine(port: Port):
    assert port.ask("GET", "/v1/status", "push").json()["store"] == port.store.id
    paths = port.ask("GET", "/v1/openapi.json").json()["paths"]
    assert "/v1/curate" in paths
    assert port.ask("GET", "/v1/quarantine").json() == {"episodes": [], "of": 0}


def test_signing_in(port: Port):
    with httpx.Client(base_url=port.url) as browser:
        own = {"origin": port.url}
        said = browser.post("/v1/session", json={"token": port.texts["pull"]}, headers=own)
        assert said.json() == {"name": "has-pull", "scopes": ["pull"]}
        cookie = said.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert port.texts["pull"] not in cookie
        assert browser.get("/v1/versions").status_code == 200
        assert browser.put("/v1/tags/x", json={}, headers=own).status_code == 403  # only pulls
        assert browser.delete("/v1/session").status_code == 403  # no page of ours would
        assert browser.delete("/v1/session", headers=own).status_code == 200
        browser.cookies.set("penstock_session", cookie.split("=", 1)[1].split(";")[0])
        assert browser.get("/v1/versions").status_code == 401


def test_a_session_ends_with_its_token(port: Port):
    from pipeline.service.token_book import TokenRequest

    token, text = port.state.book.create(TokenRequest(name="brief", scopes=("pull",)))
    with httpx.Client(base_url=port.url) as browser:
        browser.post("/v1/session", json={"token": text})
        assert browser.get("/v1/versions").status_code == 200
        port.state.book.revoke(token.id)
        assert browser.get("/v1/versions").status_code == 401


def test_without_tokens_all_is_open(tmp_path):
    with service_in(tmp_path, no_token=True) as port:
        assert port.ask("GET", "/v1/versions", None).status_code == 200
        made = port.ask("PUT", "/v1/tags/v1", None, json={})
        assert made.status_code == 200
        assert port.ask("POST", "/v1/session", None, json={"token": "x"}).status_code == 400


def test_deeds_are_on_record(port: Port):
    port.ask("PUT", "/v1/tags/recorded", "curate", json={"ref": "main:1"})
    port.ask("GET", "/v1/versions?token=secret", None)
    path = port.state.config.wal / "audit.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = next(line for line in lines if line["path"] == "/v1/tags/recorded")
    assert (done["name"], done["method"], done["status"], done["kind"]) == (
        *("has-curate", "PUT"),
        *(200, None),
    )
    refused = lines[-1]
    assert (refused["token"], refused["status"], refused["kind"]) == (None, 401, "unauthenticated")
    assert "secret" not in path.read_text()
