"""The reward-model scorer against transformers' own forward over one text at a time."""

import copy
import logging
import pickle

import pytest
import torch
from judged_rollouts import rollout
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.scorers import FormatScorer, RewardModelScorer, combine

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def orm(tmp_path_factory, make_reward_model):
    return make_reward_model(tmp_path_factory.mktemp("rm") / "orm")


@pytest.fixture(scope="module")
def prm(tmp_path_factory, make_reward_model):
    return make_reward_model(tmp_path_factory.mktemp("rm") / "prm", seed=1, supervision="process")


@torch.no_grad()
def token_scores(folder, text, *, eos=True):
    """(T,) the head's output at every token of one text, unpacked."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * eos
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
    return model.score(hidden).squeeze(-1)


def test_an_outcome_score_is_the_heads_output_at_the_final_token(orm):
    scores = RewardModelScorer(str(orm))(rollout(["2", "=3\n=4", "2", "x"], [True, True, False, True], group=2))
    expected = [
        token_scores(orm, "0+0=2")[-1],
        token_scores(orm, "0+0==3\n=4")[-1],
        token_scores(orm, "1+1=2", eos=False)[-1],
        token_scores(orm, "1+1=x")[-1],
    ]
    assert scores.values.tolist() == pytest.approx([x.item() for x in expected], abs=1e-5)
    assert scores.values.dtype == torch.float32
    assert scores.parts["reward_model"].tolist() == scores.values.tolist()
    assert scores.failed.tolist() == [False] * 4


@pytest.mark.parametrize(
    ("aggregation", "formula"),
    [
        ("last", lambda z: z[-1]),
        ("min", lambda z: z.min()),
        ("product", lambda z: z.sigmoid().log().sum()),
        ("mean", lambda z: z.sigmoid().mean()),
    ],
)
def test_step_scores_are_aggregated_by_hand(prm, aggregation, formula):
    # characters are tokens: the first step of "3+2\n=5<eos>" ends at 2, the second's verdict is the final one, at 6
    scores = RewardModelScorer(str(prm), aggregation=aggregation)(rollout(["3+2\n=5", "7"]))
    first = token_scores(prm, "0+0=3+2\n=5")[4:][[2, 6]]
    second = token_scores(prm, "1+1=7")[4:][[1]]
    assert scores.values.tolist() == pytest.approx([formula(first).item(), formula(second).item()], abs=1e-5)


def test_the_question_goes_through_the_reward_models_own_chat_template(tmp_path, make_reward_model):
    folder = make_reward_model(tmp_path / "chat", template=TEMPLATE, chat=True, system="s")
    plain = RewardModelScorer(str(folder))(rollout(["2"]))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talk = RewardModelScorer(str(folder))(rollout(["2"], metadata={"messages": turns}))
    assert plain.values.item() == pytest.approx(token_scores(folder, "<system>s<user>0+0=<a>2")[-1].item(), abs=1e-5)
    assert talk.values.item() == pytest.approx(
        token_scores(folder, "<system>s<user>a<assistant>b<a>2")[-1].item(), abs=1e-5
    )


def test_neither_batch_mates_nor_the_budget_change_a_score(orm):
    texts = [str(i) * (i % 7 + 1) for i in range(100)]
    whole = RewardModelScorer(str(orm))(rollout(texts, group=4)).values
    small = RewardModelScorer(str(orm), token_budget=1)(rollout(texts, group=4)).values
    assert small.tolist() == pytest.approx(whole.tolist(), abs=1e-5)
    same = RewardModelScorer(str(orm))(rollout(["12", "3", "12", "12"], group=4)).values
    assert same[0] == same[2] == same[3] != same[1]


def test_what_cannot_be_scored_fails_with_the_declared_score(orm, caplog):
    with caplog.at_level(logging.WARNING):
        scores = RewardModelScorer(str(orm), failure_score=-3.0)(
            rollout(["1" * 61, "2", "", "", "1" * 60], [False, True, False, True, False])
        )
    assert scores.failed.tolist() == [True, False, True, False, False]  # 4 characters of prompt and 60 just fit
    assert scores.values[[0, 2]].tolist() == [-3.0, -3.0]
    assert scores.values[1].item() == pytest.approx(token_scores(orm, "1+1=2")[-1].item(), abs=1e-5)
    assert scores.values[3].item() == pytest.approx(token_scores(orm, "3+3=")[-1].item(), abs=1e-5)
    assert "2 of 5 responses could not be scored and got -3" in caplog.text


def test_a_rollout_of_failures_and_an_empty_one(orm):
    assert RewardModelScorer(str(orm))(rollout([""], [False])).values.tolist() == [-5.0]
    assert RewardModelScorer(str(orm))(rollout([])).values.shape == (0,)


def test_nothing_is_loaded_before_the_first_rollout_and_the_model_is_frozen(tmp_path, orm):
    RewardModelScorer(str(tmp_path / "not yet there"))
    scorer = RewardModelScorer(str(orm))
    scorer.check()
    assert scorer.judge._model is None
    first = scorer(rollout(["2"])).values
    assert not any(p.requires_grad for p in scorer.judge.model.parameters())
    assert not scorer.judge.model.training
    twin = pickle.loads(pickle.dumps(scorer))
    assert twin._judge is None and twin(rollout(["2"])).values.tolist() == first.tolist()


def test_a_mixture_adds_it_up(orm):
    alone = RewardModelScorer(str(orm))(rollout(["2", "x"]))
    mixture = combine([RewardModelScorer(str(orm), label="rm"), FormatScorer("[0-9]")], [0.5, 10.0])
    mixture.check()
    scores = mixture(rollout(["2", "x"]))
    assert scores.values.tolist() == pytest.approx([0.5 * alone.values[0].item() + 10, 0.5 * alone.values[1].item()])
    assert scores.parts["rm"].tolist() == alone.values.tolist()
    assert mixture.identity() == f"rm: {RewardModelScorer(str(orm)).identity()}"


def test_the_identity_changes_with_the_head_alone(tmp_path, make_reward_model):
    from safetensors.torch import load_file, save_file

    folder = make_reward_model(tmp_path / "rm")
    before = RewardModelScorer(str(folder)).identity()
    assert RewardModelScorer(str(folder)).identity() == before
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert RewardModelScorer(str(folder)).identity() != before


def test_a_missing_folder_names_the_nearest_and_the_command(tmp_path, orm):
    with pytest.raises(
        ModelSourceError, match=r"scorer reward_model: .*omr does not exist.*orm.*rlhf fit --config tiny/orm"
    ):
        RewardModelScorer(str(orm.with_name("omr"))).check()


def test_a_folder_without_a_head_names_the_command(tmp_path):
    from rlhf_lightning.models import EmbeddedArithmetic

    policy = EmbeddedArithmetic().path
    with pytest.raises(ModelSourceError, match=r"holds no reward model.*rlhf fit --config tiny/orm") as caught:
        RewardModelScorer(str(policy)).check()
    assert str(caught.value).count("rlhf fit") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"aggregation": "lst"}, r"aggregation: there is no 'lst'\. Did you mean 'last'"),
        ({"token_budget": 0}, "token_budget must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        RewardModelScorer("anywhere", **arguments)


@pytest.mark.parametrize("aggregation", ["min", "product", "mean"])
def test_steps_of_an_outcome_model_are_refused(orm, aggregation):
    with pytest.raises(ConfigError, match=f"'{aggregation}' needs the scores of steps.*supervision: outcome.*'last'"):
        RewardModelScorer(str(orm), aggregation=aggregation).check()


def test_deep_copies_score_alike(orm):
    scorer = RewardModelScorer(str(orm))
    assert copy.deepcopy(scorer)(rollout(["2"])).values.tolist() == scorer(rollout(["2"])).values.tolist()
