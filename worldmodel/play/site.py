"""The files of the page itself, which travel in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.runtime import files

WEB = Path(__file__).parent / "web"
VENDOR = WEB / "vendor" / "onnxruntime-web"
MANIFEST = "manifest.json"
SITE_FORMAT, SITE_VERSION = "worldmodel.pages", 1
VENDOR_FORMAT, VENDOR_VERSION = "worldmodel.vendor", 1
WORLDS_FILE = "worlds.json"  # the worlds of a page
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}


def site_files() -> dict[str, Path]:
    """Return the files of the page by their path relative to it."""
    found = (file for file in sorted(WEB.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(WEB).as_posix(): file for file in found}


def check_vendor() -> dict[str, Any]:
    """Compare the vendored files with the digests in their manifest.

    Returns:
        The manifest: package, version, source and licence.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file was changed.
    """
    manifest = files.read_json(VENDOR / MANIFEST, format=VENDOR_FORMAT, version=VENDOR_VERSION)
    for name, expected in manifest["files"].items():
        if files.digest(VENDOR / name) != expected:
            raise files.InvalidFileError(f"{VENDOR / name}: expected the file of the package, got a changed one; reinstall it")
    return manifest


def write_list(path: Path, worlds: Sequence[dict[str, Any]], *, live: bool = False) -> None:
    """Write the list of the worlds of a page.

    Args:
        path: the file.
        worlds: id, title, path (relative to the page) and whether each is exported.
        live: whether a server answers on a websocket.
    """
    files.write_json(path, {"live": live, "worlds": list(worlds)}, format=SITE_FORMAT, version=SITE_VERSION)
