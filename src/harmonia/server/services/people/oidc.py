"""The protocol with an OpenID provider: where to send somebody, and who it says that came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from harmonia.config.control import OidcProvider
from harmonia.errors import AuthenticationError, UnavailableError

_TIMEOUT_S = 10.0
_LEEWAY_S = 60
"""How far the provider's clock may be off."""
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a private key. With `HS256` everybody who knows a public key could sign, with `none` everybody."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What ties an answer to the question. Only the browser and this server can tell nonce and verifier."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider vouches for."""

    email: str
    is_verified: bool
    """Whether the provider knows that the address is theirs."""
    name: str | None


class OpenIdProvider:
    """One provider, asked anew for its addresses and keys at each log-in: they may change at any time.

    Every method raises `UnavailableError` while the provider does not answer as OpenID Connect wants, and
    `AuthenticationError` for what it says but cannot prove.
    """

    def __init__(self, config: OidcProvider, redirect_uri: str) -> None:
        self._config = config
        self._redirect_uri = redirect_uri

    async def address(self, proof: Proof) -> str:
        """Where somebody proves who they are."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            metadata = await self._metadata(client)
        extra = {"nonce": proof.nonce}
        if self._config.pkce:
            challenge = create_s256_code_challenge(proof.verifier)
            extra |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        return str(
            prepare_grant_uri(
                self._endpoint(metadata, "authorization_endpoint"),
                self._config.client_id,
                "code",
                redirect_uri=self._redirect_uri,
                scope=list(self._config.scopes),
                state=proof.state,
                **extra,
            )
        )

    async def identity(self, code: str, proof: Proof, issuer: str | None) -> Identity:
        """Who came back with a code. issuer: the one that the answer names (RFC 9207), if it does."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            metadata = await self._metadata(client)
            if issuer is not None and issuer != metadata["issuer"]:
                raise AuthenticationError(f"the answer is one of {issuer!r}, which was not asked")
            token = await self._token(client, metadata, code, proof)
            keys = await self._json(client, self._endpoint(metadata, "jwks_uri"))
            claims = self._claims(token, metadata, keys, proof.nonce)
            if "email" not in claims and "userinfo_endpoint" in metadata:
                claims |= await self._user_info(client, metadata, token, claims["sub"])
        email, name = claims.get("email"), claims.get("name")
        if not isinstance(email, str):
            raise AuthenticationError(
                f"{self._config.name} tells no e-mail address; let it give the scope 'email' to this server"
            )
        return Identity(email, claims.get("email_verified") is True, name if isinstance(name, str) else None)

    async def _metadata(self, client: httpx.AsyncClient) -> dict[str, Any]:
        issuer = self._config.issuer_url.rstrip("/")
        found = await self._json(client, f"{issuer}/.well-known/openid-configuration")
        if str(found.get("issuer")).rstrip("/") != issuer:
            raise UnavailableError(f"{self._config.name} calls itself {found.get('issuer')!r}, not {issuer!r}")
        return found

    def _endpoint(self, metadata: Mapping[str, Any], name: str) -> str:
        address = metadata.get(name)
        if not isinstance(address, str):
            raise UnavailableError(f"{self._config.name} has no {name}")
        if urlsplit(self._config.issuer_url).scheme == "https" and urlsplit(address).scheme != "https":
            raise UnavailableError(f"the {name} of {self._config.name} is not reached over HTTPS: {address}")
        return address

    async def _token(
        self, client: httpx.AsyncClient, metadata: Mapping[str, Any], code: str, proof: Proof
    ) -> dict[str, Any]:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_uri}
        if self._config.pkce:
            form["code_verifier"] = proof.verifier
        secret = self._config.client_secret
        auth = ClientAuth(
            self._config.client_id, None if secret is None else secret.get_secret_value(), self._method(metadata)
        )
        headers = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
        endpoint = self._endpoint(metadata, "token_endpoint")
        uri, headers, body = auth.prepare("POST", endpoint, headers, urlencode(form))
        try:
            answer = await client.post(uri, headers=headers, content=body)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self._config.name} does not answer: {error}") from error
        if answer.status_code >= 500:
            raise UnavailableError(f"{self._config.name} answers {answer.status_code}")
        token = self._object(answer)
        if answer.is_error or not isinstance(token.get("id_token"), str):
            reason = token.get("error_description") or token.get("error") or "no ID token came with it"
            raise AuthenticationError(f"{self._config.name} does not take the code: {reason}; log in again")
        return token

    def _method(self, metadata: Mapping[str, Any]) -> str:
        """How this server proves itself: the standard's default unless the provider wants the other way."""
        if self._config.client_secret is None:
            return "none"
        supported = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return "client_secret_basic" if "client_secret_basic" in supported else "client_secret_post"

    def _claims(self, token: Mapping[str, Any], metadata: Mapping[str, Any], keys: Any, nonce: str) -> dict[str, Any]:
        """What a valid ID token says."""
        promised = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        # Providers put more into headers than the standard names.
        registry = JWSRegistry(algorithms=[name for name in _ALGORITHMS if name in promised], strict_check_header=False)
        options = {
            "iss": {"essential": True, "value": metadata["issuer"]},
            "aud": {"essential": True, "value": self._config.client_id},
        }
        params = {"nonce": nonce, "client_id": self._config.client_id, "access_token": token.get("access_token")}
        try:
            decoded = jwt.decode(token["id_token"], KeySet.import_key_set(keys), registry=registry)
            claims = CodeIDToken(decoded.claims, decoded.header, options, params)
            claims.validate(leeway=_LEEWAY_S)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise AuthenticationError(f"the ID token of {self._config.name} is not valid: {error}") from error
        return dict(claims)

    async def _user_info(
        self, client: httpx.AsyncClient, metadata: Mapping[str, Any], token: Mapping[str, Any], subject: str
    ) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {token.get('access_token')}"}
        found = await self._json(client, self._endpoint(metadata, "userinfo_endpoint"), headers)
        if found.get("sub") != subject:
            raise AuthenticationError(f"{self._config.name} tells of somebody else than who logged in")
        return found

    async def _json(
        self, client: httpx.AsyncClient, address: str, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            answer = await client.get(address, headers=headers)
            answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"{self._config.name} does not answer: {error}") from error
        return self._object(answer)

    def _object(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UnavailableError(f"{self._config.name} does not answer with a JSON object at {answer.url.path}")
        return found
