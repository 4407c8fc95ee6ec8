"""The job end to end on hand-made pools, with a reward model that scores by a text's last digit or not at all."""

import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread

from reference import best_of_n as slow
from rlhf_lightning.errors import ConfigError, DataError, ModelSourceError
from rlhf_lightning.evaluation import best_of_n
from rlhf_lightning.evaluation.best_of_n import BestOfN
from rlhf_lightning.scorers.judge import RewardJudge, aggregate_scores

POOL = {
    "1+1=": [("2", 1.0), ("1+0\n=3", 0.0), ("1\n=2", 1.0), ("4", 0.0)],
    "2+2=": [("4", 1.0), ("5", 0.0), ("6", 0.0), ("7", 0.0)],
    "3+4=": [("8", 0.0), ("8", 0.0), ("8", 0.0), ("9", 0.0)],
}


def write_pool(path: Path, pool=POOL, **changed) -> str:
    rows = [
        {"task": "sum", "id": q, "question": q, "answer": "", "sample": i, "response": r, "finished": True,
         "correct": c, "answer_found": r.split("=")[-1], **changed}
        for q, samples in pool.items()
        for i, (r, c) in enumerate(samples)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_reward_model):
    folder = tmp_path_factory.mktemp("models")
    make_reward_model(folder / "orm")
    make_reward_model(folder / "prm", seed=1, supervision="process")
    return folder


@pytest.fixture
def job(tmp_path, models):
    pool = write_pool(tmp_path / "pool.jsonl")

    def make(**changed):
        settings = {
            "pools": {"sft": pool},
            "reward_models": {"O": str(models / "orm"), "P": str(models / "prm")},
            "out": str(tmp_path / "out"),
            "device": "cpu",
        }
        return BestOfN(**{**settings, **changed})

    return make


def accuracy(table, scorer, n, aggregation=""):
    (row,) = table[(table.scorer == scorer) & (table.n == n) & (table.aggregation == aggregation)].itertuples()
    return row.accuracy


def test_every_number_is_that_of_looking_at_all_subsets(job, tmp_path, models):
    job(aggregations=["last", "min", "product", "mean"]).run()
    table = pd.read_parquet(tmp_path / "out" / "best_of_n.parquet")
    assert sorted(set(table.n)) == [1, 2, 4]
    correct = [[c for _, c in samples] for samples in POOL.values()]
    answers = [[r.split("=")[-1] for r, _ in samples] for samples in POOL.values()]
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    for n in (1, 2, 4):
        assert accuracy(table, "mean", n) == pytest.approx(3 / 12)
        assert accuracy(table, "oracle", n) == pytest.approx(sum(slow.pass_at_n(c, n) for c in correct) / 3)
        voted = [slow.majority_at_n(a, c, n) for a, c in zip(answers, correct, strict=True)]
        assert accuracy(table, "majority", n) == pytest.approx(sum(voted) / 3)
        for label, mode in [("O", "last"), *(("P", mode) for mode in ("last", "min", "product", "mean"))]:
            own = scores[scores.scorer == label].pivot(index="prompt", columns="sample", values=mode).to_numpy()
            chosen = [slow.best_of_n(list(s), c, n) for s, c in zip(own, correct, strict=True)]
            assert accuracy(table, label, n, mode) == pytest.approx(sum(chosen) / 3)
    assert set(table[table.scorer == "O"].aggregation) == {"last"}
    assert set(table.prompts) == {3} and set(table.pool) == {4}
    assert ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()


def test_kept_scores_are_the_models_own(job, tmp_path, models):
    job(aggregations=["last", "min"]).run()
    kept = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    for label, folder in (("O", "orm"), ("P", "prm")):
        judge = RewardJudge(str(models / folder))
        from rlhf_lightning.evaluation.pools import read_pool

        found = [s for row in judge.score(read_pool("sft", str(tmp_path / "pool.jsonl")).groups) for s in row]
        own = kept[kept.scorer == label]
        assert own.final.tolist() == pytest.approx([s.final for s in found])
        assert [list(steps) for steps in own.steps] == [pytest.approx(list(s.steps)) for s in found]
        assert set(own.model_identity) == {judge.identity}
        mode = "min" if judge.process else "last"
        assert own[mode].tolist() == pytest.approx(aggregate_scores(found, mode).tolist())
    assert kept[kept.scorer == "P"].steps.map(len).tolist()[:4] == [1, 2, 2, 1]
    assert kept[kept.scorer == "O"]["min"].isna().all()


