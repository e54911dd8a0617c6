"""Models on disk: a JSON file, and weights whose file name contains their digest.

New weights are written next to the old ones, then the JSON, which names them, is replaced atomically, then the old weights are
removed. So a model can be read at every moment: it is the old one or the new one. Earlier versions wrote the weights under a
fixed name; such models still open.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from worldmodel.runtime.directories import prepare_directory, remove_temporaries
from worldmodel.runtime.files import read_json, write_json
from worldmodel.runtime.locks import locked
from worldmodel.runtime.model_card import CARD_FILE, ModelCard, write_card
from worldmodel.runtime.reading import InvalidFileError
from worldmodel.runtime.tensor_files import parse_tensors, read_tensor_bytes, serialise, tensor_shapes
from worldmodel.runtime.writing import write_bytes

WEIGHTS_KEY = "weights"


@dataclass(frozen=True)
class SavedModel:
    """What a directory holds: the content of the JSON file, and the verified bytes of the weights.

    Args:
        content: the JSON.
        path: file of the weights.
        data: its bytes.
    """

    content: dict[str, Any]
    path: Path
    data: bytes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight, without reading them."""
        return tensor_shapes(self.data, self.path)

    def weights(self) -> dict[str, Tensor]:
        """Read the weights."""
        return parse_tensors(self.data, self.path)[0]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The two files of a kind of models.

    Args:
        marker: name of the JSON file.
        stem: first part of the name of the weights, lower-case letters.
        format: format name in the JSON.
        version: newest version of the format, which is written.
    """

    marker: str
    stem: str
    format: str
    version: int

    @property
    def old_weights(self) -> str:
        """Name of the weights in earlier versions."""
        return f"{self.stem}.safetensors"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Name patterns of all files of a model."""
        return self.marker, self.old_weights, f"{self.stem}-*.safetensors"

    def save(
        self,
        path: str | Path,
        content: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        overwrite: bool = False,
        card: ModelCard | None = None,
    ) -> None:
        """Write a model as a directory.

        Args:
            path: the directory; absent, empty, an unfinished model, or an earlier model.
            content: JSON-serialisable.
            weights: by name.
            overwrite: replace an earlier model; other files in its directory stay.
            card: model card, written last; a README.md of the user's own stays.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
            LockedError: if another process writes to it.
        """
        if Path(path).is_dir() or not Path(path).exists():
            with locked(path):
                directory = prepare_directory(path, marker=self.marker, format=self.format, overwrite=overwrite)
                for name in (*self.outputs, CARD_FILE):
                    remove_temporaries(directory, name=name)
                self.write(directory, content, weights)
                if card is not None:
                    write_card(directory / CARD_FILE, card)
            return
        prepare_directory(path, marker=self.marker, format=self.format, overwrite=overwrite)  # raises: it is a file

    def write(self, directory: Path, content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Write the two files into an existing directory whose files may be replaced."""
        data = serialise(weights)
        digest = hashlib.sha256(data).hexdigest()
        name = f"{self.stem}-{digest[:16]}.safetensors"
        write_bytes(directory / name, data)
        named = {WEIGHTS_KEY: name, "weights_sha256": digest, **content}
        write_json(directory / self.marker, named, format=self.format, version=self.version)
        for old in (directory / self.old_weights, *directory.glob(f"{self.stem}-*.safetensors")):
            if old.name == self.old_weights or (self._is_ours(old.name) and old.name != name):
                with contextlib.suppress(OSError):  # a reader may have it open; the next write removes it
                    old.unlink(missing_ok=True)

    def read(self, path: str | Path) -> SavedModel:
        """Read and verify both files, and nothing that they describe.

        Raises:
            FileNotFoundError: if one is missing.
            InvalidFileError: if one is damaged, of another format or of a newer version.
        """
        path = Path(path)
        try:
            return self._read(path)
        except FileNotFoundError:
            return self._read(path)  # it may have been replaced between the two files

    def _read(self, path: Path) -> SavedModel:
        content = read_json(path / self.marker, format=self.format, version=self.version)
        name = content.pop(WEIGHTS_KEY, self.old_weights)
        if not isinstance(name, str) or not (name == self.old_weights or self._is_ours(name)):
            raise InvalidFileError(f"{path / self.marker}: expected the name of weights in this directory, got {name!r}")
        data = read_tensor_bytes(path / name)
        digest = content.pop("weights_sha256", None)
        if digest is None and name != self.old_weights:
            raise InvalidFileError(f"{path / self.marker}: expected the digest of the weights, got none")
        tensor_shapes(data, path / name)  # says more about a file that was cut short than the digest does
        if digest is not None and digest != hashlib.sha256(data).hexdigest():
            raise InvalidFileError(
                f"{path / name}: expected the weights that {self.marker} records, got others: the digest of the weights is not "
                "the one recorded; one of the two files was changed or replaced"
            )
        return SavedModel(content, path / name, data)

    def _is_ours(self, name: str) -> bool:
        return re.fullmatch(rf"{self.stem}-[0-9a-f]{{16}}\.safetensors", name) is not None
