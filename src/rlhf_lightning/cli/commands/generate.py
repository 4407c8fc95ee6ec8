"""Write responses to prompts: with a model source, a model folder, a configuration's policy or a run's checkpoint.

``rlhf generate --model embedded-arithmetic --prompt "17+8+4="``
``rlhf generate --model runs/quickstart --prompt "17+8+4=" --n 4 --temperature 0.7``
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.types import Prompt, Rollout, SamplingParams


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--model", help="a model source's name, a model folder, a run folder or a checkpoint")
    parser.add_argument("--config", help="a configuration: its policy is taken")
    parser.add_argument(
        "--prompt", action="append", help="what to answer; may be given more than once (default: stdin)"
    )
    parser.add_argument("--n", type=int, default=1, help="responses a prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits; 0 is greedy (default 1)")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k most likely tokens; 0 keeps all")
    parser.add_argument("--top_p", type=float, default=1.0, help="keep the smallest set of this probability")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest response in tokens (default 64)")
    parser.add_argument("--stop", action="append", default=[], help="text that ends a response; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (default 1)")
    parser.add_argument("--chat", action="store_true", help="send the prompt through the model's chat template")
    parser.add_argument("--system", help="the chat's system turn")
    parser.add_argument("--chat_template_kwargs", help="what else the template is told: '{\"enable_thinking\": false}'")
    parser.add_argument(
        "--skip_special_tokens", action="store_true", help="leave special tokens such as <think> out of the text"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a response, one a line")


def run(options: argparse.Namespace) -> int:
    """Generates and prints."""
    from rlhf_lightning.cli.policies import find_policy
    from rlhf_lightning.models.context import context_length
    from rlhf_lightning.plugins import load_builtins

    texts = options.prompt or [line.rstrip("\n") for line in sys.stdin]
    _check(options, texts)
    params = _params(options)
    load_builtins()
    policy = find_policy(options.model, options.config)
    tokenizer = policy.tokenizer()
    prompts = make_prompts(tokenizer, texts, chat=options.chat, system=options.system, told=_told(options))
    _check_lengths(prompts, params, context_length(policy))
    rollout = sample(policy.load(), tokenizer, prompts, Draw(params, options.n, options.seed))
    (_print_json if options.json else _print_panels)(rollout)
    return 0


@dataclass(frozen=True)
class Draw:
    """What is asked of the sampler.

    Attributes:
        params: Temperature, length and support.
        samples: Responses a prompt.
        seed: Of all draws.
    """

    params: SamplingParams
    samples: int
    seed: int


def sample(model: Any, tokenizer: Any, prompts: list[Prompt], draw: Draw) -> Rollout:
    """Draws with the in-process sampler; each response's seed is a function of seed, prompt and sample number."""
    from rlhf_lightning.samplers import InProcessSampler
    from rlhf_lightning.samplers.seeds import sample_seeds

    sampler = InProcessSampler()
    sampler.bind(model, tokenizer)
    sampler.sync(0)
    seeds = sample_seeds(draw.seed, 0, prompts, draw.samples)
    return sampler(prompts, samples_per_prompt=draw.samples, seeds=seeds, params=draw.params)


def make_prompts(
    tokenizer: Any, texts: list[str], *, chat: bool, system: str | None = None, told: dict[str, Any] | None = None
) -> list[Prompt]:
    """The prompts as the model reads them.

    Args:
        tokenizer: The model's.
        texts: What is asked.
        chat: Whether to use the chat template.
        system: The chat's system turn.
        told: What else the template is told.

    Raises:
        ConfigError: If a chat template is asked for and the tokenizer has none, or a prompt has no token.
    """
    from rlhf_lightning.data.render import Renderer, has_template
    from rlhf_lightning.types import Problem

    if chat and not has_template(tokenizer):
        raise ConfigError("--chat: the model's tokenizer has no chat template; leave --chat out for plain text")
    if not chat and (system is not None or told is not None):
        raise ConfigError("--system and --chat_template_kwargs are of a chat: give --chat too")
    renderer = Renderer(tokenizer, chat, system, told)
    prompts = renderer.render([("generate", i, Problem(str(i), text)) for i, text in enumerate(texts)])
    for prompt in prompts:
        if not prompt.tokens:
            raise ConfigError(f"--prompt: {prompt.text!r} has no token")
    return prompts


def _told(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.chat_template_kwargs is None:
        return None
    try:
        told = yaml.safe_load(options.chat_template_kwargs)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--chat_template_kwargs is no JSON or YAML: {reason}") from error
    if not isinstance(told, dict):
        raise ConfigError(f"--chat_template_kwargs must be a JSON object, got {options.chat_template_kwargs!r}")
    return told


def _check(options: argparse.Namespace, texts: list[str]) -> None:
    if not texts:
        raise ConfigError("rlhf generate: no prompt: give --prompt TEXT, or lines on standard input")
    if options.n < 1:
        raise ConfigError(f"--n must be at least 1, got {options.n}")
    if bool(options.model) == bool(options.config):
        raise ConfigError("rlhf generate: give either --model or --config")


def _check_lengths(prompts: list[Prompt], params: SamplingParams, context: int) -> None:
    for prompt in prompts:
        if len(prompt.tokens) + params.max_new_tokens > context:
            raise ConfigError(
                f"--prompt: {len(prompt.tokens)} tokens and --max_new_tokens {params.max_new_tokens} exceed "
                f"the model's context of {context}: {prompt.text[:40]!r}"
            )


def _params(options: argparse.Namespace) -> SamplingParams:
    from rlhf_lightning.types import SamplingParams

    try:
        return SamplingParams(
            options.max_new_tokens,
            options.temperature,
            options.top_k,
            options.top_p,
            tuple(options.stop),
            not options.skip_special_tokens,
        )
    except ValueError as error:
        raise ConfigError(f"rlhf generate: --{error}") from error


def _print_json(rollout: Rollout) -> None:
    lengths, totals = rollout.lengths.tolist(), rollout.logprobs.sum(1).tolist()
    for b, text in enumerate(rollout.texts):
        row = {
            "prompt": rollout.prompt_of(b).text,
            "response": text,
            "tokens": lengths[b],
            "logprob": totals[b],
            "finished": bool(rollout.finished[b]),
        }
        print(json.dumps(row, ensure_ascii=False))


def _print_panels(rollout: Rollout) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console, lengths = Console(), rollout.lengths.tolist()
    for b, text in enumerate(rollout.texts):
        if b % rollout.group_size == 0:
            console.print(Text(rollout.prompt_of(b).text, style="bold"))
        ending = "" if rollout.finished[b] else ", cut off"
        console.print(Panel(Text(text), subtitle=f"{lengths[b]} tokens{ending}", subtitle_align="right"))
