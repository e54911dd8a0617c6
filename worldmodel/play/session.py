"""What the server does for one page: the real environment, recordings, and other runs. It knows no network."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldmodel.play.catalog import Playable
from worldmodel.play.companion import Companion, Message
from worldmodel.play.film import Film
from worldmodel.runtime import RemoteError

ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, LookupError, ArithmeticError)  # of environments, too


class Session:
    """The state of one connection.

    Args:
        worlds: playable worlds by id.
        recordings: directory of recordings.
    """

    def __init__(self, worlds: Mapping[str, Playable], recordings: Path):
        self._worlds, self._recordings = worlds, recordings
        self._companion: Companion | None = None
        self._world, self._episode = "", 0
        self._film: Film | None = None
        self._answers: dict[str, Callable[[Mapping[str, Any]], Message | None]] = {
            "start": self._start,
            "act": self._act,
            "back": self._back,
            "stop": self._stop,
            "open": self._open,
            "record": self._record,
            "save": self._save,
        }

    def answer(self, message: Any) -> Message | None:
        """Do what a message asks for and return the answer; errors are answers, too."""
        kind = message.get("type") if isinstance(message, dict) else None
        try:
            if kind not in self._answers:
                raise ValueError(f"type: expected one of {', '.join(self._answers)}, got {kind!r}")
            return self._answers[kind](message)
        except ERRORS as error:
            text = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, LookupError):
                text = f"{kind}: expected a complete message, got one without {text}"
            if isinstance(error, RemoteError):
                self._stop({})
                text += "; the dream goes on without reality"
            return {"type": "error", "about": kind, "text": text}

    def add_frame(self, data: bytes) -> Message | None:
        """Add a frame to the recording."""
        try:
            if self._film is None:
                raise ValueError("frame: expected a recording, got none; send 'record' first")
            self._film.add(data)
        except ValueError as error:
            return {"type": "error", "about": "frame", "text": str(error)}
        return None

    def close(self) -> None:
        """Close the environment and discard an unfinished recording."""
        self._stop({})
        if self._film is not None:
            self._film.discard()
            self._film = None

    def _playable(self, message: Mapping[str, Any]) -> Playable:
        if message["world"] not in self._worlds:
            raise ValueError(f"world: expected one of {', '.join(self._worlds)}, got {message['world']!r}")
        return self._worlds[message["world"]]

    def _start(self, message: Mapping[str, Any]) -> Message:
        playable, seed = self._playable(message), message["seed"]
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ValueError(f"seed: expected an integer from 0 to 2^31 - 1, got {seed!r}")
        if self._companion is None or self._world != playable.id:
            self._stop({})
            self._companion = Companion(playable.prepare(), trusted=playable.trusted)
            self._world = playable.id
        self._episode += 1
        return {"type": "started", "episode": self._episode, "observation": self._companion.start(seed)}

    def _act(self, message: Mapping[str, Any]) -> Message | None:
        if self._companion is None or message["episode"] != self._episode or self._companion.ended:
            return None  # of an episode that is over
        expected = len(self._companion.actions) + 1
        if message["t"] != expected:
            raise ValueError(f"t: expected {expected}, got {message['t']!r}")
        done = self._companion.act(message["action"])
        return {"type": "real", "episode": self._episode, "t": expected, **done}

    def _back(self, message: Mapping[str, Any]) -> Message | None:
        if self._companion is None or message["episode"] != self._episode:
            return None
        self._companion.back(min(message["t"], len(self._companion.actions)))
        return {"type": "restored", "episode": self._episode, "t": message["t"]}

    def _stop(self, _: Mapping[str, Any]) -> None:
        if self._companion is not None:
            self._companion.close()
            self._companion = None

    def _open(self, message: Mapping[str, Any]) -> Message:
        playable = self._playable(message)
        playable.prepare()
        return {"type": "opened", "world": playable.id}

    def _record(self, message: Mapping[str, Any]) -> Message:
        if self._film is not None:
            self._film.discard()
        self._recordings.mkdir(parents=True, exist_ok=True)
        path = self._recordings / f"dream-{secrets.token_hex(4)}.{message['format']}"
        if path.parent != self._recordings:
            raise ValueError(f"format: expected mp4 or gif, got {message['format']!r}")
        self._film = Film(path, width=message["width"], height=message["height"], fps=message["fps"])
        return {"type": "recording"}

    def _save(self, _: Mapping[str, Any]) -> Message:
        if self._film is None:
            raise ValueError("save: expected a recording, got none; send 'record' first")
        film, self._film = self._film, None
        return {"type": "saved", "frames": film.save(), "address": f"recordings/{film.path.name}"}
