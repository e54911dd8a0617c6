"""What is pushed can be pulled, unchanged; what cannot be reached, is named in one line."""

import socket

import numpy as np
import pytest
import torch

from tests.sharing.hub_stand_in import TOKEN, serve
from tests.toy_worlds import random_world
from worldmodel.agents import Controller, load_agent
from worldmodel.data import EpisodeStore, collect
from worldmodel.models import StateNormalizer, WorldModel
from worldmodel.runtime import CARD_FILE, HubError, HubName, InvalidFileError, local_path
from worldmodel.sharing import pull, push

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of the Hub that the library talks to, with a token and an empty cache."""
    with serve() as (stand_in, address):
        point_to(monkeypatch, address, tmp_path / "cache")
        yield stand_in


def point_to(monkeypatch, address, cache, token=TOKEN):
    from huggingface_hub import _snapshot_download, constants, file_download, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for module in (constants, _snapshot_download, file_download, hf_api):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)


class TestPushAndPull:
    def test_a_world_comes_back_with_the_same_fingerprint(self, hub):
        world = random_world()
        address = push(world, "user/cartpole", scores="reality 500", licence="mit")
        assert "/user/cartpole/commit/" in address
        pulled = pull("user/cartpole")
        assert isinstance(pulled, WorldModel)
        assert pulled.fingerprint == world.fingerprint
        card = hub.files("models/user/cartpole", "main")[1]["README.md"].decode()
        assert 'license: "mit"' in card
        assert "reality 500" in card
        assert 'pull("user/cartpole")' in card

    def test_the_prefix_works_wherever_a_directory_does(self, hub):
        world = random_world()
        push(world, "user/world")
        assert WorldModel.from_pretrained("hf://user/world").fingerprint == world.fingerprint

    def test_an_agent_a_v_and_a_store_come_back(self, hub, tmp_path):
        controller = Controller.for_world(random_world())
        push(controller, "user/agent")
        for agent in (pull("user/agent"), load_agent("hf://user/agent"), Controller.from_pretrained("hf://user/agent")):
            assert all(torch.equal(a, b) for a, b in zip(agent.parameters(), controller.parameters(), strict=True))
        vision = random_world().vision
        push(vision, "user/vision")
        assert isinstance(pull("user/vision"), StateNormalizer)
        store = collect("CartPole-v1", out=tmp_path / "store", num_episodes=3, seed=0)
        push(store, "user/data")
        pulled = pull("datasets/user/data")
        assert pulled.fingerprint == store.fingerprint
        assert EpisodeStore.open("hf://datasets/user/data").fingerprint == store.fingerprint
        np.testing.assert_array_equal(pulled.read(2).observations, store.read(2).observations)

    def test_a_directory_is_pushed_without_what_only_a_run_needs(self, hub, tmp_path):
        world = random_world()
        world.save_pretrained(tmp_path / "world")
        (tmp_path / "world" / "training").mkdir()
        (tmp_path / "world" / "training" / "state").write_text("x", encoding="utf-8")
        push(tmp_path / "world", "user/world")
        assert not [name for name in hub.files("models/user/world", "main")[1] if name.startswith(("training", "."))]

    def test_a_revision_opens_what_it_was(self, hub):
        first, second = random_world(), random_world(seed=1)
        commit = push(first, "user/world").rpartition("/")[2]
        push(second, "user/world")
        assert pull("user/world").fingerprint == second.fingerprint
        assert pull("user/world", revision=commit).fingerprint == first.fingerprint
        assert pull(f"user/world@{commit}").fingerprint == first.fingerprint

    def test_a_text_of_the_user_stays(self, hub, tmp_path):
        random_world().save_pretrained(tmp_path / "world")
        (tmp_path / "world" / CARD_FILE).write_text("mine", encoding="utf-8")
        push(tmp_path / "world", "user/world")
        assert hub.files("models/user/world", "main")[1][CARD_FILE] == b"mine"

    def test_a_changed_file_is_refused_after_the_download(self, hub):
        push(random_world(), "user/world")
        _, files = hub.files("models/user/world", "main")
        name = next(name for name in files if name.endswith(".safetensors"))
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        with pytest.raises(InvalidFileError, match="expected the weights that world"):
            pull("user/world")


class TestErrors:
    def test_an_unknown_name_is_named(self, hub):
        with pytest.raises(HubError, match=r"hf://user/nothing: expected a repository on the Hub, found none of this name"):
            pull("user/nothing")

    def test_an_unknown_revision_is_named(self, hub):
        push(random_world(), "user/world")
        with pytest.raises(HubError, match=r"hf://user/world@old: expected a revision of this repository, found none"):
            pull("user/world@old")

    def test_a_private_repository_needs_a_token(self, hub, monkeypatch):
        push(random_world(), "user/secret", private=True)
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match="log in with `hf auth login`"):
            pull("user/secret")

    def test_writing_needs_a_token(self, hub, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match=r"hf://user/world: .*hf auth login"):
            push(random_world(), "user/world")

    def test_without_a_connection_the_cache_is_used_and_else_the_error_is_clear(self, monkeypatch, tmp_path):
        world = random_world()
        with serve() as (_, address):
            point_to(monkeypatch, address, tmp_path / "cache")
            push(world, "user/world")
            pull("user/world")
        point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # nobody answers there
        assert pull("user/world").fingerprint == world.fingerprint
        with pytest.raises(HubError, match="hf://user/other: expected a connection to the Hub or a copy in the cache"):
            pull("user/other")

    def test_a_repository_of_something_else_is_refused(self, hub, tmp_path):
        hub.repositories["models/user/other"] = {"0" * 40: {"config.json": b"{}"}}
        with pytest.raises(FileNotFoundError, match="hf://user/other: expected a world model, V, agent or store"):
            pull("user/other")

    @pytest.mark.parametrize("name", ["", "world", "a/b/c", "user/na me", "../etc/passwd", "user/name@"])
    def test_a_wrong_name_is_refused(self, name):
        with pytest.raises(ValueError, match="name: expected hf://user/name"):
            HubName.parse(name)

    def test_what_cannot_be_saved_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="thing: expected an object with save_pretrained"):
            push(3, "user/x")
        with pytest.raises(FileNotFoundError, match="expected a world model, V, agent or store, found none"):
            push(tmp_path, "user/x")

    def test_a_path_without_the_prefix_opens_no_connection(self, monkeypatch, tmp_path):
        def refuse(*_):
            raise AssertionError("a connection was opened")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        random_world().save_pretrained(tmp_path / "user" / "name")
        monkeypatch.chdir(tmp_path)
        WorldModel.from_pretrained("user/name")
        assert local_path("user/name").parts == ("user", "name")
        with pytest.raises(FileNotFoundError):
            WorldModel.from_pretrained("user/nothing")


class TestModelCard:
    def test_a_saved_world_has_one(self, tmp_path):
        world = random_world()
        world.provenance.update(
            recipes=[{"env": "CartPole-v1", "policy": "random"}],
            num_episodes=5,
            training={"updates": 100, "seconds": 2.0, "best_metrics": {"nll_per_dim": -1.25}},
        )
        world.save_pretrained(tmp_path / "world")
        text = (tmp_path / "world" / CARD_FILE).read_text(encoding="utf-8")
        front = text.split("---\n")[1]
        assert "library_name: worldmodel" in front
        assert '  - "CartPole-v1"' in front
        assert "| held out: z, nats per dimension | -1.2500 |" in text
        assert "| data | 5 episodes, unknown steps |" in text

    def test_it_is_replaced_with_the_world_and_not_if_it_is_the_users(self, tmp_path):
        world = random_world()
        world.save_pretrained(tmp_path / "world")
        (tmp_path / "world" / CARD_FILE).write_text("mine", encoding="utf-8")
        world.save_pretrained(tmp_path / "world", overwrite=True)
        assert (tmp_path / "world" / CARD_FILE).read_text(encoding="utf-8") == "mine"

    def test_a_world_whose_record_is_empty_has_one_too(self, tmp_path):
        random_world().save_pretrained(tmp_path / "world")
        assert "| environment | unknown |" in (tmp_path / "world" / CARD_FILE).read_text(encoding="utf-8")
