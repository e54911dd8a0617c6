"""The program: its help, its errors on one line, its exit codes, its JSON, and the names that options had before."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.cli import main as program
from worldmodel.cli.collect import Collect
from worldmodel.cli.iterate import Iterate
from worldmodel.cli.options import Command, Result
from worldmodel.cli.parsing import one_line, parse
from worldmodel.cli.train_mdnrnn import TrainMdnrnn
from worldmodel.cli.train_vae import TrainVae
from worldmodel.models import MDNRNNConfig, VAEConfig

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))
TRAIN = "train-mdnrnn --data d --out o"


@pytest.fixture
def toy(monkeypatch):
    """Return a function that replaces the command `info` by one that runs a given function."""

    def replace(work, resume=""):
        class Toy(Command):
            RESUME = resume

            def run(self):
                return work()

        monkeypatch.setattr(program, "load", lambda name: Toy)
        monkeypatch.setattr("worldmodel.cli.parsing.parse", lambda command, words, name: command())

    return replace


def stop(error):
    def work():
        raise error

    return work


def test_an_error_of_the_user_is_one_line_and_exit_code_2(toy, run):
    toy(stop(ValueError("size: expected 1,\ngot 2")))
    assert run("info") == (2, "", "error: size: expected 1, got 2\n")


def test_ctrl_c_is_exit_code_130_and_says_how_to_resume(toy, run):
    toy(stop(KeyboardInterrupt("interrupted after 2 generations")), "The same command resumes.")
    assert run("info") == (130, "", "\ninterrupted after 2 generations. The same command resumes.\n")


def test_a_check_that_finds_problems_is_exit_code_1(toy, run):
    toy(lambda: Result("1 problems", {}, exit_code=1))
    assert run("info") == (1, "1 problems\n", "")


def test_an_error_of_the_program_keeps_its_traceback(toy):
    toy(stop(AssertionError()))
    with pytest.raises(AssertionError):
        program.main(["info"])


def test_an_operation_that_a_device_lacks_is_explained(toy, run):
    toy(stop(NotImplementedError("The operator 'aten::foo' is not currently implemented for the MPS device.")))
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in run("info")[2]


def test_options_come_from_the_fields_of_a_configuration():
    assert parse(TrainVae, ["--data", "d", "--out", "o"], name="x").vae == VAEConfig()
    assert parse(TrainVae, ["--data", "d", "--out", "o", "--latent-size", "7"], name="x").vae.latent_size == 7


def test_options_may_be_written_with_underscores_and_the_last_one_counts():
    words = ["--data", "a", "b", "--out", "o", "--hidden_size", "3", "--hidden-size", "4", "--noise-type", "full", "--no-skip"]
    command = parse(TrainMdnrnn, words, name="x")
    assert command.data == ("a", "b")
    assert command.mdnrnn == MDNRNNConfig(hidden_size=4, noise_type="full", skip=False)


@pytest.mark.parametrize(("word", "value"), [("--resident", True), ("--no-resident", False), ("--resident None", None)])
def test_the_flag_of_memory_works_as_before(word, value):
    assert parse(TrainMdnrnn, ["--data", "d", "--out", "o", *word.split()], name="x").windows.resident is value


@pytest.mark.parametrize(
    ("word", "value"),
    [("--termination-head", True), ("--no-termination-head", False), ("--termination-head None", None), ("", None)],
)
def test_the_termination_head_is_a_flag_too(word, value):
    for words in (["--data", "d", *word.split(), "--out", "o"], ["--data", "d", "--out", "o", *word.split()]):
        assert parse(TrainMdnrnn, words, name="x").mdnrnn.termination_head is value
    words = ["--env", "e", "--out", "o", *word.split()]
    assert parse(Iterate, words, name="x").config.mdnrnn.termination_head is value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{TRAIN} --hiden-size 3", "unknown option --hiden-size; perhaps you meant --hidden-size; see"),
        (f"{TRAIN} --hiden-size=3", "unknown option --hiden-size; perhaps you meant --hidden-size; see"),
        (f"{TRAIN} --foo -3 --hiden-size 3 --bar", "unknown options --foo, --hiden-size, --bar; perhaps you meant --hid"),
        ("store inspect", "PATH: required, got nothing"),
        ("store inspect a b", "expected no more words, got b"),
        ("collect --env a --out o --episodes 3 --policy", "--policy: expected a value, got nothing"),
        (f"{TRAIN} --hidden-size x", "--hidden-size: expected an integer, got 'x'"),
        (f"{TRAIN} --learning-rate x", "--learning-rate: expected a number or None, got 'x'"),
        (f"{TRAIN} --hidden-size 0", "hidden_size: expected an integer >= 1, got 0"),
        (f"{TRAIN} --device tpu", "--device: expected one of 'auto', 'cpu', 'cuda', 'mps', got 'tpu'"),
        (f"{TRAIN} --preset dom", "--preset: expected one of car-racing, doom, got 'dom'"),
        ("train-mdnrnn --data d", "--out: required, got nothing"),
        ("collect --env e --out o --episodes 1 --env-kwargs [1", "--env-kwargs: expected a JSON object such as"),
        ("collectt", "expected a command, got 'collectt' (did you mean collect?); see worldmodel --help"),
        ("store", "expected store inspect or store verify or store repair, got 'store'"),
        ("store look x", "expected store inspect or store verify or store repair, got 'store look'"),
        ("info nowhere", "nowhere: expected the output directory of a run, got no directory"),
        ("--print-completion fish", "--print-completion: expected bash, zsh, got fish"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_option(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, printed, said = run(words)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert said.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_a_message_in_a_box_becomes_one_line_at_any_width():
    box = "╭─ Invalid ─╮\n│ Invalid choice 'a  │\n│ b'. │\n│ ─────── │\n│ For help, run x --help │\n╰──────╯"
    plain = " Invalid  \n ------ \n  Invalid choice 'a \n b'. \n ------ \n For help, run x --help"
    assert one_line(box) == one_line(plain) == "invalid choice 'a b'."


def test_help_lists_every_command_on_one_screen(run):
    code, printed, _ = run("--help")
    assert code == 0
    assert printed.count("\n") <= 24
    assert max(map(len, printed.splitlines())) <= 80
    assert all(name in printed for name in program.COMMANDS)


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_describes_every_option(run, name):
    code, printed, _ = run(f"{name} --help")
    assert code == 0
    assert printed.startswith(f"usage: worldmodel {name}")
    described = re.findall(r"^ *│? *(--[\w.-]+)[^\n]*\n? *│? *[^-\s]", printed, flags=re.MULTILINE)
    assert set(described) == set(re.findall(r"^ *│? *(--[\w.-]+)", printed, flags=re.MULTILINE))


@pytest.mark.parametrize("shell", program.SHELLS)
def test_completion_scripts_know_commands_and_options(run, shell):
    code, printed, _ = run(f"--print-completion {shell}")
    assert code == 0
    assert "train-mdnrnn" in printed
    assert "hidden-size" in printed


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "worldmodel", words], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_needs_an_extra_to_show_its_options():
    block = "import sys; from worldmodel.runtime import EXTRAS; sys.modules.update(dict.fromkeys(sum(EXTRAS.values(), ())))"
    script = f"{block}; from worldmodel.cli.main import main; main(['--print-completion', 'bash'])"  # loads every command
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_results_can_be_printed_as_json(run, tmp_path):
    code, printed, _ = run(f"collect --env CartPole-v1 --episodes 2 --out {tmp_path / 'data'} --json")
    assert code == 0
    assert json.loads(printed)["episodes"] == 2
    found = json.loads(run(f"store inspect {tmp_path / 'data'} --json")[1])
    assert found["episodes"] == 2
    assert json.loads(run(f"store verify {tmp_path / 'data'} --json")[1]) == {"problems": []}


def test_verify_is_exit_code_1_for_a_damaged_store(run, tmp_path):
    run(f"collect --env CartPole-v1 --episodes 2 --out {tmp_path / 'data'}")
    (shard,) = (tmp_path / "data" / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, printed, _ = run(f"store verify {tmp_path / 'data'}")
    assert code == 1
    assert "1 problems" in printed


def test_info_names_versions_devices_and_extras(run):
    code, printed, said = run("info")
    assert (code, said) == (0, "")
    assert "torch" in printed
    found = json.loads(run("info --json")[1])
    assert {"versions", "machine", "devices", "extras"} <= set(found)
    assert found["versions"]["torch"]
    assert set(found["extras"].values()) <= {"found", "missing"}


def test_a_module_of_the_users_directory_is_found(tmp_path):
    module = "import gymnasium\ngymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    (tmp_path / "mine.py").write_text(module)
    script = "import sys; sys.path.remove(''); from worldmodel.cli.main import main; main()"
    words = ["collect", "--env", "mine:Mine-v0", "--episodes", "1", "--max-steps", "5", "--out", "data", "--json"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 5


def test_the_options_of_a_command_are_a_value():
    words = ["--env", "CartPole-v1", "--out", "o", "--episodes", "2", "--env-kwargs", '{"g": 9.8}']
    assert parse(Collect, words, name="x").environment.env_kwargs == {"g": 9.8}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_the_command_of_its_name(script, tmp_path):
    words = ["inspect", "--help"] if script.stem == "store" else ["--help"]
    done = subprocess.run([sys.executable, str(script), *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: worldmodel {script.stem.split('_')[0]}" in done.stdout


def test_a_warning_is_one_line(capsys):
    program.show_warning(UserWarning("gear looks\nlike a choice"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "warning: gear looks like a choice\n"


def test_ctrl_c_while_torch_is_imported_is_exit_code_130(run, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "load", interrupt)
    assert run("info") == (130, "", "\ninterrupted before anything was done\n")


def test_a_reader_that_stops_early_is_no_error():
    program = [sys.executable, "-m", "worldmodel", "info"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read().decode("utf-8")
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert said == ""


def test_a_command_for_one_process_refuses_several(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, out, said = run("info")
    assert (code, out) == (2, "")
    assert said.startswith("error: info: expected one process, got 2; torchrun can start train-vae, encode")
    monkeypatch.setenv("RANK", "1")
    assert run("info") == (2, "", "")  # rank 0 has said it
