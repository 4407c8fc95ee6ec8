"""The scoring server over a real socket: its scores are the in-process ones, and its limits hold."""

import http.client
import json
import socket
import threading
import time
from contextlib import closing

import pytest
from tests.served import running

from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, ResponseScore
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.serving.server import Limits, ScoreServer
from rlhf_lightning.types import Problem

TOKEN = "a token of no secret".replace(" ", "-")


def serving(score, **settings):
    return running(ScoreServer("127.0.0.1", 0, score, "model 1", **settings))


def by_length(groups):
    """Scores a response by its length; a negative question's length is a step's score."""
    return [
        [ResponseScore(float(len(r.text)), (-float(len(g.problem.question)),)) for r in g.responses] for g in groups
    ]


def ask(server, method="POST", page="/score", body=b"", headers=None):
    """Status, headers and JSON of one request."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    with closing(connection):
        kinds = {"Content-Type": "application/json"} if method == "POST" else {}
        connection.request(method, page, body=body, headers=kinds | (headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())


def items(*pairs, **more):
    return json.dumps({"items": [{"question": q, "response": r, **more} for q, r in pairs]}).encode()


def raw(server, text):
    """What comes back for bytes sent as they are."""
    with closing(socket.create_connection(server.server_address, timeout=10)) as connection:
        connection.sendall(text)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def test_scores_come_in_the_order_of_the_items():
    with serving(by_length) as server:
        status, _, content = ask(server, body=items(("ab", "x"), ("ab", "xyz"), ("c", ""), ("ab", "xy")))
    assert status == 200
    assert content == {
        "scores": [
            {"final": 1.0, "steps": [-2.0]},
            {"final": 3.0, "steps": [-2.0]},
            {"final": 0.0, "steps": [-1.0]},
            {"final": 2.0, "steps": [-2.0]},
        ],
        "model": "model 1",
    }


def test_a_real_model_scores_as_in_process(tmp_path, make_reward_model):
    judge = RewardJudge(str(make_reward_model(tmp_path / "rm", supervision="process")))
    asked = [("1+1=", "2"), ("1+1=", "1\n=2"), ("2+2=", "4" * 70)]
    expected = judge.score([JudgedGroup(Problem("", q), "", (JudgedResponse(r),)) for q, r in asked])
    with serving(judge.score) as server:
        _, _, content = ask(server, body=items(*asked))
    assert expected[2] == [None] and content["scores"][2] == {"final": None, "steps": []}
    for got, (want,) in zip(content["scores"][:2], expected[:2], strict=True):
        assert got["final"] == pytest.approx(want.final, abs=1e-5)
        assert got["steps"] == pytest.approx(list(want.steps), abs=1e-5)
    assert len(content["scores"][1]["steps"]) == 2


def test_turns_for_a_model_that_reads_no_chat_are_no_question(tmp_path, make_reward_model):
    judge = RewardJudge(str(make_reward_model(tmp_path / "rm")))
    with serving(judge.score) as server:
        body = items(("", "2"), messages=[{"role": "user", "content": "1+1="}])
        status, _, content = ask(server, body=body)
    assert (status, content["scores"]) == (200, [{"final": None, "steps": []}])


def test_groups_share_a_question_and_keep_turns_and_endings():
    seen = []

    def record(groups):
        seen.extend(groups)
        return by_length(groups)

    turns = [{"role": "user", "content": "hi"}]
    with serving(record) as server:
        asked = [
            {"question": "q", "response": "a", "finished": False},
            {"question": "q", "response": "b"},
            {"question": "q", "messages": turns, "response": "c"},
        ]
        assert ask(server, body=json.dumps({"items": asked}).encode())[0] == 200
    assert [[(r.text, r.finished) for r in g.responses] for g in seen] == [[("a", False), ("b", True)], [("c", True)]]
    assert dict(seen[0].problem.metadata) == {} and seen[1].problem.metadata["messages"] == turns


def test_health_counts():
    with serving(by_length, process=True) as server:
        ask(server, body=items(("a", "b"), ("a", "c")))
        status, _, health = ask(server, "GET", "/health")
    assert status == 200 and health.pop("uptime_seconds") >= 0
    # the request asked last may still be on its way out when health is asked
    assert health.pop("requests") + health.pop("in_flight") == 1
    assert health == {"status": "ok", "model": "model 1", "process": True, "responses_scored": 2}


def test_a_token_is_asked_for():
    with serving(by_length, token=TOKEN) as server:
        body = items(("a", "b"))
        for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
            given = {name: value.encode("latin-1") for name, value in wrong.items()}
            status, headers, content = ask(server, body=body, headers=given)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert content == {"error": "no token, or a wrong one"}
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(server, body=body, headers=right)[0] == 200
        assert ask(server, "GET", "/health")[2] == {"status": "ok"}
        assert ask(server, "GET", "/health", headers={"Authorization": "Bearer x"})[0] == 401
        assert ask(server, "GET", "/health", headers=right)[2]["model"] == "model 1"


def test_lengths_are_checked_before_anything_is_read():
    with serving(by_length, limits=Limits(request_bytes=100)) as server:
        for length in ("101", "9" * 400):
            head = f"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            assert b" 413 " in raw(server, head.encode()).split(b"\r\n")[0]
        for line in ("", "Content-Length: -1\r\n", "Content-Length: 1e1\r\n", "Transfer-Encoding: chunked\r\n"):
            head = f"POST /score HTTP/1.1\r\nContent-Type: application/json\r\n{line}\r\n"
            assert b" 411 " in raw(server, head.encode()).split(b"\r\n")[0]
        status, _, content = ask(server, body=b"x" * 100_000)
        assert (status, content) == (413, {"error": "at most 100 bytes a request"})
        assert ask(server, body=items(("a", "b")), headers={"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 20_000, "not JSON"),
        (b"[]", "the body must be"),
        (b'{"items": 1}', "the body must be"),
        (b'{"items": [1]}', "items[0] must be an object"),
        (b'{"items": [{"question": "a"}]}', "items[0]: no field 'response'"),
        (b'{"items": [{"question": "a", "response": "b", "x": 1}]}', "items[0]: unknown field 'x'"),
        (b'{"items": [{"question": 1, "response": "b"}]}', "items[0].question must be text"),
        (b'{"items": [{"question": "", "response": "b"}]}', "the question is empty"),
        (b'{"items": [{"question": "a", "response": "\\ud800"}]}', "half a character"),
        (b'{"items": [{"question": "a", "response": "b", "finished": 1}]}', "finished must be true or false"),
        (b'{"items": [{"question": "a", "response": "b", "messages": [{"role": "x"}]}]}', "messages must be a list"),
        (items(*[("a", "b")] * 4), "4 items, but at most 3"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(body, said):
    with serving(by_length, limits=Limits(items=3)) as server:
        status, _, content = ask(server, body=body)
        assert status == 400 and said in content["error"]
        assert ask(server, body=items(("a", "b")))[0] == 200


def test_other_pages_and_methods():
    with serving(by_length) as server:
        assert ask(server, "GET", "/")[0] == 404
        assert ask(server, "GET", "/score")[:2][0] == 405
        assert ask(server, "POST", "/health")[1]["Allow"] == "GET"
        assert ask(server, "DELETE", "/score")[0] == 501
        assert ask(server, body=b"")[0] == 400


def test_a_failing_model_shows_no_traceback_and_the_next_request_is_answered():
    def fail_on_x(groups):
        if groups[0].responses[0].text == "x":
            raise KeyError("secret inside")
        if groups[0].responses[0].text == "nan":
            return [[ResponseScore(float("nan"))]]
        return by_length(groups)

    with serving(fail_on_x) as server:
        status, _, content = ask(server, body=items(("a", "x")))
        assert (status, content) == (500, {"error": "scoring failed: KeyError"})
        status, _, content = ask(server, body=items(("a", "nan")))
        assert status == 200 and content["scores"] == [{"final": "nan", "steps": []}]  # JSON has no NaN
        assert ask(server, body=items(("a", "y")))[0] == 200


def test_slow_requests_are_cut_off_however_they_trickle():
    with serving(by_length, limits=Limits(timeout=0.3)) as server:
        head = b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        assert b" 408 " in raw(server, head + b"{").split(b"\r\n")[0]
        assert raw(server, b"POST /sc") == b""
        with closing(socket.create_connection(server.server_address, timeout=10)) as trickle:
            trickle.sendall(head)
            answer = b""
            for _ in range(40):
                time.sleep(0.05)
                trickle.sendall(b" ")
                trickle.settimeout(0.001)
                try:
                    answer = trickle.recv(100)
                    break
                except TimeoutError:
                    trickle.settimeout(10)
            assert b" 408 " in answer
        assert ask(server, body=items(("a", "b")))[0] == 200


def test_one_request_is_scored_at_a_time_and_a_full_queue_says_when_to_come_again():
    begun, go_on, most = threading.Semaphore(0), threading.Event(), []

    def wait(groups):
        most.append(threading.active_count())
        begun.release()
        assert go_on.wait(10)
        return by_length(groups)

    answers = []
    with serving(wait, limits=Limits(queue=1)) as server:
        threads = [threading.Thread(target=lambda: answers.append(ask(server, body=items(("a", "b"))))) for _ in "12"]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=10)
        until = time.monotonic() + 10
        while server.health()["in_flight"] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(most) == 1  # the second waits its turn
        status, headers, content = ask(server, body=items(("a", "b" * 100_000)))
        assert (status, headers["Retry-After"], content) == (503, "1", {"error": "the queue is full"})
        assert server.health()["in_flight"] == 2
        go_on.set()
        for thread in threads:
            thread.join(10)
        assert [status for status, _, _ in answers] == [200, 200]
        assert ask(server, body=items(("a", "b")))[0] == 200


def test_requests_that_are_being_answered_are_finished_before_the_end():
    begun, answers = threading.Event(), []

    def slowly(groups):
        begun.set()
        time.sleep(0.3)
        return by_length(groups)

    with serving(slowly) as server:
        thread = threading.Thread(target=lambda: answers.append(ask(server, body=items(("a", "b")))))
        thread.start()
        assert begun.wait(10)
    assert server.health()["in_flight"] == 0
    thread.join(10)
    assert answers[0][0] == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address, timeout=1)
