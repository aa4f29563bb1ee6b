"""The voting page: what its buttons do, what it hides until the vote, who may open it, and that no vote is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps import chat
from apps.answering import ANY, Draw, Models
from apps.chat import Page, check_address
from llm_core.contract import BadInput
from tasks import exchanges, tracking
from tasks.exchanges import Shown
from tasks.workspace import Workspace

WORDS = ("three", "five")
DIGESTS = {"champion": "c" * 64, "candidate": "d" * 64}


class TwoModels(Models):
    """Models that answer at once: the champion `three`, the candidate `five`."""

    def __init__(self, project: Path) -> None:
        super().__init__(project)

    def _there(self) -> list[str]:
        return ["champion", "candidate"]

    def answer(self, name: str, prompt: Any, draw: Draw, seed: int) -> Shown:
        text = WORDS[list(DIGESTS).index(name)]
        return Shown(text, name, DIGESTS[name], {"temperature": 1.0, "seed": seed}, 10**18, 10**18 + 5)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page whose tracker is down."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return Page(tmp_path, TwoModels(tmp_path), Draw())


def kept(page: Page) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in exchanges.waiting(page.project)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_password(host: str) -> None:
    check_address(host, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_other_machines_need_one(host: str) -> None:
    with pytest.raises(BadInput, match=f"^--host {host}: the page opens to other machines only with a password"):
        check_address(host, "")
    check_address(host, "secret")


def test_the_command_refuses_an_open_address_in_one_sentence(root: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "chat", "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != chat.PASSWORD}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert "only with a password" in done.stderr


def test_both_models_stand_on_both_sides() -> None:
    models = TwoModels(Path("."))
    orders = Counter(models.pair("champion", "candidate") for _ in range(400))
    assert set(orders) == {("champion", "candidate"), ("candidate", "champion")}
    assert min(orders.values()) > 130  # 200 are expected; seven deviations away
    assert len({models.pair(ANY, ANY) for _ in range(200)}) == 4
    assert models.pair("champion", "champion") == ("champion", "champion")
    with pytest.raises(BadInput, match="no model 'models/secret' here"):
        models.pair("models/secret", ANY)


def test_names_are_hidden_until_the_vote_and_buttons_wait_for_both_answers(page: Page) -> None:
    thinking, done = list(chat._asker(page)("How long is the word apple?", "champion", "candidate"))
    assert [button["interactive"] for button in thinking[4:]] == [False] * 4
    assert [button["interactive"] for button in done[4:]] == [True] * 4
    asked, left, right, status = done[:4]
    assert {left, right} == set(WORDS)
    visible = f"{left} {right} {status}"
    assert not any(secret in visible for name, digest in DIGESTS.items() for secret in (name, digest[:8]))
    told = page.vote(asked, "left", "", "", "", "")
    exchange = asked["exchange"]
    assert told.startswith(f"Left: {exchange.left.model} ({exchange.left.digest[:8]}), right: {exchange.right.model}")


def test_a_vote_says_what_was_seen(page: Page) -> None:
    asked = page.ask(" Count! ", "champion", "candidate")
    page.vote(asked, "right", "Ada", " shorter ", "5!", "right")
    record = kept(page)[-1]
    assert record["exchange"]["prompt"] == [{"role": "user", "content": "Count!"}]
    judged = record["judgement"]
    assert (judged["preference"], judged["why"], judged["edited"], judged["edited_of"]) == (
        "right", "shorter", "5!", "right",
    )  # fmt: skip
    assert 0 <= judged["seconds"] < 60
    assert "Ada" not in json.dumps(record)
    assert judged["rater"] == exchanges.rater_name(page.project, "Ada") != exchanges.rater_name(page.project, "Eve")


def test_an_edit_that_changes_nothing_is_none(page: Page) -> None:
    asked = page.ask("Count!")
    page.vote(asked, "left", "", "", asked["exchange"].left.text, "left")
    assert kept(page)[-1]["judgement"]["edited"] == ""


def test_one_vote_an_exchange(page: Page) -> None:
    with pytest.raises(BadInput, match="ask something first"):
        page.vote(None, "left", "", "", "", "")
    asked = page.ask("Count!")
    page.vote(asked, "tie", "", "", "", "")
    with pytest.raises(BadInput, match="you have voted"):
        page.vote(asked, "left", "", "", "", "")
    assert sum(record["judgement"] is not None for record in kept(page)) == 1


@pytest.mark.parametrize("text", ["", "  \n", "x" * (chat.LONGEST + 1)])
def test_a_prompt_that_cannot_be_asked_is_told_on_the_page(page: Page, text: str) -> None:
    *_, (asked, left, right, status, *buttons) = chat._asker(page)(text)
    assert asked is None
    assert left == right == ""
    assert status.startswith("the prompt ")
    assert not any(button["interactive"] for button in buttons)


def test_without_a_tracker_the_page_says_so_and_the_votes_arrive_later(
    page: Page, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [page.ask("Count!", "champion", "candidate"), page.ask("Again!", "candidate", "candidate")]
    told = [page.vote(a, "left", "Ada", "why not", "", "") for a in asked]
    assert all("Not sent" in text and "kept on this machine" in text for text in told)
    assert len(kept(page)) == 4
    monkeypatch.undo()
    monkeypatch.setattr(exchanges, "EXPERIMENT", "votes-later")
    uri = tracking.tracking_uri(workspace.root)
    records = [path.read_bytes() for path in exchanges.waiting(page.project)]
    traces = exchanges.send(page.project, uri)
    assert set(traces) == {a["exchange"].id for a in asked}
    assert kept(page) == []
    for record in records:  # a page that was killed between sending and forgetting sends them again
        exchange = json.loads(record)["exchange"]["id"]
        (page.project / ".groundup" / "chat" / "outbox" / f"0-{exchange}-{len(kept(page))}.json").write_bytes(record)
    assert exchanges.send(page.project, uri) == traces
    client = tracking.client(str(uri))
    place = [tracking.experiment_id(client, "votes-later")]
    found = client.search_traces(locations=place)
    assert {trace.info.trace_id for trace in found} == set(traces.values())
    for trace in found:
        (assessment,) = trace.info.assessments
        assert (assessment.name, assessment.value, assessment.rationale) == ("preference", "left", "why not")
        assert assessment.source.source_type == "HUMAN"
        assert {"left_digest", "right_digest", "left_sampling", "right_sampling", "seconds"} <= set(assessment.metadata)
        assert {span.name for span in trace.data.spans} == {"exchange", "left", "right"}


def test_an_idle_page_has_loaded_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from apps.chat import *\n"
        "application(Page(Path(sys.argv[1]), Models(Path(sys.argv[1])), Draw()), '')\n"
        "print([m for m in ('torch', 'mlflow', 'prefect', 'dvc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says anything: two layers with random weights, and a tokenizer of a few words."""
    import torch

    from llm_core.artifacts import new_product
    from llm_core.data import bpe
    from llm_core.model.checkpoint import save_model
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer

    torch.manual_seed(0)
    tokenizer = bpe.train(["how long is the word apple, three or five?"] * 20, 300)
    shape = {"layers": 1, "heads": 2, "width": 16, "context": 48}
    network = Transformer(ModelConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, **shape))
    project = tmp_path_factory.mktemp("project")
    with new_product(project / "models" / "chat", "chat") as folder:
        save_model(network, folder, tokenizer)
    return project


