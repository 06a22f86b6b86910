"""The checks that every request must pass before it is read: its `Host`, its `Origin`, its key.

A page of another site can have a browser send requests to this server: by a name that it lets point here
(DNS rebinding), or by a simple POST, which CORS does not stop. Source: https://fetch.spec.whatwg.org,
https://en.wikipedia.org/wiki/DNS_rebinding.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.errors import ConfigError
from glmtune.serve.errors import ApiError, api_error
from glmtune.serve.limits import ServerLimits

LOCAL_NAMES = frozenset({"localhost"})
KEY_NAME = "GLMTUNE_API_KEY"
"""Environment variable that holds the key."""
KEPT_BEHIND_KEY = ("/v1", "/metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The clients that may ask: checked by `AccessGuard`."""

    host: str
    """Address that the server listens on."""
    key: str | None = None
    """The key that requests must have; None: nobody needs one."""
    names: Collection[str] = ()
    """Further names of this machine that a `Host` header may hold."""
    origins: Collection[str] = ()
    """Origins of other pages that may ask, such as http://localhost:3000."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an address beyond this machine without a key."""
        if self.key is not None and not self.key.strip():
            raise ConfigError(f"{KEY_NAME}: empty", hint=f"{KEY_NAME}=$(openssl rand -hex 24)")
        if self.key is None and not is_local(self.host):
            raise ConfigError(
                f"host: {self.host} is seen by other machines, and no key protects it",
                hint=f"export {KEY_NAME}=$(openssl rand -hex 24); or for this machine alone, host=127.0.0.1",
            )

    @property
    def other_origins(self) -> list[str]:
        """`origins` as browsers write them."""
        return [origin.rstrip("/").lower() for origin in self.origins]

    def check(self, headers: dict[bytes, bytes], path: str, method: str = "POST") -> None:
        """Raise `ApiError` for a request that may not pass."""
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._knows(_name(f"//{host}")):
            raise ApiError(
                403,
                f"Host: {host!r:.80} is no name of this server; --allow-host adds one",
                code="foreign_host",
            )
        # browsers send it with every POST; a page's script can neither leave it out nor forge it
        origin = headers.get(b"origin", b"").decode("latin-1")
        # a page of this server has its own address for an origin; a program that is no browser has none
        own = ("", f"http://{host}".lower(), f"https://{host}".lower())
        if origin.lower() not in own and origin not in self.other_origins:
            raise ApiError(
                403,
                f"Origin: {origin!r:.80} may not ask here; --allow-origin adds one",
                code="foreign_origin",
            )
        # /health stays open: those who watch a server have no key
        if self.key is None or not path.startswith(KEPT_BEHIND_KEY):
            return
        # a browser asks so if it may send the key; it sends none with that
        if method == "OPTIONS" and origin:
            return
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        # Anthropic's clients have a header of their own for the key
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # in constant time: `==` would tell by its time how much of a guess is right
        if not hmac.compare_digest(given, self.key.encode()):
            raise ApiError(
                401,
                "this server needs a key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _knows(self, name: str | None) -> bool:
        """True for a name of this machine."""
        if not name:
            return False
        if name in LOCAL_NAMES or name in {self.host.lower(), *map(str.lower, self.names)}:
            return True
        # no other site can let an address point here, as it can its own name
        address = _address(name)
        return address is not None and (address.is_loopback or not is_local(self.host))


def is_local(host: str) -> bool:
    """True for an address that only this machine reaches."""
    address = _address(host)
    return host.lower() in LOCAL_NAMES or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _name(url: str) -> str | None:
    """Return the name in a `Host` header, without its port; None if it is none."""
    try:
        parts = urlsplit(url)
        # reading the port raises for one that is no number
        is_more = parts.path or parts.query or parts.username or parts.fragment or (parts.port or 1) < 1
        return None if is_more else parts.hostname
    except ValueError:
        return None


class AccessGuard:
    """ASGI middleware that lets requests pass by `Access`, and gives no traceback to a client."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        write_error: Callable[[ApiError, str], Response],
        limits: ServerLimits,
    ) -> None:
        """`write_error`: maps an error and the request's path to the response."""
        self.app = app
        self.access = access
        self.write_error = write_error
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on one request; answer for it if it may not pass, or fails."""
        # a websocket is dropped unanswered: nothing here speaks it
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        is_begun = False

        async def noting(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            self.access.check(dict(scope["headers"]), scope["path"], scope.get("method", ""))
            await self.app(scope, self._bounded(receive), noting)
        except Exception as error:  # noqa: BLE001  # the boundary of a request: the server outlives it
            found = api_error(error)
            # a second start is an error in ASGI; uvicorn closes a connection whose response is left half
            if not is_begun:
                await self.write_error(found, scope["path"])(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        """Return `receive`, which raises 408 or 413 for a body that takes too long or is too large."""
        deadline = asyncio.get_running_loop().time() + self.limits.body_timeout_s
        is_read, size = False, 0

        async def timed() -> Message:
            nonlocal is_read, size
            if is_read:  # later messages tell that the client is gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            # HTTPException: FastAPI passes that on, and turns any other error of a body into a bare 400
            except TimeoutError:
                raise HTTPException(408, "the request's body did not arrive in time") from None
            is_read = not message.get("more_body")
            # counted, as Content-Length may be missing where a body comes in chunks
            size += len(message.get("body", b""))
            if size > self.limits.max_body_bytes:
                raise HTTPException(413, f"the body is larger than {self.limits.max_body_bytes:,} bytes")
            return message

        return timed
