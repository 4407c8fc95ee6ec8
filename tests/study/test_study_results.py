"""Tables of a study that was written by hand."""

import pytest
from hand_made_study import make_study, write_metrics

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.study.drawing import at_base
from rlhf_lightning.study.results import ALL_TASKS, Results
from rlhf_lightning.study.state import load_study, plan_study, save_study
from rlhf_lightning.study.tables import lever_table


def policy(table, piece, task=ALL_TASKS):
    return table[(table["piece"] == piece) & (table["task"] == task)].iloc[0]


def test_policies_begin_and_end_with_what_was_measured(tmp_path):
    make_study(tmp_path)
    table = Results(load_study(tmp_path)).policies
    row = policy(table, "grid/algorithm-GRPO_samples-8_reward_model-small_seed-2")
    assert (row["algorithm"], row["samples"], row["policy"], row["seed"]) == ("GRPO", "8", "", "2")
    assert row["start"] == 0.3
    assert row["final"] == pytest.approx(0.3 + 0.3 + 0.01 + 0.002)
    assert row["gain"] == pytest.approx(row["final"] - 0.3)
    assert row["prompts_seen"] == 256
    assert row["seconds"] == 4 * 8 + 4  # rollouts and updates; measurements do not count
    assert len(table) == 24 + 6


def test_all_tasks_is_the_mean_of_the_tasks_not_of_their_prompts(tmp_path):
    make_study(tmp_path, tasks=("easy", "hard", "third"))
    table = Results(load_study(tmp_path)).policies
    own = [policy(table, "sizes/policy-s_seed-1", task)["start"] for task in ("easy", "hard", "third", ALL_TASKS)]
    assert own == pytest.approx([0.2, 0.4, 0.6, 0.4])


def test_training_has_a_row_a_rollout(tmp_path):
    make_study(tmp_path)
    table = Results(load_study(tmp_path)).training
    own = table[table["piece"] == "sizes/policy-l_seed-3"]
    assert own["reward"].dropna().tolist() == [0, 1, 2, 3]
    assert own["kl"].dropna().tolist() == [0, 0.5, 1, 1.5]
    assert own["length"].iloc[3] == 9.5
    assert own["accuracy"].notna().tolist() == [True, False, True, False, True]
    assert set(own["policy"]) == {"l"}


def test_curves_have_the_axes_of_their_piece(tmp_path):
    make_study(tmp_path)
    table = Results(load_study(tmp_path)).best_of_n
    own = table[(table["piece"] == "by_data/prompts-20_solutions-2") & (table["n"] == 16)]
    assert set(own["prompts"]) == {"20"}
    assert own["accuracy"].tolist() == pytest.approx([0.44, 0.54, 0.64, 0.34])
    assert len(table) == 12 * (2 + 4 + 2)


def test_what_differs_in_more_is_held_apart(tmp_path):
    """One part over an axis that no figure knows: each label's runs are paired among themselves."""
    axes, part = {"seed": [1, 2], "samples": [2, 8], "beta": [0.1, 0.2]}, {"command": "fit", "role": "policy"}
    study = plan_study(tmp_path, axes, {"runs": {**part, "over": ["samples", "beta", "seed"]}})
    save_study(study, axes, {"runs": {**part, "over": ["samples", "beta", "seed"]}})
    for piece in study.pieces.values():
        (tmp_path / piece.name).mkdir(parents=True)
        write_metrics(tmp_path / piece.name, dict(piece.at), ())
        study.finish(piece, 1.0)
    results = Results(load_study(tmp_path))
    assert set(results.policies["others"]) == {"beta 0.1", "beta 0.2"}
    step = lever_table(results).iloc[0]
    assert (step["axis"], step["pairs"]) == ("samples", 4)
    rows, told = at_base(results.policies, ["samples"])
    assert (len(rows), told) == (4, "beta 0.1")
    assert step["held"] == ""


def test_only_finished_pieces_count(tmp_path):
    study = make_study(tmp_path, parts=("sizes", "promised"))
    (tmp_path / "state" / "sizes" / "policy-s_seed-1.json").unlink()
    assert len(Results(load_study(tmp_path)).policies) == len(study.with_role("policy")) == 5


def test_several_models_and_generators_in_one_piece_are_held_apart(tmp_path):
    """Each is compared with itself: two supervisions, two generators, two models are four pairs, not sixteen."""
    make_study(tmp_path, parts=("by_supervision",))
    for number, label in enumerate(("outcome", "process")):
        lines = ["generator,scorer,aggregation,n,accuracy,low,high,prompts,pool"]
        for generator, shift in (("A", 0.0), ("B", 0.2)):
            lines += [
                f"{generator},{model},last,4,{0.1 * number + shift + own},0,1,8,4"
                for model, own in (("s", 0), ("l", 0.4))
            ]
        (tmp_path / "by_supervision" / f"supervision-{label}" / "best_of_n.csv").write_text("\n".join(lines) + "\n")
    step = lever_table(Results(load_study(tmp_path))).iloc[0]
    assert (step["axis"], step["pairs"]) == ("supervision", 4)
    assert (step["least"], step["most"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_a_policy_may_give_a_part_of_its_folder(tmp_path):
    parts = {"runs": {"command": "fit", "role": "policy", "over": ["seed"], "gives": "checkpoints/best.ckpt"}}
    study = plan_study(tmp_path, {"seed": [1]}, parts)
    (tmp_path / "runs" / "seed-1").mkdir(parents=True)
    write_metrics(tmp_path / "runs" / "seed-1", {"seed": "1"}, ())
    study.finish(study.pieces["runs/seed-1"], 1.0)
    assert len(Results(study).policies) == 1


def test_a_curve_that_is_gone_is_told(tmp_path):
    make_study(tmp_path, parts=("promised",))
    (tmp_path / "promised" / "reward_model-large" / "best_of_n.csv").unlink()
    with pytest.raises(RunFolderError, match=r"promised/reward_model-large is finished, but .* is gone"):
        _ = Results(load_study(tmp_path)).best_of_n


def test_a_policy_that_was_not_measured_is_told(tmp_path):
    make_study(tmp_path, parts=("sizes",))
    file = tmp_path / "sizes" / "policy-l_seed-2" / "metrics.csv"
    file.write_text("rollout,prompts_seen\n0,0\n")
    with pytest.raises(RunFolderError, match="sizes/policy-l_seed-2 measured no held_out/accuracy"):
        _ = Results(load_study(tmp_path)).policies


def test_a_folder_without_a_study_is_told(tmp_path):
    with pytest.raises(RunFolderError, match="holds no study"):
        load_study(tmp_path)