@pytest.fixture(params=["", "secret"], ids=["open", "password"])
def served(
    model_folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, page_from: Any
) -> Iterator[str]:
    """The address of a page with a real model and no tracker.

    It is a process of its own, as it always is: once Scrapy was imported, Gradio builds no page in the same process
    (zope.interface has then marked `abc.ABC`, and Gradio reads each attribute that its components list).
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for path in exchanges.waiting(model_folder):
        path.unlink()
    code = (
        "import sys; from pathlib import Path; from apps.chat import *\n"
        "serve(Path(sys.argv[1]), ['models/chat'], Draw(max_new_tokens=8), '127.0.0.1', int(sys.argv[2]), sys.argv[3])"
    )
    options = [str(model_folder), request.param]
    with page_from(lambda port: [sys.executable, "-c", code, options[0], str(port), options[1]], 120) as address:
        yield address


def test_a_program_can_ask_and_vote(served: str, model_folder: Path, request: pytest.FixtureRequest) -> None:
    import httpx
    from gradio_client import Client

    assert httpx.get(f"{served}/health").json() == "OK"
    if "password" in request.node.name:
        assert httpx.get(f"{served}/config").status_code == 401
        with pytest.raises(Exception, match=r"(?i)credentials|auth|login|401"):
            Client(served, auth=("ada", "guess"), verbose=False)
        client = Client(served, auth=("ada", "secret"), verbose=False)
    else:
        client = Client(served, verbose=False)
    left, right, status = client.predict("How long is the word apple?", ANY, ANY, api_name="/ask")
    assert "models/chat" not in status
    told = client.predict("ada", "", "", None, api_name="/vote_both_bad")
    assert "Left: models/chat" in told
    assert "you have voted" in client.predict("ada", "", "", None, api_name="/vote_left")
    long = client.predict("apple " * 200, ANY, ANY, api_name="/ask")
    assert "the prompt is too long" in long[2]
    exchange = json.loads(exchanges.waiting(model_folder)[-1].read_text())
    assert [exchange["exchange"][side]["text"] for side in ("left", "right")] == [left, right]
    assert exchange["judgement"]["preference"] == "both_bad"
    assert exchange["judgement"]["rater"] == exchanges.rater_name(model_folder, "ada")


def test_an_answer_can_be_drawn_again_from_its_record(model_folder: Path) -> None:
    models = Models(model_folder, ["models/chat"])
    prompt = [{"role": "user", "content": "How long?"}]
    first, again, other = (models.answer("models/chat", prompt, Draw(max_new_tokens=8), seed) for seed in (5, 5, 6))
    assert first.text == again.text != other.text
    assert first.sampling == {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 5}
    from llm_core import artifacts

    assert first.digest == artifacts.digest(model_folder / "models" / "chat")


def test_without_a_registry_the_last_build_answers(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert Models(model_folder).pair() == ("models/chat", "models/chat")
    with pytest.raises(BadInput, match="neither one of champion, candidate, previous nor a model's folder"):
        Models(model_folder, ["models/none"])
    (model_folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(BadInput, match="no model to ask: the model registry"):
        Models(model_folder / "empty").pair()
