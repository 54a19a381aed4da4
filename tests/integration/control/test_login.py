"""Logging in through a real OpenID provider, and what attackers try on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import update
from sqlalchemy.sql.dml import ReturningUpdate

from harmonia.config.control import Auth, ControlConfig, Oidc, OidcProvider, Session
from harmonia.server.db.database import Database
from harmonia.server.db.logins import LoginSession, LoginState
from tests.integration.control.conftest import ADMIN, Plane, on_both
from tests.integration.control.openid import CLIENT_ID, CLIENT_SECRET, Behaviour, OpenIdServer

ME = "/api/v1/auth/me"
QUERY = {"query": "{ me { email } }"}


@pytest.fixture(scope="module")
def server() -> Iterator[OpenIdServer]:
    with OpenIdServer() as server:
        yield server


@pytest.fixture
def openid(server: OpenIdServer) -> OpenIdServer:
    """Behaving well until a test says otherwise."""
    server.behaviour = Behaviour()
    server.requests.clear()
    return server


def plane_for(folder: Path, openid: OpenIdServer, **settings: Any) -> Plane:
    provider = {
        "key": "example",
        "name": "Example",
        "issuer_url": openid.url,
        "client_id": CLIENT_ID,
        "client_secret": SecretStr(CLIENT_SECRET),
        **settings.pop("provider", {}),
    }
    oidc = Oidc(providers=(OidcProvider(**provider), OidcProvider(**{**provider, "key": "other"})))
    session = Session(secure=False, **settings.pop("session", {}))
    db = {"url": settings.pop("database", None)}
    config = ControlConfig(data_dir=folder, db=db, auth=Auth(oidc=oidc, session=session, **settings))
    plane = Plane(config)
    config.server.root_url = plane.url
    return plane


@pytest.fixture
def plane(tmp_path: Path, openid: OpenIdServer, database_address: str) -> Iterator[Plane]:
    """With sign-up."""
    with plane_for(tmp_path, openid, provider={"allow_sign_up": True}, database=database_address) as plane:
        yield plane


@pytest.fixture
def browser(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plane.url) as browser:
        yield browser


def execute(plane: Plane, statement: ReturningUpdate[Any]) -> list[Any]:
    """Change something behind the server's back."""

    async def run() -> list[Any]:
        database = Database(plane.config.database_address)
        async with database.begin() as session:
            result = await session.execute(statement)
            rows = list(result.all())
        await database.close()
        return rows

    return asyncio.run(run())


def begin(browser: httpx.Client, page: str = "/", key: str = "example") -> str:
    """The address of the callback, with the provider's answer."""
    sent = browser.get(f"/api/v1/auth/login/{key}", params={"next": page})
    assert sent.status_code == 303, sent.text
    return httpx.get(sent.headers["location"]).headers["location"]


def log_in(browser: httpx.Client, page: str = "/") -> httpx.Response:
    return browser.get(begin(browser, page))


def same_origin(browser: httpx.Client) -> dict[str, str]:
    return {"origin": str(browser.base_url).rstrip("/")}


def test_providers_are_listed_without_their_secrets(browser: httpx.Client) -> None:
    listed = browser.get("/api/v1/auth/providers").json()
    assert [(item["key"], item["name"]) for item in listed] == [("example", "Example"), ("other", "Example")]
    assert listed[0]["login_url"] == f"{str(browser.base_url).rstrip('/')}/api/v1/auth/login/example"
    assert CLIENT_SECRET not in str(listed)


