"""Tokens and money before anything is sent."""

import functools
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsbs_jax.teacher.desk import Limits
from dsbs_jax.teacher.journal import Journal, Record
from dsbs_jax.teacher.prices import Prices, estimate, prompt_tokens_at_most, token_counter
from dsbs_jax.teacher.requests import Answer, Request, Sampling, request_key

SAMPLING = Sampling(max_tokens=100)


def test_an_estimate_counts_what_would_be_sent(tmp_path):
    rows = [Request(f"train/{n}", "x" * 40 + str(n % 5)) for n in range(8)]
    with Journal(tmp_path) as journal:
        journal.append([Record(request_key(rows[0], "m", SAMPLING), "train/0", 0, Answer("yes"))])
        found = estimate(rows, "m", SAMPLING, token_counter(), Prices(prompt=10.0, completion=30.0), done=journal)
    # Texts 1 to 4; text 0 is answered, for two rows; two rows repeat texts 1 and 2.
    assert (found.requests, found.already, found.shared) == (4, 2, 2)
    assert (found.prompt_tokens, found.completion_tokens_at_most) == (4 * 11, 400)
    assert found.cost_at_most == pytest.approx((44 * 10 + 400 * 30) / 1e6)
    assert "approximately: 4 bytes a token" in found.text()
    assert "no prices were given" in estimate(rows, "m", SAMPLING, token_counter()).text()


def test_a_large_estimate_counts_some_and_weighs_the_rest_by_its_bytes():
    rows = (Request(f"train/{n}", "word " * (10 if n < 2000 else 30) + f"{n:06d}") for n in range(4000))
    found = estimate(rows, "m", SAMPLING, token_counter())
    assert found.counted.endswith("on the first 2000")
    assert found.prompt_tokens == pytest.approx((2000 * 56 + 2000 * 156) / 4, rel=0.01)


def test_a_tokenizer_in_a_folder_counts_exactly(tiny_model):
    counter = token_counter(str(tiny_model))
    assert counter.exact
    # One token a byte.
    assert counter("häh") == 4
    assert counter((("user", "four"), ("assistant", "five5"))) == 4 + 5 + 2 * 4
    with pytest.raises(FileNotFoundError, match="nothing is not there: the tokenizer must be a folder"):
        token_counter(str(tiny_model / "nothing"))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"model": 3}'])
def test_a_broken_tokenizer_is_one_sentence(tmp_path, content):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json that .*; save it anew"):
        token_counter(str(tmp_path))


@pytest.mark.parametrize("tokenizer", [5, ["gpt"], b"tiktoken:o200k_base"])
def test_a_tokenizer_that_is_no_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"The tokenizer is .*; it must be a folder with tokenizer\.json"):
        token_counter(tokenizer)


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    for module in ("tiktoken", "tokenizers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="needs tiktoken; install it with: pip install tiktoken"):
        token_counter("tiktoken:o200k_base")
    with pytest.raises(ImportError, match="needs tokenizers; install it with: pip install tokenizers"):
        token_counter(str(tmp_path))


def test_an_encoding_that_tiktoken_cannot_give_is_one_sentence(monkeypatch):
    def get_encoding(name):
        if name == "p50k":
            raise ValueError(f"Unknown encoding {name}.\nPlugins found: []\ntiktoken version: 0.12.0")
        raise ConnectionError("no route to openaipublic.example")

    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=get_encoding))
    for name in ("p50k", "o200k_base"):
        with pytest.raises(ValueError, match=rf"no encoding '{name}' at hand .*; name one that it knows") as refused:
            token_counter(f"tiktoken:{name}")
        assert "\n" not in str(refused.value)


@functools.cache
def loaded(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@settings(deadline=None)
@given(st.text() | st.lists(st.tuples(st.sampled_from(["user", "system"]), st.text()), min_size=1).map(tuple))
def test_no_byte_level_tokenizer_makes_more_tokens_than_the_bound(tiny_model, prompt):
    tokenizer = loaded(tiny_model)
    text = prompt
    if not isinstance(prompt, str):
        messages = [{"role": role, "content": content} for role, content in prompt]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert len(tokenizer(text)["input_ids"]) <= prompt_tokens_at_most(prompt)


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_cost is set and prices are not"):
        Limits(max_cost=1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        Limits(max_requests=-1)
    with pytest.raises(ValueError, match="none may be negative"):
        Prices(-1.0, 0.0)
