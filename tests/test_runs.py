import json
import math
from pathlib import Path

import pytest

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.runs import compare, load_run

TABLE = "rollout,prompts_seen,held_out/accuracy,reward/raw_mean\n0,0,0.31,0.1\n1,64,,0.30000000000000004\n"


def make_run(parent: Path, name: str, table: str = TABLE) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(table)
    return folder


def test_metrics_samples_and_config_of_a_run(tmp_path):
    folder = make_run(tmp_path, "quickstart")
    samples = [{"rollout": 0, "response": "a\u2028b", "reward": 1.0}, {"rollout": 1, "response": "中", "reward": None}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
    (folder / "config.yaml").write_text("seed: 3\ntrainer: {max_epochs: 2}\n")
    run = load_run(str(folder))
    assert run.name == "quickstart"
    assert run.metrics["rollout"].tolist() == [0, 1]
    assert run.metrics["reward/raw_mean"].tolist() == [0.1, 0.30000000000000004]
    assert math.isnan(run.metrics["held_out/accuracy"][1])
    assert run.samples["response"].tolist() == ["a\u2028b", "中"]
    assert run.config == {"seed": 3, "trainer": {"max_epochs": 2}}


@pytest.mark.parametrize("torn", ["2", "2,128,0.5,0.", "2,128,0.5,0.25"])
def test_a_torn_last_line_is_left_out_with_a_warning(tmp_path, torn):
    run = load_run(make_run(tmp_path, "r", TABLE + torn))
    with pytest.warns(UserWarning, match=r"metrics\.csv: left out the last line"):
        assert run.metrics["rollout"].tolist() == [0, 1]


def test_a_torn_last_sample_is_left_out_even_inside_a_character(tmp_path):
    folder = make_run(tmp_path, "r")
    whole = '{"rollout": 0, "response": "中"}\n'.encode()
    (folder / "samples.jsonl").write_bytes(whole + whole[:28])
    with pytest.warns(UserWarning, match="left out the last line"):
        assert load_run(folder).samples["response"].tolist() == ["中"]


def test_half_a_surrogate_in_a_response_is_replaced(tmp_path):
    folder = make_run(tmp_path, "r")
    (folder / "samples.jsonl").write_text(r'{"response": "a\ud800b", "tokens": ["a", "\ud800", "\ud83d\ude00"]}' + "\n")
    (sample,) = load_run(folder).samples.to_dict("records")
    assert sample == {"response": "a\ufffdb", "tokens": ["a", "\ufffd", "😀"]}


def test_broken_lines_are_named_by_number(tmp_path):
    folder = make_run(tmp_path, "r", TABLE + "2,128\n")
    (folder / "samples.jsonl").write_text('{"rollout": 0}\n[1]\n')
    with pytest.raises(RunFolderError, match=r"metrics\.csv, line 4: 2 fields, but the header has 4"):
        _ = load_run(folder).metrics
    with pytest.raises(RunFolderError, match=r"samples\.jsonl, line 2: not a JSON object"):
        _ = load_run(folder).samples
    (folder / "samples.jsonl").write_text('{"rollout": 0}\n{"rollout"}\n')
    with pytest.raises(RunFolderError, match=r"samples\.jsonl, line 2: not JSON"):
        _ = load_run(folder).samples


def test_a_wrong_name_is_answered_with_the_nearest_run(tmp_path):
    make_run(tmp_path, "quickstart")
    make_run(tmp_path, "other")
    with pytest.raises(RunFolderError, match=r"no run folder .*quikstart\. Did you mean 'quickstart'"):
        load_run(tmp_path / "quikstart")


def test_the_folder_of_runs_is_not_a_run(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    with pytest.raises(RunFolderError, match=r"has no metrics\.csv\. It holds these runs: a, b"):
        load_run(tmp_path)


def test_missing_and_malformed_files_are_named(tmp_path):
    run = load_run(make_run(tmp_path, "r"))
    with pytest.raises(RunFolderError, match=r"has no samples\.jsonl"):
        _ = run.samples
    with pytest.raises(RunFolderError, match=r"has no config\.yaml"):
        _ = run.config
    (run.path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(RunFolderError, match="is not YAML"):
        _ = run.config


def test_compare_puts_runs_side_by_side(tmp_path):
    first = load_run(make_run(tmp_path, "first"))
    second = load_run(make_run(tmp_path, "second", "rollout,prompts_seen,reward/raw_mean\n1,32,0.5\n4,128,0.75\n"))
    table = compare([first, second], "reward/raw_mean")
    assert table.index.tolist() == [0, 1, 4] and table.index.name == "rollout"
    assert table["first"].tolist()[:2] == [0.1, 0.30000000000000004] and math.isnan(table["first"][4])
    assert table["second"].tolist()[1:] == [0.5, 0.75] and math.isnan(table["second"][0])
    assert compare([first, second], "reward/raw_mean", against="prompts_seen").index.tolist() == [0, 32, 64, 128]


def test_compare_tells_runs_of_one_name_apart(tmp_path):
    runs = [load_run(make_run(tmp_path / side, "seed0")) for side in ("grpo", "rloo")]
    table = compare(runs, "reward/raw_mean")
    assert table.columns.tolist() == [str(tmp_path / "grpo" / "seed0"), str(tmp_path / "rloo" / "seed0")]


def test_compare_names_the_nearest_column(tmp_path):
    run = load_run(make_run(tmp_path, "r"))
    with pytest.raises(RunFolderError, match=r"no metric 'held_out/acuracy'\. Did you mean 'held_out/accuracy'"):
        compare([run], "held_out/acuracy")
