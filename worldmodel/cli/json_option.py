"""An option whose value is a JSON object."""

from __future__ import annotations

import json
from typing import Annotated, Any

import tyro


def _read_object(words: list[str]) -> dict[str, Any]:
    """Read a JSON object from one word of the command line."""
    try:
        value = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"expected a JSON object such as '{{\"g\": 9.8}}', got {words[0]!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as '{{\"g\": 9.8}}', got {words[0]!r}")
    return value


JsonObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_read_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
