"""Push to and pull from the Hugging Face Hub (extra hub)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from worldmodel.agents import has_agent, load_agent
from worldmodel.data import EpisodeStore
from worldmodel.models import VISION_FILE, WORLD_FILE, Vision, WorldModel
from worldmodel.runtime import CARD_FILE, HubName, ModelCard, local_path, require_extras, upload_directory, write_card


def push(
    thing: Any,
    name: str,
    *,
    scores: Any = None,
    licence: str | None = None,
    private: bool = False,
    message: str = "Upload with worldmodel",
    token: str | None = None,
) -> str:
    """Upload a world model, V, agent or store.

    Args:
        thing: an object with ``save_pretrained``, an `EpisodeStore`, or the directory of one.
        name: "user/name"; "user/name@branch" for another branch. The repository is created if it does not exist.
        scores: results for the model card, such as an `Evaluation`; they are printed as they are.
        licence: identifier of a licence for the model card, such as "mit"; "unknown" if None.
        private: create a private repository.
        message: of the commit.
        token: access token; that of ``hf auth login`` or HF_TOKEN if None.

    Returns:
        The address of the commit.

    Raises:
        TypeError: if ``thing`` cannot be saved.
        ValueError: if ``name`` is not one.
        FileNotFoundError: if a directory holds nothing that this library wrote.
        HubError: if there is no connection, no token or no access.
        ImportError: if the extra hub is not installed.
    """
    require_extras("hub")
    with tempfile.TemporaryDirectory(prefix="worldmodel-") as folder:
        directory = Path(folder) / "upload"
        is_store = _gather(thing, directory)
        parsed = HubName.parse(name)
        target = HubName(parsed.repository, parsed.is_store or is_store, parsed.revision)
        _complete_card(directory, target, is_store=is_store, scores=scores, licence=licence)
        return upload_directory(target, directory, message=message, private=private, token=token)


def pull(name: str, *, revision: str | None = None, device: str | torch.device = "cpu") -> Any:
    """Open what `push` uploaded: a `WorldModel`, a V, an agent or an `EpisodeStore`.

    Args:
        name: "user/name", or "datasets/user/name" for a store.
        revision: branch, tag or commit.
        device: device of a model; a store has none.

    Raises:
        ValueError: if ``name`` is not one, or a file is damaged or of a newer version.
        FileNotFoundError: if the repository holds nothing that this library wrote.
        HubError: if there is no such repository, no connection and no copy in the cache, or no access.
        ImportError: if the extra hub is not installed.
    """
    parsed = HubName.parse(name)
    full = HubName(parsed.repository, parsed.is_store, parsed.revision if revision is None else revision)
    path = local_path(str(full))
    if EpisodeStore.lies_in(path):
        return EpisodeStore.open(path)
    if has_agent(path):
        return load_agent(path, device=device)
    for marker, kind in ((WORLD_FILE, WorldModel), (VISION_FILE, Vision)):
        if (path / marker).is_file():
            return kind.from_pretrained(path, device=device)
    raise FileNotFoundError(f"{full}: expected a world model, V, agent or store of this library, found none")


def _gather(thing: Any, directory: Path) -> bool:
    """Write a thing, or copy its directory, and return whether it is a store."""
    if isinstance(thing, (str, Path)):
        source = local_path(thing)
        is_store = EpisodeStore.lies_in(source)
        if not (is_store or has_agent(source) or any((source / name).is_file() for name in (WORLD_FILE, VISION_FILE))):
            raise FileNotFoundError(f"{thing}: expected a world model, V, agent or store, found none")
    elif isinstance(thing, EpisodeStore):
        source, is_store = thing.path, True
    elif callable(getattr(thing, "save_pretrained", None)):
        thing.save_pretrained(directory)
        return False
    else:
        raise TypeError(f"thing: expected an object with save_pretrained, a store or a directory, got {type(thing).__name__}")
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns(".*", "training", "damaged"))
    return is_store


def _complete_card(directory: Path, name: HubName, *, is_store: bool, scores: Any, licence: str | None) -> None:
    """Write the model card with the name, scores and licence; a text of the user's own stays."""
    if is_store:
        store = EpisodeStore.open(directory)
        card = ModelCard(
            title=name.repository,
            summary="Recorded episodes for worldmodel.",
            facts={"episodes": f"{len(store):,}", "steps": f"{store.num_steps:,}", "recipe": str(store.recipe)},
        )
        usage = f'from worldmodel.sharing import pull\n\nstore = pull("datasets/{name.repository}")'
    elif (directory / WORLD_FILE).is_file():
        card = WorldModel.from_pretrained(directory).card()
        usage = f'from worldmodel.sharing import pull\n\nworld = pull("{name.repository}")'
    else:
        card = ModelCard(title=name.repository, summary="A part of a world model, made with worldmodel.", facts={})
        usage = f'from worldmodel.sharing import pull\n\npart = pull("{name.repository}")'
    write_card(directory / CARD_FILE, card.published(title=name.repository, usage=usage, scores=scores, licence=licence))
