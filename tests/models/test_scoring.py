"""Scores against transformers' own classifier over padded batches: the same for any batch, padding and end."""

import pytest
import torch
import transformers

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.scalar import scalar_model
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, RenderedGroup, Step
from rlhf_lightning.types import Problem

EOS = PAD = 2  # pad is eos, and eos also stands inside a response
GROUPS = [
    ([3, 4, 5, 6], [[20, 21, 22, EOS], [23, EOS], [24, 25, 26, 27]], [[1], [0], [1, 3]]),
    ([7], [[30]], [[0]]),
    ([9, EOS, 11], [[32, EOS, 33, EOS, EOS], [20, 21, 22, EOS]], [[0, 2], [2]]),
]


def rendered(groups=GROUPS):
    result = []
    for index, (prompt, responses, ends) in enumerate(groups):
        judged = tuple(JudgedResponse("", steps=tuple(Step(i) for i in range(len(e)))) for e in ends)
        group = JudgedGroup(Problem(str(index), ""), "t", judged)
        result.append(RenderedGroup(group, tuple(prompt), tuple(map(tuple, responses)), tuple(tuple(e) for e in ends)))
    return result


@pytest.fixture(scope="module", params=["llama", "qwen2", "glm", "glm4"])
def model(request):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": PAD, "eos_token_id": EOS,
    }  # fmt: skip
    kinds = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "glm": transformers.GlmConfig,
        "glm4": transformers.Glm4Config,
    }
    more = {"head_dim": 8} if "glm" in request.param else {}
    causal = transformers.AutoModelForCausalLM.from_config(kinds[request.param](**shape, **more))
    scalar = scalar_model(causal)
    torch.nn.init.normal_(scalar.score.weight)
    return scalar


def sequences():
    """Prompt with response, and the explicit places: each step's end, then the final token."""
    return [
        (prompt + response, [len(prompt) + e for e in [*ends, len(response) - 1]])
        for prompt, responses, all_ends in GROUPS
        for response, ends in zip(responses, all_ends, strict=True)
    ]


@torch.no_grad()
def padded_scores(model, side):
    """By transformers' own forward over one padded batch, the head applied at the explicit places."""
    rows = sequences()
    width = max(len(tokens) for tokens, _ in rows)
    scores = []
    lead = [width - len(tokens) if side == "left" else 0 for tokens, _ in rows]
    tail = [width - len(tokens) - before for (tokens, _), before in zip(rows, lead, strict=True)]
    ids = torch.tensor([[PAD] * a + tokens + [PAD] * b for (tokens, _), a, b in zip(rows, lead, tail, strict=True)])
    mask = torch.tensor([[0] * a + [1] * len(t) + [0] * b for (t, _), a, b in zip(rows, lead, tail, strict=True)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    for row, ((_, places), before) in enumerate(zip(rows, lead, strict=True)):
        scores.append([float(model.score(hidden[row, before + place])) for place in places])
    return scores


def flat(scores):
    return [[*score.steps, score.final] for group in scores for score in group]


def assert_same(got, want):
    assert [len(row) for row in got] == [len(row) for row in want]
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [8, 12, 1000])
def test_equal_to_the_padded_forward(model, side, budget):
    got = flat(score_groups(model, rendered(), process=True, token_budget=budget))
    assert_same(got, padded_scores(model, side))


def test_alone_and_together(model):
    together = flat(score_groups(model, rendered(), process=True, token_budget=1000))
    alone = [
        flat(score_groups(model, rendered([(prompt, [response], [ends])]), process=True, token_budget=1000))[0]
        for prompt, responses, all_ends in GROUPS
        for response, ends in zip(responses, all_ends, strict=True)
    ]
    assert_same(alone, together)


def test_equal_to_the_classifiers_own_pooled_score_where_that_finds_the_end(model):
    tokens = torch.tensor([GROUPS[0][0] + GROUPS[0][1][2]])  # cut off, and without a pad token inside
    with torch.no_grad():
        want = float(model(input_ids=tokens).logits)
    (group,) = score_groups(model, rendered(GROUPS[:1]), process=False, token_budget=1000)
    assert group[2].final == pytest.approx(want, abs=1e-5)


def test_an_outcome_model_scores_no_steps(model):
    scores = score_groups(model, rendered(), process=False, token_budget=1000)
    assert all(score.steps == () for group in scores for score in group)
    both = score_groups(model, rendered(), process=True, token_budget=1000)
    assert [s.final for g in scores for s in g] == pytest.approx([s.final for g in both for s in g], abs=1e-5)


def test_the_model_is_left_in_its_mode_without_gradients(model):
    model.train()
    score_groups(model, rendered(), process=True, token_budget=1000)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()


def test_no_groups_have_no_scores(model):
    assert score_groups(model, [], process=True, token_budget=8) == []


def test_a_budget_that_is_too_small_names_the_problem(model):
    with pytest.raises(ConfigError, match="7 is below 8: problem 0 of task t has a prompt of 4 tokens and a response"):
        score_groups(model, rendered(), process=True, token_budget=7)


def test_a_step_that_ends_at_the_final_token_has_the_final_score(model):
    """Bit for bit, so that whoever makes one number of them sees that the verdict is there once."""
    whole = [
        RenderedGroup(g.group, g.prompt, g.responses, tuple((len(r) - 1,) for r in g.responses)) for g in rendered()
    ]
    for group in score_groups(model, whole, process=True, token_budget=100):
        for score in group:
            assert score.steps == (score.final,) == score.places
    (other, *_), *_ = score_groups(model, rendered(), process=True, token_budget=100)
    assert other.places == (*other.steps, other.final)
