"""The page at `/`, in a real browser: the playground, the engine seen live, and what shows when something is wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from headrace.server.live import PATHS
from tests.server.running import Server, metric, serving, until

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install '.[test]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: Debian's package is called chromium"
)
Page = Any
KEY = "a-key-of-the-page"
WAIT_MS = 30_000
LONG = '{"type": "string", "minLength": 8000}'
expect = sync_api.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # A browser that root starts has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that wants a key, and runs prompts in chunks."""
    flags = ("--api-key", KEY, "--policy", "sarathi:tokens=16")
    with serving("--model", "tiny", "--threads", "1", *flags) as running:
        yield running


@pytest.fixture
def keyed(browser: Any, guarded: Server) -> Iterator[Page]:
    """The page of the guarded server, with the key."""
    page = browser.new_page()
    page.goto(guarded.url)
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#status")).to_have_text("ready")
    yield page
    page.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    """The page, ready. Whatever it says on the console, and whatever it asks of others than its server, is wrong."""
    page = browser.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.locator("#status")).to_have_text("ready")
    yield page
    page.close()
    provoked = re.compile(
        r"Failed to load resource: (the server responded with a status of 400|net::ERR_INTERNET_DISC)"
    )
    assert not [text for text in complaints if not provoked.match(text)]
    assert all(url.startswith(server.url) for url in asked)


def open_parameters(page: Page, **values: str) -> None:
    page.get_by_text("Parameters and JSON schema").click()
    for name, value in values.items():
        page.fill(f"#{name}", value)


def say(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answered(page: Page) -> str:
    """The last answer, when it is complete."""
    expect(page.locator("#stop")).to_be_disabled()
    return str(page.locator(".assistant .said").last.text_content())


def test_the_package_has_its_files() -> None:
    folder = resources.files("headrace.server") / "page"
    assert {file.name for file in folder.iterdir()} == set(PATHS.values())


def test_a_conversation_is_streamed(page: Page) -> None:
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    expect(page.locator("#nothing-said")).to_be_visible()
    page.evaluate(
        "new MutationObserver(() => { window.pieces = (window.pieces ?? 0) + 1; })"
        ".observe(document.getElementById('talk'), { childList: true, subtree: true })"
    )
    open_parameters(page, max_tokens="60", schema='{"type": "string", "minLength": 100}')
    say(page, "def f():")
    first = answered(page)
    assert page.evaluate("window.pieces") > 10, "the first text came with the last"
    expect(page.locator(".assistant .cost")).to_contain_text("token")
    say(page, "and g?")
    answered(page)
    said = [message["content"] for message in bodies[1]["messages"]]
    assert said == ["def f():", first, "and g?"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#nothing-said")).to_be_visible()


def test_parameters_are_those_of_the_api(page: Page, server: Server) -> None:
    open_parameters(
        page, temperature="0.8", top_p="0.9", top_k="20", max_tokens="24", seed="7", system="Be brief."
    )
    say(page, "import os")
    got = answered(page)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "import os"}]
    body = {"messages": messages, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "max_tokens": 24, "seed": 7}
    with server.client() as client:
        want = client.post("/v1/chat/completions", json=body).json()
    assert got == want["choices"][0]["message"]["content"] and got
    tokens = want["usage"]["completion_tokens"]
    expect(page.locator(".assistant .cost")).to_contain_text(f"{tokens} tokens · first after")


def test_a_schema_holds(page: Page) -> None:
    open_parameters(page, max_tokens="200", temperature="0")
    page.fill("#schema", "{")
    say(page, "A person.")
    expect(page.locator("#schema-error")).to_contain_text("This is not JSON")
    expect(page.locator("#schema")).to_be_focused()
    assert page.locator(".turn").count() == 0 and page.input_value("#prompt") == "A person."
    page.get_by_role("button", name="Insert an example").click()
    page.press("#prompt", "Enter")
    value = json.loads(answered(page))
    assert set(value) == {"name", "age", "admin"} and isinstance(value["admin"], bool)
    expect(page.locator("#schema-error")).to_be_hidden()


def test_text_is_never_code(page: Page) -> None:
    """Neither what is said nor what the model answers becomes a part of the page."""
    evil = "<img src=x onerror=\"document.title='owned'\">"
    open_parameters(page, schema=json.dumps({"enum": [evil]}))
    say(page, evil)
    assert json.loads(answered(page)) == evil
    assert page.locator(".user .said").text_content() == evil
    assert page.locator("#talk img").count() == 0 and page.title() != "owned"


