"""Connections: whose answer is whose, proxies, and what a lost one is called."""

import asyncio
import json

import pytest

from dsbs_jax.teacher import http_client
from dsbs_jax.teacher.openai_client import open_client, send
from dsbs_jax.teacher.toy_server import completion, reply


def ask(client, http, url, text):
    return send(client, http, f"{url}/completions", {"prompt": text})


def test_a_second_copy_on_an_idle_connection_is_not_the_next_requests_answer():
    async def scenario():
        connections = []

        async def serve(reader, writer):
            connections.append(writer)
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                asked = json.loads(await reader.readexactly(length))["prompt"]
                data = reply(completion(f"answer to {asked}", chat=False)).data
                writer.write(data)
                await writer.drain()
                if asked == "one":
                    await late.wait()
                    writer.write(data)
                    await writer.drain()
                    sent.set()

        late, sent = asyncio.Event(), asyncio.Event()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with open_client(url, None, 30.0) as (client, http):
                texts = [(await ask(client, http, url, "one")).text]
                late.set()
                await sent.wait()
                texts += [(await ask(client, http, url, name)).text for name in ("two", "three")]
            for writer in connections:
                writer.close()
        return texts, len(connections)

    texts, connections = asyncio.run(scenario())
    assert texts == ["answer to one", "answer to two", "answer to three"]
    # The first was given up, the second is kept.
    assert connections == 2


def test_the_environments_proxy_is_used_but_not_where_it_says_no(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,.inside")
    assert http_client._proxy("http://teacher:8000/v1") == "http://proxy:3128"
    assert http_client._proxy("http://localhost:8000/v1") is None
    assert http_client._proxy("http://node1.inside:8000/v1") is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "teacher.localhost"])
def test_this_machine_is_not_asked_through_a_proxy(monkeypatch, host):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert http_client._proxy(f"http://{host}:8000/v1") is None
    assert http_client._proxy("http://127.example:8000/v1") == "http://proxy:3128"


def test_a_proxy_that_refuses_tells_its_status_alone(monkeypatch):
    async def scenario():
        async def refuse(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            proxy = f"http://me:hunter2@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            monkeypatch.setenv("https_proxy", proxy)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            url = "https://teacher.example/v1"
            async with open_client(url, None, 5.0) as (client, http):
                return [await ask(client, http, url, "one") for _ in range(2)]

    for lost in asyncio.run(scenario()):
        assert (lost.reason, lost.message) == ("no_connection", "the proxy answers with status 407")
        assert not lost.billed


@pytest.mark.parametrize(("fault", "reason", "billed"), [
    ("hang", "timeout", True),
    ("cut_before", "cut_connection", True),
    ("cut_within", "cut_connection", True),
    ("gone", "no_connection", False),
])  # fmt: skip
def test_what_is_lost_is_named_and_charged_where_it_may_be(fault_server, fault, reason, billed):
    server = fault_server(rate=1.0, faults=[fault])
    if fault == "gone":
        server.process.kill()
        server.process.wait()

    async def twice():
        # By the SDK, and repeating it.
        async with open_client(server.url, None, 0.3) as (client, http):
            return [await ask(client, http, server.url, "one") for _ in range(2)]

    assert [(one.reason, one.billed) for one in asyncio.run(twice())] == [(reason, billed)] * 2
