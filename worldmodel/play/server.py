"""Serve the page on 127.0.0.1, with a websocket for what needs Python (extra play).

Only pages of this server are answered: a request of another origin, or to another host name, is refused. Every file has its
address in a table, so no path can lead elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worldmodel.play.catalog import Playable
from worldmodel.play.page import WORLD_OUTPUTS
from worldmodel.play.session import Session
from worldmodel.play.site import TYPES, WORLDS_FILE, site_files
from worldmodel.runtime import missing_extra

HOST, PORT = "127.0.0.1", 8765
SEND_TIMEOUT = 10.0  # seconds; a page that takes longer to read an answer is disconnected
MOST_BYTES = 64 * 2**20  # of a message, which may be a frame
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; img-src 'self' data: blob:; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PlayServer:
    """The server of the page.

    Args:
        worlds: what can be played; the first one is shown.
        port: the port; None for `PORT`, or any other free one if that is in use.

    Raises:
        ImportError: if the extra play is not installed.
    """

    def __init__(self, worlds: Sequence[Playable], *, port: int | None = None):
        try:
            from aiohttp import web
        except ImportError as error:
            raise missing_extra("play") from error
        self._web, self._port = web, port
        self._worlds = {each.id: each for each in worlds}
        self._site = site_files()
        self._scratch = tempfile.TemporaryDirectory(prefix="worldmodel-play-", ignore_cleanup_errors=True)
        self._recordings = Path(self._scratch.name)
        self._sockets: set[Any] = set()

        @web.middleware
        async def guard(request: Any, handler: Callable[[Any], Any]) -> Any:
            return await self._guard(request, handler)

        self.app = web.Application(middlewares=[guard])
        self.app.router.add_get(f"/{WORLDS_FILE}", self._list)
        self.app.router.add_get("/ws", self._talk)
        self.app.router.add_get("/{path:.*}", self._file)
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False)

    @property
    def address(self) -> str:
        """Address of the page, while the server runs."""
        return f"http://{HOST}:{self._port}/"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: if the port is in use.
        """
        await self._runner.setup()
        wanted = PORT if self._port is None else self._port
        try:
            await self._listen(wanted)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if self._port is not None:
                raise OSError(
                    f"port: expected a free one, got {wanted}, which is in use; choose another one (--port)"
                ) from None
            await self._listen(0)

    async def stop(self) -> None:
        """Close all connections and stop listening."""
        for socket in list(self._sockets):
            await socket.close(code=1001)
        await self._runner.cleanup()
        self._scratch.cleanup()

    async def _listen(self, port: int) -> None:
        site = self._web.TCPSite(self._runner, HOST, port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _guard(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Refuse requests that do not come from a page of this server, and add headers to every answer."""
        response = await handler(request) if self._is_own(request) else self._refusal(403, "a request of a page of this server")
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _is_own(self, request: Any) -> bool:
        allowed = {f"{name}:{self._port}" for name in (HOST, "localhost")}
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
        if request.host not in allowed or origin not in (None, f"http://{request.host}"):
            return False
        opened = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/"  # a link to the page
        return site in ("same-origin", "none") or opened

    def _refusal(self, status: int, expected: str) -> Any:
        return self._web.Response(status=status, text=f"expected {expected}\n")

    async def _list(self, _: Any) -> Any:
        found = [
            {"id": each.id, "title": each.title, "path": f"worlds/{each.id}/", "ready": each.ready}
            for each in self._worlds.values()
        ]
        return self._web.json_response({"live": True, "worlds": found})

    async def _file(self, request: Any) -> Any:
        path = self._find(request.match_info["path"] or "index.html")
        if path is None or not path.is_file():
            return self._refusal(404, "a file of the page")
        return self._web.FileResponse(path, headers={"Content-Type": TYPES.get(path.suffix, "application/octet-stream")})

    def _find(self, name: str) -> Path | None:
        """Return the file of an address; None unless the page has it."""
        if name in self._site:
            return self._site[name]
        first, _, rest = name.partition("/")
        if first == "recordings":
            return next((file for file in self._recordings.iterdir() if file.name == rest), None)
        world, _, file = rest.partition("/")
        if first == "worlds" and world in self._worlds:
            directory = self._worlds[world].directory
            listed = {each.name: each for pattern in WORLD_OUTPUTS for each in directory.glob(pattern)}
            return listed.get(file)
        return None

    async def _talk(self, request: Any) -> Any:
        """Answer the messages of a page, one after the other, until it disconnects."""
        if "Origin" not in request.headers:
            return self._refusal(403, "a page of this server")
        socket = self._web.WebSocketResponse(heartbeat=20.0, max_msg_size=MOST_BYTES)
        await socket.prepare(request)
        self._sockets.add(socket)
        session, loop = Session(self._worlds, self._recordings), asyncio.get_running_loop()
        worker = ThreadPoolExecutor(max_workers=1)  # one thread, as environments may depend on it
        try:
            async for message in socket:
                work = _work(session, message, self._web.WSMsgType)
                answer = await loop.run_in_executor(worker, work) if work else None
                if answer is not None:
                    await asyncio.wait_for(socket.send_json(answer), SEND_TIMEOUT)
        except (asyncio.TimeoutError, ConnectionError):
            pass  # the page is gone, or reads too slowly
        finally:
            self._sockets.discard(socket)
            worker.submit(session.close)
            worker.shutdown(wait=False)  # an environment that hangs delays nobody else
        return socket


def _work(session: Session, message: Any, kinds: Any) -> Callable[[], Mapping[str, Any] | None] | None:
    """Return what a message of a page asks for."""
    if message.type == kinds.BINARY:
        return lambda: session.add_frame(message.data)
    if message.type != kinds.TEXT:
        return None
    try:
        content = json.loads(message.data)
    except ValueError:
        content = None
    return lambda: session.answer(content)


def serve(worlds: Sequence[Playable], *, port: int | None = None, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        worlds: what can be played; the first one is shown.
        port: the port; None for 8765, or any other free one if that is in use; 0 for any.
        on_ready: called with the address of the page when the server listens.

    Raises:
        ImportError: if the extra play is not installed.
        OSError: if the port is in use.
    """
    server = PlayServer(worlds, port=port)

    async def run() -> None:
        try:
            await server.start()
            on_ready(server.address)
            await asyncio.Event().wait()
        finally:
            await server.stop()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return
