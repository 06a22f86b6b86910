"""The page in a real browser: at a phone's width and a screen's, in both languages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import PROGRAM, Browser
from full_run import HOSTILE, write_full_run
from glmtune import report
from unit.report.test_compare import write_lines, write_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="needs chromium or google-chrome on PATH"),
]
PHONE, SCREEN = 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    run = write_full_run(folder / "full", said="我叫小橙，" + "很高兴为您写一句广告。" * 12)
    other = write_run(folder / "a-rather-long-name-of-another-run", losses=[4.0, 3.0], evaluations={2: 2.5})
    hostile = write_full_run(folder / "hostile", said=HOSTILE)
    write_lines(
        hostile / "samples.jsonl", [{"step": s, "prompt": HOSTILE, "answer": HOSTILE} for s in (0, 60)]
    )
    return {
        f"{name}-{lang}": report(runs, lang=lang, output=folder / f"{name}-{lang}.html")  # type: ignore[arg-type]
        for name, runs in {"one": run, "two": [run, other], "hostile": hostile}.items()
        for lang in ("en", "zh")
    }


@pytest.mark.parametrize("width", [PHONE, SCREEN])
@pytest.mark.parametrize("name", ["one", "two", "hostile"])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_opens_alone_without_a_word_and_fits_the_width(
    browser: Browser, pages: dict[str, Path], name: str, lang: str, width: int
) -> None:
    page = pages[f"{name}-{lang}"]
    browser.open(page, width=width)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.problems == []
    shown, hidden = ("Curves", "曲线") if lang == "en" else ("曲线", "Curves")
    text = browser.run("document.body.innerText")
    assert shown in text and hidden not in text


def test_the_button_changes_the_language(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one-en"], width=PHONE)
    for shown in ("曲线", "Curves"):
        browser.run("document.querySelector('#language').click()")
        assert shown in browser.run("document.body.innerText")


def test_the_pointer_shows_the_values_of_the_nearest_step(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one-en"], width=SCREEN)
    x, y, width = browser.run(
        "(r => [r.left, r.top + 40, r.width])(document.querySelector('.box').getBoundingClientRect())"
    )
    browser.click(x + width * 0.5, y, "mouseMoved")
    told = browser.run("document.querySelector('.tip').innerText")
    assert told.splitlines()[0] == "30"
    assert "evaluation 1.4035" in told  # 3.5 x 0.97 ** 30
    browser.click(x - 30, y, "mouseMoved")
    assert browser.run("document.querySelector('.tip').hidden")


def test_a_script_in_a_runs_text_would_not_run(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    injected = tmp_path / "injected.html"
    content = pages["one-en"].read_text(encoding="utf-8")
    injected.write_text(
        content.replace("<main>", "<main><script>document.title = 'run'</script>"), encoding="utf-8"
    )
    browser.open(injected, width=SCREEN)
    assert browser.run("document.title") == "full"
    assert browser.problems  # the browser tells that its policy refused it


def test_the_printed_page_has_pages(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.open(pages["one-zh"], width=SCREEN)
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