@on_both
def test_somebody_signs_up_looks_around_and_logs_out(browser: httpx.Client, openid: OpenIdServer) -> None:
    openid.behaviour.claims["name"] = "Ada Lovelace"
    done = log_in(browser, "/projects/tickets?tab=1")
    assert done.status_code == 303
    assert done.headers["location"] == "/projects/tickets?tab=1"
    assert done.headers["cache-control"] == "no-store"
    asked = openid.requests[-1]
    assert asked["code_challenge_method"] == "S256" and len(asked["code_challenge"]) == 43 and len(asked["nonce"]) >= 43
    me = browser.get(ME).json()
    assert (me["email"], me["name"]) == ("ada@example.com", "Ada Lovelace")
    assert me["teams"] == [{"team": "default", "role": "read-only"}]
    told = browser.post("/api/graphql", json=QUERY, headers=same_origin(browser))
    assert told.json()["data"]["me"]["email"] == "ada@example.com"
    kept = dict(browser.cookies)
    assert browser.post("/api/v1/auth/logout", headers=same_origin(browser)).status_code == 204
    assert not browser.cookies
    with httpx.Client(base_url=browser.base_url, cookies=kept) as thief:
        assert thief.get(ME).status_code == 401


def test_the_cookie_is_kept_from_scripts_other_sites_and_plain_http(tmp_path: Path, openid: OpenIdServer) -> None:
    plane = plane_for(tmp_path, openid, provider={"allow_sign_up": True})
    plane.config.auth.session.secure = True
    with plane, httpx.Client(base_url=plane.url) as browser:
        sent = browser.get("/api/v1/auth/login/example")
        cookie = sent.headers["set-cookie"].lower()
        assert cookie.startswith("__host-harmonia_login=")
        name, _, value = sent.headers["set-cookie"].partition(";")[0].partition("=")
        callback = httpx.get(sent.headers["location"]).headers["location"]
        done = httpx.get(callback, headers={"cookie": f"{name}={value}"})
        cookie = next(item for item in done.headers.get_list("set-cookie") if "session" in item).lower()
    assert cookie.startswith("__host-harmonia_session=")
    for word in ("httponly", "secure", "samesite=lax", "path=/", "max-age=518400"):
        assert word in cookie
    assert "domain" not in cookie


def test_the_database_holds_nothing_to_log_in_with(plane: Plane, browser: httpx.Client) -> None:
    begun = begin(browser)
    state = parse_qs(urlsplit(begun).query)["state"][0]
    browser.get(begun)
    cookie = browser.cookies["harmonia_session"]
    stored = (Path(plane.config.folder) / "harmonia.db").read_bytes()
    for file in Path(plane.config.folder).glob("harmonia.db-*"):
        stored += file.read_bytes()
    assert b"ada@example.com" in stored
    assert cookie.encode() not in stored and state.encode() not in stored


def test_a_wrong_state_is_refused(browser: httpx.Client) -> None:
    callback = begin(browser)
    state = parse_qs(urlsplit(callback).query)["state"][0]
    for forged in (callback.replace(state, "x" * len(state)), callback.replace(state, ""), callback.split("?")[0]):
        assert browser.get(forged).status_code == 401
    assert browser.get(ME).status_code == 401


def test_an_answer_is_only_taken_by_the_browser_that_asked(plane: Plane, browser: httpx.Client) -> None:
    """Else an attacker could log a victim in as the attacker."""
    callback = begin(browser)
    with httpx.Client(base_url=plane.url) as victim:
        assert victim.get(callback).status_code == 401
        begin(victim)
        assert victim.get(callback).status_code == 401
        assert victim.get(ME).status_code == 401


@on_both
def test_an_answer_works_once(browser: httpx.Client) -> None:
    callback = begin(browser)
    cookies = dict(browser.cookies)
    assert browser.get(callback).status_code == 303
    with httpx.Client(base_url=browser.base_url, cookies=cookies) as thief:
        assert thief.get(callback).status_code == 401


