"""A reward server scores a group: what it is told, what of its answers becomes a score, and what an error."""

from types import MappingProxyType, SimpleNamespace

import pytest
from test_rewards_http_calls import HEADERS, assert_silent, server, short_pauses, token  # noqa: F401  (fixtures)

from rewards.errors import RewardSettingsError
from rewards.http_calls import RewardCallError
from rewards.http_reward import http_reward


def row(**fields) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "id": "train/a/7",
            "question": "Where is the chair?",
            "question_type": "object_localization",
            "options": None,
            "answer": None,
            "target_boxes": (("chair", (1.0, 2.0, 30.5, 40.0)),),
            "processed_size": (56, 84),
            "media": ("/data/a.png",),
            "metadata": MappingProxyType({"scene": "s1"}),
            **fields,
        }
    )


def test_a_group_is_sent_with_its_row_and_scored_in_order(server):
    server.plan({"json": {"scores": [1, 0.25, {"near": 1, "far": -0.5}, {}]}})
    texts = ["one", "<answer>{}</answer>", "ä", ""]
    scores = http_reward(texts, row(), url=server.url + "/score")
    assert scores == [1.0, 0.25, {"near": 1.0, "far": -0.5}, {}]
    assert [type(score) for score in scores[:2]] == [float, float]
    (request,) = server.seen
    assert request["body"] == {
        "completions": [{"text": text} for text in texts],
        "example": {
            "id": "train/a/7",
            "question": "Where is the chair?",
            "question_type": "object_localization",
            "options": None,
            "answer": None,
            "target_boxes": [["chair", [1.0, 2.0, 30.5, 40.0]]],
            "processed_size": [56, 84],
            "media": ["/data/a.png"],
            "metadata": {"scene": "s1"},
        },
    }


def test_batches_are_sent_one_after_the_other(server):
    server.plan(*({"times": 1, "json": {"scores": scores}} for scores in ([0, 1], [2, 3], [4])))
    assert http_reward(list("abcde"), row(), url=server.url, batch_size=2) == [0, 1, 2, 3, 4]
    sent = [[completion["text"] for completion in request["body"]["completions"]] for request in server.seen]
    assert sent == [["a", "b"], ["c", "d"], ["e"]]
    assert server.most == 1


def test_no_completions_need_no_server():
    assert http_reward([], row(), url="http://127.0.0.1:9/") == []


@pytest.mark.parametrize(
    "score, said",
    [
        ('{"error": "too long"}', "could not score this completion: 'too long'"),
        ('{"error": "e", "near": 1}', "could not score this completion: 'e'"),
        ('{"error": 0.5}', "could not score this completion: 0.5"),
        ("NaN", "scored this completion nan"),
        ("-Infinity", "scored this completion -inf"),
        ("1e999", "scored this completion inf"),
        ("1" + "0" * 400, "scored this completion 1000"),
        ("true", "scored this completion True"),
        ('"0.5"', "scored this completion '0.5'"),
        ("null", "scored this completion None"),
        ("[1]", r"scored this completion \[1\]"),
        ('{"near": 1, "far": NaN}', "scored this completion {'near': 1, 'far': nan}"),
        ('{"near": false}', "scored this completion {'near': False}"),
    ],
)
def test_what_is_no_score_is_the_error_of_its_completion(server, score, said):
    server.plan({"body": f'{{"scores": [0.5, {score}, 1]}}'})
    first, failed, last = http_reward(["a", "b", "c"], row(), url=server.url)
    assert (first, last) == (0.5, 1.0)
    assert isinstance(failed, RewardCallError)
    with pytest.raises(RewardCallError, match=said):
        raise failed


@pytest.mark.parametrize(
    "answer, said",
    [
        ({"scores": [1]}, "answered 1 scores for 2 completions"),
        ({"scores": [1, 2, 3]}, "answered 3 scores for 2 completions"),
        ({"scores": 1}, r'must answer {"scores": \[...\]}, not {\'scores\': 1}'),
        ({"scores": {"0": 1, "1": 2}}, "must answer"),
        ({"rewards": [1, 2]}, r"not {'rewards': \[1, 2\]}"),
        ([1, 2], r"not \[1, 2\]"),
        (None, "not None"),
        ("busy" * 100, "not 'busy.*…"),
    ],
)
def test_an_answer_that_cannot_be_assigned_fails_the_group(server, answer, said):
    server.plan({"json": answer})
    with pytest.raises(RewardCallError, match=said) as caught:
        http_reward(["a", "b"], row(), url=server.url)
    assert len(str(caught.value)) < 300


def test_the_server_may_fail_for_a_moment(server):
    server.plan({"status": 500, "times": 2}, {"json": {"scores": [1]}})
    assert http_reward(["a"], row(), url=server.url) == [1.0]
    assert len(server.seen) == 3
    server.plan({"status": 500})
    with pytest.raises(RewardCallError, match="status 500"):
        http_reward(["a"], row(), url=server.url, retries=0)
    assert len(server.seen) == 1


def test_the_header_arrives_and_is_in_no_message(server, token):
    server.plan({"echo": "Authorization", "body": '{"scores": [{"error": "ECHO"}, 1]}'})
    with pytest.raises(RewardCallError, match="not JSON") as caught:  # the quote in the token ends the text early
        http_reward(["a", "b"], row(), url=server.url, headers=HEADERS)
    assert_silent(caught.value)
    (request,) = server.seen
    assert request["headers"]["Authorization"] == f"Bearer {token}"
    for scores in ([{"error": f"no {token}"}, 1], [token, 1], [{token: "x"}, 1]):
        server.plan({"json": {"scores": scores}})
        failed, _ = http_reward(["a", "b"], row(), url=server.url, headers=HEADERS)
        assert_silent(failed)
    server.plan({"json": {"detail": [token]}})
    with pytest.raises(RewardCallError, match=r"detail.*\*\*\*") as caught:
        http_reward(["a", "b"], row(), url=server.url, headers=HEADERS)
    assert_silent(caught.value)


@pytest.mark.parametrize(
    "params", [{"batch_size": 0}, {"batch_size": 2.0}, {"retries": -1}, {"timeout_seconds": 0}, {"headers": {"X": "secret"}}]
)
def test_settings_that_make_no_sense_are_refused(params):
    with pytest.raises(RewardSettingsError):
        http_reward(["a"], row(), **{"url": "http://127.0.0.1:9/", **params})


def test_a_row_that_is_no_json_is_named():
    with pytest.raises(RewardCallError, match="what would be sent is not JSON: .*metadata"):
        http_reward(["a"], row(metadata={"when": object()}), url="http://127.0.0.1:9/")
