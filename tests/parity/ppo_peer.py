"""TRL's ``PPOTrainer`` (version 1.12, by PYTHONPATH) on the cases of ``ppo_case``: one update, written as tensors.

Run as ``python ppo_peer.py OUT.safetensors``. Generation and reward model are replaced by given responses and scores.
"""

import sys
import tempfile
import warnings

import torch
from safetensors.torch import save_file

from parity import ppo_case as case_of
from parity.cases import PAD, TEXTS, G, T, policy
from parity.peers import QUIET, Recorder, constant
from rlhf_lightning.models.tiny import character_tokenizer


def settings(folder: str):
    from trl.experimental.ppo import PPOConfig

    rows = len(TEXTS) * G
    return PPOConfig(
        output_dir=folder,
        total_episodes=rows,
        per_device_train_batch_size=rows,
        local_rollout_forward_batch_size=rows,
        num_ppo_epochs=1,
        num_mini_batches=1,
        num_sample_generations=0,
        response_length=T,
        stop_token="eos",
        missing_eos_penalty=None,
        temperature=case_of.TEMPERATURE - 1e-7,
        kl_coef=case_of.KL,
        kl_estimator="k1",
        cliprange=case_of.CLIP,
        cliprange_value=case_of.VALUE_CLIP,
        vf_coef=case_of.VALUE_COEFFICIENT,
        gamma=case_of.GAMMA,
        lam=case_of.LAM,
        whiten_rewards=False,
        **QUIET,
    )


def query_responses(made):
    """(B, P+T) prompts padded on the left, responses on the right."""
    width = max(len(prompt.tokens) for prompt in made.prompts)
    rows = []
    for i, response in enumerate(made.tokens):
        prompt = made.prompt_of(i).tokens
        rows.append(torch.cat([torch.tensor([PAD] * (width - len(prompt)) + list(prompt)), response]))
    return torch.stack(rows)


def run(case: str) -> dict[str, torch.Tensor]:
    from datasets import Dataset
    from trl.experimental.ppo import ppo_trainer as theirs

    made, seen = case_of.rollout_of(case), {}
    rows, width = query_responses(made), max(len(prompt.tokens) for prompt in made.prompts)
    reward_model, tokenizer = case_of.critic(), character_tokenizer()
    own_reward, own_whiten = theirs.get_reward, theirs.masked_whiten

    def get_reward(model, *args):
        if model is reward_model:
            return None, torch.tensor(case_of.SCORES), None
        values, *others = own_reward(model, *args)
        values[:, width - 1 : -1, 0] += case_of.value_noise()
        return values, *others

    def whiten(values, mask, **kwargs):
        seen["advantages"] = values.clone()
        seen["whitened"] = own_whiten(values, mask, **kwargs) * mask
        return own_whiten(values, mask, **kwargs)

    theirs.get_reward, theirs.masked_whiten = get_reward, whiten
    theirs.batch_generation = lambda *_: (rows.clone(), case_of.behaviour_logits(case))
    models = torch.nn.ModuleDict({"policy": policy(), "value_model": case_of.critic()})
    optimizer = Recorder(models.named_parameters())
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = theirs.PPOTrainer(
                args=settings(folder),
                processing_class=tokenizer,
                model=models["policy"],
                ref_model=policy(1),
                reward_model=reward_model,
                value_model=models["value_model"],
                train_dataset=Dataset.from_dict({"input_ids": rows[:, :width].tolist()}),
                optimizers=(optimizer, constant(optimizer)),
            )
            backward = trainer.accelerator.backward
            trainer.accelerator.backward = lambda loss: (seen.update(loss=loss.detach().clone()), backward(loss))
            trainer.train()
    finally:
        theirs.get_reward, theirs.masked_whiten = own_reward, own_whiten
    (gradients,) = optimizer.gradients
    return {f"{case}/{name}": tensor.contiguous() for name, tensor in (seen | gradients).items()}


if __name__ == "__main__":
    import trl

    warnings.filterwarnings("ignore")
    torch.set_default_dtype(torch.float64)
    found = {}
    for each in case_of.CASES:
        found |= run(each)
    save_file(found, sys.argv[1], {"trl": trl.__version__})
