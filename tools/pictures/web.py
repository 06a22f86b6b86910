"""Draws the pictures of the guide to the page, of a run of glm-tiny, in English and in Chinese.

python -m tools.pictures.web docs/pictures

It trains for a minute, and takes Playwright and Chromium.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

import glmtune
from glmtune.language import LANGUAGES, Language
from glmtune.web.page import Site, open_page
from glmtune.web.words import Words

WIDTH = 1120
PATIENCE_MS = 180_000
ROWS = "examples/adverts.jsonl"


def draw_all(folder: Path) -> None:
    """Write three pictures into the folder for each language."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("this takes chromium or google-chrome")
    folder = folder.resolve()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        os.chdir(place)
        glmtune.train(
            model="glm-tiny",
            data={"train": ROWS},
            train={"epochs": 7, "lr": 3e-3},
            output="runs/adverts",
        )
        opened = open_page(Site(port=0))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for language in LANGUAGES:
            page = browser.new_page(
                locale={"en": "en-US", "zh": "zh-CN"}[language], viewport={"width": WIDTH, "height": 900}
            )
            page.set_default_timeout(PATIENCE_MS)
            page.goto(opened.address)
            draw(page, folder, language)
            page.close()
        browser.close()
        opened.page.close()


def draw(page: Page, folder: Path, language: Language) -> None:
    """Write the pictures of one language."""
    words, ending = Words(language), "" if language == "en" else f".{language}"

    def shoot(name: str, height: int) -> None:
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
        page.screenshot(path=folder / f"web-{name}{ending}.png", clip=clip, full_page=True)

    page.locator(".gt-compare input").wait_for()
    page.locator(".block.gt-tuned").get_by_text("adverts").first.wait_for()
    page.locator(".gt-compare input").check()
    page.locator("button.gt-example_advert").click()
    expect(page.locator(".gt-question textarea")).not_to_be_empty()
    page.locator("button.gt-send").click()
    page.locator(".block.gt-base .bot .prose").wait_for()
    expect(page.locator("button.gt-send")).to_be_visible(timeout=PATIENCE_MS)
    shoot("chat", 960)
    page.get_by_role("tab", name=words("tab_runs"), exact=True).click()
    page.locator(".gt-reports path.line").first.wait_for()
    shoot("runs", 1000)
    page.get_by_role("tab", name=words("tab_train"), exact=True).click()
    page.locator(".gt-rows input, .gt-rows textarea").first.fill(ROWS)
    page.locator(".gt-epochs input, .gt-epochs textarea").first.fill("2")
    page.locator("button.gt-look").click()
    page.locator(".gt-row").first.wait_for()
    page.locator("button.gt-check").click()
    page.locator(".gt-good").first.wait_for()
    shoot("train", 1640)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
