"""Commands that are a class: options from files and command line, refusals with their place, and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import yaml

from rlhf_lightning.cli.jobs import run_job
from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.protocols import ModelSource, Sampler, Task


class FakeJob:
    """Does nothing.

    Args:
        policy: The model that answers.
        task: One task or several.
        sampler: Draws.
        samples: A number.
        out: A text.
        mode: One of two.
        system: A text or nothing.
    """

    made: list[FakeJob] = []  # noqa: RUF012
    resumes = True
    work: Callable[[], None] | None = None

    def __init__(
        self,
        policy: ModelSource,
        task: Task | list[Task],
        sampler: Sampler | None = None,
        samples: int = 8,
        out: str = "x.jsonl",
        mode: Literal["hard", "soft"] = "hard",
        system: str | None = None,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if samples == 13:
            raise AttributeError("a bug of ours")
        self.policy, self.task, self.sampler, self.samples = policy, task, sampler, samples
        self.out, self.mode, self.system = out, mode, system
        FakeJob.made.append(self)

    def run(self) -> int | None:
        return type(self).work() if type(self).work else None


CONFIG = """\
job: fake
policy: embedded-arithmetic
task: {name: chained_arithmetic, terms: 4, held_out: 8}
sampler: {name: in_process, max_new_tokens: 24}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakeJob, "made", [])
    (tmp_path / "job.yaml").write_text(CONFIG)
    return lambda *words: run_job(FakeJob, words, "rlhf fake")


def test_options_of_file_and_command_line(run):
    words = ["--out", "5", "--task.terms=3", "--sampler.temperature", "0.5", "--mode=soft", "--system", "Be: brief"]
    assert run("--config", "job.yaml", *words) == 0
    (job,) = FakeJob.made
    assert (job.out, job.mode, job.system, job.samples) == ("5", "soft", "Be: brief", 8)
    assert (job.task.name, job.task.terms, job.task.held_out) == ("chained_arithmetic", 3, 8)
    assert (job.sampler.params.max_new_tokens, job.sampler.params.temperature) == (24, 0.5)
    assert type(job.policy).__name__ == "EmbeddedArithmetic"


def test_another_plugin_drops_the_arguments_of_the_first(run):
    assert run("--config", "job.yaml", "--task.name", "jsonl", "--task.path", "p.jsonl", "--task.label", "mine") == 0
    assert (FakeJob.made[0].task.path, FakeJob.made[0].task.name) == ("p.jsonl", "mine")


def test_a_list_and_a_class_path(run):
    tasks = "[chained_arithmetic, {class_path: ChainedArithmetic, init_args: {terms: 2, held_out: 9}}]"
    assert run("--policy", "embedded-arithmetic", "--task", tasks) == 0
    assert [task.terms for task in FakeJob.made[0].task] == [3, 2]


def test_lists_are_appended_to(run, tmp_path: Path):
    (tmp_path / "more.yaml").write_text("task+: {name: jsonl, path: p.jsonl, label: mine}\n")
    words = ["--task+", "{name: jsonl, path: q.jsonl, label: yours}"]
    assert run("--config", "job.yaml", "--config", "more.yaml", *words) == 0
    assert [task.name for task in FakeJob.made[0].task] == ["chained_arithmetic", "mine", "yours"]


def test_arguments_of_a_class_path_may_be_set(run, tmp_path: Path):
    full = CONFIG.replace("{name: chained_arithmetic, terms", "{class_path: ChainedArithmetic, init_args: {terms")
    (tmp_path / "full.yaml").write_text(full.replace("held_out: 8}", "held_out: 8}}"))
    assert run("--config", "full.yaml", "--task.terms", "2") == 0
    assert (FakeJob.made[0].task.terms, FakeJob.made[0].task.held_out) == (2, 8)


def test_what_one_of_a_list_refuses_is_named(run):
    with pytest.raises(ConfigError, match=r"^task chained_arithmetic: terms must be at least 2, got 1$"):
        run("--policy", "embedded-arithmetic", "--task", "[chained_arithmetic, {name: chained_arithmetic, terms: 1}]")


