"""What the README shows works: its short commands run, its configuration is one, its pictures are there.

That all of its commands are accepted is in tests/test_documented_commands.py.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.cli import main
from rlhf_lightning.models import TinyLlama

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("rlhf ") and "--ckpt_path" not in line}
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("rlhf generate", "rlhf plugins"))])
def test_other_commands_run(command, capsys):
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


def test_the_configuration_it_shows_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert set(yaml.safe_load(block)) == {"model", "data"}
    Path("shown.yaml").write_text(block, encoding="utf-8")
    rows = [{"question": f"{i}+1", "answer": str(i + 1)} for i in range(20)]
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    source = TinyLlama(hidden=32, layers=1, heads=2)
    source.load().save_pretrained("my-sft-model")
    source.tokenizer().save_pretrained("my-sft-model")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "shown.yaml", "--print_config"])
    assert stop.value.code in (0, None)
    assert "AsymmetricShrink" in capsys.readouterr().out


def test_its_pictures_and_pages_are_there():
    linked = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert linked
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_nothing_is_left_to_fill_in():
    assert "<!--" not in TEXT
