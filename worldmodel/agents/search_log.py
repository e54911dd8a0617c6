"""One file with the state of a search, replaced atomically, from which the search resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from worldmodel.runtime import RunConfig, files


@dataclass(frozen=True)
class SearchLog:
    """File of a search.

    Args:
        path: the file; None keeps nothing.
        format: its format name.
        version: newest version of the format, which is written.
    """

    path: Path | None
    format: str
    version: int

    def prepare(self, run: RunConfig) -> bool:
        """Remove an earlier log if ``run`` overwrites it, and return whether there is one to resume.

        Raises:
            FileExistsError: if the file may be neither resumed nor overwritten, or is no log of this format to overwrite.
        """
        if self.path is None:
            return False
        if self.path.exists() and run.overwrite:
            self._remove(self.path)
        if self.path.exists() and not run.resume:
            raise FileExistsError(
                f"{self.path}: expected no file, got an earlier search; resume it (RunConfig(resume=True)), overwrite it "
                "(--overwrite), or choose another file"
            )
        files.remove_temporaries(self.path.parent, name=self.path.name)
        return self.path.exists()

    def write(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Replace the file atomically.

        Args:
            tensors: by name.
            content: JSON-serialisable.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stamped = {"format": self.format, "version": self.version, **content}
        files.save_tensors(self.path, tensors, {"log": json.dumps(stamped)})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read tensors and content.

        Raises:
            ValueError: if the file is damaged, of another format or of a newer version.
        """
        assert self.path is not None
        tensors, metadata = files.load_tensors(self.path)
        content = files.parse_json(metadata.get("log", "{}"), self.path, what="the log of a search")
        files.check_stamp(content, self.path, format=self.format, version=self.version)
        return tensors, content

    def _remove(self, path: Path) -> None:
        """Remove the log of an earlier search, but no other file."""
        try:
            self.read()
        except ValueError as error:
            raise FileExistsError(f"{path}: expected the log of a search to overwrite, got another file ({error})") from error
        path.unlink()
