"""``rlhf study``: what is made, in which order, what is left out, and what a user sees; the commands are stand-ins."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading

import pytest
import yaml

from rlhf_lightning.cli import studies
from rlhf_lightning.configfiles import find_config

STUDY = {
    "job": "study run",
    "folder": "out",
    "axes": {"seed": [1, 2]},
    "parts": {
        "pool": {
            "command": "sample",
            "over": ["seed"],
            "options": {"config": "tiny/sample.yaml", "seed": "{seed}", "prompts": 4, "samples": 2},
            "gives": "pool.jsonl",
        },
        "curve": {
            "command": "best-of-n",
            "role": "best_of_n",
            "over": ["seed"],
            "options": {"pools": {"SFT": "{pool}"}},
        },
    },
}


@pytest.fixture
def study(folder):
    def write(**changes):
        (folder / "mine.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        return "study", "run", "--config", "mine.yaml"

    return write


@pytest.fixture
def commands(monkeypatch):
    """What was run; a command whose words are in ``codes`` ends with that code, ``stop`` as if by Ctrl-C."""
    made, codes = [], {}

    def run(command, output):
        words = command[3:]
        made.append(words)
        output.write(f"about {words[0]}\n")
        for part, code in codes.items():
            if any(part in word for word in words):
                if code == "stop":
                    raise KeyboardInterrupt
                return code
        return 0

    monkeypatch.setattr(studies, "_run", run)
    monkeypatch.setattr(studies.StudyReport, "run", lambda self: None)  # there is nothing to read
    run.made, run.codes = made, codes
    return run


CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), print("left"), sys.exit(0)))
print("on", flush=True)
time.sleep(60)
"""


def names(commands):
    return [next(word for word in words if "out/" in word).split("out/")[1] for words in commands.made]


def test_all_is_made_once(rlhf, study, commands, folder):
    words = study()
    outcome = rlhf(*words)
    assert outcome.code == 0, outcome.err
    assert names(commands) == ["pool/seed-1/pool.jsonl", "pool/seed-2/pool.jsonl", "curve/seed-1", "curve/seed-2"]
    assert commands.made[0][:3] == ["sample", "--config=tiny/sample.yaml", "--out=out/pool/seed-1/pool.jsonl"]
    assert json.loads((folder / "out/state/pool/seed-1.json").read_text())["seconds"] >= 0
    assert (folder / "out/logs/pool/seed-1.txt").read_text().splitlines()[1:] == ["about sample"]
    assert rlhf(*words).code == 0
    assert len(commands.made) == 4


def test_another_seed_adds_to_it(rlhf, study, commands):
    rlhf(*study(), "--axes.seed=[1]")
    assert names(commands) == ["pool/seed-1/pool.jsonl", "curve/seed-1"]
    assert rlhf(*study()).code == 0
    assert names(commands)[2:] == ["pool/seed-2/pool.jsonl", "curve/seed-2"]


def test_what_fails_stops_only_what_needs_it(rlhf, study, commands):
    commands.codes["pool/seed-1"] = 3
    outcome = rlhf(*study())
    assert outcome.code == 1
    assert names(commands) == ["pool/seed-1/pool.jsonl", "pool/seed-2/pool.jsonl", "curve/seed-2"]
    assert "failed: pool/seed-1, exit code 3; what it said is in out/logs/pool/seed-1.txt" in outcome.out
    assert "about sample" in outcome.out
    assert "left out: curve/seed-1 needs pool/seed-1" in outcome.out
    commands.codes.clear()
    assert rlhf(*study()).code == 0
    assert names(commands)[3:] == ["pool/seed-1/pool.jsonl", "curve/seed-1"]


def test_an_interrupted_study_goes_on(rlhf, study, commands, folder):
    commands.codes["pool/seed-2"] = "stop"
    outcome = rlhf(*study())
    assert outcome.code == 130
    assert "stopped. Go on where it was with: rlhf study run --config mine.yaml" in outcome.err
    states = [json.loads((folder / f"out/state/pool/seed-{seed}.json").read_text()) for seed in (1, 2)]
    assert [bool(state["made"]) for state in states] == [True, False]
    commands.codes.clear()
    assert rlhf(*study()).code == 0
    assert names(commands)[2:] == ["pool/seed-2/pool.jsonl", "curve/seed-1", "curve/seed-2"]


def test_a_run_that_left_early_is_not_done(rlhf, study, commands, folder):
    fit = {"policy": {"command": "fit", "options": {"config": "tiny/sft.yaml"}}}
    outcome = rlhf(*study(axes={}, parts=fit))
    assert outcome.code == 1
    assert "stopped before its end: policy" in outcome.out
    (folder / "out/policy").mkdir()
    (folder / "out/policy/report.md").write_text("# Run policy\n\nFinished after 12 epochs.\n\n## Metrics\n")
    assert rlhf(*study(axes={}, parts=fit)).code == 0


def test_what_was_made_otherwise_is_not_taken(rlhf, study, commands):
    rlhf(*study())
    changed = {**STUDY["parts"], "pool": {**STUDY["parts"]["pool"], "options": {"config": "tiny/sample.yaml"}}}
    error = rlhf(*study(parts=changed)).error
    assert error.startswith("pool/seed-1, pool/seed-2: begun or made with other options")
    assert "remove out/pool/seed-1 and out/state/pool/seed-1.json" in error
    assert len(commands.made) == 4


