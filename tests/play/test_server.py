"""The server of the page: what it serves, and whom it refuses."""

import asyncio
import json
import re
import socket

import pytest

from worldmodel.play import PlayServer, included_worlds
from worldmodel.play import server as module
from worldmodel.play.site import site_files

aiohttp = pytest.importorskip("aiohttp", reason="needs worldmodel[play]")


def serving(check):
    """Run a server for a coroutine function, which gets a client and the server."""

    async def run():
        server = PlayServer(included_worlds(), port=0)
        await server.start()
        try:
            async with aiohttp.ClientSession() as client:
                await check(client, server)
        finally:
            await server.stop()

    asyncio.run(run())


def own(server):
    return {"Origin": server.address.rstrip("/")}


def test_every_file_of_the_page_and_of_a_world_is_served_with_its_type():
    async def check(client, server):
        for name in ["", *site_files(), "worlds/cartpole/page.json", "worlds/cartpole/step.onnx"]:
            async with client.get(server.address + name) as answer:
                assert answer.status == 200, name
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "unsafe-inline" not in answer.headers["Content-Security-Policy"]
                if name.endswith("wasm"):
                    assert answer.content_type == "application/wasm"
        async with client.get(server.address + "worlds.json") as answer:
            listed = await answer.json()
        assert listed["live"]
        assert listed["worlds"][0]["id"] == "cartpole"

    serving(check)


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "/worlds/cartpole/../../../server.py",
        "/worlds/cartpole/..%2f..%2f..%2fserver.py",
        "/worlds/cartpole/..%2f..%2fserver.py",
        "/worlds/cartpole/%2e%2e/%2e%2e/server.py",
        "/worlds/cartpole/../../server.py",
        "/worlds/../worlds/cartpole/none",
        "/worlds//etc/passwd",
        "//etc/passwd",
        "/recordings/../../etc/passwd",
        "/recordings/..%2f..%2fetc%2fpasswd",
        "/vendor",
        "/worlds/cartpole",
        "/vendor/onnxruntime-web/../../../server.py",
        "/app.js%00.html",
    ],
)
def test_a_path_outside_the_page_is_not_found(path):
    async def check(_, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server._port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert re.match(rb"HTTP/1.1 (400|404)", answer), answer[:100]
        assert b"root:" not in answer

    serving(check)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example", "Origin": None},  # a name that was made to point to 127.0.0.1
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_request_of_another_origin_is_refused(headers):
    async def check(client, server):
        given = {name: value for name, value in {**own(server), **headers}.items() if value is not None}
        for path in ("", "worlds.json", "worlds/cartpole/step.onnx", "ws"):
            async with client.get(server.address + path, headers=given) as answer:
                assert answer.status == 403
                assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await client.ws_connect(server.address + "ws", headers=given)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await client.ws_connect(server.address + "ws")  # without an origin it is no page

    serving(check)


def test_a_link_to_the_page_opens_it_from_anywhere():
    async def check(client, server):
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        async with client.get(server.address, headers=headers) as answer:
            assert answer.status == 200

    serving(check)


def test_the_websocket_steps_the_real_environment():
    async def check(client, server):
        async with client.ws_connect(server.address + "ws", headers=own(server)) as page:
            await page.send_str("no JSON")
            assert (await page.receive_json())["type"] == "error"
            await page.send_json({"type": "start", "world": "cartpole", "seed": 1})
            started = await page.receive_json()
            for t in (1, 2, 3):
                await page.send_json({"type": "act", "episode": started["episode"], "t": t, "action": {"action": [0]}})
                assert (await page.receive_json())["t"] == t
            await page.send_bytes(b"xyz")
            assert "expected a recording" in (await page.receive_json())["text"]

    serving(check)


def test_a_page_that_reads_too_slowly_is_disconnected_and_others_go_on(monkeypatch):
    monkeypatch.setattr(module, "SEND_TIMEOUT", 0.2)
    closed = []
    monkeypatch.setattr(module.Session, "close", lambda self: closed.append(self))
    large = {"type": "real", "data": "x" * 200_000}
    monkeypatch.setattr(module.Session, "answer", lambda self, message: large if message == "slow" else {"type": "fine"})

    async def check(client, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server._port)
        reader._transport.pause_reading()  # a client that does not read
        key = "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        host = f"127.0.0.1:{server._port}"
        head = f"GET /ws HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\n{key}\r\n"
        message = json.dumps("slow").encode()
        masked = bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message
        writer.write(head.encode() + masked * 200)
        async with client.ws_connect(server.address + "ws", headers=own(server)) as other:
            for _ in range(20):
                await other.send_json("quick")
                assert await other.receive_json() == {"type": "fine"}
                await asyncio.sleep(0)
            for _ in range(500):
                if closed:
                    break
                await asyncio.sleep(0.02)
        writer.transport.abort()
        assert closed

    serving(check)


def test_a_page_that_closes_ends_its_session(monkeypatch):
    closed = []
    close = module.Session.close
    monkeypatch.setattr(module.Session, "close", lambda self: (close(self), closed.append(self)))

    async def check(client, server):
        for abrupt in (False, True):
            page = await client.ws_connect(server.address + "ws", headers=own(server))
            await page.send_json({"type": "start", "world": "cartpole", "seed": 1})
            await page.receive_json()
            if abrupt:
                page._response.connection.transport.abort()
            await page.close()
        for _ in range(500):
            if len(closed) == 2:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"expected 2 sessions to end, got {len(closed)}")

    serving(check)


def test_a_port_in_use_is_an_error_unless_none_was_asked_for(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = PlayServer(included_worlds(), port=port)

        async def start(server):
            try:
                await server.start()
                return server.address
            finally:
                await server.stop()

        with pytest.raises(OSError, match=rf"port: expected a free one, got {port}, which is in use; choose another"):
            asyncio.run(start(server))
        monkeypatch.setattr(module, "PORT", port)
        assert asyncio.run(start(PlayServer(included_worlds()))) != f"http://127.0.0.1:{port}/"


def test_the_extra_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r"aiohttp: expected the extra play, which is not installed"):
        PlayServer(included_worlds())
