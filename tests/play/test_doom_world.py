"""The Doom world in the repository: complete, small, described, and its dreams are finite."""

from pathlib import Path

import pytest
import torch

from worldmodel.agents import load_agent
from worldmodel.dream import Dreams
from worldmodel.models import WorldModel
from worldmodel.play import open_run
from worldmodel.play.companion import check_trusted
from worldmodel.play.description import describe

DOOM = Path(__file__).parents[2] / "worlds" / "doom"


@pytest.fixture(scope="module")
def world():
    return WorldModel.from_pretrained(DOOM / "world")


def test_it_is_small_and_its_card_names_scores_licence_and_digest(world):
    assert sum(file.stat().st_size for file in DOOM.rglob("*") if file.is_file()) < 15_000_000
    card = (DOOM / "README.md").read_text(encoding="utf-8")
    for text in (
        'license: "bsd-3-clause"',
        "DoomTakeCover-v0",
        "(100 episodes",
        "| command |",
        "| commit |",
        world.fingerprint,
    ):
        assert text in card
    assert "Freedoom" in (DOOM / "LICENSE").read_text(encoding="utf-8")


def test_it_is_found_with_its_agent_and_its_environment_needs_no_consent(world):
    assert open_run(str(DOOM)).controller == DOOM / "controller"
    described = describe(world, load_agent(DOOM / "controller"))
    assert described["view"]["kind"] == "image"
    assert [button["label"] for button in described["controls"]["buttons"]] == ["left", "right"]
    check_trusted(described["environment"])


def test_twenty_steps_of_its_dreams_with_its_agent_are_finite(world):
    dreams, agent, generator = Dreams(world, 4, termination="sample"), load_agent(DOOM / "controller"), torch.Generator()
    state = dreams.start(generator=generator.manual_seed(0))
    agent.reset(4)
    for _ in range(20):
        state, reward, _ = dreams.step(state, agent.act(state), generator=generator)
        assert torch.isfinite(state.z).all()
        assert torch.isfinite(reward).all()
    assert world.decode(state.z).float().std() > 3  # a picture, not one colour