def test_a_replayed_code_is_refused_by_the_provider(browser: httpx.Client) -> None:
    code = parse_qs(urlsplit(begin(browser)).query)["code"][0]
    assert log_in(browser).status_code == 303
    callback = begin(browser)
    used = parse_qs(urlsplit(callback).query)["code"][0]
    assert browser.get(callback).status_code == 303
    again = begin(browser)
    fresh = parse_qs(urlsplit(again).query)["code"][0]
    answer = browser.get(again.replace(fresh, used))
    assert answer.status_code == 401 and "the code is not known" in answer.text
    # A code that was stolen from another log-in fails for want of its verifier.
    again = begin(browser)
    fresh = parse_qs(urlsplit(again).query)["code"][0]
    answer = browser.get(again.replace(fresh, code))
    assert answer.status_code == 401 and "the verifier is wrong" in answer.text


def test_an_answer_of_another_provider_is_refused(browser: httpx.Client) -> None:
    callback = begin(browser, key="other")
    assert browser.get(callback.replace("/other/", "/example/")).status_code == 401
    callback = begin(browser)
    assert "evil" in browser.get(callback.partition("&iss=")[0] + "&iss=https://evil.example").text


def test_a_log_in_that_took_too_long_is_refused(plane: Plane, browser: httpx.Client) -> None:
    callback = begin(browser)
    assert execute(plane, update(LoginState).values(expires_at=0).returning(LoginState.id))
    assert browser.get(callback).status_code == 401


FORGERIES: list[dict[str, Any]] = [
    {"algorithm": "none"},
    {"algorithm": "HS256"},
    {"algorithm": "stranger"},
    {"token_claims": {"iss": "https://evil.example"}},
    {"token_claims": {"aud": "another-client"}},
    {"token_claims": {"aud": [CLIENT_ID, "another-client"]}},
    {"token_claims": {"azp": "another-client"}},
    {"token_claims": {"exp": int(time.time()) - 3600}},
    {"token_claims": {"exp": None}},
    {"token_claims": {"iat": int(time.time()) + 3600}},
    {"token_claims": {"nonce": "of another log-in"}},
    {"token_claims": {"nonce": None}},
    {"token_claims": {"at_hash": "b2YgYW5vdGhlcg"}},
    {"token_claims": {"sub": 7}},
    {"tells_in_userinfo": True, "userinfo_subject": "user-2"},
]


def test_tokens_that_prove_nothing_are_refused(browser: httpx.Client, openid: OpenIdServer) -> None:
    for wrong in FORGERIES:
        openid.behaviour = Behaviour(**wrong)
        answer = log_in(browser)
        assert answer.status_code == 401, f"{wrong}: {answer.text}"
        assert browser.get(ME).status_code == 401, wrong


def test_an_address_may_be_told_in_the_user_info(browser: httpx.Client, openid: OpenIdServer) -> None:
    openid.behaviour.tells_in_userinfo = True
    assert log_in(browser).status_code == 303
    assert browser.get(ME).json()["email"] == "ada@example.com"


ADDRESSES: list[tuple[dict[str, Any], int]] = [
    ({"email": "ada@example.com", "email_verified": False}, 403),
    ({"email": "ada@example.com"}, 403),
    ({"email": "ada@example.com", "email_verified": "false"}, 403),
    ({"email_verified": True}, 401),
    ({"email": ["ada@example.com"], "email_verified": True}, 401),
    ({"email": "ada@evil.example", "email_verified": True}, 403),
    ({"email": "ada@example.com.evil.example", "email_verified": True}, 403),
    ({"email": "ada@evil.example@example.com", "email_verified": True}, 400),
    ({"email": "ada@example.com.", "email_verified": True}, 400),
    ({"email": "ada@e\u0445ample.com", "email_verified": True}, 400),
    ({"email": "\u212aate@example.com", "email_verified": True}, 400),
    ({"email": "ada\x00@example.com", "email_verified": True}, 400),
    ({"email": "ada@example.com\n", "email_verified": True}, 400),
    ({"email": "ADA@Example.COM", "email_verified": True}, 303),
]


