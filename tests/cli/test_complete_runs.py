"""The same command on a complete run does nothing, says so, and prints the same result."""

COMPLETE = "the run was complete already; nothing was done (--overwrite starts it again)"
TRAINING = "--hidden-size 4 --num-updates 4 --evaluate-every 2 --max-test-batches 1 --device cpu"
COMMANDS = (
    "collect --env CartPole-v1 --episodes 6 --out data",
    f"train-mdnrnn --data data --out world {TRAINING}",
    "train-controller --model world --out controller --population 4 --generations 2 --rollouts 2 --horizon 5 --test-dreams 4",
    "improve-controller --model world --controller controller --data data --out better --num-dreams 4 --iterations 2 "
    "--steps 2 --num-states 8 --test-dreams 4 --whole-horizon 5",
    "iterate --env CartPole-v1 --out rounds --max-rounds 1 --first-episodes 6 --num-updates 2 --generations 1 --population 2 "
    "--rollouts 1 --test-episodes 2 --validation-episodes 2 --controller.features z",
)


def test_a_complete_run_says_so(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in COMMANDS:
        first, again = run(words), run(words)
        assert (first[0], again[0]) == (0, 0), (words, first[2], again[2])
        assert COMPLETE not in first[2], words
        assert COMPLETE in again[2], words
    assert COMPLETE not in run("collect --env CartPole-v1 --episodes 7 --out data")[2]  # extends the store
    assert COMPLETE not in run(f"{COMMANDS[1]} --overwrite")[2]
    assert COMPLETE not in run("store inspect data")[2]
