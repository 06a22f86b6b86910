"""The page of `glmtune web` in a real browser: talk, watch, train; both languages, a phone's and a screen's
width. Every host but this one is out of reach, and the console stays empty."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, Route, expect, sync_playwright

from browser import PROGRAM
from full_run import write_full_run
from glmtune.locations import BUNDLED
from models import huge_folder, tiny_hf_folder
from tuned import tune

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium or google-chrome on PATH"),
]
PHONE, SCREEN = 390, 1440
PATIENCE_MS = 120_000
"""Longest wait for anything on the page: a busy machine loads a model in a minute."""
QUICK = ("retain.ratio=0", "retain.report=off", "samples.prompts=[]", "samples.built_in=false")
"""Settings of a run that trains at once."""
OF_GRADIO = "Method not implemented."
"""Warning of Gradio 6.31's own upload field at each file."""
ENDLESS = "类型#裙*颜色#蓝色*风格#文艺*裙长#长裙"
"""glm-tiny's likeliest answer to it goes on for ever."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tune(BUNDLED["glm-tiny"], folder / "adapter", "lora")
    rows = [{"prompt": f"第 {i} 个问题", "response": f"第 {i} 个回答"} for i in range(200)]
    (folder / "mine.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"prompt": "a"\n', encoding="utf-8")
    return folder


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[str]:
    """The address of a page of its own."""
    command = [sys.executable, "-m", "glmtune", "web", *words, "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().removeprefix("> ").strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder, "adapter") as address:
        yield address


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    assert PROGRAM
    browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
    yield browser
    browser.close()


class Visitor:
    """A visitor's page; `close` asserts that it has asked no foreign host and has no word on its console."""

    def __init__(
        self, browser: Browser, address: str, path: str = "", *, locale: str = "en-US", width: int = SCREEN
    ) -> None:
        self.context: BrowserContext = browser.new_context(
            locale=locale, viewport={"width": width, "height": 900}
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.foreign: list[str] = []
        self.problems: list[str] = []
        self.context.route(lambda url: not url.startswith((address, "data:", "blob:")), self._block)
        self.page: Page = self.context.new_page()
        self.page.on(
            "console",
            lambda line: (
                self.problems.append(line.text)
                if line.type in ("error", "warning") and line.text != OF_GRADIO
                else None
            ),
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(address + path)

    def _block(self, route: Route) -> None:
        self.foreign.append(route.request.url)
        route.abort()

    def close(self) -> None:
        self.context.close()
        assert self.foreign == []
        assert self.problems == []

    def has(self, text: str | re.Pattern[str]) -> None:
        """Wait until a text is to be seen."""
        expect(self.page.get_by_text(text).locator("visible=true").first).to_be_visible(timeout=PATIENCE_MS)

    def ask(self, question: str) -> None:
        self.page.locator(".gt-question textarea").fill(question)
        self.page.locator(".gt-question textarea").press("Enter")

    def answers(self, number: int, side: str = "tuned") -> list[str]:
        """The answers of a side, once there are so many and it writes no more."""
        found = self.page.locator(f".block.gt-{side} [data-testid=bot]")
        expect(found).to_have_count(number, timeout=PATIENCE_MS)
        expect(self.page.locator("button.gt-send")).to_be_visible(timeout=PATIENCE_MS)
        return found.all_inner_texts()

    def set(self, **settings: float) -> None:
        for name, value in settings.items():
            self.page.locator(f".block.gt-{name} input[type=number]").fill(str(value))
            self.page.locator(f".block.gt-{name} input[type=number]").blur()

    def choose(self, chooser: str, name: str) -> None:
        self.page.locator(f"{chooser} input").click()
        self.page.get_by_role("option", name=name, exact=True).click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def shot_line(self) -> str:
        """The path of the first curve."""
        return str(self.page.locator(".gt-reports path.line").first.get_attribute("d"))


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[type[Visitor]]:
    visitors: list[Visitor] = []

    class Visiting(Visitor):
        def __init__(self, path: str = "", **options: object) -> None:
            super().__init__(browser, address, path, **options)  # type: ignore[arg-type]
            visitors.append(self)

    yield Visiting
    for visitor in visitors:
        visitor.close()


def test_a_question_is_answered_stopped_retried_edited_and_cleared(visit: type[Visitor]) -> None:
    me = visit()  # type: ignore[call-arg]
    me.has("adapter is ready")
    me.page.get_by_text("How it answers").click()
    me.set(temperature=0, max_new_tokens=8)
    me.ask("你好*你*好")
    me.has("cut at 8 tokens")
    [first] = me.answers(1)
    assert "你好*你*好" in me.page.locator(".block.gt-tuned [data-testid=user]").inner_text()
    me.set(max_new_tokens=4)
    me.page.get_by_label("Retry").click()
    me.has("cut at 4 tokens")
    [shorter] = me.answers(1)
    assert first.startswith(shorter.partition("\n")[0])
    me.page.get_by_label("Edit").click()
    box = me.page.locator(".block.gt-tuned textarea")
    assert box.input_value() == r"你好\*你\*好"
    box.fill("再见")
    me.page.get_by_label("Submit").click()
    expect(me.page.locator(".block.gt-tuned [data-testid=user]")).to_have_text("再见")
    old = me.page.locator(".block.gt-tuned [data-testid=bot]").filter(has_text=shorter.partition("\n")[0])
    expect(old).to_have_count(0)
    me.has("cut at 4 tokens")
    [edited] = me.answers(1)
    me.choose(".gt-model", "glm-tiny")
    me.has("glm-tiny is ready")
    me.page.get_by_label("single-turn").check()
    me.page.locator(".block.gt-temperature input[type=number]").wait_for()
    me.set(temperature=0, max_new_tokens=3000)
    me.ask(ENDLESS)
    me.page.locator("button.gt-stop").click()
    me.has("stopped")
    assert me.answers(2)[0] == edited
    me.page.get_by_label("Clear").first.click()
    me.has("Ask something")


def test_base_and_tuned_model_answer_one_prompt_side_by_side(visit: type[Visitor]) -> None:
    me = visit()  # type: ignore[call-arg]
    me.has("adapter is ready")
    me.page.get_by_label("side by side").check()
    me.page.get_by_text("How it answers").click()
    me.set(temperature=0, max_new_tokens=8)
    me.page.locator("button.gt-example_advert").click()
    me.has("Its answer in the rows")
    expect(me.page.locator(".gt-question textarea")).not_to_be_empty()
    me.page.locator("button.gt-send").click()
    me.has(re.compile(r"^[0-9.]+ s$"))
    assert me.answers(1, "tuned") != me.answers(1, "base")


@pytest.mark.parametrize("width", [PHONE, SCREEN])
@pytest.mark.parametrize(("locale", "tabs"), [("en-US", "Chat Runs Train"), ("zh-CN", "对话 训练记录 训练")])
def test_the_browser_s_language_is_spoken_and_the_width_is_kept(
    visit: type[Visitor], locale: str, tabs: str, width: int
) -> None:
    me = visit(locale=locale, width=width)
    me.has({"en-US": "adapter is ready", "zh-CN": "adapter 已就绪"}[locale])  # streams end before it is left
    for name in tabs.split():
        me.page.get_by_role("tab", name=name, exact=True).click()
        assert me.page.evaluate("document.documentElement.scrollWidth") <= width
    other = {"en-US": ("中文", "对话"), "zh-CN": ("English", "Chat")}[locale]
    me.page.get_by_role("link", name=other[0]).click()
    me.page.get_by_role("tab", name=other[1], exact=True).wait_for()


def test_a_run_is_planned_started_watched_by_two_stopped_and_gone_on_with(
    visit: type[Visitor], folder: Path
) -> None:
    me = visit()  # type: ignore[call-arg]
    me.tab("Train")
    me.page.locator(".gt-upload input[type=file]").set_input_files(folder / "mine.json")
    me.choose(".gt-train-model", "glm-tiny")
    me.page.locator(".gt-name input, .gt-name textarea").first.fill("first")
    me.page.locator(".gt-epochs input, .gt-epochs textarea").first.fill("30")
    me.page.get_by_text("More settings").click()
    me.page.locator(".gt-more textarea").fill("\n".join(QUICK))
    me.page.locator("button.gt-look").click()
    me.has("第 0 个回答</s>")
    me.page.locator("button.gt-check").click()
    me.has("It fits")
    command = me.page.locator(".gt-command textarea").input_value()
    assert command.startswith("glmtune train model=glm-tiny data.train=uploads/mine.json method=lora")
    me.page.locator("button.gt-begin").click()
    me.has("is training")
    me.tab("Runs")
    me.page.locator(".gt-reports path.line").first.wait_for()
    other = visit("?chosen=1")  # type: ignore[call-arg]
    other.tab("Runs")
    other.page.locator(".gt-reports path.line").first.wait_for()
    for each in (me, other):
        before, until = each.shot_line(), time.monotonic() + PATIENCE_MS / 1000
        while each.shot_line() == before and time.monotonic() < until:
            each.page.wait_for_timeout(500)
        assert each.shot_line() != before
    me.context.close()  # a run outlives its page
    other.page.locator("button.gt-stop-run").click()
    other.has(re.compile(r"first: stopped, step \d+ of"))
    stopped_at = int(json.loads((folder / "runs/first/metrics.jsonl").read_text().splitlines()[-1])["step"])
    again = visit("?chosen=1")  # type: ignore[call-arg]
    again.tab("Runs")
    again.has("first: stopped")
    again.page.locator("button.gt-go-on").click()
    again.has("first: running")
    step = re.compile(r"first: (?:running|finished), step (\d+)")
    until = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < until:
        found = step.search(again.page.locator(".block.gt-states").inner_text())
        if found and int(found[1]) > stopped_at:
            break
        again.page.wait_for_timeout(500)
    assert found and int(found[1]) > stopped_at
    again.page.locator("button.gt-stop-run").click()
    again.has(re.compile(r"first: (stopped|finished)"))
    again.page.locator("button.gt-talk").click()
    again.has("first is ready")


def test_a_broken_file_and_an_impossible_setting_are_sentences_and_nothing_starts(
    visit: type[Visitor], folder: Path
) -> None:
    me = visit()  # type: ignore[call-arg]
    me.tab("Train")
    me.page.locator(".gt-rows input, .gt-rows textarea").first.fill("broken.jsonl")
    for button in ("look", "check"):
        me.page.locator(f"button.gt-{button}").click()
        me.has(re.compile(r"error: broken\.jsonl:1"))
    expect(me.page.locator("button.gt-begin")).to_be_disabled()
    me.page.locator(".gt-rows input, .gt-rows textarea").first.fill("mine.json")
    me.page.locator(".gt-epochs input, .gt-epochs textarea").first.fill("viele")
    me.page.locator("button.gt-check").click()
    me.has(re.compile(r"error: train\.epochs"))
    expect(me.page.locator("button.gt-begin")).to_be_disabled()


def test_a_model_that_does_not_fit_is_told_and_cannot_be_started(visit: type[Visitor], folder: Path) -> None:
    huge_folder(folder / "huge")
    me = visit()  # type: ignore[call-arg]
    me.tab("Train")
    me.page.locator(".gt-train-model input").fill("huge")
    me.page.locator(".gt-train-model input").press("Enter")
    me.page.locator(".gt-rows input, .gt-rows textarea").first.fill("mine.json")
    me.page.get_by_label("full", exact=True).check()
    me.page.locator("button.gt-check").click()
    me.has("It does not fit")
    expect(me.page.locator("button.gt-begin")).to_be_disabled()
    me.choose(".gt-train-model", "glm-tiny")
    me.page.get_by_label("lora", exact=True).check()
    me.page.locator("button.gt-check").click()
    me.has("It fits")
    expect(me.page.locator("button.gt-begin")).to_be_enabled()
    me.page.locator(".gt-epochs input, .gt-epochs textarea").first.fill("7")
    expect(me.page.locator("button.gt-begin")).to_be_disabled()
    assert not (folder / "runs/glm-tiny-lora").exists()


def test_a_question_typed_during_an_answer_stays_and_clear_ends_the_answer(visit: type[Visitor]) -> None:
    me = visit()  # type: ignore[call-arg]
    me.choose(".gt-model", "glm-tiny")
    me.has("glm-tiny is ready")
    me.page.get_by_text("How it answers").click()
    me.set(temperature=0, max_new_tokens=3000)
    me.ask(ENDLESS)
    bot = me.page.locator(".block.gt-tuned [data-testid=bot]")
    bot.wait_for()
    seen = bot.inner_text()
    expect(bot).not_to_have_text(seen)  # it streams
    me.ask("你好")
    me.page.wait_for_timeout(1000)
    assert me.page.locator(".gt-question textarea").input_value() == "你好"
    me.page.get_by_label("Clear").first.click()
    me.has("Ask something")
    expect(me.page.locator("button.gt-send")).to_be_visible(timeout=PATIENCE_MS)
    assert bot.count() == 0
    me.page.locator("button.gt-send").click()
    me.has(re.compile(r"^[0-9.]+ s$"))
    assert len(me.answers(1)) == 1


def test_a_thought_is_folded_and_two_runs_are_compared_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    tiny_hf_folder(tmp_path / "thinker", "GLM-4-0414", template="glmz1")
    (tmp_path / "runs").mkdir()
    for name in ("one", "two"):
        write_full_run(tmp_path / "runs" / name)
    with serving(tmp_path, "thinker") as address:
        me = Visitor(browser, address, width=PHONE)
        me.has("thinker is ready")
        me.page.get_by_text("How it answers").click()
        me.set(max_new_tokens=8)
        me.ask("你好")
        me.has("cut at 8 tokens")
        me.page.locator(".block.gt-tuned").get_by_text("thought").wait_for()
        me.tab("Runs")
        me.page.locator(".gt-reports path.line").first.wait_for()
        alone = me.page.locator(".block.gt-reports").inner_text()
        for name in ("one", "two"):
            if not me.page.locator(".gt-runs .token", has_text=name).count():
                me.choose(".gt-runs", name)
        me.page.locator(".block.gt-reports").get_by_text("side by side").first.wait_for()
        assert me.page.locator(".block.gt-reports").inner_text() != alone
        assert me.page.evaluate("document.documentElement.scrollWidth") <= PHONE
        me.close()


def test_a_full_disk_is_a_sentence_nothing_is_lost_and_the_page_goes_on(
    browser: Browser, folder: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**12))
    with serving(small_disk, "--runs", "runs") as address:
        me = Visitor(browser, address)
        me.tab("Train")
        me.page.locator(".gt-upload input[type=file]").set_input_files(folder / "mine.json")
        me.has(re.compile("error: .*No space left on device"))
        assert not list(small_disk.glob("uploads/*"))
        me.page.locator(".gt-rows input, .gt-rows textarea").first.fill(str(folder / "mine.json"))
        me.page.get_by_text("More settings").click()
        me.page.locator(".gt-more textarea").fill("\n".join(QUICK))
        me.page.locator("button.gt-check").click()
        me.has("It fits")
        me.page.locator("button.gt-begin").click()
        me.has(re.compile("error: .*(No space left on device|free)"))
        ballast.unlink()
        me.page.locator(".gt-upload input[type=file]").set_input_files(folder / "mine.json")
        me.has("第 0 个回答</s>")
        assert (small_disk / "uploads/mine.json").read_bytes() == (folder / "mine.json").read_bytes()
        me.tab("Chat")
        me.page.get_by_text("How it answers").click()
        me.set(max_new_tokens=4)
        me.ask("你好")
        assert len(me.answers(1)) == 1
        me.close()