def test_addresses_must_be_verified_and_of_an_allowed_domain(tmp_path: Path, openid: OpenIdServer) -> None:
    provider = {"allow_sign_up": True, "allowed_domains": ("Example.com",)}
    with plane_for(tmp_path, openid, provider=provider) as plane, httpx.Client(base_url=plane.url) as browser:
        for claims, status in ADDRESSES:
            openid.behaviour.claims = claims
            answer = log_in(browser)
            assert answer.status_code == status, f"{claims}: {answer.text}"
        assert browser.get(ME).json()["email"] == "ada@example.com"


def test_without_sign_up_only_known_people_come_in(tmp_path: Path, openid: OpenIdServer) -> None:
    with plane_for(tmp_path, openid) as plane, httpx.Client(base_url=plane.url) as browser:
        answer = log_in(browser)
        assert answer.status_code == 403 and "ask an admin" in answer.text
        openid.behaviour.claims["email"] = ADMIN
        assert log_in(browser).status_code == 303
        assert browser.get(ME).json()["email"] == ADMIN


def test_admins_join_the_team_admin_only_with_a_verified_address(tmp_path: Path, openid: OpenIdServer) -> None:
    provider = {"allow_sign_up": True, "require_email_verified": False}
    plane = plane_for(tmp_path, openid, provider=provider, admins=("Ada@example.com",), default_role="read-only")
    with plane, httpx.Client(base_url=plane.url) as browser:
        openid.behaviour.claims["email_verified"] = False
        assert log_in(browser).status_code == 303
        assert browser.get(ME).json()["teams"] == [{"team": "default", "role": "read-only"}]
        openid.behaviour.claims["email_verified"] = True
        assert log_in(browser).status_code == 303
        assert {"team": "admin", "role": "admin"} in browser.get(ME).json()["teams"]


@on_both
def test_deleted_people_are_out_at_once_and_stay_out(plane: Plane, browser: httpx.Client) -> None:
    log_in(browser)
    headers = {"authorization": f"Bearer {plane.api_key}"}

    def ask(query: str) -> dict[str, Any]:
        answer = httpx.post(f"{plane.url}/api/graphql", json={"query": query}, headers=headers).json()
        assert "errors" not in answer, answer
        return answer

    ask('mutation { deleteUser(user: "ada@example.com") { id } }')
    assert browser.get(ME).status_code == 401
    answer = log_in(browser)
    assert answer.status_code == 403 and "was deleted" in answer.text
    ask('mutation { createUser(input: {name: "Ada", email: "ada@example.com", teams: []}) { user { id } } }')
    assert browser.get(ME).status_code == 401, "a session from before must not come back to life"
    assert log_in(browser).status_code == 303


def test_service_accounts_do_not_log_in(plane: Plane, browser: httpx.Client, openid: OpenIdServer) -> None:
    query = 'mutation { createUser(input: {name: "bot", userType: SYSTEM, teams: []}) { user { email } } }'
    headers = {"authorization": f"Bearer {plane.api_key}"}
    made = httpx.post(f"{plane.url}/api/graphql", json={"query": query}, headers=headers).json()
    openid.behaviour.claims["email"] = made["data"]["createUser"]["user"]["email"]
    assert log_in(browser).status_code == 403


def test_a_session_that_was_planted_is_not_adopted(plane: Plane, browser: httpx.Client) -> None:
    browser.cookies.set("harmonia_session", "known-to-the-attacker", domain="127.0.0.1")
    browser.cookies.set("harmonia_login", "known-too", domain="127.0.0.1")
    assert log_in(browser).status_code == 303
    values = {cookie.value for cookie in browser.cookies.jar if isinstance(cookie, Cookie)}
    assert "known-to-the-attacker" not in values
    with httpx.Client(base_url=plane.url, cookies={"harmonia_session": "known-to-the-attacker"}) as attacker:
        assert attacker.get(ME).status_code == 401