def test_what_was_begun_otherwise_does_not_go_on(rlhf, study, commands, folder):
    """A command that failed before it had anything to go on from may be mended; another would mix two runs."""

    options = {"config": "tiny/sft.yaml", "trainer.max_epochs": 3}
    mended = {**options, "trainer.max_epochs": 4}
    commands.codes["sft"] = 1
    for given in (options, mended):
        outcome = rlhf(*study(axes={}, parts={"sft": {"command": "fit", "options": given}}))
        assert outcome.code == 1, outcome.err
    (folder / "out/sft/checkpoints").mkdir(parents=True)
    (folder / "out/sft/checkpoints/last.ckpt").touch()
    words = study(axes={}, parts={"sft": {"command": "fit", "options": options}})
    assert rlhf(*words).error.startswith("sft: begun or made with other options")
    assert len(commands.made) == 2


def test_what_was_made_from_a_result_that_is_gone_is_not_taken(rlhf, study, commands, folder):
    rlhf(*study())
    (folder / "out/state/pool/seed-1.json").unlink()
    assert rlhf(*study()).error.startswith("curve/seed-1: begun or made with other options, configuration files or res")


def test_a_narrower_call_keeps_the_study(rlhf, study, commands, folder):
    rlhf(*study())
    rlhf(*study(), "--axes.seed=[1]")
    assert yaml.safe_load((folder / "out/study.yaml").read_text())["axes"] == {"seed": [1, 2]}


def test_where_nothing_is_to_be_reported_no_report_is_asked_for(rlhf, study, commands, monkeypatch):
    reported = []
    monkeypatch.setattr(studies.StudyReport, "run", lambda self: reported.append(self.out))
    assert rlhf(*study(), "--only=[pool/*]").code == 0
    assert reported == []
    assert rlhf(*study()).code == 0
    assert len(reported) == 1


def test_a_policy_must_be_measured(rlhf, study, commands):
    trained = {"command": "fit", "role": "policy", "options": {"config": "tiny/ppo.yaml", "trainer.callbacks": []}}
    assert "trained: has the role policy, but no callback HeldOutEval" in rlhf(*study(parts={"trained": trained})).error
    assert commands.made == []


def test_two_processes_do_not_make_one_piece(rlhf, study, commands, folder):
    """The second waits until the first has let go, and then finds the piece made."""
    log = folder / "out/logs/pool/seed-1.txt"
    log.parent.mkdir(parents=True)
    with log.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        released = threading.Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        released.start()
        outcome = rlhf(*study(), "--only=[pool/seed-1]")
        released.join()
    assert outcome.code == 0
    assert "waiting: another process makes pool/seed-1" in outcome.out


def test_only_some(rlhf, study, commands):
    assert rlhf(*study(), "--only=[curve/*-2]").code == 0
    assert names(commands) == ["pool/seed-2/pool.jsonl", "curve/seed-2"]
    assert "only: 'curv/*' matches no piece" in rlhf(*study(), "--only=[curv/*]").error


def test_a_dry_run_shows_commands_that_can_be_run(rlhf, study, commands, folder):
    outcome = rlhf(*study(), "--dry_run=true")
    assert (outcome.code, commands.made) == (0, [])
    lines = outcome.out.splitlines()
    assert rlhf(*study(), "--dry_run=true", "--only=[curve/*-2]").out.startswith("out: 2 pieces\npool/seed-2: to make")
    assert lines[:2] == ["out: 4 pieces", "pool/seed-1: to make"]
    assert lines[2].startswith("    rlhf sample --config=tiny/sample.yaml --out=out/pool/seed-1/pool.jsonl")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompst": 4}, "pool/seed-1: command line: --prompst: SampleSolutions takes no argument 'prompst'. Did you"),
        ({"samples": "many"}, "pool/seed-1: command line: samples: expected int, got many"),
        ({"policy": "embeded-arithmetic"}, "Did you mean 'embedded-arithmetic'?"),
    ],
)
def test_every_command_is_looked_at_before_any_runs(rlhf, study, commands, options, told):
    own = STUDY["parts"]["pool"]
    parts = {"pool": {**own, "options": {**own["options"], **options}}}
    assert told in rlhf(*study(parts=parts)).error
    assert commands.made == []


def test_an_action_that_is_not_one_is_told(rlhf):
    assert "rlhf study: there is no 'rnu'. Did you mean 'run'?" in rlhf("study", "rnu").error


def test_a_report_of_nothing_is_told(rlhf, folder):
    assert "nowhere holds no study" in rlhf("study", "report", "--folder", "nowhere").error


def test_the_child_is_stopped_with_us(tmp_path, monkeypatch):
    """A child that leaves in its own time is waited for, not killed."""
    wait = subprocess.Popen.wait

    def interrupted(self, timeout=None):
        if not getattr(self, "told", False):
            self.told = True
            while "on" not in (tmp_path / "log").read_text():
                pass
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with (tmp_path / "log").open("w") as output, pytest.raises(KeyboardInterrupt):
        studies._run([sys.executable, "-c", CHILD], output)
    assert (tmp_path / "log").read_text().split() == ["on", "left"]


def test_the_shipped_study_has_all_that_the_report_reads(rlhf):
    parts = yaml.safe_load(find_config("study/tiny.yaml").read_text())["parts"]
    assert {part.get("role") for part in parts.values()} == {None, "policy", "best_of_n"}


@pytest.mark.parametrize("name", ["study/tiny.yaml", "study/paper.yaml"])
def test_every_command_of_a_shipped_study_is_accepted(rlhf, name):
    outcome = rlhf("study", "run", "--config", name, "--dry_run=true")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("    rlhf ") == int(outcome.out.split("\n")[0].split()[1]) > 10
