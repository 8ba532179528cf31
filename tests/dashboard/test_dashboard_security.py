"""Who may ask: Host, Origin, token; what is written; what a browser is told."""

from __future__ import annotations

import json

import pytest
from dashboard_kit import HERE, client, folder, listed, record

from distillation.dashboard.notes import LONGEST

TOKEN = "a-long-random-token"


def outside(root, **options):
    """A client of a dashboard that others reach too."""
    return client(root, token=TOKEN, allowed_hosts=("machine.example",), **options)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8090", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8090", "localhost."]
)
def test_the_names_of_this_machine_are_answered(tmp_path, host):
    assert client(tmp_path).get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8090",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example@127.0.0.2",
        "192.168.0.1",
        "[::2]",
        "[",
        "",
        "127.0.0.1@evil.example",
    ],
)
@pytest.mark.parametrize("path", ["/api/runs", "/", "/static/plotly.min.js"])
def test_another_name_that_leads_here_is_refused(tmp_path, host, path):
    """DNS rebinding: a page's own name is made to point to this machine."""
    assert client(tmp_path).get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1:8090.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_another_page_cannot_write(tmp_path, headers):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    answer = asked.post(f"/api/runs/{uuid}/hide", json={"hidden": True}, headers=headers)
    assert answer.status_code == 403
    assert listed(asked)[uuid]["hidden"] is False
    assert not (folder(tmp_path, uuid) / "note.json").exists()


def test_a_form_of_another_page_cannot_write(tmp_path):
    uuid = record(tmp_path)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client(tmp_path).post(
            f"/api/runs/{uuid}/hide", content='{"hidden": true}', headers={"Content-Type": kind}
        )
        assert answer.status_code == 415


def test_another_page_cannot_read_but_may_link_here(tmp_path):
    asked = client(tmp_path)
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert asked.get("/api/runs", headers=elsewhere).status_code == 403
    link = {**elsewhere, "Sec-Fetch-Mode": "navigate"}
    assert asked.get("/api/runs", headers=link).status_code == 200


