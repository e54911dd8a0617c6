"""Export a world as a static page that runs its dream in the browser (extra onnx).

A page is a directory: the files of ``web/`` (plain HTML, CSS and JavaScript modules), onnxruntime-web in ``vendor/``, the model
card ``README.md``, and the world in ``worlds/NAME/``: ``page.json`` and the ONNX files of a step, the decoder and the
controller. Any HTTP server can serve it. Nothing in it refers to another server.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldmodel.agents import Controller
from worldmodel.models import WorldModel
from worldmodel.play.description import describe
from worldmodel.play.site import SITE_FORMAT, WORLDS_FILE, check_vendor, site_files, write_list
from worldmodel.runtime import CARD_FILE, ModelCard, files, is_own_text, require_extras, write_card
from worldmodel.sharing import EXPORT_FILE, EXPORT_FORMAT, EXPORT_VERSION, export_onnx

PAGE_FORMAT, PAGE_VERSION = "worldmodel.page", 1  # world.js knows them
PAGE_FILE = "page.json"
WORLD_OUTPUTS = (PAGE_FILE, "*.onnx", CARD_FILE)
PAGE_OUTPUTS = (WORLDS_FILE, CARD_FILE, "worlds", "vendor", "*.js", "*.html", "*.css", "*.svg")
NETWORKS = ("step", "decoder", "controller")


@dataclass(frozen=True, kw_only=True)
class PageExport:
    """What `export_page` wrote.

    Args:
        directory: of the page.
        errors: largest relative difference from torch of each network; see `export_onnx`.
        sizes: size of each file of the world in bytes.
        total: size of the page in bytes.
    """

    directory: Path
    errors: dict[str, float]
    sizes: dict[str, int]
    total: int


def export_page(
    world: WorldModel,
    directory: str | Path,
    *,
    controller: Controller | None = None,
    title: str | None = None,
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> PageExport:
    """Write a page that runs the dreams of a world model in a browser.

    Args:
        world: the world model; its V needs a decoder.
        directory: absent, empty or an earlier page.
        controller: a controller of this world, to which the visitor can hand control.
        title: heading of the page; the id of the environment by default.
        card: model card, with scores and a licence, such as ``world.card().published(...)``; ``world.card()`` by default.
        overwrite: replace an earlier page.

    Raises:
        ImportError: if the extra onnx is not installed.
        FileExistsError: if ``directory`` holds something that may not be replaced.
        ValueError: if V has no decoder, or neither keys nor a controller can act in the action space; see also `export_onnx`.
        RuntimeError: if a network differs from torch; nothing is written then.
    """
    path = Path(directory)
    with files.fresh_directory(
        path, marker=WORLDS_FILE, format=SITE_FORMAT, overwrite=overwrite, replaces=PAGE_OUTPUTS
    ) as fresh:
        check_vendor()
        content = describe(world, controller, title=title)
        name = re.sub(r"[^a-z0-9]+", "-", content["title"].lower()).strip("-") or "world"
        folder = fresh / "worlds" / name
        errors = export_world(world, folder, controller=controller, title=title, card=card, encoder=False)
        kept = path / CARD_FILE
        shutil.copyfile(kept if is_own_text(kept) and kept.is_file() else folder / CARD_FILE, fresh / CARD_FILE)
        for relative, source in site_files().items():
            (fresh / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, fresh / relative)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_list(fresh / WORLDS_FILE, [{"id": name, "title": content["title"], "path": f"worlds/{name}/", "ready": True}])
        total = sum(file.stat().st_size for file in fresh.rglob("*") if file.is_file())
    return PageExport(directory=path, errors=errors, sizes=sizes, total=total)


def export_world(
    world: WorldModel,
    directory: Path,
    *,
    controller: Controller | None = None,
    title: str | None = None,
    card: ModelCard | None = None,
    encoder: bool = True,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write the files of one world, without those of the page.

    Args:
        world: the world model.
        directory: absent, empty or an earlier export.
        controller: a controller of this world.
        title: heading of the page.
        card: as `export_page`.
        encoder: export the encoder, which only a real environment beside the dream needs.
        overwrite: replace an earlier export.

    Returns:
        The largest relative difference from torch of each network.

    Raises:
        ImportError, FileExistsError, ValueError, RuntimeError: as `export_page`.
    """
    require_extras("onnx")
    described = describe(world, controller, title=title)
    with (
        files.fresh_directory(
            directory, marker=PAGE_FILE, format=PAGE_FORMAT, overwrite=overwrite, replaces=WORLD_OUTPUTS
        ) as fresh,
        tempfile.TemporaryDirectory() as scratch,
    ):
        done = export_onnx(world, Path(scratch) / "onnx", controller=controller)
        content = files.read_json(done.directory / EXPORT_FILE, format=EXPORT_FORMAT, version=EXPORT_VERSION)
        kept = {name: content["files"][name] for name in (*NETWORKS, "encoder") if name in content["files"]}
        if not encoder:
            del kept["encoder"]
        for entry in kept.values():
            shutil.copyfile(done.directory / entry["file"], fresh / entry["file"])
        page: dict[str, Any] = {**{name: content[name] for name in content if name != "version"}, **described, "files": kept}
        for unused in ("drift", "layout", "environments"):
            del page[unused]
        written = page_card(card or world.card(), title=described["title"], networks=list(kept))
        page["card"] = {
            "summary": written.summary,
            "facts": written.facts,
            "scores": written.scores,
            "licence": written.licence,
        }
        write_card(fresh / CARD_FILE, written)
        files.write_json(fresh / PAGE_FILE, page, format=PAGE_FORMAT, version=PAGE_VERSION)
    return {name: done.errors[name] for name in kept}


def page_card(card: ModelCard, *, title: str, networks: Sequence[str]) -> ModelCard:
    """Return the model card of a page.

    Args:
        card: of the world model.
        title: heading of the page.
        networks: names of the exported networks.
    """
    summary = f"{card.summary} The dream runs in the browser: serve this directory with any HTTP server."
    facts = {**card.facts, "files": f"ONNX: {', '.join(networks)}; {PAGE_FILE}"}
    return replace(card, title=title, summary=summary, facts=facts, usage="python -m http.server", language="bash")


def read_world(directory: Path) -> dict[str, Any]:
    """Read and check the files of a world that `export_world` wrote.

    Returns:
        The content of ``page.json``.

    Raises:
        FileNotFoundError: if there is no such file, or a network is missing.
        ValueError: if a file is damaged, or of another format or version.
    """
    content = files.read_json(directory / PAGE_FILE, format=PAGE_FORMAT, version=PAGE_VERSION)
    for entry in content["files"].values():
        if files.digest(directory / entry["file"]) != entry["sha256"]:
            raise files.InvalidFileError(
                f"{directory / entry['file']}: expected the file that was exported, got a damaged or changed one; export again"
            )
    return content
