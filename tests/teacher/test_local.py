"""A teacher in process: same journal, batches that do not change answers."""

import pytest

from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal, read_records
from dsbs_jax.teacher.local import LocalTeacher
from dsbs_jax.teacher.requests import Request, Sampling

pytest.importorskip("torch", reason="needs the extra `teacher`")
pytest.importorskip("transformers", reason="needs the extra `teacher`")


REQUESTS = [Request(f"train/{n}", "a question" * (1 + n % 3) + f" {n}") for n in range(11)]


def ask(folder, tiny_model, requests=REQUESTS, sampling=Sampling(max_tokens=12), **options):
    with Journal(folder) as journal:
        done = ask_all(requests, LocalTeacher(str(tiny_model), **options), journal, sampling=sampling)
    return done, {(r.row, r.sample): r.outcome for r in read_records(folder)}


def test_answers_are_those_of_transformers_one_by_one(tmp_path, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done, outcomes = ask(tmp_path, tiny_model, batch_size=4)
    assert (done.answered, done.complete) == (11, True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for request in REQUESTS:
        ids = tokenizer(request.prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        answer = outcomes[request.row, 0]
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True)
        assert (answer.prompt_tokens, answer.completion_tokens) == (ids["input_ids"].shape[1], len(output))
        assert answer.finish_reason == ("stop" if int(output[-1]) == 1 else "length")
    assert len({answer.text for answer in outcomes.values()}) > 5, "the model does not tell prompts apart"
    assert ask(tmp_path, tiny_model)[0].sent == 0


def test_sampled_answers_depend_on_seed_and_request_but_not_on_the_batch(tmp_path, tiny_model):
    requests = [Request(f"train/{n}", f"a question {n}", sample) for n in range(4) for sample in range(3)]
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=5)
    _, first = ask(tmp_path / "a", tiny_model, requests, sampling, batch_size=8)
    _, again = ask(tmp_path / "b", tiny_model, requests[::-1], sampling, batch_size=3)
    assert {key: answer.text for key, answer in first.items()} == {key: answer.text for key, answer in again.items()}
    assert len({first["train/0", sample].text for sample in range(3)}) == 3
    _, other = ask(tmp_path / "c", tiny_model, requests, Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=6))
    assert all(other[key].text != first[key].text for key in first)


def test_draws_follow_the_softmax():
    import torch

    from dsbs_jax.teacher.local import _draw

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = 4000
    generators = [torch.Generator().manual_seed(n) for n in range(rows)]
    logits = probabilities.log().expand(rows, 4)
    drawn = _draw(Sampling(temperature=1.0), generators, None, logits).argmax(-1).bincount(minlength=4) / rows
    # Four standard errors of a share of 0.5.
    assert torch.allclose(drawn, probabilities, atol=4 * (0.25 / rows) ** 0.5)
    nucleus = _draw(Sampling(temperature=1.0, top_p=0.7), generators, None, logits).argmax(-1).bincount(minlength=4)
    assert nucleus[2:].sum() == 0
    assert nucleus[1] > 0


def test_chats_stop_texts_and_prompts_that_are_too_long(tmp_path, tiny_model):
    chat = Request("train/0", (("system", "be brief"), ("user", "why?")))
    same = Request("train/1", "system: be brief\nuser: why?\nassistant: ")
    long = Request("train/2", "x" * 250)
    _, outcomes = ask(tmp_path / "a", tiny_model, [chat, same, long])
    text = outcomes["train/0", 0].text
    assert text == outcomes["train/1", 0].text
    assert outcomes["train/2", 0].reason == "context_too_long"
    stop = text[4:6]
    _, stopped = ask(tmp_path / "b", tiny_model, [chat], Sampling(max_tokens=12, stop=(stop,)))
    answer = stopped["train/0", 0]
    assert (answer.text, answer.finish_reason) == (text.partition(stop)[0], "stop")
    assert answer.completion_tokens <= 12


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json; model_folder must be"):
        ask(tmp_path / "journal", tmp_path / "nothing")
