"""``rlhf serve-rm``: what it refuses, and a whole life in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.serving import ServeRM

TOKEN = "0123456789abcdef"


def test_other_machines_need_a_token(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"other machines reach 0\.0\.0\.0, so a token is needed"):
        ServeRM("rm", host="0.0.0.0")
    with pytest.raises(ConfigError, match="other machines reach example"):
        ServeRM("rm", host="example")
    monkeypatch.setenv("RM_TOKEN", TOKEN + "\n")
    (tmp_path / "token").write_text(TOKEN)
    assert ServeRM("rm", host="0.0.0.0", token_env="RM_TOKEN").token == TOKEN
    assert ServeRM("rm", host="::", token_file=str(tmp_path / "token")).token == TOKEN
    assert [ServeRM("rm", host=host).token for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost")] == [None] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_env": "RM_TOKEN", "token_file": "x"}, "not both"),
        ({"token_env": "RM_UNSET"}, "environment variable RM_UNSET must hold a token of at least 16"),
        ({"token_env": "RM_SHORT"}, "at least 16"),
        ({"token_env": "RM_SPACED"}, "without spaces"),
        ({"token_file": "nowhere"}, "token file nowhere cannot be read"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"max_items": 0}, "max_items must be above 0"),
        ({"port": 70000}, "port must be in"),
        ({"queue": -1}, "queue at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(monkeypatch, tmp_path, settings, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RM_TOKEN", TOKEN)
    monkeypatch.setenv("RM_SHORT", "short")
    monkeypatch.setenv("RM_SPACED", "a b " * 10)
    with pytest.raises(ConfigError, match=said):
        ServeRM("rm", **settings)


def test_a_missing_model_and_a_taken_port_are_told_before_anything_loads(tmp_path, make_reward_model):
    import socket

    with pytest.raises(ModelSourceError, match=r"does not exist.*rlhf fit --config tiny/orm"):
        ServeRM(str(tmp_path / "rm")).run()
    folder = make_reward_model(tmp_path / "rm")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        job = ServeRM(str(folder), port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"cannot serve at 127\.0\.0\.1, port"):
            job.run()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_whole_life_ends_cleanly(tmp_path, make_reward_model, number):
    folder = make_reward_model(tmp_path / "rm")
    words = [sys.executable, "-m", "rlhf_lightning.cli", "serve-rm", f"--path={folder}", "--port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving folder sha256"), process.stderr.read()
            url = line.split(" at ")[1].split(" ")[0]
            with urllib.request.urlopen(f"{url}/health", timeout=20) as answer:
                assert json.load(answer)["status"] == "ok"
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
