"""Which worlds `worldmodel play` finds, and pages and worlds that cannot be written or read."""

import json
import shutil

import pytest
from toy_worlds import random_world

from worldmodel.agents import Controller
from worldmodel.models import StateNormalizer, WorldModel
from worldmodel.play import export_page, included_worlds, local_runs, open_run
from worldmodel.play import site as site_module
from worldmodel.play.catalog import cache_directory
from worldmodel.play.page import export_world, read_world
from worldmodel.play.site import check_vendor, site_files
from worldmodel.runtime import files


@pytest.fixture
def world():
    return random_world()


@pytest.fixture
def run(tmp_path, world, monkeypatch):
    """A directory with a run, as `iterate` writes it, below a directory with other things."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "work" / "runs" / "toy"
    world.save_pretrained(folder / "world")
    Controller.for_world(world).save_pretrained(folder / "controller")
    world.save_pretrained(tmp_path / "work" / "alone")
    (tmp_path / "work" / ".hidden").mkdir()
    world.save_pretrained(tmp_path / "work" / ".hidden" / "world")
    return folder


def test_the_included_world_is_complete_small_and_described():
    (cartpole,) = included_worlds()
    content = cartpole.prepare()
    assert set(content["files"]) == {"step", "decoder", "controller", "encoder"}
    assert content["environment"]["env"] == "CartPole-v1"
    assert sum(file.stat().st_size for file in cartpole.directory.iterdir()) < 1_000_000
    card = (cartpole.directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: worldmodel\n")
    assert "license:" in card
    assert "## Scores" in card


def test_local_runs_are_found_with_their_controllers(run, tmp_path):
    found = {each.title: each for each in local_runs(tmp_path / "work")}
    assert set(found) == {"runs/toy", "alone"}
    assert found["runs/toy"].controller == run / "controller"
    assert found["alone"].controller is None
    assert found["runs/toy"].directory.parent == cache_directory() == tmp_path / "cache" / "worldmodel" / "play"
    assert len({each.directory for each in found.values()}) == 2
    assert not found["alone"].ready


def test_a_run_is_opened_by_its_directory_its_world_or_an_included_name(run, tmp_path, monkeypatch):
    assert open_run(str(run)).controller == run / "controller"
    assert open_run(str(run / "world")).controller is None
    assert open_run(str(run / "world"), str(run / "controller")).directory == open_run(str(run)).directory
    assert open_run("cartpole").ready
    shutil.copytree(open_run("cartpole").directory, tmp_path / "copied")
    assert open_run(str(tmp_path / "copied")).ready
    with pytest.raises(FileNotFoundError, match=r"expected a world model directory, a page, or an included world \(cartpole\)"):
        open_run(str(tmp_path))


def test_another_controller_or_world_is_exported_again(run, world):
    before = open_run(str(run)).directory
    shutil.rmtree(run / "controller")
    controller = Controller.for_world(world)
    controller.layers[-1].bias.data.fill_(1.0)
    controller.save_pretrained(run / "controller")
    assert open_run(str(run)).directory != before


@pytest.fixture
def copied(tmp_path):
    (cartpole,) = included_worlds()
    shutil.copytree(cartpole.directory, tmp_path / "world")
    return tmp_path / "world"


def test_damaged_and_newer_files_are_refused_in_one_line(copied):
    assert read_world(copied)["latent_size"] == 4
    step = (copied / "step.onnx").read_bytes()
    (copied / "step.onnx").write_bytes(step[:-1] + b"x")
    with pytest.raises(ValueError, match=r"step.onnx: expected the file that was exported, got a damaged or changed one"):
        read_world(copied)
    (copied / "step.onnx").unlink()
    with pytest.raises(FileNotFoundError):
        read_world(copied)
    content = json.loads((copied / "page.json").read_text())
    (copied / "page.json").write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(ValueError, match=r"expected worldmodel.page version 1 or older, got version 2"):
        read_world(copied)
    (copied / "page.json").write_text(json.dumps({**content, "latent_size": 5}))
    with pytest.raises(ValueError, match="got a damaged or changed one"):
        read_world(copied)
    (copied / "page.json").write_text("{")
    with pytest.raises(ValueError, match=r"page.json: expected JSON"):
        read_world(copied)


class Blind(StateNormalizer):
    """A V without a decoder."""

    @property
    def has_decoder(self):
        return False


def test_a_world_that_no_page_can_show_is_refused_and_nothing_is_written(tmp_path, world):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    blind = WorldModel(
        Blind(world.observation_space), world.mdnrnn, world.action_space,
        start_mean=world.start_mean, start_log_variance=world.start_log_variance,
    )  # fmt: skip
    for export in (export_page, export_world):
        with pytest.raises(ValueError, match="decoder: expected a V with a decoder, got Blind without"):
            export(blind, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_files_are_not_replaced_and_an_interrupted_export_leaves_nothing(tmp_path, world, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(FileExistsError, match="expected an empty directory, got one with other files"):
        export_page(world, tmp_path / "photos", overwrite=True)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("worldmodel.play.page.export_onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_page(world, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's exporter
def test_a_page_has_the_model_card_of_its_world_and_keeps_a_text_of_the_user(tmp_path, world):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    world.provenance |= {"recipes": [{"env": "Toy-v0", "policy": "random"}], "num_episodes": 7, "num_steps": 70}
    card = world.card().published(title="unused", usage="", scores="real 500", licence="mit")
    export_page(world, tmp_path / "page", card=card)
    text = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    for part in ('license: "mit"', "# Toy-v0", "7 episodes, 70 steps", "real 500", "ONNX: step, decoder; page.json", "```bash"):
        assert part in text
    content = read_world(tmp_path / "page" / "worlds" / "toy-v0")
    assert (content["card"]["licence"], content["card"]["scores"]) == ("mit", "real 500")
    assert content["card"]["facts"]["environment"] == "Toy-v0"
    (tmp_path / "page" / "README.md").write_text("mine", encoding="utf-8")
    export_page(world, tmp_path / "page", overwrite=True)
    assert (tmp_path / "page" / "README.md").read_text(encoding="utf-8") == "mine"
    assert read_world(tmp_path / "page" / "worlds" / "toy-v0")["card"]["licence"] == "unknown"


def test_the_page_holds_no_address_of_another_server():
    for name, file in site_files().items():
        if not name.startswith("vendor/"):
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text, name
            assert "https:" not in text, name


def test_vendored_files_have_their_digests_and_their_licence(tmp_path, monkeypatch):
    manifest = check_vendor()
    assert (manifest["package"], manifest["licence"]) == ("onnxruntime-web", "MIT")
    assert set(manifest["files"]) == {file.name for file in site_module.VENDOR.iterdir()} - {"manifest.json"}
    assert "Copyright (c) 2018 - present Microsoft Corporation" in (site_module.VENDOR / "LICENSE").read_text()
    shutil.copytree(site_module.VENDOR, tmp_path / "vendor")
    monkeypatch.setattr(site_module, "VENDOR", tmp_path / "vendor")
    check_vendor()
    (tmp_path / "vendor" / "ort.wasm.min.mjs").write_text("changed")
    with pytest.raises(files.InvalidFileError, match="expected the file of the package, got a changed one; reinstall it"):
        check_vendor()
