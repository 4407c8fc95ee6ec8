"""Where configurations are found, and how files are read and merged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning import __version__, configfiles
from rlhf_lightning.cli.document import merge, read
from rlhf_lightning.cli.runs import RunFolder
from rlhf_lightning.errors import ConfigError, RunFolderError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two shipped configurations, and a working folder."""
    package, work = tmp_path / "package", tmp_path / "work"
    (package / "configs/tiny").mkdir(parents=True)
    work.mkdir()
    for name in ("big.yaml", "tiny/sft.yaml"):
        (package / "configs" / name).write_text("seed_everything: 1\n")
    monkeypatch.setattr(configfiles, "_PACKAGE", package)
    monkeypatch.chdir(work)
    return package / "configs"


def test_shipped_ones_are_found_by_name(shipped: Path):
    assert configfiles.shipped_configs() == ["big.yaml", "tiny/sft.yaml"]
    assert configfiles.find_config("tiny/sft.yaml") == shipped / "tiny/sft.yaml"


def test_the_working_folder_comes_first(shipped: Path):
    Path("big.yaml").write_text("seed_everything: 2\n")
    assert configfiles.find_config("big.yaml") == Path("big.yaml")


def test_the_source_trees_configs_are_found(shipped: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(configfiles, "_PACKAGE", shipped.parent / "src" / "rlhf_lightning")
    assert configfiles.shipped_folder() == shipped


def test_not_found(shipped: Path):
    with pytest.raises(ConfigError) as caught:
        configfiles.find_config("tiny/stf.yaml")
    text = "--config: tiny/stf.yaml is neither in the working folder nor among the shipped ones. "
    assert str(caught.value) == text + "Did you mean 'tiny/sft.yaml'? Shipped: big.yaml, tiny/sft.yaml"


@pytest.mark.parametrize("name", ["sft.yaml", "sft", "tiny/sft"])
def test_a_file_of_that_name_in_any_folder_is_found_and_yaml_goes_without_saying(shipped: Path, name: str):
    assert configfiles.find_config(name) == shipped / "tiny/sft.yaml"


def test_the_working_folder_comes_before_a_bare_name_too(shipped: Path):
    Path("sft.yaml").write_text("seed_everything: 2\n")
    assert configfiles.find_config("sft.yaml") == configfiles.find_config("sft") == Path("sft.yaml")


def test_two_of_one_name_are_both_named_and_a_path_tells_them_apart(shipped: Path):
    for folder in (shipped, shipped / "paper"):
        folder.mkdir(exist_ok=True)
        (folder / "sft.yaml").write_text("seed_everything: 3\n")
    assert configfiles.find_config("sft.yaml") == shipped / "sft.yaml"
    (shipped / "sft.yaml").unlink()
    with pytest.raises(ConfigError, match=r"sft\.yaml is what several .* called: paper/sft\.yaml, tiny/sft\.yaml"):
        configfiles.find_config("sft.yaml")
    assert configfiles.find_config("paper/sft.yaml") == shipped / "paper/sft.yaml"


def test_a_misspelt_bare_name_gets_its_whole_path_as_a_hint(shipped: Path):
    (shipped / "very_long_folder_name").mkdir()
    (shipped / "very_long_folder_name/ppo.yaml").write_text("seed_everything: 3\n")
    with pytest.raises(ConfigError, match=r"Did you mean 'very_long_folder_name/ppo\.yaml'"):
        configfiles.find_config("pppo.yaml")


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}}, {"a": 1, "b": {"c": 4, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": "gae"}, {"a": {"lam": 1}}, {"a": {"name": "gae", "lam": 1}}),
        ({"a": {"name": "gae", "lam": 1}}, {"a": {"lam": 2}}, {"a": {"name": "gae", "lam": 2}}),
        ({"a": {"name": "gae", "lam": 1}}, {"a": {"name": "group"}}, {"a": {"name": "group"}}),
        ({"a": {"name": "gae", "lam": 1}}, {"a": "group"}, {"a": "group"}),
        ({"m": {"class_path": "A", "init_args": {"x": 1}}}, {"m": {"class_path": "B"}}, {"m": {"class_path": "B"}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": [1]}, {"a+": [2]}, {"a": [1, 2]}),
        ({"a": 1}, {"a+": 2}, {"a": [1, 2]}),
        ({}, {"a+": [2]}, {"a+": [2]}),
        ({"a+": [1]}, {"a+": [2]}, {"a+": [1, 2]}),
        ({"a+": [1]}, {"a": [2]}, {"a": [2]}),
        ({"a": [1]}, {"a+": [3], "a": [2]}, {"a": [2, 3]}),
        ({"64+": 1}, {"64": 2}, {"64+": 1, "64": 2}),
        (
            {"a": {"class_path": "A", "init_args": {"x": 1}}},
            {"a": {"y": 2}},
            {"a": {"class_path": "A", "init_args": {"x": 1, "y": 2}}},
        ),
    ],
)
def test_merge(base, over, expected):
    before = repr(base)
    assert merge(base, over) == expected
    assert repr(base) == before


def test_numbers_are_numbers(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("lr: 1e-4\nlabel: '1e-4'\n")
    assert read([tmp_path / "a.yaml"]).values == {"lr": 1e-4, "label": "1e-4"}


def test_sources_follow_the_last_file(tmp_path: Path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("model:\n  init_args:\n    lr: 1\n    steps: 2\n")
    two.write_text("# over\nmodel:\n  init_args: {lr: 3}\n")
    document = read([one, two])
    assert document.where(("model", "lr")) == f"{two}:3: model.lr: "
    assert document.where(("model", "init_args", "steps")) == f"{one}:4: model.steps: "


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [1", b"- 1", b"a: 1\na: 2", b"a: &x 1\nb: *y"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read([tmp_path / "bad.yaml"])


def test_an_empty_file_says_nothing(tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read([tmp_path / "empty.yaml"]).values == {}


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../b", ""])
def test_run_names_stay_inside_the_root(name: str):
    with pytest.raises(RunFolderError, match=r"run\.name"):
        RunFolder("runs", name)


def test_an_empty_run_folder_may_be_used(tmp_path: Path):
    (tmp_path / "x").mkdir()
    assert RunFolder(str(tmp_path), "x").open_new() == tmp_path / "x"
    (tmp_path / "x" / ".hidden").touch()
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder(str(tmp_path), "x").open_new()


def test_half_written_checkpoints_are_no_checkpoints(tmp_path: Path):
    (tmp_path / "x/checkpoints").mkdir(parents=True)
    (tmp_path / "x/checkpoints/.rollout-000001.ckpt.partial").touch()
    with pytest.raises(RunFolderError, match="no checkpoint"):
        RunFolder(str(tmp_path), "x").last_checkpoint()


LIGHT = """
import sys
from rlhf_lightning.cli import main
code = main(sys.argv[1:])
assert "lightning.pytorch" not in sys.modules and "transformers" not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize(("words", "expected"), [(["--version"], __version__), ([], "rlhf COMMAND")])
def test_help_and_version_load_no_trainer(words, expected):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_help_lists_every_command(capsys):
    from rlhf_lightning.cli import main

    assert main(["--help"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {"fit", "validate", "test", "predict", "generate", "plugins"} <= listed