def test_csv_and_parquet_agree_and_gains_are_paired(job, tmp_path):
    job().run()
    out = tmp_path / "out"
    table, same = pd.read_parquet(out / "best_of_n.parquet"), pd.read_csv(out / "best_of_n.csv")
    assert list(same.columns) == [
        "generator", "scorer", "aggregation", "n", "accuracy", "low", "high", "prompts", "pool",
    ]  # fmt: skip
    assert same.accuracy.tolist() == pytest.approx(table.accuracy.tolist())
    gains = pd.read_csv(out / "differences.csv")
    (row,) = gains[(gains.n == 4) & (gains.scorer == "O") & (gains.against == "P")].itertuples()
    assert row.gain == pytest.approx(accuracy(table, "O", 4, "last") - accuracy(table, "P", 4, "last"))


def test_the_picture_has_lines_in_it(job, tmp_path):
    job().run()
    picture = imread(tmp_path / "out" / "best_of_n.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600
    coloured = (picture[..., :3].max(-1) - picture[..., :3].min(-1) > 0.3).mean()
    assert coloured > 0.003


def test_the_terminal_shows_the_table(job, capsys):
    job().run()
    shown = capsys.readouterr().out
    assert "sft: accuracy" in shown and "3 prompts of 4 samples" in shown
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("mean")]
    assert line.split()[1:4] == ["25.0", "25.0", "25.0"]


class Asked:
    """Counts what reward models are asked."""

    def __init__(self, monkeypatch):
        self.times = []
        real = RewardJudge.score

        def score(judge, groups, on_scored=None):
            self.times.append(judge.folder.path.name)
            return real(judge, groups, on_scored)

        monkeypatch.setattr(RewardJudge, "score", score)


def test_what_is_scored_is_not_scored_again(job, tmp_path, monkeypatch, make_reward_model, models):
    asked = Asked(monkeypatch)
    job(reward_models={"O": str(models / "orm")}).run()
    first = pd.read_csv(tmp_path / "out" / "best_of_n.csv")
    job().run()
    assert asked.times == ["orm", "prm"]  # the second run asks the new one only
    again = pd.read_csv(tmp_path / "out" / "best_of_n.csv")
    kept = again[again.scorer != "P"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)
    job(aggregations=["min", "last"], n=[3]).run()
    assert asked.times == ["orm", "prm"]
    other = make_reward_model(tmp_path / "other", seed=5)
    job(reward_models={"O": str(other)}).run()
    assert asked.times == ["orm", "prm", "other"]  # another model under the same name
    kept = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    kept["steps"] = [
        [value + 1.0 for value in steps] for steps in kept.steps
    ]  # the last step read elsewhere, as before
    kept.to_parquet(tmp_path / "out" / "scores.parquet", index=False)
    job(reward_models={"O": str(other), "P": str(models / "prm")}).run()
    assert asked.times == ["orm", "prm", "other", "prm"]
    asked.times.pop()
    write_pool(tmp_path / "pool.jsonl", {"1+1=": [("2", 1.0), ("3", 0.0)]})
    job(reward_models={"O": str(other)}).run()
    assert asked.times == ["orm", "prm", "other", "other"]  # another pool under the same name
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(scores[scores.scorer == "O"]) == 2


def test_without_reward_models_the_baselines_stand_alone(job, tmp_path):
    job(reward_models=None).run()
    table = pd.read_csv(tmp_path / "out" / "best_of_n.csv")
    assert set(table.scorer) == {"mean", "majority", "oracle"}


