"""``worldmodel play``."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from worldmodel.cli.options import Command, Flag, Output, Result
from worldmodel.play import Playable, included_worlds, local_runs, open_run, serve
from worldmodel.runtime import check_integer, require_extras


@dataclass(frozen=True, kw_only=True)
class Play(Command):
    """Play in a dream, in the browser: steer it yourself or watch the agent, and change the temperature.

    Without RUN, lists the runs below this directory and the included worlds, and plays the first included one. Ctrl-C stops.

    Args:
        run_directory: world model directory, a directory with the directories "world" and "controller", a run of the
            quickstart or of iterate, a page written by ``worldmodel export --page``, or the name of an included world.
        controller: controller directory; without it the one that RUN holds, if any.
        trust_env: let "Show reality" build the environment of RUN even if that imports code that RUN names. Only for a run that
            is yours or whose author you trust.
        port: port on 127.0.0.1; None: 8765, or any other free one if that is in use; 0: any.
        no_browser: print the address only.
        output: output.
    """

    run_directory: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    controller: str | None = None
    trust_env: Flag = False
    port: int | None = None
    no_browser: Flag = False
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Serve the page until Ctrl-C."""
        require_extras("play")
        if self.port is not None and check_integer(self.port, "port", least=0) > 65535:
            raise ValueError(f"port: expected at most 65535, got {self.port}")
        if self.controller is not None and self.run_directory is None:
            raise ValueError("--controller: expected RUN, the world of the controller, got none")
        if self.trust_env and self.run_directory is None:
            raise ValueError("--trust-env: expected RUN, the run that is trusted, got none")
        worlds = self.worlds()
        if not worlds[0].ready:
            require_extras("onnx")
            self.say(f"exporting {worlds[0].title}; that takes about half a minute")
        worlds[0].prepare()
        where = []

        def ready(address: str) -> None:
            where.append(address)
            self.say(f"playing {worlds[0].title} at {address} (Ctrl-C stops)")
            if not self.no_browser:
                webbrowser.open(address)

        serve(worlds, port=self.port, on_ready=ready)
        return Result("stopped", {"address": where[0], "worlds": [each.title for each in worlds]})

    def worlds(self) -> list[Playable]:
        """Return the worlds to play, the first one to be shown; list them if none was named."""
        others = [*included_worlds(), *local_runs(Path.cwd())]
        if self.run_directory is not None:
            chosen = open_run(self.run_directory, self.controller, trusted=self.trust_env)
            return [chosen, *(each for each in others if each.directory != chosen.directory)]
        if not others:
            raise FileNotFoundError("RUN: expected a world model directory, got none, and there is none below this directory")
        self.say("\n".join(["worlds:", *(f"  {each.title}" for each in others)]))
        return others

    def say(self, text: str) -> None:
        """Print at once; stdout is kept for the result if that is JSON."""
        print(text, file=sys.stderr if self.json_output else sys.stdout, flush=True)
