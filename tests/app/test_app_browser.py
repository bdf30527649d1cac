"""The app's page in a real browser: every tab, cancelling, visitors beside each other, keyboard, a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from served import served

from attnctrl.app.web.jobs import Job

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = playwright.expect
FOUND = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90_000
"""Milliseconds: a busy machine is slow."""
TABS = ("Style set", "Heads", "Attention", "Evaluate")


@pytest.fixture(scope="module")
def browser():
    """Headless chromium: the machine's own, else playwright's."""
    own = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, FOUND)), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=own, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as fault:
            pytest.skip(f"chromium is not here (apt install chromium, or set CHROMIUM): {str(fault).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def server():
    with served() as found:
        yield found


@pytest.fixture
def visitor(server, browser):
    """visitor(width): a new visitor's page. Nobody may ask another host, nor see errors in the console."""
    contexts, asked, wrong = [], [], []

    def come(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda one: wrong.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda fault: wrong.append(str(fault)))
        page.goto(server.address)
        expect(page.locator("#set-run")).to_be_visible(timeout=PATIENCE)
        return page

    come.wrong = wrong
    yield come
    for context in contexts:
        context.close()
    own = server.address, "data:", "blob:", "about:"
    assert [url for url in asked if not url.startswith(own)] == []
    assert asked
    assert wrong == []


def go(page, tab, steps):
    """Choose a tab, and so many steps under Advanced."""
    page.get_by_role("tab", name=tab).click()
    page.locator("button:visible", has_text="Advanced").click()
    page.locator("label:visible", has_text=re.compile(r"^\s*Steps")).locator("input").fill(str(steps))


def said(page, name, text, times=1):
    """Wait for words in a tab's status."""
    expect(page.locator(f"#{name}-status")).to_contain_text(text, timeout=PATIENCE)


def make_set(page, prompts, steps=2):
    """Draw a set in the style tab."""
    go(page, "Style set", steps)
    page.locator("#set-prompts textarea").fill(prompts)
    page.click("#set-run")
    said(page, "set", "Done.")


def sets_of(page, folder):
    """The folder that the style tab's download unpacks to."""
    with page.expect_download() as waiting:
        page.click("#set-download")
    waiting.value.save_as(folder / "set.zip")
    with zipfile.ZipFile(folder / "set.zip") as archive:
        archive.extractall(folder)
    return folder / "style-set"


def drop(page, button, path):
    """Give a file to an upload button."""
    with page.expect_file_chooser() as waiting:
        page.click(button)
    waiting.value.set_files(path)


# --- main paths ---


def test_style_set(visitor, tmp_path):
    page = visitor()
    make_set(page, "a fox, comic\na key, comic\na star, comic")
    for gallery in ("#set-plain", "#set-aligned"):
        expect(page.locator(f"{gallery} img")).to_have_count(3)
        expect(page.locator(gallery)).to_contain_text("a star, comic")
    expect(page.locator("#set-slider img")).to_have_count(2)
    before = page.locator("#set-slider img").first.get_attribute("src")
    page.locator("#set-aligned button.thumbnail-item, #set-aligned .gallery-item button").first.click()
    expect(page.locator("#set-slider img").first).not_to_have_attribute("src", before)
    folder = sets_of(page, tmp_path)
    assert {one.name for one in folder.iterdir()} == {"plain", "aligned"}
    assert len(list((folder / "aligned").glob("0?.png"))) == 3


def test_heads(visitor):
    page = visitor()
    page.get_by_role("tab", name="Heads").click()
    page.get_by_label("Live").uncheck()
    go(page, "Heads", 2)
    page.locator("#heads-text textarea").fill("L2H0 L3H1")
    page.click("#heads-run")
    said(page, "heads", "Done.")
    for kind in ("plain", "perturbed", "guided"):
        expect(page.locator(f"#heads-{kind} img")).to_be_visible()
    assert len({page.locator(f"#heads-{kind} img").get_attribute("src") for kind in ("plain", "guided")}) == 2


def test_attention(visitor):
    page = visitor()
    go(page, "Attention", 2)
    page.click("#attention-run")
    said(page, "attention", "Done.")
    expect(page.locator("#attention-picture img")).to_be_visible()
    expect(page.locator("#attention-words img")).to_have_count(3)
    before = page.locator("#attention-overlay img").get_attribute("src")
    page.locator("#attention-word input").click()
    page.get_by_role("option", name="fox", exact=True).click()
    expect(page.locator("#attention-overlay img")).not_to_have_attribute("src", before, timeout=PATIENCE)
    page.locator("button:visible", has_text=re.compile(r"^\s*Heads")).last.click()
    expect(page.locator("#attention-heads table")).to_contain_text("H0")


def test_evaluate(visitor, tmp_path):
    page = visitor()
    go(page, "Evaluate", 2)
    for name in ("Naive sharing", "StyleAligned"):
        page.get_by_label(name, exact=True).uncheck()
    page.locator("#eval-count input[type=number]").fill("2")
    page.keyboard.press("Tab")
    said(page, "eval", "2 methods on 2 sets: 4 items.")
    page.click("#eval-run")
    said(page, "eval", "Done.")
    report = page.frame_locator("#eval-shown iframe")
    expect(report.locator("body")).to_contain_text("alignedgen")
    with page.expect_download() as waiting:
        page.click("#eval-report")
    waiting.value.save_as(tmp_path / "report.html")
    assert "alignedgen" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- what else may happen ---


