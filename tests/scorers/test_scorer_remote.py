"""The remote scorer: against the real server, and against one that fails on purpose."""

import json
import socket
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from judged_rollouts import rollout
from tests.served import running

from rlhf_lightning.errors import ConfigError, RemoteError
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.scorers import RemoteScorer, RewardModelScorer, combine
from rlhf_lightning.scorers.client import Client
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.serving.server import Limits, ScoreServer

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def prm(tmp_path_factory, make_reward_model):
    return make_reward_model(tmp_path_factory.mktemp("rm") / "prm", supervision="process")


def served(folder, **settings):
    judge = RewardJudge(str(folder))
    return running(ScoreServer("127.0.0.1", 0, judge.score, judge.identity, process=judge.process, **settings))


class Flaky(ThreadingHTTPServer):
    """Plays a list of answers, the last of them again and again: a status with content, or a function of the items."""

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), FlakyHandler)
        self.answers, self.asked = list(answers), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class FlakyHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((content, self.headers.get("Authorization")))
        answers = self.server.answers
        status, answer, headers = (*(answers.pop(0) if len(answers) > 1 else answers[0]), {})[:3]
        if status is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = json.dumps(answer(content["items"]) if callable(answer) else answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *args):
        pass


def right(items):
    return {"scores": [{"final": float(len(i["response"])), "steps": []} for i in items], "model": "m"}


def scorer(url, **settings):
    return RemoteScorer(url, **{"retries": 3, "backoff": 0.0, **settings})


@pytest.mark.parametrize("aggregation", ["last", "min", "product", "mean"])
def test_its_scores_are_those_of_the_model_in_process(prm, aggregation):
    texts = ["1\n=2", "3", "1\n=2", "4" * 70, "5", ""]
    asked = rollout(texts, [True, False, True, True, True, False], group=2)
    here = RewardModelScorer(str(prm), aggregation=aggregation)(asked)
    with served(prm) as server:
        remote = scorer(server.url, aggregation=aggregation, batch_size=4)
        remote.check()
        there = remote(asked)
    assert there.values.tolist() == pytest.approx(here.values.tolist(), abs=1e-5)
    assert there.failed.tolist() == here.failed.tolist() == [False] * 3 + [True, False, True]
    assert there.parts["remote"].tolist() == there.values.tolist()
    assert remote.identity() == RewardModelScorer(str(prm)).identity()


def test_a_token_travels_from_the_environment(prm, monkeypatch):
    monkeypatch.setenv("RM_TOKEN", TOKEN)
    with served(prm, token=TOKEN) as server:
        with pytest.raises(RemoteError, match=r"does not name a model.*token"):
            scorer(server.url).check()
        with pytest.raises(RemoteError, match=r"1 attempt: HTTP 401.*token_env"):
            scorer(server.url)(rollout(["1"]))
        known = scorer(server.url, token_env="RM_TOKEN")
        known.check()
        assert known(rollout(["1"])).values.shape == (1,)
        assert TOKEN not in repr(vars(known)) + repr(known.client)
        monkeypatch.setenv("RM_TOKEN", "another token, wrong")
        with pytest.raises(RemoteError, match="HTTP 401"):
            known.check()


def test_it_asks_again_after_failures_that_may_pass():
    answers = [(503, {"error": "the queue is full"}), (500, {}), (None, None), (200, right)]
    with running(Flaky(*answers)) as server:
        scores = scorer(server.url)(rollout(["1", "22"]))
        assert len(server.asked) == 4
    assert scores.values.tolist() == [1.0, 2.0]


def test_after_the_last_attempt_it_says_where_how_often_and_why():
    with running(Flaky((503, {"error": "the queue is full"}))) as server:
        with pytest.raises(RemoteError) as caught:
            scorer(server.url, retries=2)(rollout(["1"]))
        assert len(server.asked) == 3
    said = str(caught.value)
    assert f"scorer remote: the scoring server at {server.url} gave no answer in 3 attempts" in said
    assert "HTTP 503 Service Unavailable: the queue is full" in said
    assert "resume from the last checkpoint" in said


