"""`groundup chat`: the page on which people vote. A prompt, two answers on sides drawn at random, names hidden until
the vote; four votes, a comment, and an answer that the rater wrote better.

Every exchange becomes an MLflow trace and every vote an assessment of it (tasks/exchanges.py); `groundup feedback` then
trains on them. A model's words are shown as plain text: nothing of them is taken for HTML.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from filelock import Timeout

from apps.answering import ANY, Draw, Models
from llm_core.contract import BadInput
from llm_core.release.card import markdown
from tasks import exchanges, tracking
from tasks.exchanges import Exchange, Judgement, Preference, Shown

PASSWORD = "GROUNDUP_CHAT_PASSWORD"
"""Environment variable that sets the page's password."""
VOTES: tuple[tuple[Preference, str], ...] = (
    ("left", "Left is better"),
    ("right", "Right is better"),
    ("tie", "Equally good"),
    ("both_bad", "Both are bad"),
)
UNSIGNED = "local"
"""Who votes without a name on a page without a password: somebody at this machine."""
RETRY_S = 20.0
DRAWS = 4
"""How often two answers are drawn again while they are equal."""
LONGEST = 20_000
"""Characters of a prompt, a comment or an edited answer, at most."""


class Page:
    """What the page's buttons do; no Gradio in here, so that it can be called without a browser."""

    def __init__(self, project: Path, models: Models, draw: Draw) -> None:
        self.project, self.models, self.draw = project, models, draw
        self.delivering, self.traces = threading.Lock(), dict[str, str]()

    def ask(self, text: str, first: str = ANY, second: str = ANY) -> dict[str, Any]:
        """An exchange: two answers to `text`. Returns what the session must remember of it. Raises `BadInput`."""
        if not (text := text.strip()):
            raise BadInput("the prompt is empty")
        if len(text) > LONGEST:
            raise BadInput(f"the prompt has {len(text):,} characters; at most {LONGEST:,} are taken")
        prompt = ({"role": "user", "content": text},)
        exchange = Exchange(prompt, *self._answers(prompt, first, second))
        exchanges.keep(self.project, exchange)
        threading.Thread(target=self.deliver, daemon=True).start()  # while the rater reads
        return {"exchange": exchange, "shown": time.monotonic(), "judged": False}

    def _answers(self, prompt: tuple[dict[str, str], ...], first: str, second: str) -> tuple[Shown, Shown]:
        """Two answers that differ, if a few draws give such: a vote between equal ones teaches nothing."""
        names = self.models.pair(first, second)
        for attempt in range(DRAWS):
            seed = secrets.randbits(31)
            left, right = (self.models.answer(name, prompt, self.draw, seed + i) for i, name in enumerate(names))
            if left.text != right.text or self.draw.temperature == 0 or attempt == DRAWS - 1:
                break
        return left, right

    def vote(
        self, asked: dict[str, Any] | None, preference: Preference, name: str, why: str, edited: str, edited_of: str
    ) -> str:
        """Keep a vote and send it; what became of it, in words. Raises `BadInput` if there is nothing to vote on."""
        if asked is None:
            raise BadInput("ask something first")
        if asked["judged"]:
            raise BadInput("you have voted on these answers; ask again")
        if max(len(why), len(edited)) > LONGEST:
            raise BadInput(f"a comment or an answer of more than {LONGEST:,} characters is not taken")
        asked["judged"] = True
        exchange: Exchange = asked["exchange"]
        edited, edited_of = edited.strip(), edited_of if edited_of in ("left", "right") else "left"
        changed = edited and edited != getattr(exchange, edited_of).text
        judgement = Judgement(
            preference=preference,
            rater=exchanges.rater_name(self.project, name or UNSIGNED),
            seconds=round(time.monotonic() - asked["shown"], 1),
            given=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            why=why.strip(),
            edited=edited if changed else "",
            edited_of=edited_of if changed else "",
        )
        exchanges.keep(self.project, exchange, judgement)
        return f"{_revealed(exchange)} {self.deliver(exchange.id)}"

    def deliver(self, exchange: str = "") -> str:
        """Send what waits; where the vote on `exchange` is now, in words. What cannot be sent stays and is not lost."""
        with self.delivering:  # else the vote may go out with the backlog, and its trace be told to nobody
            try:
                self.traces |= exchanges.send(self.project, tracking.tracking_uri(self.project), patience_s=30)
            except (ConnectionError, Timeout) as error:
                count = len(exchanges.waiting(self.project))
                return f"Not sent: {error}. Your vote is kept on this machine ({count} waiting) and sent later."
        return f"Saved as trace {self.traces[exchange]}." if exchange in self.traces else "Saved."

    def keep_delivering(self, ended: threading.Event) -> None:
        """Try again now and then to send what waits, until `ended`."""
        while not ended.wait(RETRY_S):
            if exchanges.waiting(self.project):
                self.deliver()


def _revealed(exchange: Exchange) -> str:
    sides = (f"{side}: {shown.model} ({shown.digest[:8]})" for side, shown in
             (("Left", exchange.left), ("right", exchange.right)))  # fmt: skip
    return f"{', '.join(sides)}."