def test_the_browser_refuses_html(browser: Any, server: Server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    with pytest.raises(sync_api.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>'")
    page.close()


def test_an_error_is_shown_and_the_question_comes_back(page: Page) -> None:
    open_parameters(page)
    page.evaluate("document.getElementById('max_tokens').removeAttribute('max')")
    page.fill("#max_tokens", "99999")
    say(page, "hello")
    problem = page.get_by_role("alert").filter(has_text="No answer")
    expect(problem).to_contain_text("max_tokens=99999")
    expect(page.locator("#prompt")).to_have_value("hello")
    page.fill("#max_tokens", "4")
    page.get_by_role("button", name="Send").click()
    answered(page)
    expect(page.locator(".assistant .cost").last).to_contain_text("tokens")


def test_a_lost_connection_shows(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("#status")).to_have_text("no connection to the server; trying again")
    expect(page.locator("#engine")).to_have_class("stale")
    say(page, "anybody?")
    expect(page.get_by_role("alert").filter(has_text="No answer")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    expect(page.locator("#status")).to_have_text("ready")


def test_nothing_overflows(page: Page) -> None:
    open_parameters(page)
    say(page, "x" * 300)
    answered(page)
    page.get_by_text("What runs here").click()
    wide = """() => {
      document.querySelectorAll("#out, #in").forEach((e) => { e.textContent = "12345"; });
      return [...document.querySelectorAll("#numbers dd")].filter((e) => e.scrollWidth > e.clientWidth).length;
    }"""
    for width in (320, 390, 768, 1024, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(wide) == 0, f"a number is cut at {width}"


def test_every_control_has_a_name(page: Page) -> None:
    for role in ("textbox", "spinbutton", "button"):
        for control in page.get_by_role(role).all():
            named = control.evaluate("e => (e.labels?.length ? e.labels[0] : e).textContent.trim()")
            assert named, control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Page, scheme: str) -> None:
    """Contrast as WCAG 2.1 AA has it: 4.5 for text, 3 for what is only drawn."""
    page.emulate_media(color_scheme=scheme)

    def light(name: str) -> float:
        style = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        code = page.evaluate(style)
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for text, ground in (
        ("ink", "card"),
        ("faint", "card"),
        ("faint", "paper"),
        ("bad", "card"),
        ("on-main", "main"),
    ):
        assert contrast(text, ground) >= 4.5, (text, ground)
    for shape in ("edge", "decode", "draft"):
        assert contrast(shape, "card") >= 3, shape


def test_a_key_is_asked_for_and_the_engine_is_seen(browser: Any, guarded: Server) -> None:
    """While prompts in chunks ride with decodes, the page shows both, and their numbers."""
    page = browser.new_page()
    page.goto(guarded.url)
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("API key is missing or wrong")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    expect(page.locator("#status")).to_have_text("ready")
    expect(page.locator("#door")).to_be_hidden()
    expect(page.locator("#nothing-ran")).to_be_visible()

    client = guarded.client(headers={"Authorization": f"Bearer {KEY}"})
    done = threading.Event()

    def load(tokens: int, prompt: str) -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            body = {"prompt": prompt.format(turn), "max_tokens": tokens, "ignore_eos": True}
            client.post("/v1/completions", json=body)

    # Two that decode, and one whose prompt is long, and new but for its beginning.
    long = "import os\n" * 20 + "def f{0}():\n    return {0}\n" * 40
    asking = [threading.Thread(target=load, args=args) for args in ((400, "a"), (400, "b"), (2, long))]
    with client:
        for thread in asking:
            thread.start()
        try:
            expect(page.locator("#running")).to_have_text(re.compile(r"^[23]$"))
            expect(page.locator("#out")).to_have_text(re.compile(r"^[1-9]\d*$"))
            expect(page.locator("#kv")).to_have_text(re.compile(r"^\d+ %$"))
            expect(page.locator("#hits")).to_have_text(re.compile(r"^[1-9]\d* %$"))
            expect(page.locator("#nothing-ran")).to_be_hidden()
            expect(page.locator("#step")).to_have_text(
                re.compile(r"step \d+: 16 tokens in [\d.]+ ms: 2 decodes and a")
            )
            page.wait_for_function(_BOTH_COLOURS)
        finally:
            done.set()
            for thread in asking:
                thread.join()
    page.focus("#steps")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#step")).to_have_text(re.compile(r"^Step \d+: "))
    page.close()


_MIXED = re.compile(r"^Last step \d+: 16 tokens in [\d.]+ ms: \d decodes? and a prompt chunk of 1\d$")
_BOTH_COLOURS = """() => {
  const canvas = document.getElementById("steps"), style = getComputedStyle(document.documentElement);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const drawn = (name) => {
    const code = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(code.slice(i, i + 2), 16));
    let found = 0;
    for (let i = 0; i < data.length; i += 4) found += data[i] === r && data[i + 1] === g && data[i + 2] === b;
    return found;
  };
  return drawn("--decode") > 1000 && drawn("--prompt") > 1000;
}"""


def test_stop_cancels(keyed: Page, guarded: Server) -> None:
    def cancelled() -> float:
        return metric(client.get("/metrics").text, "headrace_requests_ended_total", outcome="cancelled")

    with guarded.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        before = cancelled()
        open_parameters(keyed, max_tokens="1900", schema=LONG)
        say(keyed, "On and on.")
        expect(keyed.locator(".assistant .said")).not_to_be_empty()
        keyed.get_by_role("button", name="Stop").click()
        expect(keyed.locator(".assistant .cost")).to_have_text("stopped by you")
        until(lambda: cancelled() == before + 1, "the request is counted as cancelled")
        expect(keyed.locator("#running")).to_have_text("0")
    expect(keyed.locator("#prompt")).to_be_focused()


def test_an_engine_that_dies_shows_and_comes_back(keyed: Page, guarded: Server) -> None:
    page = keyed
    open_parameters(page, max_tokens="1900", schema=LONG)
    say(page, "On and on.")
    expect(page.locator(".assistant .said")).not_to_be_empty()
    os.kill(guarded.engine(), signal.SIGKILL)
    expect(page.locator("#status")).to_contain_text("the engine process died (signal 9)")
    expect(page.locator("#running")).to_have_text("–")
    expect(page.get_by_role("alert").filter(has_text="No answer")).to_contain_text("signal 9")
    expect(page.locator("#status")).to_have_text("ready")
    page.fill("#schema", "")
    page.fill("#max_tokens", "3")
    page.get_by_role("button", name="Send").click()
    answered(page)
    expect(page.locator(".assistant .cost").last).to_contain_text("tokens")
    expect(page.locator("#step")).to_contain_text(re.compile(r"step \d{1,3}:"))
