"""A real server: `transformers serve` with a tiny model, in a process of its own, asked as a teacher is."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import pytest

from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.journal import Journal, read_records
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.requests import Answer, Request, Sampling, TeacherError

pytestmark = pytest.mark.slow

for name in ("torch", "transformers", "fastapi", "uvicorn", "openai"):
    pytest.importorskip(name, reason="needs transformers[serving] and openai, which the extra `test` installs")


@pytest.fixture(scope="module")
def server(tiny_model, free_port, tmp_path_factory):
    """The base URL of the server, and the model's name there."""
    folder = tmp_path_factory.mktemp("serve")
    # `/v1/models` answers 500 until the cache exists.
    (folder / "cache" / "hub").mkdir(parents=True)
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    port = free_port()
    script = pathlib.Path(sys.executable).with_name("transformers")
    command = [script, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", str(tiny_model)]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            deadline = time.monotonic() + 180
            while True:
                with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", str(tiny_model)
        finally:
            process.terminate()
            process.wait(timeout=30)


def ask(folder, server, requests, sampling=Sampling(max_tokens=8), **options):
    url, model = server
    teacher = OpenAITeacher(
        model,
        base_url=url,
        concurrency=Concurrency(2, 1, 4),
        patience=Patience(attempts=2, unfinished_in_a_row=2),
        timeout_s=120.0,
        **options,
    )
    with Journal(folder) as journal:
        done = ask_all(requests, teacher, journal, sampling=sampling)
    return done, {(record.row, record.sample): record.outcome for record in read_records(folder)}


def test_completions_are_those_of_the_model(tmp_path, server, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    requests = [Request(f"train/{n}", f"Question {n}") for n in range(3)]
    done, outcomes = ask(tmp_path, server, requests, api="completions")
    assert done.complete
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for request in requests:
        ids = tokenizer(request.prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        answer = outcomes[request.row, 0]
        assert isinstance(answer, Answer)
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True)
        assert answer.prompt_tokens == ids["input_ids"].shape[1]


def test_each_sample_of_a_chat_is_a_request_of_its_own(tmp_path, server):
    prompt = (("system", "be brief"), ("user", "why?"))
    requests = [Request("train/0", prompt, sample) for sample in range(3)]
    done, outcomes = ask(tmp_path, server, requests, Sampling(max_tokens=8, temperature=1.0, seed=1))
    assert (done.answered, done.sent, done.complete) == (3, 3, True)
    assert len({outcome.text for outcome in outcomes.values()}) > 1
    assert all(outcome.completion_tokens <= 8 for outcome in outcomes.values())
    assert ask(tmp_path, server, requests, Sampling(max_tokens=8, temperature=1.0, seed=1))[0].sent == 0


def test_another_model_is_refused(tmp_path, server):
    url, _ = server
    with pytest.raises(TeacherError):
        ask(tmp_path, (url, "no/such-model"), [Request(f"train/{n}", f"Question {n}") for n in range(40)])
