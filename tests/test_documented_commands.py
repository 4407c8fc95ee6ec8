"""Every ``rlhf`` command that the project shows is one: its configurations are found, its keys and types are right.

Nothing is run. Commands are found in the code of README, docs, notebooks, Makefile, shipped configurations, scripts and
docstrings; one that cannot be read fails, and a count says that none was passed over.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from rlhf_lightning.cli import commands, main
from rlhf_lightning.cli.commands import plan
from rlhf_lightning.cli.main import TRAINER_COMMANDS
from rlhf_lightning.cli.plans import ParsedConfig
from rlhf_lightning.configfiles import find_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OTHERS = [ROOT / "Makefile", *sorted((ROOT / "configs").rglob("*.*")), *sorted((ROOT / "scripts").glob("*.py"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
NAMES = sorted([*TRAINER_COMMANDS, *commands.names()], key=len, reverse=True)
COMMAND = re.compile(rf"(?<![\w/.-])(?:\$\(BIN\)/)?rlhf (?:{'|'.join(NAMES)})(?![\w-])")
PLACEHOLDERS = {"S": "1", "qS": "q1", "NAME": "quickstart.yaml"}
"""Words that stand for one of the reader's, and one for the test."""


def blocks(page: str) -> tuple[list[str], list[str]]:
    """A page's fenced lines and its code spans."""
    fences = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", page, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^ *```[^\n]*\n.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    return lines, [span for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose, flags=re.DOTALL)]


def shown(path: Path) -> list[str]:
    """All commands of a file, as they stand there."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    if path.suffix in (".md", ".ipynb"):
        lines, spans = blocks(text)
        return [command for code in [*lines, *spans] for command in commands_in(code)]
    if path.suffix == ".py" and path in SOURCES:
        spans = re.findall(r"``(.+?)``", text, flags=re.DOTALL)
        return [re.sub(r"\s+", " ", span) for span in spans if COMMAND.match(span)]
    lines = [line.strip("# \t") for line in re.sub(r"\\\n#?[ \t]*", " ", text).splitlines()]
    return [command for line in lines for command in commands_in(line)]


def commands_in(code: str) -> list[str]:
    """The commands of a line of code: one at its beginning, or behind what runs or precedes another."""
    before = re.compile(r"(^|\|\||&&|;|\bsrun .*)\s*$")
    return [code[found.start() :] for found in COMMAND.finditer(code) if before.search(code[: found.start()])]


def words_of(command: str) -> list[str]:
    """The words that a shell would hand on; up to the end of the command."""
    plain = re.sub(r"\$\$?\([^)]*\)", "made-by-the-shell", os.path.expandvars(command))
    given = shlex.split(plain, comments=True)[1:]
    end = next((at for at, word in enumerate(given) if word in ("&&", "||", "|", ";", "&")), len(given))
    return [PLACEHOLDERS.get(word, word) for word in given[:end]]


ABRIDGED = {
    ("sample", "--split=held_out", "--samples=64"): ["--config=tiny/sample.yaml"],
    ("export", "--adapters"): ["--model=runs/x", "--out=x"],
}
"""Docstrings' commands that leave out what a sentence needs not say, and what completes them here."""


def found() -> Iterator[tuple[str, str]]:
    for path in [*PAGES, *NOTEBOOKS, *OTHERS, *SOURCES]:
        for command in shown(path):
            yield command, path.relative_to(ROOT).as_posix()


COMMANDS: dict[tuple[str, ...], str] = {}
for _command, _where in found():
    COMMANDS.setdefault(tuple(words_of(_command)), _where)
WITH_OPTIONS = {words: where for words, where in COMMANDS.items() if any(word.startswith("-") for word in words)}


def resolve(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command is resolved to; raises, or ends the program with a code, where it cannot be."""
    name, rest = words[0], [word for word in words[1:] if word != "--print_config"]
    module = import_module(f"{commands.__name__}.{name.replace('-', '_')}") if name in commands.names() else None
    if name == "plan":
        options, rest = plan._parser().parse_known_args(rest)
        trainer = ParsedConfig(rest).config["fit"]["trainer"]
        plan._machine(options, trainer.as_dict())
        return str(plan._architectures(options.architecture) or trainer)
    if name == "fit":
        return str(ParsedConfig(rest).config)
    if module is not None and not hasattr(module, "main"):
        parser = commands._Parser(prog=f"rlhf {name}", allow_abbrev=False)
        module.configure(parser)
        given = vars(parser.parse_args(rest))
        return str(find_config(given["config"]) if given.get("config") else given)
    try:
        code = main([name, *rest, "--print_config"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.mark.parametrize("words", WITH_OPTIONS, ids=[" ".join(words)[:60] for words in WITH_OPTIONS])
def test_it_is_resolved(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert resolve([*words, *ABRIDGED.get(words, [])], capsys), WITH_OPTIONS[words]


def test_bare_names_are_commands():
    bare = [words for words in COMMANDS if words not in WITH_OPTIONS]
    assert bare
    assert [words for words in bare if words[0] not in NAMES or len(words) > 3] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_none_is_passed_over(page):
    """In code, ``rlhf`` is followed by a command that was found above, or by none at all."""
    lines, spans = blocks(page.read_text(encoding="utf-8"))
    mentions = [code for code in [*lines, *spans] if re.search(r"(^|[\s$])rlhf [a-z]", code.partition("#")[0])]
    assert [code for code in mentions if not commands_in(code)] == []
    assert len(shown(page)) >= len(mentions)


def test_there_are_many_of_each():
    assert len(WITH_OPTIONS) > 40 and set(ABRIDGED) <= set(WITH_OPTIONS)
    assert {"README.md", "docs/scale.md", "docs/plan.md", "docs/study.md", "docs/vllm.md", "Makefile"} <= {
        *COMMANDS.values()
    }
    assert {"fit", "plan", "sample", "label-steps", "best-of-n", "study", "serve-rm", "serve-policy", "export"} <= {
        words[0] for words in WITH_OPTIONS
    }
    assert any("ppo_32b_rm.yaml" in words for words in WITH_OPTIONS)


@pytest.mark.parametrize(
    "command",
    [
        "rlhf fit --config quikstart.yaml",
        "rlhf fit --config quickstart.yaml --model.advantag=rloo",
        "rlhf fit --config quickstart.yaml --trainer.max_epochs=x",
        "rlhf plan --config quickstart.yaml --device a100-80g",
        "rlhf sample --config tiny/sample.yaml --sample 3",
        "rlhf export --model x",
        "rlhf generate --config no.yaml --prompt x",
    ],
)
def test_a_wrong_one_would_be_told(command, capsys):
    with pytest.raises((Exception, SystemExit)) as refusal:
        resolve(words_of(command), capsys)
    assert not isinstance(refusal.value, SystemExit) or refusal.value.code