def test_samples_that_cannot_be_scored_are_never_chosen(job, tmp_path, capsys):
    pool = write_pool(tmp_path / "long.jsonl", {"1+1=": [("1" * 80, 1.0), ("2", 0.0), ("3", 0.0)]})
    job(pools={"sft": pool}, reward_models={"O": str(job().reward_models["O"])}, n=[2, 3]).run()
    assert "O could not score 1 samples of sft" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "out" / "best_of_n.parquet")
    assert accuracy(table, "O", 2, "last") == accuracy(table, "O", 3, "last") == 0.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pools": {}}, "pools: at least one"),
        ({"aggregations": []}, "aggregations: at least one"),
        ({"aggregations": ["prod"]}, r"there is no 'prod'\. Did you mean 'product'"),
        ({"n": [0]}, "sizes of at least 1"),
        ({"reward_models": {"oracle": "x"}}, "'oracle' is the name of a line of its own"),
        ({"bootstrap": 0}, "must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(job, changed, said):
    with pytest.raises(ConfigError, match=said):
        job(**changed)


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(self):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rlhf_lightning.models.reward_folder.RewardModelFolder.load", load)


@pytest.mark.usefixtures("nothing_loads")
class TestRefusedBeforeAnyModelLoads:
    def test_more_than_the_pool_holds(self, job):
        with pytest.raises(ConfigError, match=r"n: 8 is more than the 4 samples.*'sft'.*--samples=8"):
            job(n=[2, 8]).run()

    def test_pools_without_a_verdict(self, job, tmp_path):
        with pytest.raises(DataError, match=r"pools\.sft: .*line 1: no 'correct'.*rlhf sample"):
            job(pools={"sft": write_pool(tmp_path / "bare.jsonl", correct=None)}).run()
        with pytest.raises(DataError, match="'correct' must be a finite number, got 'yes'"):
            job(pools={"sft": write_pool(tmp_path / "bad.jsonl", correct="yes")}).run()

    def test_prompts_of_different_sizes(self, job, tmp_path):
        uneven = {"1+1=": [("2", 1.0), ("3", 0.0)], "2+2=": [("4", 1.0)]}
        with pytest.raises(DataError, match=r"problem '2\+2=' has 1 samples, but '1\+1=' has 2"):
            job(pools={"sft": write_pool(tmp_path / "uneven.jsonl", uneven)}).run()

    def test_a_prompt_that_comes_twice(self, job, tmp_path):
        path = tmp_path / "twice.jsonl"
        text = Path(write_pool(path, {"a": [("2", 1.0)], "b": [("2", 1.0)]})).read_text()
        path.write_text(text + text.splitlines()[0] + "\n")
        with pytest.raises(DataError, match=r"line 3: problem 'a' had its solutions before, up from line 1"):
            job(pools={"sft": str(path)}).run()

    def test_missing_files_and_folders_name_the_nearest(self, job, tmp_path, models):
        with pytest.raises(DataError, match=r"pools\.sft: .*no such file.*'pool.jsonl'"):
            job(pools={"sft": str(tmp_path / "poool.jsonl")}).run()
        with pytest.raises(ModelSourceError, match=r"reward_models\.O: .*did you mean .*orm.*rlhf fit"):
            job(reward_models={"O": str(models / "orrm")}).run()

    def test_steps_of_outcome_models_alone(self, job, models):
        with pytest.raises(ConfigError, match=r"aggregations: min need.*supervision: outcome.*use \[last\]"):
            job(reward_models={"O": str(models / "orm")}, aggregations=["min"]).run()


def test_an_outcome_model_beside_a_process_model_is_told_of(job, capsys):
    job(aggregations=["min"]).run()
    assert "O is an outcome model: only its final score means anything (last)" in capsys.readouterr().out


def test_a_file_of_something_else_in_the_out_folder(job, tmp_path):
    (tmp_path / "out").mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "out" / "scores.parquet")
    with pytest.raises(DataError, match="no column 'generator'"):
        job().run()


def test_an_answer_is_the_last_line_where_nobody_looked(tmp_path):
    from rlhf_lightning.evaluation.pools import read_pool

    path = tmp_path / "p.jsonl"
    rows = [{"id": "a", "question": "q", "response": text, "correct": True} for text in ("x\n =2 \n\n", " ", "3")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = read_pool("g", str(path))
    assert pool.answers == (("=2", None, "3"),)
    assert pool.correct.tolist() == [[1.0, 1.0, 1.0]]


def test_the_command_runs_from_a_configuration(tmp_path, monkeypatch, models, capsys):
    from rlhf_lightning.cli import main

    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "pool.jsonl")
    text = f"job: best-of-n\npools: {{my pool: pool.jsonl}}\nreward_models: {{O: {models / 'orm'}}}\nout: o\n"
    (tmp_path / "b.yaml").write_text(text)
    assert main(["best-of-n", "--config", "b.yaml", "--n=[1,4]"]) == 0
    assert set(pd.read_csv("o/best_of_n.csv").n) == {1, 4}
    assert best_of_n.FIGURE_FILE in capsys.readouterr().out
    assert main(["best-of-n", "--config", "b.yaml", "--n=[5]"]) == 2
    assert "n: 5 is more than the 4 samples" in capsys.readouterr().err
