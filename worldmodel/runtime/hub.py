"""Directories on the Hugging Face Hub: ``hf://user/name`` works wherever a local directory is read.

A path without this prefix never opens a connection. Downloads lie in the cache of ``huggingface_hub``; readers check their
digests as those of any other file, and no file in them is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from worldmodel.runtime.extras import require_extras

PREFIX = "hf://"
STORES = "datasets/"  # the Hub keeps data sets apart from models
_NAME = re.compile(r"(datasets/)?([\w.-]+/[\w.-]+)(@[\w./-]+)?")
_SETTINGS = "; log in with `hf auth login`, or set HF_TOKEN, if it is private"

T = TypeVar("T")


class HubError(OSError):
    """The Hub could not be reached, or refused."""


@dataclass(frozen=True)
class HubName:
    """Name of a repository.

    Args:
        repository: "user/name".
        is_store: whether it is a data set.
        revision: branch, tag or commit; None is the default branch.
    """

    repository: str
    is_store: bool = False
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read "user/name", "datasets/user/name" or "user/name@revision", with or without ``hf://``.

        Raises:
            ValueError: if it is something else.
        """
        found = _NAME.fullmatch(text.removeprefix(PREFIX).strip("/"))
        if found is None:
            raise ValueError(f"name: expected hf://user/name, hf://datasets/user/name or hf://user/name@revision, got {text!r}")
        return cls(found[2], found[1] is not None, found[3][1:] if found[3] else None)

    @property
    def kind(self) -> str:
        """Kind of the repository in the Hub's own words."""
        return "dataset" if self.is_store else "model"

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{STORES if self.is_store else ''}{self.repository}{revision}"


def local_path(path: str | Path) -> Path:
    """Return a path as it is, or the local copy of ``hf://...``, which is downloaded unless the cache has it.

    Raises:
        ValueError: if the name after ``hf://`` is not one.
        HubError: if there is no such repository, no connection and no copy, or no access.
        ImportError: if the extra hub is not installed.
    """
    if not isinstance(path, str) or not path.startswith(PREFIX):
        return Path(path)
    name = HubName.parse(path)
    download = _library().snapshot_download
    return Path(_call(name, lambda: download(name.repository, repo_type=name.kind, revision=name.revision)))


def upload_directory(name: HubName, directory: Path, *, message: str, private: bool, token: str | None) -> str:
    """Upload the files of a directory as one commit; create the repository if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        HubError: as `local_path`.
    """
    api = _library().HfApi(token=token)

    def upload() -> str:
        api.create_repo(name.repository, repo_type=name.kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name.repository,
            repo_type=name.kind,
            folder_path=directory,
            revision=name.revision,
            commit_message=message,
            ignore_patterns=[".lock*", ".*.tmp"],
        )
        return str(commit.commit_url)

    return _call(name, upload)


def _library() -> Any:
    require_extras("hub")
    import huggingface_hub

    return huggingface_hub


def _call(name: HubName, function: Callable[[], T]) -> T:
    """Call the Hub, and say in one line what went wrong."""
    errors = _library().errors
    try:
        return function()
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{name}: expected a repository on the Hub, found none of this name{_SETTINGS}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name}: expected a revision of this repository, found none") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(f"{name}: expected an access token, got none; log in with `hf auth login`, or set HF_TOKEN") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{name}: expected a connection to the Hub or a copy in the cache, got neither") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"{name}: the Hub answered {_status(error)}{_SETTINGS}") from error
    except (OSError, errors.HTTPError) as error:
        raise HubError(f"{name}: expected a connection to the Hub, got {type(error).__name__}: {error}") from error


def _status(error: Any) -> str:
    response = getattr(error, "response", None)
    return "an error" if response is None else f"{response.status_code} ({response.reason_phrase or 'error'})"
