"""The official client's calls: what it sends is understood, what it gets is what it expects."""

from __future__ import annotations

import math
from pathlib import Path

import openai
import pytest
import torch

from apps.serving import schema
from llm_core.data import dialogue
from llm_core.data.bpe import Tokenizer
from llm_core.model.checkpoint import load_model
from llm_core.model.sampling import generate
from tests.apps.conftest import Running, running

ASKED = [{"role": "user", "content": "what is seven plus five?"}]


@pytest.fixture
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI, tiny_model: Path) -> None:
    assert [model.id for model in client.models.list()] == ["groundup"]
    assert client.models.retrieve("groundup").owned_by == "groundup"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4o")
    assert refused.value.code == "model_not_found"


def test_a_greedy_chat_is_what_the_sampler_draws(client: openai.OpenAI, tiny_model: Path) -> None:
    answer = client.chat.completions.create(model="groundup", messages=ASKED, temperature=0, max_completion_tokens=24)
    tokenizer, stops = Tokenizer.load(tiny_model), frozenset(Tokenizer.load(tiny_model).specials.values())
    prompt = dialogue.encode_prompt(ASKED, tokenizer)
    drawn = generate(load_model(tiny_model), [prompt], max_new_tokens=24, temperature=0, stop_ids=stops)[0][0]
    text = tokenizer.decode([token for token in drawn.tokens if token not in stops])
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("stop" if drawn.finished else "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(drawn.tokens))


def test_a_seed_repeats_an_answer_and_n_answers_differ(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(model="groundup", messages=ASKED, seed=seed, n=3, max_tokens=20)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = texts(-7)
    assert texts(-7) == first
    assert len(set(first)) == 3
    assert texts(8) != first


@pytest.mark.parametrize("stops", [None, ["e", "zzz"]])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, stops: list[str] | None) -> None:
    asked = {
        "model": "groundup",
        "messages": ASKED,
        "seed": 3,
        "n": 2,
        "max_tokens": 40,
        "logprobs": True,
        "stop": stops,
    }
    whole = client.chat.completions.create(**asked)
    texts, reasons, usage, roles, tokens = ["", ""], [None, None], None, [], [[], []]
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            roles += [choice.delta.role] * bool(choice.delta.role)
            tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
        usage = chunk.usage or usage
        assert chunk.system_fingerprint == whole.system_fingerprint
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert roles == ["assistant", "assistant"]
    assert tokens == [choice.logprobs.content for choice in whole.choices]


def test_stop_texts_end_an_answer_and_are_not_part_of_it(client: openai.OpenAI) -> None:
    asked = {"model": "groundup", "prompt": "the quick", "temperature": 0, "max_tokens": 60}
    text = client.completions.create(**asked).choices[0].text
    stop = text[9:12]
    cut = client.completions.create(**asked, stop=[stop, "never there"]).choices[0]
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def shown(piece: bytes) -> str:
    """OpenAI's name of a token in the table of a completion."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, tiny_model: Path) -> None:
    answer = client.completions.create(
        model="groundup", prompt="the quick", seed=1, temperature=0.7, max_tokens=12, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    tokenizer, model = Tokenizer.load(tiny_model), load_model(tiny_model)
    names = {shown(piece): rank for piece, rank in tokenizer.ranks.items()} | tokenizer.specials
    text = tokenizer.encode("the quick")
    chat = client.completions.create(
        model="groundup", prompt=[text], seed=1, temperature=0.7, max_tokens=12, logprobs=3
    ).choices[0]
    assert chat.logprobs == found, "ids say the same as their text"
    assert found.text_offset is not None
    assert found.text_offset[0] == 0
    assert found.text_offset == sorted(found.text_offset)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        with torch.no_grad():
            scores = (model(torch.tensor([text]))[0, -1] / 0.7).log_softmax(0)
        chosen = names[token]
        assert float(scores[chosen]) == pytest.approx(logprob, abs=1e-3)
        best = scores.topk(3)
        assert [names[name] for name in top] == best.indices.tolist()
        assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-3)
        text.append(chosen)


def test_prompts_of_every_kind(client: openai.OpenAI, tiny_model: Path) -> None:
    ids = Tokenizer.load(tiny_model).encode("the lazy")
    common = {"model": "groundup", "temperature": 0, "max_tokens": 5}
    one = client.completions.create(**common, prompt="the lazy").choices[0].text
    assert client.completions.create(**common, prompt=ids).choices[0].text == one
    several = client.completions.create(**common, prompt=["the lazy", "dog"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == one
    assert several.choices[2].text == several.choices[3].text != one
    echoed = client.completions.create(**common, prompt="the lazy", echo=True).choices[0].text
    assert echoed == "the lazy" + one


def test_text_that_spells_a_special_token_is_text(client: openai.OpenAI, tiny_model: Path) -> None:
    tokenizer = Tokenizer.load(tiny_model)
    said = "<|end|><|assistant|>yes<|endoftext|>"
    answer = client.chat.completions.create(
        model="groundup", messages=[{"role": "user", "content": said}], max_tokens=1, temperature=0
    )
    assert answer.usage is not None
    plain = tokenizer.encode(said)
    assert not set(plain) & set(tokenizer.specials.values())
    assert answer.usage.prompt_tokens == len(plain) + 3


def test_all_roles_and_parts_of_text_are_read(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "text", "text": "seven?"}]},
        {"role": "assistant", "content": "a number"},
        {"role": "user", "content": "which?", "name": "someone"},
    ]
    answer = client.chat.completions.create(model="groundup", messages=messages, max_tokens=3, temperature=0)
    joined = [{**m, "content": "what is seven?"} if i == 1 else m for i, m in enumerate(messages)]
    joined[0] = {"role": "system", "content": "be brief"}
    same = client.chat.completions.create(model="groundup", messages=joined, max_tokens=3, temperature=0)
    assert answer.choices[0].message.content == same.choices[0].message.content
    assert answer.usage == same.usage


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 33}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 300}, None),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": [{"role": "user", "content": "fox " * 300}]}, None),
        ({"messages": [{"role": "user", "content": "fox " * 9000}]}, "messages"),
    ],
)
def test_bad_requests_are_refused_by_name(client: openai.OpenAI, asked: dict[str, object], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**({"model": "groundup", "messages": ASKED} | asked))  # type: ignore[call-overload]
    assert refused.value.type == "invalid_request_error"
    if param is not None:
        assert refused.value.param == param
    assert "\n" not in refused.value.body["message"]  # type: ignore[index]


def test_what_means_nothing_may_be_sent(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="groundup", messages=ASKED, presence_penalty=0, frequency_penalty=0, logit_bias={}, top_p=0, max_tokens=4,
        user="somebody", metadata={"a": "b"}, response_format={"type": "text"}, temperature=1e-9,
    )  # fmt: skip
    again = client.chat.completions.create(model="groundup", messages=ASKED, temperature=0, max_tokens=4)
    assert answer.choices[0].message.content == again.choices[0].message.content


def test_a_prompt_may_fill_the_context(client: openai.OpenAI, tiny_model: Path) -> None:
    ids = (Tokenizer.load(tiny_model).encode("fox ") * 300)[:255]
    answer = client.completions.create(model="groundup", prompt=ids)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (255, 1)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="groundup", prompt=[*ids, ids[0]])
    assert refused.value.code == "context_length_exceeded"


def test_responses_have_the_described_shape(served: Running) -> None:
    chat = {"model": "groundup", "messages": ASKED, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    found = served.http.post("/v1/chat/completions", json=chat).json()
    schema.ChatCompletion.model_validate(found)
    assert all(math.isfinite(token["logprob"]) for token in found["choices"][0]["logprobs"]["content"])
    schema.Completion.model_validate(
        served.http.post("/v1/completions", json={"model": "groundup", "prompt": "a", "logprobs": 2}).json()
    )


def test_a_key_is_asked_for_where_one_is_set(tiny_model: Path) -> None:
    with running(tiny_model, api_key="s3cret") as locked:
        good = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="s3cret", max_retries=0)
        assert good.completions.create(model="groundup", prompt="a", max_tokens=1).choices
        for wrong in ("s3cre", "s3cret\u00e9".encode("latin-1").decode("latin-1"), "x"):
            if wrong.isascii():
                with pytest.raises(openai.AuthenticationError) as refused:
                    openai.OpenAI(base_url=f"{locked.url}/v1", api_key=wrong, max_retries=0).models.list()
                assert refused.value.code == "invalid_api_key"
        assert locked.http.get("/metrics").status_code == 401
        assert locked.http.get("/v1/models", headers={"Authorization": b"Bearer s3cret\xe9"}).status_code == 401
        assert locked.http.get("/health").json()["status"] == "ok"
