"""The README's pictures: `python docs/screenshots.py [PROJECT]` drives a real browser through a project that is up.

It votes on the voting page, starts a build from the custom-run form with another learning rate, watches it complete,
opens its artifacts and the comparison of loss curves, and writes docs/pictures/*.png. The browser tests call the same
functions, so the pictures show what the tests hold.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZE = {"width": 1200, "height": 800}
PATIENCE_MS = 120_000
BUILD_MS = 900_000
COLOURS = 96
Path_ = tuple[str, ...]
LEARNING_RATE = ("settings", "pretrain", "optimizer", "learning_rate")


def chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser(executable: str) -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    """A fresh page at `url`, patient with a busy machine."""
    context = browser.new_context(viewport=SIZE)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    try:
        yield page
    finally:
        context.close()


def ask(page: Page, prompt: str) -> tuple[str, str]:
    """Ask something on the voting page; the two answers, once both are complete."""
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text(re.compile("Both (are done|said the same)"))
    return page.locator("#left textarea").input_value(), page.locator("#right textarea").input_value()


def vote(page: Page, preference: str, why: str = "") -> str:
    """Vote on what was asked: left, right, tie or both-bad; what the page then says."""
    if why:
        _fill(page, page.locator("#why textarea, #why input"), why)
    page.locator(f"#vote-{preference}").click()
    expect(page.locator("#status")).to_contain_text(re.compile("Saved|Not sent"))
    return page.locator("#status").inner_text()


def _fill(page: Page, box: Locator, text: str) -> None:
    """Type into a box until the text stays: the page empties it when new answers come, which may be just now."""
    for _ in range(50):
        box.fill(text)
        page.wait_for_timeout(200)
        if box.input_value() == text:
            return
    raise AssertionError(f"the page does not take {text!r}")


def trace_in(text: str) -> str:
    """The trace that the page names after a vote."""
    found = re.search(r"tr-[0-9a-f]{32}", text)
    assert found, f"the page names no trace: {text!r}"
    return found[0]


def run_form(prefect: str, deployment: str) -> str:
    """Address of the custom-run form of a deployment."""
    with urllib.request.urlopen(f"{prefect}/api/deployments/name/{deployment}/{deployment}") as response:
        return f"{prefect}/deployments/deployment/{json.load(response)['id']}/run"


def field(page: Page, path: Path_) -> Locator:
    """A field of the form, found through the boxes around it by their labels."""
    steps = "".join(
        "//div[contains(@class, 'schema-form-property')][./div[contains(@class, 'p-label__header')]"
        f"//span[contains(@class, 'schema-form-property__label')][normalize-space()='{name} (Optional)']]"
        for name in path
    )
    return page.locator(f"xpath={steps}").first


def fill_form(page: Page, changes: Mapping[Path_, str]) -> None:
    """Type values into fields of the form."""
    for path, value in changes.items():
        box = field(page, path).locator("input, textarea").first
        box.scroll_into_view_if_needed()
        box.fill(value)
        box.press("Tab")


def choose(page: Page, path: Path_, option: str) -> None:
    """Choose an option of a field of the form that offers some."""
    control = field(page, path).locator(".p-select-button__control").first
    control.focus()
    page.keyboard.press("Space")
    page.get_by_text(option, exact=True).last.click()
    page.keyboard.press("Escape")


def runs_of(prefect: str, deployment: str) -> list[str]:
    """Ids of the deployment's runs, the newest first."""
    body = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC"}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{prefect}/api/flow_runs/filter", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return [str(run["id"]) for run in json.load(response)]


def submit(page: Page, prefect: str, deployment: str) -> str:
    """Start the run of a filled form; the id of the run."""
    before = set(runs_of(prefect, deployment))
    page.get_by_role("button", name="Submit").last.click()
    page.wait_for_url(lambda url: not url.endswith("/run"))  # the page leaves the form once the run exists
    (run,) = set(runs_of(prefect, deployment)) - before
    return run


def watch(page: Page, prefect: str, run: str) -> None:
    """Open a run's page and stay there until it says that the run is completed."""
    page.goto(f"{prefect}/runs/flow-run/{run}")
    state = page.locator("[class*='state-badge']").filter(has_text=re.compile("Completed|Failed|Crashed|Cancelled"))
    expect(state.first).to_be_visible(timeout=BUILD_MS)
    expect(state.first).to_contain_text("Completed")


def open_artifacts(page: Page) -> None:
    """From a run's page to its artifacts, until the summary is there."""
    page.get_by_text("Artifacts", exact=True).first.click()
    expect(page.get_by_text("summary", exact=False).first).to_be_visible()


def curves(page: Page, charts: str, metric: str, least: int) -> int:
    """Open MLflow's comparison and search `metric`; how many runs draw a curve, once there are at least so many."""
    page.goto(charts)
    with suppress(TimeoutError):  # a panel takes a quarter of the page until somebody closes it
        page.get_by_role("button", name=re.compile("close", re.I)).first.click(timeout=5000)
    page.get_by_placeholder("Search metric charts").fill(metric)
    drawn = page.locator(".js-plotly-plot .scatterlayer .trace")
    expect(drawn.nth(least - 1)).to_be_attached()
    return drawn.count()


def picture(page: Page, name: str) -> Path:
    """Write what the page shows now as a small PNG; its path."""
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{name}.png"
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def addresses(project: Path) -> dict[str, str]:
    """URL of each server of a project that is up."""
    names = ("prefect", "mlflow", "chat")
    return {name: json.loads((project / ".run" / f"{name}.json").read_text())["url"] for name in names}


def charts_of(mlflow: str, experiment: str) -> str:
    """The comparison of an experiment's runs."""
    query = urllib.parse.urlencode({"experiment_name": experiment})
    with urllib.request.urlopen(f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?{query}") as response:
        number = json.load(response)["experiment"]["experiment_id"]
    return f"{mlflow}/#/experiments/{number}/runs?compareRunsMode=CHART&workflowType=machine_learning"


def main(project: Path) -> None:
    """All pictures, of a project that is up and has been built once."""
    executable = chromium()
    if executable is None:
        sys.exit("no Chromium here; on Debian: apt-get install chromium")
    at = addresses(project)
    with open_browser(executable) as browser:
        with open_page(browser, at["chat"]) as page:
            ask(page, "What is 85 plus 83?")
            picture(page, "vote")
            vote(page, "left")
        with open_page(browser, run_form(at["prefect"], "build")) as page:
            fill_form(page, {LEARNING_RATE: "0.004"})
            picture(page, "form")
            choose(page, ("stages",), "pretrain")
            run = submit(page, at["prefect"], "build")
            watch(page, at["prefect"], run)
            picture(page, "run")
            open_artifacts(page)
            picture(page, "artifacts")
        with open_page(browser, at["mlflow"]) as page:
            curves(page, charts_of(at["mlflow"], "groundup/pretrain"), "train/loss", 2)
            picture(page, "curves")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
