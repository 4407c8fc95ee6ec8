"""One whole step of a reward model: ours, packed with each prompt once, against TRL's ``RewardTrainer.train()``."""

import pytest
import torch

from parity.cases import EOS, PAD, assert_same_gradients, policy, random, summed_gradient
from parity.peers import QUIET, Recorder, constant
from rlhf_lightning.data.reward_batches import Supervision, reward_updates
from rlhf_lightning.functional import centering_loss, preference_loss
from rlhf_lightning.models.scalar import packed_scalars, scalar_model
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.modules._reward_parts import loss_parts
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup
from rlhf_lightning.types import Problem

EXACT = 1e-12
PROMPTS = [(3, 4, 5), (6, 7, 8, 9, 10), (11,), (12, 13, 14, 15)]
RESPONSES = [
    [(20, 21, 22, EOS), (23, EOS)],
    [(24, 25, EOS), (26, 27, 28, 29, EOS)],
    [(30, EOS), (31, 32, EOS), (33, 34, 35, 36, EOS)],
    [(37, 38, 39, EOS), (40, 41, EOS)],
]
PAIRS = [[Pair(0, 1, 0.5)], [Pair(1, 0)], [Pair(0, 1, 0.25), Pair(2, 1, 1.0)], [Pair(0, 1)]]
CENTERING = 0.1


def model():
    made = scalar_model(policy())
    torch.nn.init.normal_(made.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return made


def groups(ending: bool = True):
    for prompt, rows, pairs in zip(PROMPTS, RESPONSES, PAIRS, strict=True):
        responses = tuple(row if ending else row[:-1] for row in rows)
        judged = JudgedGroup(Problem("", ""), "chat", tuple(JudgedResponse("") for _ in rows), tuple(pairs))
        yield RenderedGroup(judged, prompt, responses, ((),) * len(rows))


def ours(ending: bool = True):
    scalar = model()
    (batches,) = reward_updates([list(groups(ending))], Supervision(), token_budget=25)
    assert len(batches) > 1
    losses = [
        sum(loss_parts(packed_scalars(scalar, batch.packed, batch.places), batch, centering=CENTERING).values())
        for batch in batches
    ]
    return float(sum(losses).detach()), summed_gradient(losses, scalar.named_parameters())


def theirs(tmp_path, monkeypatch, pad: str | None = None, **changed):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [
        {"chosen_ids": [*g.prompt, *g.responses[p.chosen]], "rejected_ids": [*g.prompt, *g.responses[p.rejected]],
         "margin": p.margin}
        for g in groups() for p in g.group.pairs
    ]  # fmt: skip
    settings = {"output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": len(rows), **QUIET}
    scalar, tokenizer = model(), character_tokenizer()
    optimizer = Recorder(scalar.named_parameters())
    tokenizer.pad_token = pad or tokenizer.pad_token
    trainer = RewardTrainer(
        model=scalar,
        args=RewardConfig(**settings, center_rewards_coefficient=CENTERING, **changed),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        optimizers=(optimizer, constant(optimizer)),
    )
    losses, backward = [], trainer.accelerator.backward
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss, **_: (losses.append(loss), backward(loss)))
    trainer.train()
    (gradients,) = optimizer.gradients
    return float(sum(losses).detach()), gradients


def test_margin_and_centring(tmp_path, monkeypatch):
    want, gradients = theirs(tmp_path, monkeypatch)
    got, own = ours()
    assert got == pytest.approx(want, rel=EXACT)
    assert_same_gradients(own, gradients, rel=EXACT)


def test_padding_with_the_end_token_moves_their_score_one_token_back(tmp_path, monkeypatch):
    """transformers scores the last token that is not padding; ours is the response's last, whatever it is."""
    eos = character_tokenizer().eos_token
    want, gradients = theirs(tmp_path, monkeypatch, pad=eos)
    got, own = ours(ending=False)
    assert got == pytest.approx(want, rel=EXACT)
    assert_same_gradients(own, gradients, rel=EXACT)
    assert ours()[0] != pytest.approx(want, rel=1e-3)


def test_the_functions_are_inside_compute_loss(tmp_path, peer):
    """``RewardTrainer.compute_loss`` itself, on a model that only hands out given scores."""
    from collections import defaultdict
    from types import SimpleNamespace

    from trl import RewardTrainer

    scores, margins = random(12, 1, seed=7).requires_grad_(), random(6, seed=8)
    accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=CENTERING),
        accelerator=accelerator,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list)},
    )
    given = {"margin": margins, "attention_mask": torch.full((12, 1), PAD + 1)}
    want = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), given)
    chosen, rejected = scores[:6, 0], scores[6:, 0]
    got = (preference_loss(chosen, rejected, margins) + CENTERING * centering_loss(chosen, rejected)).mean()
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (got, want)), rtol=1e-12, atol=1e-14)