def test_the_printed_configuration_is_whole_and_makes_the_same(run, capsys, tmp_path: Path):
    assert run("--config", "job.yaml", "--samples", "3", "--print_config") == 0
    assert not FakeJob.made
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["sampler"]["init_args"]["batch_size"] == 256
    (tmp_path / "again.yaml").write_text(printed)
    assert run("--config", "again.yaml") == 0
    assert (FakeJob.made[0].samples, FakeJob.made[0].task.terms) == (3, 4)


@pytest.mark.parametrize(
    ("words", "expected"), [(["--help"], "The model that answers."), (["-h"], "--samples SAMPLES")]
)
def test_help_lists_the_options(run, capsys, words, expected):
    assert run(*words) == 0
    assert expected in capsys.readouterr().out


def test_help_of_a_plugin(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--task.help", "jsonl")
    assert stop.value.code == 0
    assert "--task.held_out_path" in capsys.readouterr().out


MISTAKES = {
    "unknown option": (["--sample", "3"], "command line: --sample: FakeJob takes no argument 'sample'. Did you mean"),
    "unknown plug-in": (["--policy", "embeded-arithmetic"], "Did you mean 'embedded-arithmetic'?"),
    "unknown argument": (["--task.term", "3"], "command line: task.term: ChainedArithmetic takes no argument 'term'."),
    "wrong type": (["--samples", "x"], "command line: samples: expected int, got x"),
    "wrong type in a plug-in": (["--task.terms", "x"], "command line: task.terms: expected int, got x"),
    "not one of the choices": (["--mode", "hrd"], "command line: mode: expected one of 'hard', 'soft', got hrd"),
    "no value": (["--out"], "command line: --out needs a value"),
    "no option": (["out"], "unexpected argument 'out'"),
    "a value the job refuses": (["--samples", "0"], "samples must be at least 1, got 0"),
    "a value a plug-in refuses": (["--task.terms", "1"], "terms must be at least 2, got 1"),
    "no such file": (["--config", "jb.yaml"], "--config: jb.yaml is neither in the working folder"),
    "no name": (["--config"], "--config needs a name"),
    "help of an unknown plug-in": (["--task.help", "jsnl"], "Did you mean 'jsonl'?"),
}


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_on_the_command_line(run, words, expected):
    with pytest.raises(RLHFError) as refusal:
        run("--config", "job.yaml", *words)
    assert expected in str(refusal.value)
    assert not FakeJob.made


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("task:", "tsk:", "job.yaml:3: tsk: FakeJob takes no argument 'tsk'. Did you mean 'task'?"),
        ("terms: 4", "terms: four", "job.yaml:3: task.terms: expected int, got four"),
        ("job: fake", "job: other", "job.yaml:1: job: this configuration is for another command: rlhf other"),
        ("policy: embedded-arithmetic\n", "", "rlhf fake: missing: policy"),
    ],
)
def test_mistakes_in_a_file(run, tmp_path: Path, old, new, expected):
    (tmp_path / "job.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError) as refusal:
        run("--config", "job.yaml")
    assert expected in str(refusal.value)
    assert not FakeJob.made


def test_a_bug_stays_a_bug(run):
    with pytest.raises(AttributeError, match="a bug of ours"):
        run("--config", "job.yaml", "--samples", "13")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_tells_how_to_go_on(run, capsys, monkeypatch, number, code):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(FakeJob, "work", staticmethod(lambda: os.kill(os.getpid(), number)))
    assert run("--config", "job.yaml", "--system", "a b") == code
    assert "stopped. Go on where it was with: rlhf fake --config job.yaml --system 'a b'" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_jobs_exit_code_is_the_commands(run, monkeypatch):
    monkeypatch.setattr(FakeJob, "work", staticmethod(lambda: 1))
    assert run("--config", "job.yaml") == 1


def test_the_trainer_refuses_a_jobs_configuration(rlhf, folder: Path):
    (folder / "job.yaml").write_text(CONFIG.replace("fake", "sample"))
    assert (
        "job.yaml:1: job: this configuration is for another command: rlhf sample"
        in rlhf("fit", "--config", "job.yaml").error
    )