def test_nobody_there_and_nobody_answering():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RemoteError, match=r"2 attempts: (TimeoutError|timeout): .*timed out"):
            scorer(url, timeout=0.1, retries=1)(rollout(["1"]))
    with pytest.raises(RemoteError, match="2 attempts: ConnectionRefusedError"):
        scorer(url, retries=1)(rollout(["1"]))
    with pytest.raises(RemoteError, match=r"1 attempt: ConnectionRefusedError.*rlhf serve-rm"):
        scorer(url, retries=5).check()


def test_what_will_not_pass_is_not_asked_again():
    with running(Flaky((413, {"error": "at most 10 bytes"}))) as server:
        with pytest.raises(RemoteError, match=r"HTTP 413.*at most 10 bytes.*lower batch_size"):
            scorer(server.url)(rollout(["1"]))
        assert len(server.asked) == 1


def test_the_waits_grow_and_heed_what_the_server_says():
    waits = []
    busy = (503, {}, {"Retry-After": "7"})
    with running(Flaky((500, {}), (500, {}), busy, (500, {}), (200, {"x": 1}))) as server:
        client = Client(server.url, None, 5.0, 6, 0.5, sleep=waits.append)
        assert client.ask("/score", {}) == {"x": 1}
    assert waits == [0.5, 1.0, 7.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"scores": [], "model": "m"}, "gave 0 scores for 1 responses"),
        ({"scores": ["x"], "model": "m"}, "a score that is none"),
        ({"scores": [{}], "model": "m"}, "a score that is none"),
        (["x"], "something else than scores"),
    ],
)
def test_answers_are_looked_at(answer, said):
    with running(Flaky((200, answer))) as server, pytest.raises(RemoteError, match=said):
        scorer(server.url)(rollout(["1"]))


@pytest.mark.parametrize("given", [float("nan"), "nan", "-inf"])
def test_a_score_that_is_not_finite_is_a_failed_one(given):
    with running(Flaky((200, {"scores": [{"final": given}, {"final": 2.0}], "model": "m"}))) as server:
        scores = combine([scorer(server.url, failure_score=-3.0)])(rollout(["1", "2"]))
    assert scores.values.tolist() == [-3.0, 2.0]
    assert scores.failed.tolist() == scores.nonfinite.tolist() == [True, False]


def test_another_model_after_a_restart_ends_the_run():
    with running(Flaky((200, right), (200, lambda items: right(items) | {"model": "n"}))) as server:
        asked = scorer(server.url)
        asked(rollout(["1"]))
        with pytest.raises(RemoteError, match="now serves 'n', but this run began with 'm'"):
            asked(rollout(["1"]))


def test_a_redirect_is_not_followed():
    with running(Flaky((200, right))) as target:
        away = (302, {}, {"Location": f"{target.url}/score"})
        with running(Flaky(away)) as server, pytest.raises(RemoteError, match="HTTP 302"):
            scorer(server.url)(rollout(["1"]))
        assert target.asked == []


def test_items_hold_question_turns_response_and_ending():
    turns = [{"role": "user", "content": "hi", "name": "not sent"}]
    with running(Flaky((200, right))) as server:
        scorer(server.url, batch_size=2)(rollout(["a", "b", "c"], [True, False, True], metadata={"messages": turns}))
        (first, _), (second, _) = server.asked
    sent = [{"role": "user", "content": "hi"}]
    assert first["items"] == [
        {"question": "0+0=", "response": "a", "finished": True, "messages": sent},
        {"question": "1+1=", "response": "b", "finished": False, "messages": sent},
    ]
    assert [item["response"] for item in second["items"]] == ["c"]


