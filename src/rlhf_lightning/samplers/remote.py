"""Generation by servers of ``rlhf serve-policy`` on other machines, or on this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.axes import to_device
from rlhf_lightning.errors import ConfigError, RemoteError
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.registry import register
from rlhf_lightning.samplers._canary import (
    ask_canary,
    check_tolerance,
    compare_canary,
    tolerance_for,
    warn_of_rounded_adapters,
)
from rlhf_lightning.samplers._fleet import Parcel, cut, hand_over, in_order
from rlhf_lightning.samplers._policy_client import PolicyServer
from rlhf_lightning.samplers._rollout import to_rollout
from rlhf_lightning.samplers._settings import DTYPES, dtype_of, sampling_params
from rlhf_lightning.samplers._spread import Spread
from rlhf_lightning.samplers._vocabulary import check_same, vocabulary_of
from rlhf_lightning.scorers.client import check_url
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@register("sampler", "remote")
class RemoteSampler(Sampler):
    """Servers that draw responses (``rlhf serve-policy``): groups are spread over them, weights go to all of them.

    A server that dies is noticed (broken connection, time limit, no answer to a look at its health): the groups that
    it was at are drawn by the others, with the same seeds; each group is in the rollout once. When it comes back it
    gets weights at the next sync. When none is left the run ends with an error and resumes from its last checkpoint.

    After each sync a canary compares every server's log-probs with the trainer's own forward.

    Args:
        urls: Where the servers are, such as ``http://127.0.0.1:8030``.
        max_new_tokens: Longest response, in tokens, the end-of-sequence token included.
        temperature: Divides the logits; 0 is greedy decoding.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches this, after top-k; 1 keeps all.
        stop: Texts that end a response when they appear in it; they stay in the response.
        token_env: Environment variable that holds the token that the servers ask for.
        insecure_http: Whether token, tokens and weights may go to another machine over plain http.
        requests_per_server: Into how many requests a server's share of a rollout is cut: with more of them less is
            drawn again when a server dies, and the quicker servers do more; with fewer of them batches are larger.
        bucket_mb: Weights that travel in one request, in MB (1e6 bytes).
        dtype: Type in which weights travel, such as ``bfloat16``; None is their own.
        weights_folder: Folder on a disk that trainer and servers share: weights are written there instead of sent; the
            servers must have been told of it (``--weights_root``).
        timeout: Seconds that one request may take.
        retries: Attempts after the first, for each request, before a server counts as dead.
        backoff: Seconds before the second attempt; each further wait is twice as long, up to a minute.
        heartbeat: Seconds between two looks at the health of a server at work; after three without an answer it
            counts as dead.
        canary_tolerance: Mean difference of log-probs to bear after a sync, nats a token; None: by type, 0.001 for
            float32, 0.125 for bfloat16.
        keep_special_tokens: Whether texts have the special tokens that the policy wrote, such as ``<think>``, for stop
            texts and scorers to see; what ends a response, and padding, is always left out.

    Raises:
        ConfigError: If a value is out of range, or a url is not to be trusted with what is sent.
    """

    owns_weights = True

    def __init__(
        self,
        urls: list[str],
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: list[str] | None = None,
        token_env: str | None = None,
        insecure_http: bool = False,
        requests_per_server: int = 4,
        bucket_mb: int = 256,
        dtype: str | None = None,
        weights_folder: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
        backoff: float = 0.5,
        heartbeat: float = 5.0,
        canary_tolerance: float | None = None,
        keep_special_tokens: bool = True,
    ) -> None:
        self.params = sampling_params("remote", max_new_tokens, temperature, top_k, top_p, stop, keep_special_tokens)
        check_tolerance("remote", canary_tolerance)
        limits = {"requests_per_server": requests_per_server, "bucket_mb": bucket_mb, "heartbeat": heartbeat}
        for name, value in {**limits, "timeout": timeout}.items():
            if not value > 0:
                raise ConfigError(f"sampler remote: {name} must be above 0, got {value}")
        if retries < 0 or backoff < 0:
            raise ConfigError(f"sampler remote: retries and backoff must be at least 0, got {retries} and {backoff}")
        places = _plain_urls(urls, token=token_env is not None, insecure_http=insecure_http)
        self.servers = [PolicyServer(url, token_env, timeout, retries, backoff, heartbeat) for url in places]
        self.requests_per_server, self.canary_tolerance = requests_per_server, canary_tolerance
        self._parcel = Parcel(bucket_mb * 1_000_000, dtype_of(dtype, "remote"), weights_folder)
        self.lost: list[str] = []
        self._ready: list[PolicyServer] = []
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._version: int | None = None

    @property
    def exact(self) -> bool:
        """Never: another machine, and maybe another engine, rounds otherwise."""
        return False

    def check(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        """Asks every server which policy it serves.

        Raises:
            RemoteError: If one does not answer.
            ConfigError: If one has another vocabulary.
        """
        own = vocabulary_of(tokenizer, config)
        for server in self.servers:
            try:
                health = server.health()
            except RemoteError as error:
                raise RemoteError(
                    f"sampler remote: {error}. Serve a policy with: rlhf serve-policy --policy=… --port=PORT"
                ) from error
            check_same(own, health["vocabulary"], f"sampler remote: {server.url}")

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the live policy."""
        self._model, self._tokenizer, self._version, self._ready = model, tokenizer, None, []

    def sync(self, weights_version: int) -> None:
        """Hands the policy's weights over to every server that lives, and checks that it computes with them.

        Raises:
            RuntimeError: If there is no policy yet.
            RemoteError: If no server takes them.
            SyncError: If a server's log-probs are not the trainer's.
        """
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("sampler remote: bind(model, tokenizer) must come before sync")
        self._version = None
        urls, causes = ranks.gathered(self._hand_over(weights_version) if ranks.rank() == 0 else None)[0] or ([], [])
        self._ready = [server for server in self.servers if server.url in urls]
        self.lost += causes
        if not self._ready:
            raise RemoteError(f"sampler remote: no server took the weights: {'; '.join(causes)}. {_AGAIN}")
        self._version = weights_version
        try:
            self._ready = [server for server in self._ready if self._computes_alike(server)]
        except BaseException:
            self._version = None
            raise
        if not self._ready:
            raise RemoteError(f"sampler remote: no server is left: {'; '.join(self.lost)}. {_AGAIN}")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """Draws ``samples_per_prompt`` responses a prompt, on whichever servers live.

        Args:
            prompts: P prompts; none may be empty.
            samples_per_prompt: G.
            seeds: (P·G,) int64; a response's draws are a function of its seed, whichever server makes it.
            params: Overrides the sampler's own.

        Returns:
            The rollout, on the model's device, with the version of the last :meth:`sync`.

        Raises:
            RuntimeError: If the weights were never synced.
            ValueError: If the number of seeds is not P·G or a prompt is empty.
            RemoteError: If no server is left.
        """
        if self._model is None or self._tokenizer is None or self._version is None:
            raise RuntimeError("sampler remote: bind(model, tokenizer) and sync(version) must come before sampling")
        params = params or self.params
        parts = self.requests_per_server * len(self._ready)
        wanted = cut(prompts, seeds, samples=samples_per_prompt, parts=parts, params=params, version=self._version)
        spread = Spread(wanted, self._ready, lambda server, one: (one.ids, server.sample(one)))
        try:
            answers = spread.run(self._tell)
        except RemoteError as error:
            raise RemoteError(f"sampler remote: {error}. {_AGAIN}") from error
        finally:
            gone = [server for server, _ in spread.lost]
            self.lost += [str(reason) for _, reason in spread.lost]
            self._ready = [server for server in self._ready if server not in gone]
        if not answers:
            return to_rollout(prompts, [], params, self._tokenizer, (), self._version)
        drawn = replace(in_order(answers, len(prompts)), prompts=tuple(prompts), params=params)
        return to_device(drawn, self._model.device)

    def _tell(self, answer: tuple[tuple[int, ...], Rollout]) -> None:
        if self.on_tokens is not None:
            self.on_tokens(int(answer[1].drawn.sum()))

    @torch.no_grad()
    def _hand_over(self, version: int) -> tuple[list[str], list[str]]:
        """Where the weights have come, and why not to the other servers. One rank does it for all."""
        assert self._model is not None
        ready, causes = hand_over(self.servers, self._parcel.bodies(self._model, version), version)
        return [server.url for server in ready], causes

    def _computes_alike(self, server: PolicyServer) -> bool:
        """The canary: one rank asks, all run the trainer's forward (they may share it). False if it died meanwhile."""
        assert self._model is not None and self._tokenizer is not None
        asked, dtypes = ranks.gathered(self._ask(server) if ranks.rank() == 0 else None)[0] or (None, ())
        if asked is None:
            return False
        model, sent = self._model, self._parcel.dtype or self._model.dtype
        kept = [DTYPES[name] for name in dtypes if name in DTYPES]
        warn_of_rounded_adapters(model, [sent, *kept], f"sampler remote: {server.url}")
        coarsest = tolerance_for(model.dtype, sent, *kept)
        tolerance = coarsest if self.canary_tolerance is None else self.canary_tolerance
        asked = to_device(asked, model.device)
        compare_canary(asked, model, tolerance=tolerance, where=f"sampler remote: {server.url}")
        return True

    def _ask(self, server: PolicyServer) -> tuple[Rollout, list[str]] | None:
        assert self._tokenizer is not None
        ready, self._ready = self._ready, [server]
        try:
            asked = ask_canary(self, min(len(self._tokenizer), self._rows))
            return to_device(asked, torch.device("cpu")), list(server.health()["dtypes"])
        except RemoteError:  # its reason is among ``lost``
            return None
        finally:
            self._ready = ready

    @property
    def _rows(self) -> int:
        assert self._model is not None
        return int(self._model.config.get_text_config().vocab_size)


_AGAIN = "Nothing is lost: resume from the last checkpoint (--ckpt_path last) once servers answer"


def _plain_urls(urls: Sequence[str], *, token: bool, insecure_http: bool) -> list[str]:
    try:
        plain = [check_url(url, token=token, insecure_http=insecure_http) for url in urls]
    except ConfigError as error:
        raise ConfigError(f"sampler remote: {error}") from error
    if not plain or len(set(plain)) < len(plain):
        raise ConfigError("sampler remote: urls must name at least one server, and each once")
    return plain
