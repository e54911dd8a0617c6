"""Shared parts of the programs: errors on one line, options from configurations, progress, scripts."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.cli.options import add_fields, program, read_fields
from worldmodel.models import VAEConfig

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))


def test_an_error_of_the_user_is_one_line_and_exit_code_2(capsys):
    @program()
    def main():
        raise ValueError("size: expected 1,\ngot 2")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: size: expected 1, got 2\n"


def test_ctrl_c_is_exit_code_130_and_says_how_to_resume(capsys):
    @program(resume="The same command resumes.")
    def main():
        raise KeyboardInterrupt("interrupted after 2 generations")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted after 2 generations. The same command resumes.\n"


def test_an_error_of_the_program_keeps_its_traceback():
    @program()
    def main():
        raise AssertionError

    with pytest.raises(AssertionError):
        main()


def test_options_come_from_the_fields_of_a_configuration():
    parser = argparse.ArgumentParser()
    add_fields(parser, VAEConfig)
    assert VAEConfig(**read_fields(parser.parse_args([]), VAEConfig)) == VAEConfig()
    assert VAEConfig(**read_fields(parser.parse_args(["--latent-size", "7"]), VAEConfig)).latent_size == 7


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_prints_its_options(script, tmp_path):
    result = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"usage: {script.name}" in result.stdout
