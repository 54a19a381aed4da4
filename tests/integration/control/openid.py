"""An OpenID provider in a thread: discovery, authorisation with PKCE, tokens signed with a real key, user info."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import uvicorn
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID = "harmonia"
CLIENT_SECRET = "a client's secret: with/signs"


@dataclass
class Behaviour:
    """Who is at the keyboard, and how the provider misbehaves."""

    claims: dict[str, Any] = field(default_factory=lambda: {"email": "ada@example.com", "email_verified": True})
    """What it says of whoever logs in, besides `sub` and `name`."""
    token_claims: dict[str, Any] = field(default_factory=dict)
    """Claims of the ID token that differ from what is right."""
    tells_in_userinfo: bool = False
    """The address is only in the user info."""
    userinfo_subject: str = "user-1"
    algorithm: str = "RS256"
    """`none`, and `HS256` with the public key as the secret, are forgeries."""
    issuer: str | None = None
    """What the discovery document says instead of the truth."""
    refuses: bool = False
    """Whoever is at the keyboard says no."""


class OpenIdServer:
    """`url` is the issuer. `requests`: the queries of the authorisation endpoint."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.requests: list[dict[str, str]] = []
        self.secret: str | None = CLIENT_SECRET
        self._key = RSAKey.generate_key(2048, {"kid": "key-1", "use": "sig"})
        self._stranger = RSAKey.generate_key(2048, {"kid": "key-1"})
        self._codes: dict[str, dict[str, str]] = {}
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self._app(), log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])), daemon=True)

    def __enter__(self) -> OpenIdServer:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.get("/.well-known/openid-configuration")(self._discovery)
        app.get("/authorize")(self._authorize)
        app.post("/token")(self._token)
        app.get("/keys")(self._keys)
        app.get("/userinfo")(self._userinfo)
        return app

    async def _discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.behaviour.issuer or self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "userinfo_endpoint": f"{self.url}/userinfo",
            # A provider may well promise more than is safe.
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        }

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        self.requests.append(query)
        assert query["response_type"] == "code" and query["client_id"] == CLIENT_ID
        assert {"openid", "email"} <= set(query["scope"].split())
        if self.behaviour.refuses:
            answer = {"error": "access_denied", "error_description": "the person said no", "state": query["state"]}
        else:
            code = secrets.token_urlsafe(16)
            self._codes[code] = query
            answer = {"code": code, "state": query["state"], "iss": self.url}
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer)}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(await request.form())
        asked = self._codes.pop(str(form["code"]), None)
        if self.secret is not None:
            wanted = "Basic " + base64.b64encode(f"{CLIENT_ID}:{self.secret}".encode()).decode()
            if request.headers.get("authorization") != wanted:
                return JSONResponse({"error": "invalid_client"}, 401)
        if asked is None or form["redirect_uri"] != asked["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant", "error_description": "the code is not known"}, 400)
        challenge = asked.get("code_challenge")
        if challenge is not None and challenge != create_s256_code_challenge(str(form.get("code_verifier", ""))):
            return JSONResponse({"error": "invalid_grant", "error_description": "the verifier is wrong"}, 400)
        token = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "expires_in": 60}
        return JSONResponse({**token, "id_token": self._id_token(asked["nonce"])})

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT_ID, "sub": "user-1", "iat": now, "exp": now + 60, "nonce": nonce}
        if not self.behaviour.tells_in_userinfo:
            claims |= self.behaviour.claims
        claims |= self.behaviour.token_claims
        match self.behaviour.algorithm:
            case "RS256":
                return jwt.encode({"alg": "RS256", "kid": "key-1"}, claims, self._key)
            case "stranger":
                return jwt.encode({"alg": "RS256", "kid": "key-1"}, claims, self._stranger)
            case "none":
                return _forged({"alg": "none", "kid": "key-1"}, claims, None)
            case _:
                return _forged({"alg": "HS256", "kid": "key-1"}, claims, self._key.as_pem(private=False))

    async def _keys(self) -> dict[str, Any]:
        return {"keys": [self._key.as_dict(private=False)]}

    async def _userinfo(self, request: Request) -> dict[str, Any]:
        assert request.headers["authorization"].startswith("Bearer ")
        return {"sub": self.behaviour.userinfo_subject, **self.behaviour.claims}


def _forged(header: dict[str, str], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token as an attacker makes it, without the checks of a library."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    signature = b"" if secret is None else hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{part(signature)}"
