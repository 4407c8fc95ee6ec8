"""The gradient of a reward-model update is the same packed, padded, and for any split into micro-batches (float64)."""

import functools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf_lightning.data.reward_batches import Denominators, Supervision, denominators_of, reward_updates
from rlhf_lightning.models.scalar import packed_scalars, scalar_model
from rlhf_lightning.modules._reward_parts import loss_parts
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup, Step
from rlhf_lightning.types import Problem

EOS = 2


@pytest.fixture(autouse=True)
def in_float64():
    """Weights are float32 in training; here their rounding would hide what is tested."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@functools.cache
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=EOS, bos_token_id=1, eos_token_id=EOS,
        initializer_range=0.3,
    )  # fmt: skip
    scalar = scalar_model(AutoModelForCausalLM.from_config(config).double()).double()
    torch.nn.init.normal_(scalar.score.weight)
    for module in scalar.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(rms_norm, module)
    return scalar


def rms_norm(module, x):
    """In float64; the model's own rounds to float32, which would hide what is tested."""
    return module.weight * x * (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def group(task, prompt, responses, pairs=()):
    """``responses``: tokens, correct, and (end, label) of each step."""
    judged = tuple(
        JudgedResponse("", correct, tuple(Step(0, label) for _, label in steps)) for _, correct, steps in responses
    )
    ends = tuple(tuple(end for end, _ in steps) for _, _, steps in responses)
    tokens = tuple(tuple(row) for row, _, _ in responses)
    return RenderedGroup(JudgedGroup(Problem(task, ""), task, judged, pairs), tuple(prompt), tokens, ends)


GROUPS = [
    group("math", [3, 4, 5], [
        ([20, 21, 22, 23, EOS], 0.0, [(1, 1.0), (3, 0.25)]),
        ([24, 25, 26], None, [(0, 1.0), (2, 0.0)]),  # cut off: the last step is the final place
        ([27, EOS], 1.0, [(0, 1.0)]),
        ([28, 29, 30, EOS], 1.0, [(1, None), (2, 1.0)]),
    ]),
    group("chat", [6, 7], [([20, EOS], None, []), ([21, 22, EOS], None, [])], (Pair(1, 0, 0.5),)),
    group("code", [8], [([31, 32, EOS], 1.0, []), ([33, 34], 0.0, []), ([35, EOS], None, [])]),
    group("chat", [9, 10, 11, 12], [([22, 23, EOS], None, []), ([24, EOS], None, []), ([25, 26, EOS], None, [])],
          (Pair(0, 1), Pair(2, 1, 1.0))),
]  # fmt: skip
SETTINGS = {
    "outcome": Supervision(),
    "process": Supervision(process=True, correctness_weight=0.7, preference_weight=1.3, task_weights={"math": 2.0}),
    "by response": Supervision(process=True, by_response=True),
}


def score(prompt, tokens, place):
    """By transformers' ordinary forward of one sequence."""
    ids = torch.tensor([[*prompt, *tokens]])
    return model().score(model().base_model(input_ids=ids, use_cache=False).last_hidden_state)[
        0, len(prompt) + place, 0
    ]


def labelled(rendered, i, process):
    """(place, label) of each supervised place of a response, written out."""
    response, last = rendered.group.responses[i], len(rendered.responses[i]) - 1
    steps = [(e, s.label) for e, s in zip(rendered.step_ends[i], response.steps, strict=True)] if process else []
    final = response.correct
    if final is None and steps:
        final = steps[-1][1]
    return [(e, y) for e, y in [*((e, y) for e, y in steps if e != last), (last, final)] if y is not None]


def by_hand(groups, supervision, centering=0.0):
    """Eq. 2 as loops over single sequences."""
    entropies, preferences = [], []
    for rendered in groups:
        weight = supervision.task_weights.get(rendered.group.task, 1.0)
        for i, tokens in enumerate(rendered.responses):
            places = labelled(rendered, i, supervision.process)
            losses = []
            for place, y in places:
                p = torch.sigmoid(score(rendered.prompt, tokens, place))
                losses.append(-(y * p.log() + (1 - y) * (1 - p).log()) * weight)
            entropies += [sum(losses) / len(losses)] if supervision.by_response and losses else losses
        for pair in rendered.group.pairs:
            c, r = (
                score(rendered.prompt, rendered.responses[j], len(rendered.responses[j]) - 1)
                for j in (pair.chosen, pair.rejected)
            )
            preferences.append(weight * (-torch.sigmoid(c - r - pair.margin).log() + centering * (c + r) ** 2))
    loss = supervision.correctness_weight * sum(entropies) / len(entropies)
    return loss + supervision.preference_weight * sum(preferences) / len(preferences)


def gradient_of(losses):
    parameters = list(model().parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    value = 0.0
    for loss in losses:
        value += loss.item()
        for part, grad in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if grad is not None:
                part += grad
    return value, torch.cat([part.flatten() for part in total])


def packed_losses(batches, centering=0.0):
    for batch in batches:
        scores = packed_scalars(model(), batch.packed, batch.places)
        yield sum(loss_parts(scores, batch, centering=centering).values())


def assert_same(got, want):
    assert math.isclose(got[0], want[0], rel_tol=1e-9)
    assert (got[1] - want[1]).norm() <= 1e-9 * want[1].norm()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("centering", [0.0, 0.1])
def test_packed_is_the_formula_over_single_sequences(name, centering):
    ((batch,),) = reward_updates([GROUPS], SETTINGS[name], token_budget=1000)
    want = gradient_of([by_hand(GROUPS, SETTINGS[name], centering)])
    assert_same(gradient_of(packed_losses([batch], centering)), want)


@pytest.mark.parametrize("name", SETTINGS)
def test_any_budget_gives_the_same_gradient(name):
    found, counts = [], []
    for budget in (1000, 40, 25, 17, 13):
        (batches,) = reward_updates([GROUPS], SETTINGS[name], token_budget=budget)
        assert max(batch.tokens for batch in batches) <= budget
        counts.append(len(batches))
        found.append(gradient_of(packed_losses(batches)))
    assert len(set(counts)) >= 4
    for other in found[1:]:
        assert_same(other, found[0])


def test_updates_of_unequal_size_share_k_and_idle_micro_batches_change_nothing():
    sizes = [GROUPS, GROUPS[1:2]]
    batches = reward_updates(sizes, SETTINGS["process"], token_budget=13)
    assert len({len(made) for made in batches}) == 1 and len(batches[0]) > 1
    assert {batch.micro_batches for made in batches for batch in made} == {len(batches[0])}
    assert [made[0].update for made in batches] == [0, 1]
    alone = reward_updates([GROUPS[1:2]], SETTINGS["process"], token_budget=1000)[0]
    assert_same(gradient_of(packed_losses(batches[1])), gradient_of(packed_losses(alone)))


def test_ranks_share_the_denominators():
    supervision = SETTINGS["process"]
    ranks = [GROUPS[:2], GROUPS[2:]]
    counts = [denominators_of(groups, supervision) for groups in ranks]
    whole = Denominators(sum(c.labels for c in counts), sum(c.pairs for c in counts))
    parts = [reward_updates([g], supervision, token_budget=1000, denominators=[whole])[0] for g in ranks]
    both = gradient_of(packed_losses([batch for batches in parts for batch in batches]))
    assert_same(both, gradient_of(packed_losses(reward_updates([GROUPS], supervision, token_budget=1000)[0])))
