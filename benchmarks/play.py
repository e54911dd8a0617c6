"""Steps a second of the page in headless Chromium, for the Doom world of the repository and the included ones."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

from harness import write_result
from playwright.sync_api import sync_playwright

from worldmodel.play import Playable, PlayServer, included_worlds, open_run

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)


def processor_time() -> float:
    """Return the seconds of processor time of all descendants of this process, which are Chromium's."""
    parents, times = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            parents[int(entry.name)], times[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while new := {child for child, parent in parents.items() if parent in family} - family:
        family |= new
    return sum(times[child] for child in family - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


def measure(worlds: list[Playable], seconds: float) -> dict[str, dict[str, float]]:
    """Return steps a second of each world, without the limit of the environment's own rate."""
    server, loop = PlayServer(worlds, port=0), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    found = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        chromium = shutil.which("chromium")
        context = playwright.chromium.launch_persistent_context(profile, executable_path=chromium, args=list(FLAGS))
        for world in worlds:
            page = context.new_page()
            page.goto(f"{server.address}?world={world.id}")
            while not page.evaluate("Boolean(globalThis.player?.state?.t)"):
                page.wait_for_timeout(100)
            page.evaluate("player.fps = 1000; globalThis.began = [performance.now(), player.state.t]; player.taken = 0;")
            page.evaluate("player.addEventListener('change', () => (player.taken++, player.state.ended && player.start()))")
            before = processor_time()
            page.wait_for_timeout(1000 * seconds)
            taken, passed = page.evaluate("[player.taken, (performance.now() - began[0]) / 1000]")
            used = processor_time() - before
            found[world.id] = {
                "steps per second": round(taken / passed, 1),
                "steps per second of processor time": round(taken / used, 1),  # of all processes of Chromium
                "bytes": sum(file.stat().st_size for file in world.directory.iterdir()),
            }
            page.close()
        context.close()
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each world")
    parser.add_argument("--run", default="worlds/doom", help="a world, with its agent")
    parser.add_argument("--out", required=True, help="directory for result.json")
    args = parser.parse_args()
    doom = open_run(args.run)
    doom.prepare()
    found = measure([doom, *included_worlds()], args.seconds)
    write_result(Path(args.out), found)
    print(found)


if __name__ == "__main__":
    main()
