"""Runs that are repeated give the same bits wherever their tensors lie in memory."""

import os
import subprocess
import sys

import pytest
import torch
from tests.modules.conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from tests.samplers.sampler_models import prompts as questions
from tests.samplers.sampler_models import random_model
from tests.shifted import LINE, ShiftedAllocations, shifted

from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.functional._rounding import differences, is_intel, rounding_of_this_process
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.samplers.decoders._whole import ordinary_copy

MODULES = {
    "grpo": lambda: grpo(scorers=[EvenTokens()], kl_loss=KLTerm("k3", Fixed(0.1))),
    "ppo": lambda: ppo(scorers=[EvenTokens()], kl_reward=KLTerm("k1", Fixed(0.1))),
}


@pytest.mark.parametrize("shape", [(1,), (7,), (33, 5), (2, 3, 64)])
def test_tensors_begin_at_cache_lines_and_are_really_shifted(shape):
    """The first is PyTorch's doing, and what the promise stands on."""
    for _ in range(20):
        assert torch.empty(shape).data_ptr() % LINE == 0
    x = torch.randn(shape)
    assert shifted(x, 4).data_ptr() % LINE == 4 and torch.equal(shifted(x, 4), x)
    with ShiftedAllocations(0) as mode:
        y = x + 1
    assert mode.moved == 1 and torch.equal(y, x + 1) and y.storage_offset() > 0


@pytest.mark.parametrize(("architecture", "decoder"), [("llama", "auto"), ("llama", "hf"), ("gpt2", "auto")])
def test_samples(architecture, decoder):
    def draw():
        sampler = InProcessSampler(max_new_tokens=6, decoder=decoder)
        sampler.bind(random_model(architecture), character_tokenizer())
        sampler.sync(0)
        drawn = sampler(questions("1+2=", "13+4=", "a"), samples_per_prompt=2, seeds=torch.arange(6))
        return drawn.tokens, drawn.logprobs

    with ShiftedAllocations(0, step=0):
        plain = draw()
    for seed in range(3):
        with ShiftedAllocations(seed) as mode:
            moved = draw()
        assert mode.moved > 100
        assert all(map(torch.equal, moved, plain))


@pytest.mark.parametrize("name", MODULES)
def test_training(tmp_path, name):
    """One rollout and its updates: sampling, scoring, old and reference log-probs, critic, gradients, AdamW."""

    def train():
        module = MODULES[name]()
        trainer(tmp_path).fit(module, datamodule=prompts())
        return [p.detach().clone() for p in module.parameters()]

    with ShiftedAllocations(0, step=0):
        plain = train()
    with ShiftedAllocations(5) as mode:
        moved = train()
    assert mode.moved > 1000
    assert all(map(torch.equal, moved, plain))


@pytest.mark.parametrize("copied_inside", [False, True])
def test_a_copy_computes_what_the_model_does(copied_inside):
    """Whatever is made of a model to generate with; made in inference mode, some products would be folded otherwise."""
    model = random_model("gpt2")
    with torch.inference_mode(copied_inside):
        copy = ordinary_copy(model)
    x = torch.randn(3, 5, 32)[:, :1]  # rows that are not next to each other
    with torch.inference_mode():
        assert torch.equal(copy.lm_head(x), model.lm_head(x))
    assert not any(p.is_inference() for p in copy.parameters())


def test_what_is_said_of_other_rounding():
    here = rounding_of_this_process()
    assert differences(here, here) == "" == differences(here, {})
    assert differences(here, here | {"threads": 64}) == f"threads: 64 there, {torch.get_num_threads()} here"


@pytest.mark.parametrize(
    ("said", "intel"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t: fpu avx2 fma\n\nvendor_id: other", True),
        ("vendor_id\t: GenuineIntel\nflags\t: fpu sse4_2\n\n", False),
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx2 fma\n\n", False),
        ("CPU implementer\t: 0x41\n", False),
    ],
)
def test_mkl_is_asked_for_equal_results_on_intels_own_processors(tmp_path, said, intel):
    (tmp_path / "cpuinfo").write_text(said)
    assert is_intel(tmp_path / "cpuinfo") is intel


@pytest.mark.skipif(not (torch.backends.mkl.is_available() and is_intel()), reason="MKL's setting for Intel")
@pytest.mark.parametrize(("environment", "holds"), [({}, "AUTO,STRICT"), ({"MKL_CBWR": "AVX2"}, "AVX2")])
def test_what_the_user_has_set_stands(environment, holds):
    inherited = {k: v for k, v in os.environ.items() if k != "MKL_CBWR"}
    program = "import os, rlhf_lightning.functional; print(os.environ['MKL_CBWR'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=inherited | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == holds


def test_what_a_checkpoint_keeps_is_plain():
    """Checkpoints are read as tensors and plain values alone."""
    assert {type(value) for value in rounding_of_this_process().values()} <= {str, int}
