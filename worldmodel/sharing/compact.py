"""Write a world model, and an agent, with float16 weights: half the size, for a repository or a slow connection."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel.agents import check_agent
from worldmodel.models import Origin, WorldModel
from worldmodel.runtime import CARD_FILE, write_card

WORLD_PART, AGENT_PART = "world", "controller"  # names that `worldmodel play` and `export` look for


def save_compact(
    world: WorldModel,
    directory: str | Path,
    *,
    agent: Any = None,
    title: str | None = None,
    scores: Any = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> WorldModel:
    """Write ``world``, ``controller`` and a model card in a directory, with the world's weights in float16.

    Rounding changes each weight by at most 1 part in 2,048, and V's and M's fingerprints with it. So the agent is written as
    one of the rounded world model. Its scores there may differ: measure them on what this function returns.

    Args:
        world: the world model.
        directory: absent, empty, or an earlier result.
        agent: an agent of this world model with ``save_pretrained``, such as a `Controller`.
        title: heading of the model card.
        scores: results for the model card; they are printed as they are.
        licence: identifier of a licence for the model card.
        overwrite: replace an earlier result.

    Returns:
        The rounded world model, on the CPU.

    Raises:
        FileExistsError: if ``directory`` holds something that may not be replaced.
        ValueError: if a weight is too large for float16, or the agent is of another world model.
    """
    path = Path(directory)
    if agent is not None:
        check_agent(agent, world)
    world.save_pretrained(path / WORLD_PART, overwrite=overwrite, precision="float16")
    rounded = WorldModel.from_pretrained(path / WORLD_PART)
    if agent is not None:
        agent = copy.deepcopy(agent).cpu()
        agent.origin = Origin.of(rounded)
        agent.save_pretrained(path / AGENT_PART, overwrite=overwrite)
    card = rounded.card()
    usage = card.usage.replace("PATH", f"{path.name}/{WORLD_PART}")
    card = card.published(title=title or card.title, usage=usage, scores=scores, licence=licence)
    added = {"weights": "float16; computed with in float32", "fingerprint": rounded.fingerprint}
    write_card(path / CARD_FILE, replace(card, facts={**card.facts, **added}))
    return rounded
