"""What is asked, what makes an answer reusable, and what servers may send."""

import contextlib
import dataclasses
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.replies import Secret, read
from dsbs_jax.teacher.requests import Answer, Failure, Request, Sampling, TeacherError, TryAgain, request_key
from dsbs_jax.teacher.toy_server import completion

CHAT = (("system", "be brief"), ("user", "one"), ("assistant", "1"), ("user", "two"))
SAMPLING = Sampling()


def test_a_key_is_that_of_prompt_model_parameters_and_sample():
    request = Request("train/0", CHAT)
    key = request_key(request, "m", SAMPLING)
    assert len(key) == 32
    # The row's id is not part of it.
    assert request_key(Request("train/1", CHAT), "m", SAMPLING) == key
    assert request_key(Request("train/0", tuple(map(tuple, map(list, CHAT)))), "m", Sampling()) == key
    others = [
        (dataclasses.replace(request, sample=1), "m", SAMPLING),
        (request, "n", SAMPLING),
        *((request, "m", dataclasses.replace(SAMPLING, **change)) for change in (
            {"max_tokens": 1}, {"temperature": 1.0}, {"temperature": None}, {"top_p": 0.5}, {"stop": ("Q:",)},
            {"seed": 0}, {"extra": (("top_k", 4),)},
        )),
        *((Request("train/0", prompt), "m", SAMPLING) for prompt in (
            "two", CHAT[:-1], CHAT[1:], (("user", "be brief"), *CHAT[1:]), (*CHAT[:-1], ("user", "two ")),
            (*CHAT[:-1], ("assistant", "two")),
        )),
    ]  # fmt: skip
    assert len({key, *(request_key(*other) for other in others)}) == len(others) + 1


messages = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=1, max_size=3).map(tuple)
prompts = st.text(max_size=5) | messages


@given(prompts, prompts, st.text(max_size=2), st.text(max_size=2))
def test_different_requests_have_different_keys(a, b, model_a, model_b):
    same = (a, model_a) == (b, model_b)
    assert (request_key(Request("r", a), model_a, SAMPLING) == request_key(Request("r", b), model_b, SAMPLING)) == same


def test_the_order_of_extra_parameters_does_not_matter():
    one, other = Sampling(extra=(("a", 1), ("b", {"c": 2}))), Sampling(extra=[["b", {"c": 2}], ["a", 1]])
    assert request_key(Request("r", "p"), "m", one) == request_key(Request("r", "p"), "m", other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"stop": "Q:"}, "stop is 'Q:'; it must be a tuple"),
        ({"stop": ("",)}, "none of them empty"),
    ],
)
def test_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def body(**choice):
    return json.dumps({"choices": [choice]})


@pytest.mark.parametrize(
    ("content", "text", "reason"),
    [
        (json.dumps(completion("yes", chat=True)), "yes", "stop"),
        (json.dumps(completion("yes", chat=False)), "yes", "stop"),
        (body(text="", finish_reason="length"), "", "length"),
        (body(message={"content": None}, finish_reason="length"), "", "length"),
        (body(message={"content": None, "refusal": "I cannot."}), "I cannot.", None),
        (body(message={"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), "ab", None),
        (body(message={"content": "x"}, finish_reason=3), "x", None),
    ],
)
def test_answers_are_read(content, text, reason):
    answer = read(200, {}, content)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == (text, reason)


def test_token_counts_that_are_none_stay_none():
    content = json.dumps({"choices": [{"text": "x"}], "usage": {"prompt_tokens": "7", "completion_tokens": True}})
    assert read(200, {}, content) == Answer("x")
    assert read(200, {}, json.dumps({"choices": [{"text": "x"}], "usage": None})) == Answer("x")


@given(st.integers(200, 599), st.text() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "text", "error", "usage", "code", "detail", "refusal"]), inner
    ),
).map(json.dumps))  # fmt: skip
def test_any_reply_is_an_outcome_or_a_sentence(status, content):
    if status == 200 or status == 429 or status >= 500:
        reply = read(status, {}, content)
        assert isinstance(reply, Answer | Failure | TryAgain)
        assert status == 200 or not isinstance(reply, Answer)
        return
    with contextlib.suppress(TeacherError):
        reply = read(status, {}, content)
        assert isinstance(reply, Failure | TryAgain)
        assert len(reply.message) < 400


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (400, {"error": {"message": "maximum context length is 4096 tokens"}}, "context_too_long"),
        (400, {"error": {"message": "no", "code": "context_length_exceeded"}}, "context_too_long"),
        (400, {"message": "Input is too long for requested model"}, "context_too_long"),
        (413, {}, "context_too_long"),
        (422, {"detail": "prompt exceeds the limit of 2048 tokens"}, "context_too_long"),
        (400, {"error": {"message": "filtered", "code": "content_filter"}}, "content_filter"),
        (400, {"error": "something"}, "bad_request"),
        # What the model never writes, whatever the prompt, and what this prompt leaves no room for.
        (
            400,
            {
                "error": {
                    "message": "max_tokens is too large: 5000. This model supports at most 4096 completion tokens, "
                    "whereas you provided 5000."
                }
            },
            "bad_request",
        ),
        (
            400,
            {
                "error": {
                    "message": "'max_tokens' or 'max_completion_tokens' is too large: 4200. This model's maximum "
                    "context length is 4096 tokens and your request has 800 input tokens."
                }
            },
            "context_too_long",
        ),
    ],
)
def test_failures_of_a_row_have_reason_codes(status, content, reason):
    reply = read(status, {}, json.dumps(content))
    assert isinstance(reply, Failure)
    assert (reply.reason, reply.final) == (reason, True)


