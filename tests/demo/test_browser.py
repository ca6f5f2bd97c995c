# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The demo in a real browser, which is Chromium without a window."""

import re
import shutil

import pytest
from clips import write_clip

from transformers_valley.checkpoint import find_checkpoint
from transformers_valley.demo import LocalModel, build_demo
from transformers_valley.demo.app import LAUNCH


pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian has one: apt-get install chromium"),
]
SECONDS = 60_000  # milliseconds that a slow machine may take for a step


@pytest.fixture(scope="module")
def url(checkpoint):
    found = find_checkpoint(checkpoint)
    page = build_demo(LocalModel(found.load_model(), found.load_processor(), found.name, max_new_tokens=12))
    settings = {**LAUNCH, "max_file_size": "1mb"}
    _, url, _ = page.launch(server_name="localhost", server_port=None, prevent_thread_lock=True, **settings)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = browser.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(url)
    page.wait_for_selector("#question textarea")
    yield page
    page.close()


def show(page, path, said):
    page.set_input_files("input[type=file]", str(path))
    sync_api.expect(page.locator("#said")).to_contain_text(said, timeout=SECONDS)


def ask(page, text, turns):
    page.fill("#question textarea", text)
    answers = page.locator("#conversation .bot.message")
    for _ in range(SECONDS // 1000):  # until the answer before is whole, Gradio takes no other question
        if answers.count() == turns:
            break
        page.locator("#question textarea").press("Enter")
        page.wait_for_timeout(1000)
    sync_api.expect(answers).to_have_count(turns, timeout=SECONDS)
    sync_api.expect(answers.last).to_have_text(re.compile(r"[^…\s]"), timeout=SECONDS)
    return answers.last.inner_text()


def test_a_clip_is_shown_and_asked_about_twice(page, tmp_path):
    show(page, write_clip(tmp_path / "clip.mp4", 40, fps=10), "8 frames from 0:00.0 to 0:03.9, of a clip 0:04.0 long")
    sync_api.expect(page.locator("#frames .caption-label")).to_have_count(8, timeout=SECONDS)
    assert page.locator("#frames .caption-label").all_inner_texts()[0] == "0:00.0"
    assert ask(page, "What happens?", 1)
    assert ask(page, "And then?", 2)


def test_damage_is_said_and_text_can_still_be_asked_about(page, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no clip at all" * 100)
    show(page, tmp_path / "broken.mp4", "This cannot be shown to the model. Cannot read video 'broken.mp4'")
    assert "/" not in page.locator("#said").inner_text()  # nor where this machine keeps it
    assert ask(page, "Who are you?", 1)


def test_too_large_a_clip_is_refused(page, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(2 * 2**20))
    page.set_input_files("input[type=file]", str(tmp_path / "large.mp4"))
    page.wait_for_selector("text=/exceeds|too large|maximum allowed size/i")


def test_two_visitors_do_not_mix(browser, url, tmp_path):
    pages = [browser.new_context().new_page() for _ in range(2)]
    for page, count in zip(pages, (20, 40), strict=True):
        page.goto(url)
        page.wait_for_selector("#question textarea")
        show(page, write_clip(tmp_path / f"{count}.mp4", count, fps=10), f"of a clip 0:0{count // 10}.0 long")
    for page in pages:  # both before either is answered
        page.fill("#question textarea", f"What happens in {page.locator('#said').inner_text()}?")
        page.keyboard.press("Enter")
    for page, count in zip(pages, (20, 40), strict=True):
        sync_api.expect(page.locator("#conversation .bot.message")).to_have_text(
            re.compile(r"[^…\s]"), timeout=SECONDS
        )
        (asked,) = page.locator("#conversation .user.message").all_inner_texts()
        assert f"of a clip 0:0{count // 10}.0 long" in asked
