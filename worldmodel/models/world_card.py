"""The model card of a world model, from the record of its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.data import describe_recipe
from worldmodel.models.ensemble import members_of
from worldmodel.runtime import ModelCard

METRICS = {"nll_per_dim": "z, nats per dimension", "reward_nll": "reward, nats", "termination_nll": "termination, nats"}
BASELINES = {"repeat_last": "repeating the last z", "linear_gaussian": "a linear Gaussian model"}
USAGE = """import worldmodel as wm

world = wm.WorldModel.from_pretrained("PATH")
dreams = wm.Dreams(world, num_dreams=1024, temperature=1.0)"""


def world_card(provenance: Mapping[str, Any], sizes: Mapping[str, Any]) -> ModelCard:
    """Describe environment, data, sizes and held-out likelihoods.

    Args:
        provenance: record of the world model; anything may be missing.
        sizes: further rows of the table, such as the spaces.
    """
    recipes = [recipe for recipe in provenance.get("recipes", []) if isinstance(recipe, Mapping)]
    environments = list(dict.fromkeys(str(recipe["env"]) for recipe in recipes if recipe.get("env")))
    facts = {
        "environment": ", ".join(environments) or "unknown",
        "policies": ", ".join(dict.fromkeys(str(recipe["policy"]) for recipe in recipes if recipe.get("policy"))) or "unknown",
        "data": f"{provenance.get('num_episodes', 'unknown')} episodes, {provenance.get('num_steps', 'unknown')} steps",
        **{name: str(value) for name, value in sizes.items()},
    }
    training = provenance.get("training", {})
    metrics = training.get("best_metrics", {})
    facts |= {f"held out: {text}": f"{metrics[name]:.4f}" for name, text in METRICS.items() if name in metrics}
    baselines = provenance.get("baselines", {})
    facts |= {f"for comparison: {text}": f"{baselines[name]:.4f}" for name, text in BASELINES.items() if name in baselines}
    if "updates" in training:
        facts["training"] = f"{training['updates']:,} updates, {training.get('seconds', 0):.0f} seconds"
    if found := _texts(provenance.get("warnings")):
        facts["warnings"] = " ".join(found)
    facts |= {name: f"`{provenance[name]}`" for name in ("command", "commit") if provenance.get(name)}
    what = f"of {environments[0]}" if len(environments) == 1 else "of recorded episodes"
    return ModelCard(
        title=f"World model {what}",
        summary=f"A recurrent world model (V and MDN-RNN) {what}, made with worldmodel. Likelihoods are negative logarithms: "
        "lower is better.",
        facts=facts,
        usage=USAGE,
        tags=tuple(environments),
    )


def describe_world(world: Any) -> str:
    """Return sizes, spaces, data and warnings of a world model as text."""
    model, provenance = world.mdnrnn, world.provenance
    members = len(members_of(model))
    lstm = "LSTM" if members == 1 else f"{members} LSTMs"
    heads = [name for name in ("reward", "termination") if getattr(model, f"{name}_head") is not None]
    lines = [
        f"WorldModel on {world.device}: {type(world.vision).__name__} with z of {world.vision.latent_size}, {lstm} of "
        f"{model.config.hidden_size}, {type(model.latent_head).__name__}{''.join(f', {name} head' for name in heads)}",
        f"  observations  {world.observation_space}",
        f"  actions       {world.action_space}",
    ]
    if "num_episodes" in provenance:
        recipes = [recipe for recipe in provenance.get("recipes", []) if isinstance(recipe, Mapping)]
        sources = "; ".join(map(describe_recipe, recipes))
        data = f"{provenance['num_episodes']} episodes, {provenance.get('num_steps', 'unknown')} steps"
        lines.append(f"  trained on    {data}: {sources}")
    lines += [f"  warning       {text}" for text in _texts(provenance.get("warnings"))]
    return "\n".join(lines)


def _texts(value: Any) -> list[str]:
    """Return a list that was read from a file as texts; none if it is no list."""
    return [str(text) for text in value] if isinstance(value, list) else []