def test_retryable_errors_say_what_they_mean():
    limited = read(429, {"retry-after": "4"}, "{}")
    assert (limited.retry_after, limited.congested, limited.rate_limited) == (4.0, True, True)
    assert read(500, {}, "oops").congested is False
    # The model behind a gateway that gave up may go on, and be paid for.
    assert (read(504, {}, "").billed, read(503, {}, "").billed) == (True, False)
    assert read(200, {}, "{").billed


def test_a_secret_shows_nowhere():
    secret = Secret("sk-0123456789")
    assert "0123" not in f"{secret} {secret!r}"
    assert secret.hide_bytes(b"Bearer sk-0123456789!") == b"Bearer [key]!"
    # A placeholder such as EMPTY is not a secret, and may be a word of an answer.
    assert Secret("EMPTY").hide_bytes(b"EMPTY") == b"EMPTY"


ESCAPED_KEY = "sk-ab/cd+ef=="


def escaped(key):
    return key.replace("/", "\\/").replace("=", "\\u003D").replace("+", "\\u002b")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (400, '{"error": {"message": "bad: KEY"}}'),
        (400, '{"error": "bad: KEY"}'),
        # Neither has a message: the body is told as it is.
        (400, '{"error": {"hint": "bad: KEY"}}'),
        (500, "not JSON: KEY"),
        (401, '{"error": {"message": "bad: KEY"}}'),
        (200, '{"choices": [{"text": "you sent KEY", "finish_reason": "KEY"}]}'),
        (200, '{"choices": "KEY"}'),
        (200, '{"error": {"message": "KEY"}}'),
        # JSON inside of JSON.
        (400, json.dumps({"error": {"message": '{"detail": "bad: KEY"}'}}).replace("KEY", "KEY2")),
    ],
)
def test_a_key_that_a_server_escapes_shows_nowhere(status, content):
    twice = json.dumps(escaped(ESCAPED_KEY))[1:-1]
    content = content.replace("KEY2", twice).replace("KEY", escaped(ESCAPED_KEY))
    assert ESCAPED_KEY not in content
    try:
        told = repr(read(status, {}, content, Secret(ESCAPED_KEY)))
    except TeacherError as error:
        told = str(error)
    assert "[key]" in told
    assert "sk-ab" not in told
    assert "cd" not in told.replace("code", "")


def test_packed_answers_are_unpacked(tmp_path, fault_server):
    import asyncio

    from dsbs_jax.teacher.openai_client import open_client, send
    from dsbs_jax.teacher.toy_server import reply, serve

    async def ask():
        ready = asyncio.get_running_loop().create_future()
        packed = gzip.compress(json.dumps(completion("packed", chat=True)).encode())
        handle = lambda _: reply(packed, headers={"Content-Encoding": "gzip"})  # noqa: E731
        server = asyncio.create_task(serve(handle, ready=ready.set_result))
        url = await ready
        async with open_client(url, None, 30.0) as (client, http):
            # The SDK's own request, then one that repeats it.
            answers = [await send(client, http, f"{url}/chat/completions", {}) for _ in range(2)]
        server.cancel()
        return answers

    assert [answer.text for answer in asyncio.run(ask())] == ["packed", "packed"]
