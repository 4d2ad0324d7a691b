"""A teacher in process: same journal, batches that do not change answers."""

import pytest

from dsbs_jax.teacher import local
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


NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


def test_a_system_text_goes_into_the_first_user_message_where_the_template_refuses_it(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    loaded = local._Loaded(None, tokenizer, "cpu")
    chat = (("system", "be brief"), ("user", "one"), ("assistant", "1"), ("user", "two"))
    assert loaded.text(chat).startswith("system: be brief\nuser: one\n")
    tokenizer.chat_template = NO_SYSTEM
    assert loaded.text(chat) == "user: be brief\n\none\nassistant: 1\nuser: two\n"
    assert loaded.text(chat[1:]) == "user: one\nassistant: 1\nuser: two\n"
    tokenizer.chat_template = "{{ raise_exception('Nobody may speak') }}"
    with pytest.raises(
        ValueError, match=r"refuses the prompt's roles .system, user, assistant, user: Nobody may speak"
    ):
        loaded.text(chat)


def test_two_models_in_folders_of_one_name_have_two_names(tmp_path):
    def folder(parent, config=b"{}", **weights):
        made = tmp_path / parent / "final"
        made.mkdir(parents=True)
        (made / "config.json").write_bytes(config)
        for name, data in weights.items():
            (made / f"{name}.safetensors").write_bytes(data)
        return str(made)

    big = bytes(1 << 20)
    first = folder("a", model=big)
    others = [
        folder("b", b"{ }", model=big),
        folder("c", model=big + b"0"),
        folder("d", other=big),
        # Of one shape, trained on.
        folder("e", model=bytes(range(256)) * (1 << 12)),
        folder("f", model=big[:-1] + b"1"),
        folder("g"),
    ]
    names = {LocalTeacher(one).model for one in (first, *others)}
    assert len(names) == 7
    assert all(name.startswith("final-") for name in names)
    # The same model elsewhere has the same name, and a name that is given stays as it is.
    assert LocalTeacher(folder("h", model=big)).model == LocalTeacher(first).model
    assert LocalTeacher(first, name="mine").model == "mine"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json; model_folder must be"):
        ask(tmp_path / "journal", tmp_path / "nothing")