def test_the_pages_own_requests_are_answered(tmp_path):
    uuid = record(tmp_path)
    own = {"Origin": HERE, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    answer = client(tmp_path).post(f"/api/runs/{uuid}/hide", json={"hidden": True}, headers=own)
    assert answer.status_code == 200
    assert answer.json()["hidden"] is True


@pytest.mark.parametrize("path", ["/api/runs", "/static/plotly.min.js", "/nothing", "/api/runs/x"])
def test_every_answer_forbids_what_the_pages_do_not_need(tmp_path, path):
    headers = client(tmp_path).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


# The token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic " + TOKEN},
        {"Authorization": "Bearer é"},
        {"Cookie": "distillation-8090=wrong"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/plotly.min.js", "/nothing"])
def test_without_the_token_nothing_is_answered(tmp_path, headers, path):
    encoded = {name: value.encode() for name, value in headers.items()}
    answer = outside(tmp_path).get(path, headers=encoded)
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_a_wrong_token_in_the_address_is_refused(tmp_path):
    asked = outside(tmp_path)
    assert asked.get("/api/runs?token=wrong").status_code == 401
    assert asked.get("/api/runs?token=").status_code == 401
    assert asked.get("/api/runs?token=%C3%A9").status_code == 401
    assert not asked.cookies


def test_a_program_sends_the_token_in_a_header(tmp_path):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = outside(tmp_path).get("/api/runs", headers=headers)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers


def test_what_goes_afar_is_compressed(tmp_path):
    for _ in range(3):
        record(tmp_path)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert outside(tmp_path).get("/api/runs", headers=headers).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in client(tmp_path).get("/api/runs").headers


def test_the_printed_address_gives_the_browser_a_cookie_and_does_not_stay(tmp_path):
    asked = outside(tmp_path)
    answer = asked.get(f"/compare?runs=a,b&token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert 'content="0;url=/compare?runs=a%2Cb"' in answer.text
    assert TOKEN not in answer.text
    assert asked.get("/api/runs").status_code == 200, "the cookie is sent from now on"


def test_where_the_token_leads_on_cannot_be_another_site(tmp_path):
    answer = outside(tmp_path).get(
        f"{HERE}//evil.example/%22%3E%3Cscript%3E?token={TOKEN}&a=%22%3E%3Cb%3E"
    )
    assert 'url=/evil.example/%22%3E%3Cscript%3E?a=%22%3E%3Cb%3E"' in answer.text
    assert "<script" not in answer.text


@pytest.mark.parametrize("host", ["10.0.0.5:8090", "[fe80::1]:8090", "machine.example"])
def test_with_a_token_addresses_and_the_machines_name_lead_here(tmp_path, host):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
    assert outside(tmp_path).get("/api/runs", headers=headers).status_code == 200
    assert outside(tmp_path).get("/api/runs", headers={"Host": host}).status_code == 401


def test_the_token_does_not_replace_the_other_checks(tmp_path):
    uuid = record(tmp_path)
    asked = outside(tmp_path)
    token = {"Authorization": f"Bearer {TOKEN}"}
    rebound = asked.get("/api/runs", headers={**token, "Host": "evil.example"})
    assert rebound.status_code == 421
    forged = asked.post(
        f"/api/runs/{uuid}/hide",
        json={"hidden": True},
        headers={**token, "Origin": "http://evil.example"},
    )
    assert forged.status_code == 403


# Notes and hides, all that is written ------------------------------------------------------------


def test_a_note_is_kept_with_the_run(tmp_path):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    text = "<b>good</b> & \U0001f600\n"
    answer = asked.post(f"/api/runs/{uuid}/note", json={"text": text})
    assert answer.json()["note"] == text
    asked.post(f"/api/runs/{uuid}/hide", json={"hidden": True})
    run = listed(client(tmp_path))[uuid]
    assert (run["note"], run["hidden"]) == (text, True)
    asked.post(f"/api/runs/{uuid}/hide", json={"hidden": False})
    run = listed(asked)[uuid]
    assert (run["note"], run["hidden"]) == (text, False)


def test_nothing_but_the_note_is_written(tmp_path):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for path in ("", "/curves", "/log", "/files/run.json"):
        asked.get(f"/api/runs/{uuid}{path}")
    for path in ("runs", "lineage", f"compare?runs={uuid}", f"transfer?runs={uuid}"):
        asked.get(f"/api/{path}")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    asked.post(f"/api/runs/{uuid}/note", json={"text": "x"})
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after.keys() - before.keys() == {folder(tmp_path, uuid) / "note.json"}
    assert {p: after[p] for p in before} == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("note", {"text": 3}),
        ("note", {"text": None}),
        ("note", {"text": "x" * (LONGEST + 1)}),
        ("note", {"hidden": True}),
        ("note", {"text": "x", "uuid": "y"}),
        ("note", []),
        ("note", "text"),
        ("hide", {"hidden": 1}),
        ("hide", {"hidden": "true"}),
        ("hide", {}),
    ],
)
def test_what_is_no_note_is_refused(tmp_path, path, body):
    uuid = record(tmp_path)
    answer = client(tmp_path).post(f"/api/runs/{uuid}/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not (folder(tmp_path, uuid) / "note.json").exists()


def test_the_longest_note_fits_however_it_is_written(tmp_path):
    uuid = record(tmp_path)
    text = "é" * LONGEST
    answer = client(tmp_path).post(
        f"/api/runs/{uuid}/note",
        content=json.dumps({"text": text}),  # six bytes a character
        headers={"Content-Type": "application/json"},
    )
    assert answer.json()["note"] == text


def test_a_body_that_is_far_too_long_is_not_read(tmp_path):
    uuid = record(tmp_path)
    answer = client(tmp_path).post(f"/api/runs/{uuid}/note", json={"text": "x" * 1_000_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 20_000, b"\xff"])
def test_a_body_that_is_no_json_is_refused(tmp_path, body):
    uuid = record(tmp_path)
    headers = {"Content-Type": "application/json"}
    answer = client(tmp_path).post(f"/api/runs/{uuid}/note", content=body, headers=headers)
    assert answer.status_code == 400


def test_only_get_reads_and_only_post_writes(tmp_path):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    assert asked.get(f"/api/runs/{uuid}/note").status_code == 405
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert asked.request(method, f"/api/runs/{uuid}").status_code == 405


def test_a_note_on_a_run_that_is_gone_leaves_no_folder(tmp_path):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    place = folder(tmp_path, uuid)
    (place / "run.json").unlink()
    assert asked.post(f"/api/runs/{uuid}/note", json={"text": "x"}).status_code == 404
    assert not (place / "note.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"text": 3, "hidden": "yes"}', "{"])
def test_a_damaged_note_is_an_empty_one_that_can_be_written_again(tmp_path, content):
    uuid = record(tmp_path)
    (folder(tmp_path, uuid) / "note.json").write_text(content)
    asked = client(tmp_path)
    run = listed(asked)[uuid]
    assert (run["note"], run["hidden"]) == ("", False)
    assert asked.post(f"/api/runs/{uuid}/note", json={"text": "x"}).json()["note"] == "x"