def test_an_outcome_model_has_no_steps(tmp_path, make_reward_model):
    with served(make_reward_model(tmp_path / "orm")) as server:
        scorer(server.url).check()
        with pytest.raises(ConfigError, match="'mean' needs the scores of steps"):
            scorer(server.url, aggregation="mean").check()


def test_too_much_for_the_server_is_said_though_it_does_not_read_it(prm):
    small = Limits(request_bytes=1000)
    said = pytest.raises(RemoteError, match=r"HTTP 413.*at most 1000 bytes")
    with served(prm, limits=small) as server, said:
        scorer(server.url)(rollout(["1" * 3_000_000]))


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("127.0.0.1:8020", {}, "url must be like"),
        ("ftp://127.0.0.1", {}, "url must be like"),
        ("http://user:word@127.0.0.1", {}, "neither a user"),
        ("http://10.0.0.1:8020", {}, "asks for a token"),
        ("http://10.0.0.1:8020", {"token_env": "X"}, "send the token in the clear.*insecure_http"),
        ("http://127.0.0.1.example:8020", {}, "asks for a token"),
        ("http://127.0.0.1", {"aggregation": "sum"}, "there is no 'sum'"),
        ("http://127.0.0.1", {"timeout": 0}, "timeout must be above 0"),
        ("http://127.0.0.1", {"batch_size": 0}, "batch_size at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(url, settings, said):
    with pytest.raises(ConfigError, match=said):
        RemoteScorer(url, **settings)


def test_addresses_that_may_be_asked(monkeypatch):
    monkeypatch.delenv("X", raising=False)
    for url in ("http://localhost:1/", "http://[::1]:1", "https://example:1"):
        assert RemoteScorer(url).url == url.rstrip("/")
    far = RemoteScorer("http://10.0.0.1:8020", token_env="X", insecure_http=True)
    with pytest.raises(ConfigError, match="X is empty or not set"):
        far.check()


def characters(texts, **more):
    """A rollout whose tokens are its characters, each response ended."""
    tokenizer = character_tokenizer()
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[place < len(row) for place in range(width)] for row in rows])
    return replace(rollout(texts, **more), tokens=tokens, mask=mask, logprobs=-mask.float())


def test_a_served_process_model_scores_steps_on_the_policys_tokens(prm):
    """Placed by hand: characters are tokens, so the steps of ``1⏎=2`` end at 0 and, with the text, at 4."""
    texts = ["1\n=2", "3", "12\n\n=3\n", "4" * 70]
    asked, tokenizer = characters(texts, group=2), character_tokenizer()
    here = RewardModelScorer(str(prm))
    here.bind_tokenizer(tokenizer)
    with served(prm, delimiter="\n") as server:
        remote = scorer(server.url, batch_size=3)
        assert remote(asked).steps is None  # nobody said what the policy's tokens are
        remote.bind_tokenizer(tokenizer)
        there = remote(asked).steps
    ends = [row.nonzero().flatten().tolist() for row in there.ends]
    assert ends == [[0, 4], [1], [1, 7], []]
    torch.testing.assert_close(there.values, here(asked).steps.values, atol=1e-5, rtol=0)
    assert there.values[there.ends].abs().min() > 0


def test_an_outcome_model_gives_no_steps(tmp_path, make_reward_model):
    with served(make_reward_model(tmp_path / "orm")) as server:
        remote = scorer(server.url)
        remote.bind_tokenizer(character_tokenizer())
        assert remote(characters(["1\n=2"])).steps is None


def test_scores_of_other_steps_than_there_are_end_the_run():
    def one_too_many(items):
        return {**right(items), "scores": [{"final": 0.5, "steps": [1.0, 2.0, 3.0]}] * len(items), "delimiter": "\n"}

    with running(Flaky((200, one_too_many))) as server:
        remote = scorer(server.url)
        remote.bind_tokenizer(character_tokenizer())
        with pytest.raises(RemoteError, match=r"scores of 3 steps for a response of 2.*resume from the last"):
            remote(characters(["1\n=2"]))