def test_a_run_is_cancelled_within_a_step(visitor, monkeypatch):
    late, tell = [], Job.tell

    def noted(self, *given, **more):
        if self.cancelled:
            late.append(given)
        time.sleep(0.05)  # so that the run is not over before the click, however busy the machine
        tell(self, *given, **more)

    monkeypatch.setattr(Job, "tell", noted)
    page = visitor()
    go(page, "Style set", 60)
    page.click("#set-run")
    said(page, "set", " of 120")
    expect(page.locator("#set-run")).to_be_disabled()
    page.click("#set-cancel")
    said(page, "set", "Cancelled.")
    expect(page.locator("#set-run")).to_be_enabled()
    expect(page.locator("#set-cancel")).to_be_disabled()
    assert len(late) <= 1
    make_again(page)


def make_again(page):
    """Draw in two steps, Advanced being open."""
    page.locator("label:visible", has_text=re.compile(r"^\s*Steps")).locator("input").fill("2")
    page.click("#set-run")
    said(page, "set", "Done.")


def test_two_visitors_at_once_get_their_own(visitor, tmp_path):
    pages = visitor(), visitor()
    prompts = ["a fox, comic\na key, comic", "a star, sticker\na fish, sticker"]
    for page, text in zip(pages, prompts, strict=True):
        go(page, "Style set", 4)
        page.locator("#set-prompts textarea").fill(text)
    for page in pages:
        page.click("#set-run")
    for number, (page, text) in enumerate(zip(pages, prompts, strict=True)):
        said(page, "set", "Done.")
        (tmp_path / str(number)).mkdir()
        recipe = json.loads((sets_of(page, tmp_path / str(number)) / "aligned" / "recipe.json").read_text())
        assert recipe["prompts"] == text.splitlines()
        expect(page.locator("#set-aligned")).to_contain_text(text.splitlines()[1])


def test_a_reload_gives_a_working_page(visitor):
    page = visitor()
    go(page, "Style set", 60)
    page.click("#set-run")
    said(page, "set", " of 120")
    page.reload()
    expect(page.locator("#set-run")).to_be_enabled(timeout=PATIENCE)
    visitor.wrong.clear()  # Gradio logs the stream that the reload broke off
    expect(page.locator("#set-plain img")).to_have_count(0)
    make_set(page, "a fox, comic\na key, comic")


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("bad.json", "{", "this file is no recipe"),
        ("bad.png", "no picture", "this file is no recipe"),
        ("path.json", json.dumps({"prompts": ["a fox"], "control": [{"picture": "/etc/passwd"}]}), "by its path"),
    ],
)
def test_a_bad_file_gets_a_sentence(visitor, tmp_path, name, body, says):
    (tmp_path / name).write_text(body)
    page = visitor()
    before = page.locator("#set-prompts textarea").input_value()
    drop(page, "#set-restore", tmp_path / name)
    said(page, "set", says)
    assert page.locator("#set-prompts textarea").input_value() == before
    assert "Traceback" not in page.content()


def test_recipes_and_pictures_bring_their_settings_back(visitor, tmp_path):
    page = visitor()
    page.get_by_label("Seed", exact=True).locator("visible=true").fill("11")
    page.get_by_label("number input for Strength").fill("0.75")
    make_set(page, "a fox, comic\na key, comic")
    folder = sets_of(page, tmp_path)
    for name in ("recipe.json", "01.png"):
        again = visitor()
        drop(again, "#set-restore", folder / "aligned" / name)
        said(again, "set", "Restored.")
        expect(again.locator("#set-prompts textarea")).to_have_value("a fox, comic\na key, comic")
        expect(again.get_by_label("Seed", exact=True).locator("visible=true")).to_have_value("11")
        expect(again.get_by_label("number input for Strength")).to_have_value("0.75")


def test_the_keyboard_is_enough(visitor):
    page = visitor()
    go(page, "Style set", 2)
    page.locator("#set-prompts textarea").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "set-run":
            break
    else:
        pytest.fail("Tab does not reach the button")
    page.keyboard.press("Enter")
    said(page, "set", "Done.")


def test_a_phone_needs_no_sideways_scrolling(visitor):
    page = visitor(width=390, has_touch=True, is_mobile=True)
    for tab in TABS:
        choose(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


def choose(page, tab):
    """A tab, from the overflow menu where the bar is too narrow for it."""
    button = page.get_by_role("tab", name=tab)
    if not button.is_visible():
        page.locator(".overflow-menu > button:visible").click()
        button = page.locator(".overflow-dropdown button", has_text=tab)
    button.click()


def test_dark_is_readable(visitor):
    page = visitor(color_scheme="dark")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.querySelector('.ac-title h1')).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", one)[:3])) for one in (ink, paper)]
    assert light[0] - light[1] > 450


def test_screenshots_are_of_these_tabs():
    folder = Path(__file__).parents[2] / "docs" / "images" / "app"
    names = {"style-set", "heads", "attention", "evaluate", "style-set-dark", "style-set-phone"}
    assert {path.stem for path in folder.glob("*.png")} == names
    assert all(path.stat().st_size < 250_000 for path in folder.glob("*.png"))
