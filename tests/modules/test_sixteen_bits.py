"""What trains is float32 whatever its source says; frozen weights may have 16 bits."""

from functools import partial

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from reward_fakes import FakeRewardData

from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import Folder, LoRA, TinyLlama
from rlhf_lightning.models.reward_folder import RewardModelFolder
from rlhf_lightning.models.run_policy import RunPolicy
from rlhf_lightning.models.sources import EMBEDDED
from rlhf_lightning.modules import RewardModel, SFTModule
from rlhf_lightning.strategies import Sharding

NARROW = partial(Folder, str(EMBEDDED / "arithmetic"), dtype="bfloat16")
SLOW = partial(torch.optim.AdamW, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)


class Plain(Folder):
    """A source that loads 16 bits and does not say so."""

    def __init__(self):
        super().__init__(str(EMBEDDED / "arithmetic"))

    def load(self):
        return super().load().bfloat16()


def sft(**changed):
    settings = {"policy": NARROW(), "batch_size": 8, "updates_per_epoch": 4, "optimizer": SLOW}
    return SFTModule(**{**settings, **changed}), DemonstrationData(task=ChainedArithmetic(held_out=8), size=64)


def reward_model(**changed):
    settings = {"backbone": NARROW(), "batch_size": 8, "updates_per_epoch": 4, "optimizer": SLOW, "head_lr": 1e-3}
    return RewardModel(supervision="process", **{**settings, **changed}), FakeRewardData()


def policy(kind, **changed):
    settings = {"policy": NARROW(), "scorers": [EvenTokens()], "optimizer": SLOW}
    return kind(**{**settings, **changed}), prompts()


def moved(before, after):
    """Share of the weights that are another number than before."""
    pairs = [(before[name].to(weight), weight) for name, weight in after.items() if name in before]
    assert len(pairs) > 10
    return sum(float((a != b).sum()) for a, b in pairs) / sum(b.numel() for _, b in pairs)


MADE = {
    "grpo": lambda **more: policy(grpo, **more),
    "ppo": lambda **more: policy(ppo, **{"critic_lr": 1e-6, **more}),
    "sft": sft,
    "reward_model": reward_model,
}


def fitted(tmp_path, name, **changed):
    module, data = MADE[name](**changed)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    return module


@pytest.mark.parametrize(
    ("name", "source"),
    [*((name, NARROW) for name in MADE), ("grpo", Plain), pytest.param("ppo", Plain, marks=pytest.mark.slow)],
    ids=lambda value: value if isinstance(value, str) else "said" if value is NARROW else "unsaid",
)
def test_nearly_all_weights_of_a_16_bit_source_move_at_a_small_learning_rate(tmp_path, name, source):
    key = "backbone" if name == "reward_model" else "policy"
    module = fitted(tmp_path, name, **{key: source()})
    before = NARROW().load().state_dict()
    parts = {"critic": module.critic.model.state_dict()} if name == "ppo" else {}
    for part, weights in ({"own": module.model.state_dict()} | parts).items():
        assert {weight.dtype for weight in weights.values()} == {torch.float32}, part
        assert moved(before, weights) > 0.97, part


def test_weights_that_stay_in_16_bits_do_so_when_asked_and_hardly_move(tmp_path):
    module = fitted(tmp_path, "grpo", train_in_16_bits=True)
    weights = module.model.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert moved(NARROW().load().state_dict(), weights) < 0.2


def test_16_bits_that_nothing_would_train_in_are_refused_before_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "load", lambda self: pytest.fail("weights were loaded"))
    monkeypatch.setattr(TinyLlama, "load", lambda self: pytest.fail("weights were loaded"))
    for changed, said in (({"policy": TinyLlama()}, "policy: float32"), ({"lora": LoRA(rank=2)}, "policy: adapters")):
        with pytest.raises(ConfigError, match=rf"train_in_16_bits: there are no such weights here \({said}\)"):
            fitted(tmp_path, "grpo", train_in_16_bits=True, **changed)


def test_one_type_a_layer_and_16_bit_layers_under_adapters_are_refused_before_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "load", lambda self: pytest.fail("weights were loaded"))
    monkeypatch.setattr(Sharding, "mixes_types", False)
    with pytest.raises(ConfigError, match="adapters of policy are float32 and its frozen weights bfloat16: take fsdp2"):
        fitted(tmp_path, "grpo", lora=LoRA(rank=2))


def test_a_parameter_of_16_bits_that_gets_in_otherwise_is_refused(tmp_path):
    module, data = MADE["grpo"]()
    load = module.load_trained

    def narrow():
        load()
        module.policy.lm_head.weight.data = module.policy.lm_head.weight.data.bfloat16()

    module.load_trained = narrow
    with pytest.raises(ConfigError, match=r"1 parameters of 16 bits would train.*embed_tokens.*train_in_16_bits: true"):
        trainer(tmp_path).fit(module, datamodule=data)


def trained_types(*models):
    return {p.dtype for model in models for p in model.parameters() if p.requires_grad}


def frozen_types(*models):
    return {p.dtype for model in models for p in model.parameters() if not p.requires_grad}