def test_logging_in_again_ends_the_earlier_session(plane: Plane, browser: httpx.Client) -> None:
    log_in(browser)
    earlier = browser.cookies["harmonia_session"]
    log_in(browser)
    assert browser.get(ME).status_code == 200
    with httpx.Client(base_url=plane.url, cookies={"harmonia_session": earlier}) as thief:
        assert thief.get(ME).status_code == 401


def test_sessions_last_six_days(plane: Plane, browser: httpx.Client) -> None:
    log_in(browser)
    made = update(LoginSession).values(expires_at=LoginSession.expires_at - 6 * 24 * 3600 * 1000)
    ((created_at, expires_at),) = execute(plane, made.returning(LoginSession.created_at, LoginSession.expires_at))
    assert created_at == pytest.approx(expires_at, abs=5000)
    time.sleep(max(0.0, expires_at / 1000 - time.time()) + 0.01)
    assert browser.get(ME).status_code == 401


def test_other_sites_cannot_use_the_cookie(browser: httpx.Client) -> None:
    log_in(browser)
    foreign: list[dict[str, str]] = [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ]
    for headers in foreign:
        assert browser.post("/api/graphql", json=QUERY, headers=headers).status_code == 403, headers
        assert browser.post("/api/v1/auth/logout", headers=headers).status_code == 403, headers
    assert browser.get(ME).status_code == 200
    assert browser.post("/api/graphql", json=QUERY, headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_a_wrong_key_is_not_made_good_by_a_cookie(browser: httpx.Client) -> None:
    log_in(browser)
    assert browser.get(ME, headers={"authorization": "Bearer wrong"}).status_code == 401


def test_nobody_is_sent_to_another_site(browser: httpx.Client) -> None:
    pages = [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "",
        "evil",
        "/\r\nset-cookie: a=b",
    ]
    for page in pages:
        assert browser.get("/api/v1/auth/login/example", params={"next": page}).status_code == 400, page


def test_whoever_says_no_hears_so(browser: httpx.Client, openid: OpenIdServer) -> None:
    openid.behaviour.refuses = True
    answer = log_in(browser)
    assert answer.status_code == 401 and "the person said no" in answer.text


def test_a_provider_that_is_away_or_calls_itself_otherwise(
    tmp_path: Path, browser: httpx.Client, openid: OpenIdServer
) -> None:
    openid.behaviour.issuer = "https://evil.example"
    assert browser.get("/api/v1/auth/login/example").status_code == 503
    assert browser.get("/api/v1/auth/login/unknown").status_code == 404
    with plane_for(tmp_path / "away", openid, provider={"issuer_url": "http://127.0.0.1:9"}) as plane:
        assert httpx.get(f"{plane.url}/api/v1/auth/login/example").status_code == 503


def test_settings_that_let_nobody_in_are_refused() -> None:
    values = {"key": "a", "name": "A", "issuer_url": "https://a.example", "client_id": "c"}
    usual = OidcProvider(**values)
    assert usual.pkce and usual.require_email_verified and not usual.allow_sign_up and usual.allowed_domains == ()
    assert Session().expiration_seconds == 6 * 24 * 3600
    with pytest.raises(ValidationError, match="email"):
        OidcProvider(**values, scopes=("openid",))
    with pytest.raises(ValidationError, match="same key"):
        Oidc(providers=(usual, usual))


def test_requests_of_a_log_in_have_a_limit(tmp_path: Path, openid: OpenIdServer) -> None:
    plane = plane_for(tmp_path, openid, provider={"allow_sign_up": True})
    plane.config.server.requests_per_second = 0.01
    with plane, httpx.Client(base_url=plane.url) as browser, httpx.Client(base_url=plane.url) as another:
        log_in(browser)
        log_in(another)
        for number in range(2):
            # What a browser keeps besides does not make it another caller.
            browser.cookies.set("other", str(number))
            answer = browser.get("/api/v1/auth/me")
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 1
        assert "log-in may send 0.01 requests a second" in answer.json()["error"]["message"]
        assert another.get("/api/v1/auth/me").status_code == 200
