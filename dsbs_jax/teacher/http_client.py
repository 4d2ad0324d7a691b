"""The HTTP side of the OpenAI SDK for many small requests: aiohttp's connections under the SDK's requests.

The SDK takes any `httpx.AsyncClient`. httpx's own connection pool takes longer the more connections it holds, its
client looks for redirects, cookies and auth flows in every answer, and the SDK makes the same headers anew for every
request: together several times the work of sending one (docs/benchmarks.md). So connections are aiohttp's, and a
request that differs from an earlier one of the SDK's in its body alone is sent with the headers of that one
(`repeat`). Imported only where requests are sent.
"""

from __future__ import annotations

import select
import urllib.parse
import urllib.request
from typing import Any

import aiohttp
import httpx

from dsbs_jax.teacher.replies import Secret, loopback


class DirectClient(httpx.AsyncClient):
    """Sends the SDK's requests through one aiohttp session, for one server.

    No redirects (a request that carries a key goes nowhere else), no cookies. The environment's proxies are honoured,
    but not for this machine itself.

    Args:
      base_url: of the server, to choose a proxy for.
      timeout_s: for one whole request, in seconds; an answer that trickles in does not prolong it.
      secret: the key, which is taken out of everything that comes back: the SDK logs headers, and keeps bodies in its
        errors. None takes out the Authorization header, without which the SDK makes no request.
      connect_s: for making a connection.

    Attributes:
      secret: as given, or an empty one.
    """

    def __init__(self, base_url: str, timeout_s: float, secret: Secret | None = None, connect_s: float = 20.0):
        super().__init__(timeout=timeout_s, trust_env=False)
        self._proxy = _proxy(base_url)
        self._timeout_s = timeout_s
        self.secret = secret or Secret("")
        self._send_key = secret is not None
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None
        # The headers of the SDK's first post to each URL.
        self._repeated: dict[str, list[tuple[str, str]]] = {}

    async def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """Sends a request of the SDK's and reads its whole answer.

        Raises:
          httpx.TimeoutException: it took too long.
          httpx.TransportError: no connection, or it was cut.
        """
        if not self._send_key:
            request.headers.pop("Authorization", None)
        fields = [item for item in request.headers.multi_items() if item[0].lower() != "content-length"]
        if request.method == "POST" and request.headers.get("Content-Type") == "application/json":
            self._repeated[str(request.url)] = fields
        status, headers, body = await self._exchange(request.method, str(request.url), await request.aread(), fields)
        return httpx.Response(status, headers=headers, content=body, request=request)

    async def repeat(self, url: str, content: bytes) -> tuple[int, dict[str, str], str] | None:
        """Sends another body to where the SDK has posted one, with the headers that the SDK made for that.

        Returns:
          Status, headers in lower case, and body; None where the SDK has not posted to this URL yet.

        Raises:
          httpx.TimeoutException, httpx.TransportError: as `send`.
        """
        if url not in self._repeated:
            return None
        status, headers, body = await self._exchange("POST", url, content, self._repeated[url])
        named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        return status, named, body.decode("utf-8", "replace")

    async def _exchange(
        self, method: str, url: str, content: bytes, fields: list[tuple[str, str]]
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        failure: httpx.TransportError
        try:
            async with self._open_session().request(
                method, url, data=content, headers=fields, allow_redirects=False, proxy=self._proxy
            ) as answer:
                body = self.secret.hide_bytes(await answer.read())
            headers = [
                (name, self.secret.hide_bytes(value))
                for name, value in answer.raw_headers
                # aiohttp has unpacked the body.
                if name.lower() != b"content-encoding"
            ]
            return answer.status, headers, body
        except aiohttp.ConnectionTimeoutError as error:
            failure = httpx.ConnectError(str(error))
        except TimeoutError:
            failure = httpx.ReadTimeout(f"no answer within {self._timeout_s:g} s")
        except aiohttp.ClientHttpProxyError as error:
            # Its text holds the proxy's address, maybe with a password. Nothing came to the teacher.
            failure = httpx.ConnectError(f"the proxy answers with status {error.status}")
        except aiohttp.ClientConnectorError as error:
            failure = httpx.ConnectError(str(error))
        except (aiohttp.ClientError, OSError) as error:
            failure = httpx.ReadError(self.secret.hide(f"{type(error).__name__}: {error}"))
        # Outside of the handlers: aiohttp's error, whose request holds the key, is not in the chain.
        raise failure

    def _open_session(self) -> aiohttp.ClientSession:
        # Sessions belong to the event loop that is running now.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_CleanConnector(limit=0, ssl=httpx.create_ssl_context()),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=self._connect_s),
            )
        return self._session

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
        await super().aclose()


class _CleanConnector(aiohttp.TCPConnector):
    """Reuses no connection on which something came unasked: it would be taken for the answer to the next request."""

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(*args, **kwargs)
            if not _dirty(connection):
                return connection
            connection.close()


def _dirty(connection: aiohttp.connector.Connection) -> bool:
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or protocol.should_close:
        return True
    if transport.get_extra_info("ssl_object") is not None:
        # What waits there may be a session ticket.
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _proxy(base_url: str) -> str | None:
    # Once, not for every request as aiohttp does: that reads .netrc each time, in a thread.
    url = urllib.parse.urlsplit(base_url)
    if loopback(url.hostname or "") or urllib.request.proxy_bypass(url.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")