@pytest.mark.parametrize("base", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("critic", ["adapters", "own", "shared"])
def test_adapters_and_heads_on_a_16_bit_base_are_float32(tmp_path, base, critic, make_reward_model):
    tiny = make_reward_model(tmp_path / "rm")
    own = {"own": {"critic": RewardModelFolder(str(tiny), dtype=base)}, "shared": {"shared_backbone": True}}
    source = TinyLlama(hidden=32, layers=2, heads=2, context_length=64)
    saved = source.load().to(getattr(torch, base))
    saved.save_pretrained(tmp_path / "policy")
    source.tokenizer().save_pretrained(tmp_path / "policy")
    made = {"policy": Folder(str(tmp_path / "policy"), dtype=base), "lora": LoRA(rank=2), **own.get(critic, {})}
    module = fitted(tmp_path, "ppo", optimizer=partial(torch.optim.AdamW, lr=1e-4), **made)
    assert trained_types(module.model, module.critic) == {torch.float32}
    assert frozen_types(module.model) == {getattr(torch, base)}
    head = module.critic.head if critic == "shared" else module.critic.model.score
    assert head.weight.dtype == torch.float32 and bool(head.weight.any())
    states = module.trainer.strategy.optimizers[0].state.values()
    assert {state["exp_avg"].dtype for state in states} == {torch.float32}


def test_a_head_goes_on_growing_where_16_bits_would_stop(tmp_path):
    """A constant gradient and 600 steps of Adam at 9e-6: 0.0054 in float32; bfloat16 stops at 0.0039 = 2^-8."""
    module, _ = MADE["reward_model"](lora=LoRA(rank=2), head_lr=9e-6)
    module.load_trained()
    head = module.model.score.weight
    optimizer = torch.optim.AdamW([head], lr=9e-6, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(600):
        head.grad = -torch.ones_like(head)
        optimizer.step()
    assert float(head.min()) == pytest.approx(600 * 9e-6, rel=1e-3)


def test_an_exported_reward_model_keeps_what_its_adapters_and_head_learnt(tmp_path):
    """Adapters so small that 16 bits would hold none of them; the head is float32 even under a 16-bit backbone."""
    module, _ = MADE["reward_model"](lora=LoRA(rank=2))
    module.load_trained()
    with torch.no_grad():
        for name, weight in module.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(1e-5)
        module.model.score.weight.fill_(1 / 3)
    from rlhf_lightning.models.lora import merged_copy

    base, merged = NARROW().load().state_dict(), merged_copy(module.model).state_dict()
    layer = module.model.model.layers[0].mlp.up_proj
    wanted = layer.get_delta_weight("default").detach()
    kept = merged["model.layers.0.mlp.up_proj.weight"] - base["model.layers.0.mlp.up_proj.weight"].float()
    assert float((kept * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=1e-3)
    merged_copy(module.model).save_pretrained(tmp_path / "rm")
    module.backbone_source.tokenizer().save_pretrained(tmp_path / "rm")
    head = RewardModelFolder(str(tmp_path / "rm"), dtype="bfloat16").load().score.weight
    assert head.dtype == torch.float32 and float(head[0, 0]) == pytest.approx(1 / 3, abs=1e-7)


def run_folder(tmp_path, module, **init_args):
    import yaml

    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    policy = {"name": "folder", "path": str(EMBEDDED / "arithmetic"), "dtype": "bfloat16"}
    model = {"class_path": "GRPOModule", "init_args": {"policy": policy, **init_args}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    weights = {f"policy.{k}": v for k, v in module.policy.state_dict().items()}
    torch.save({"state_dict": weights}, folder / "checkpoints" / "last.ckpt")
    return str(folder)


def test_a_run_gives_its_policy_as_it_was_trained(tmp_path):
    module, _ = MADE["grpo"]()
    module.load_trained()
    with torch.no_grad():
        module.policy.model.norm.weight += 1e-6
    loaded = RunPolicy(run_folder(tmp_path, module))
    assert loaded.dtype == "float32"
    assert torch.equal(loaded.load().model.norm.weight, module.policy.model.norm.weight)
    assert RunPolicy(str(tmp_path / "run"), dtype="bfloat16").load().dtype == torch.bfloat16


def test_a_run_with_adapters_on_16_bits_is_merged_in_float32(tmp_path):
    module, _ = MADE["grpo"](lora=LoRA(rank=2))
    module.load_trained()
    with torch.no_grad():
        for name, weight in module.policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(1e-5)
    loaded = RunPolicy(run_folder(tmp_path, module, lora={"rank": 2})).load()
    layer = module.policy.get_base_model().model.layers[1].self_attn.q_proj
    wanted = layer.get_delta_weight("default").detach()
    kept = loaded.model.layers[1].self_attn.q_proj.weight - layer.base_layer.weight.float()
    assert float((kept * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=1e-3)


def test_plans_count_what_is_held():
    """Whole weights of a 16-bit source are float32, adapters' base is not, and the start of a policy is its copy."""
    whole, _ = MADE["ppo"](kl_reward=KLTerm())
    assert [(m.role, m.dtype) for m in whole.held_models()] == [
        ("policy", "float32"), ("critic", "float32"), ("reference", "float32"),
    ]  # fmt: skip
    assert "policy: all weights train, so they are float32; in its source's bfloat16" in whole.describe()
    adapted, _ = MADE["ppo"](lora=LoRA(rank=2))
    assert [m.dtype for m in adapted.held_models()] == ["bfloat16", "bfloat16"]
    assert "bfloat16" not in adapted.describe()
    assert reward_model()[0].holdings().models[0].dtype == "float32"
    assert sft()[0].holdings().models[0].dtype == "float32"
