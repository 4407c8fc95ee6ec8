"""TRL's trainers on what ``cases`` holds. Nothing is sampled: its generation is replaced by the given responses."""

import warnings

import torch
from torch import Tensor

from parity.cases import PAD, TEXTS, G, T, exact, folder_of, policy
from rlhf_lightning.models.tiny import character_tokenizer

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "seed": 1,
}


class Recorder(torch.optim.SGD):
    """Keeps the gradients that an update had, and moves nothing."""

    def __init__(self, named) -> None:
        self.named = dict(named)
        self.gradients: list[dict[str, Tensor]] = []
        super().__init__(self.named.values(), lr=0.0)

    def step(self, closure=None):
        self.gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.named.items()}
        )


def constant(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def make(name: str, folder, *, made=None, rewards=None, reference_seed: int | None = None, recorder=False, **changed):
    """``GRPOTrainer`` or ``RLOOTrainer`` whose completions and rewards are the given ones.

    Its model is ``policy()`` again, loaded; its reference ``policy(reference_seed)``. Loaded in float32 would round.
    """
    import trl
    from datasets import Dataset

    class Given(getattr(trl, f"{name}Trainer")):
        def _generate(self, prompts):
            ids, completions = of_prompts(made, prompts)
            if name == "RLOO":
                return ids, completions, [""] * len(prompts)
            return ids, completions, None, [""] * len(prompts), None, {}, None, []

    model = policy()
    folder_of(model, folder)
    model.config._name_or_path = str(folder)
    settings = {
        "output_dir": str(folder / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": len(TEXTS) * G,
        "num_generations": G,
        "max_completion_length": T,
        **QUIET,
    } | changed
    optimizer = Recorder(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Given(
            model=model,
            reward_funcs=lambda completion_ids, **_: [rewards[tuple(ids)] for ids in completion_ids],
            args=getattr(trl, f"{name}Config")(**settings),
            train_dataset=Dataset.from_dict({"prompt": TEXTS}),
            processing_class=character_tokenizer(),
            optimizers=(optimizer, constant(optimizer)),
        )
    if trainer.ref_model is not None:
        trainer.ref_model.double().load_state_dict(policy(reference_seed).state_dict())
        exact(trainer.ref_model)
    trainer.current_gradient_accumulation_steps = settings.get("gradient_accumulation_steps", 1)
    trainer.recorder = optimizer
    return trainer


def of_prompts(made, texts):
    """Token ids of prompts and of their responses, the n-th response to the n-th time that a prompt is named."""
    seen: dict[str, int] = {}
    ids, completions = [], []
    for text in texts:
        group = TEXTS.index(text)
        row = group * G + seen.get(text, 0)
        seen[text] = seen.get(text, 0) + 1
        ids.append(list(made.prompts[group].tokens))
        completions.append(made.tokens[row, : int(made.lengths[row])].tolist())
    return ids, completions


def by_response(made, rewards) -> dict[tuple[int, ...], float]:
    """Rewards by the response's tokens, which must be distinct."""
    rows = [tuple(row[:n].tolist()) for row, n in zip(made.tokens, made.lengths.tolist(), strict=True)]
    assert len(set(rows)) == len(rows)
    return dict(zip(rows, rewards.tolist(), strict=True))


def prepared(mask, advantages, old, ref=None, tokens=None):
    """What ``_compute_loss`` is given: left-padded prompts are of no account where log-probs are given."""
    rows = len(mask)
    ids = torch.full(mask.shape, PAD) if tokens is None else tokens
    more = {} if ref is None else {"ref_per_token_logps": ref}
    return {
        "prompt_ids": torch.full((rows, 1), 5),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
        **more,
    }


def loss_of(trainer, new, inputs):
    """TRL's loss where the policy's log-probs are ``new`` itself."""
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
    trainer.model.train()
    return trainer._compute_loss(trainer.model, inputs)