def check_address(host: str, password: str) -> None:
    """Refuse to open the page to other machines without a password. Raises `BadInput`."""
    try:
        at_home = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        at_home = False
    if not at_home and not password:
        raise BadInput(f"--host {host}: the page opens to other machines only with a password; set {PASSWORD}")


def build(page: Page, *, signed_in: bool) -> gr.Blocks:
    """The page's layout. `signed_in`: raters come with a name, so none is asked for."""
    with gr.Blocks(title="Groundup: which answer is better?", analytics_enabled=False) as blocks:
        gr.Markdown("## Which answer is better?\nAsk something; two models, or one model twice, answer below.")
        asked = gr.State(None)
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", lines=2, scale=5, elem_id="prompt")
            ask = gr.Button("Ask", variant="primary", scale=1, elem_id="ask")
        with gr.Row():
            left, right = (
                gr.Textbox(label=side, lines=5, interactive=False, elem_id=side.lower()) for side in ("Left", "Right")
            )
        with gr.Row():
            buttons = [
                gr.Button(label, interactive=False, elem_id=f"vote-{preference.replace('_', '-')}")
                for preference, label in VOTES
            ]
        status = gr.Markdown("", elem_id="status")
        why = gr.Textbox(label="Why (optional)", elem_id="why")
        with gr.Accordion("Write a better answer (optional)", open=False):
            edited_of = gr.Radio(["left", "right"], label="Made from the answer on the", elem_id="edited-of")
            edited = gr.Textbox(label="Better answer", lines=4, elem_id="edited")
        with gr.Accordion("Who answers, and who asks", open=False):
            choices = [ANY, *page.models.names]
            first, second = (gr.Dropdown(choices, value=ANY, label=label) for label in ("One answer by", "Other by"))
            name = gr.Textbox(label="Your name (only a keyed hash of it is kept)", visible=not signed_in)
        answers = [asked, left, right, status, *buttons]
        for event, name_of in ((ask.click, "ask"), (prompt.submit, "ask_by_key")):
            event(_asker(page), [prompt, first, second], answers, api_name=name_of).success(
                lambda: ("", None, ""), None, [why, edited_of, edited], api_visibility="private"
            )
        edited_of.input(_start_from, [asked, edited_of], edited, api_visibility="private")
        for button, (preference, _) in zip(buttons, VOTES, strict=True):
            button.click(
                _voter(page, preference),
                [asked, name, why, edited, edited_of],
                [status, *buttons],
                api_name=f"vote_{preference}",
            )
    return blocks


def _buttons(enabled: bool) -> list[Any]:
    return [gr.update(interactive=enabled) for _ in VOTES]


def _asker(page: Page) -> Callable[..., Iterator[list[Any]]]:
    def ask(text: str, first: str = ANY, second: str = ANY) -> Iterator[list[Any]]:
        """Two answers to a prompt; votes are taken only when both are complete."""
        yield [None, "", "", "Both are thinking ...", *_buttons(False)]
        try:
            asked = page.ask(text, first, second)
        except (BadInput, ConnectionError) as error:
            yield [None, "", "", markdown(str(error)), *_buttons(False)]
            return
        exchange = asked["exchange"]
        text = "Both are done: vote." if exchange.left.text != exchange.right.text else "Both said the same: vote."
        yield [asked, exchange.left.text, exchange.right.text, text, *_buttons(True)]

    return ask


def _start_from(asked: dict[str, Any] | None, side: str) -> str:
    return getattr(asked["exchange"], side).text if asked and side else ""


def _voter(page: Page, preference: Preference) -> Callable[..., list[Any]]:
    def vote(
        asked: dict[str, Any] | None, name: str, why: str, edited: str, edited_of: str | None, request: gr.Request
    ) -> list[Any]:
        """Take the vote; it names the models only now."""
        try:
            text = page.vote(asked, preference, request.username or name, why, edited, edited_of or "")
        except BadInput as error:
            text = str(error)
        return [markdown(text), *_buttons(False)]

    return vote


def application(page: Page, password: str) -> FastAPI:
    """The page as an application, with /health beside it; with a password everything else asks for it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> str:
        return "OK"

    def known(user: str, given: str) -> bool:
        return bool(user.strip()) and hmac.compare_digest(given.encode(), password.encode())

    return gr.mount_gradio_app(
        app,
        build(page, signed_in=bool(password)),
        path="/",
        auth=known if password else None,
        auth_message="Any name, and the page's password. Only a keyed hash of the name is kept." if password else None,
        footer_links=[],
        ssr_mode=False,
        # Fonts of the system: the page fetches nothing from elsewhere.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def serve(project: Path, names: Sequence[str], draw: Draw, host: str, port: int, password: str) -> None:
    """Show the page until the process is told to end. Raises `BadInput` before it listens."""
    check_address(host, password)
    page = Page(project, Models(project, names), draw)
    ended = threading.Event()
    threading.Thread(target=page.keep_delivering, args=(ended,), daemon=True).start()
    try:
        uvicorn.run(application(page, password), host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    finally:
        ended.set()


if __name__ == "__main__":  # as `groundup up` starts it: on this machine only, with the registry's models
    serve(Path(sys.argv[1]), (), Draw(), "127.0.0.1", int(sys.argv[2]), os.environ.get(PASSWORD, ""))
