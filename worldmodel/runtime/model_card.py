"""Model cards: README.md with front matter, as the Hugging Face Hub shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worldmodel.runtime.reading import InvalidFileError, read_bytes
from worldmodel.runtime.writing import write_bytes

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2**24
WRITTEN = "<!-- Written by worldmodel. Remove this line to keep changes of your own. -->"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model card says.

    Args:
        title: heading.
        summary: one or two sentences.
        facts: rows of a table.
        usage: code that opens the model.
        language: of ``usage``.
        scores: results, as text.
        licence: identifier of a licence, or "unknown".
        tags: keywords.
    """

    title: str
    summary: str
    facts: dict[str, str] = field(default_factory=dict)
    usage: str = ""
    language: str = "python"
    scores: str = ""
    licence: str = "unknown"
    tags: tuple[str, ...] = ()

    def published(self, *, title: str, usage: str, scores: Any = None, licence: str | None = None) -> ModelCard:
        """Return the card for a published model; scores and licence stay where None is given."""
        return replace(
            self,
            title=title,
            usage=usage,
            scores=self.scores if scores is None else str(scores),
            licence=self.licence if licence is None else licence,
        )

    def __str__(self) -> str:
        """Return the text of the file."""
        tags = ["world-model", "reinforcement-learning", *self.tags]
        parts = [
            "---",
            "library_name: worldmodel",
            f"license: {json.dumps(self.licence)}",
            "tags:",
            *(f"  - {json.dumps(tag)}" for tag in dict.fromkeys(tags)),
            "---",
            "",
            WRITTEN,
            "",
            f"# {self.title}",
            "",
            self.summary,
        ]
        if self.usage:
            parts += ["", f"```{self.language}", self.usage, "```"]
        if self.facts:
            rows = [f"| {name} | {_cell(value)} |" for name, value in self.facts.items()]
            parts += ["", "| | |", "|---|---|", *rows]
        if self.scores:
            parts += ["", "## Scores", "", "```text", self.scores, "```"]
        return "\n".join(parts) + "\n"


def write_card(path: Path, card: ModelCard) -> None:
    """Write a model card unless a text of somebody's own is there."""
    if not is_own_text(path):
        write_bytes(path, str(card).encode())


def is_own_text(path: Path) -> bool:
    """Return whether something is there that this library did not write: a text of somebody's own, or no file at all."""
    try:
        return WRITTEN.encode() not in read_bytes(path, most=MAX_CARD_BYTES)
    except FileNotFoundError:
        return False
    except InvalidFileError:  # a directory, a FIFO or something large: not ours
        return True


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
