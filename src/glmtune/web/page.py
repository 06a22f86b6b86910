"""The page: its tabs in both languages, and the server that shows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from glmtune.errors import ConfigError
from glmtune.files import read_text
from glmtune.language import LANGUAGES
from glmtune.reports.html.page import chart_script, part_style
from glmtune.web.chat_tab import ChatTab
from glmtune.web.desk import Desk
from glmtune.web.markup import lines
from glmtune.web.runs_tab import RunsTab
from glmtune.web.train_tab import TrainTab
from glmtune.web.words import Words, preferred_language

CSS = Path(__file__).with_name("page.css")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif"]
CODE_FONTS = ["ui-monospace", "Consolas", "Noto Sans Mono CJK SC", "monospace"]
MOST_VISITORS = 16
"""Answers and other work that are done at once."""


@dataclass(frozen=True, slots=True)
class Site:
    """The settings of a page."""

    path: Path | None = None
    """Model, run or adapter that is opened first; None: the newest run, else glm-tiny."""
    base: Path | None = None
    """Base of the adapter at `path`, if it records none or has moved."""
    runs: Path = Path("runs")
    """Folder of the runs that are shown, and that new ones go to."""
    host: str = "127.0.0.1"
    port: int = 7860
    is_public: bool = False
    """True for a page with a public link: it answers and shows, but starts no training."""
    dtype: str = "auto"
    device: str = "auto"
    quant: str | None = None


class ByBrowser:
    """Leads a visitor whose browser asks for Chinese first to the Chinese page, unless one was chosen."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == "/" and not scope["query_string"]:
            accept = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
            language = preferred_language(accept)
            if language != LANGUAGES[0]:
                await RedirectResponse(f"./{language}")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def build_page(site: Site, desk: Desk) -> gr.Blocks:
    """Return the page in both languages: English at `/`, Chinese at `/zh`."""
    first, *others = (Words(language) for language in LANGUAGES)
    with gr.Blocks(title=first("title"), analytics_enabled=False, fill_width=True) as page:
        _fill(page, site, desk, first)
    for words in others:
        with page.route(words("title"), words.language, show_in_navbar=False):
            _fill(page, site, desk, words)
    return page.queue(default_concurrency_limit=MOST_VISITORS)


def _fill(page: gr.Blocks, site: Site, desk: Desk, words: Words) -> None:
    gr.Navbar(visible=False)
    gr.HTML(
        f'<div class="gt-head"><b>{words("title")}</b>'
        f'<a href="{words("other_language_link")}">{words("other_language")}</a></div>'
    )
    if site.is_public:
        gr.HTML(lines([words("shared")], "warning"))
    with gr.Tabs() as tabs:
        with gr.Tab(words("tab_chat"), id="chat"):
            chat = ChatTab(desk, words, path=site.path, runs=site.runs, is_public=site.is_public)
            model = chat.build(page)
        with gr.Tab(words("tab_runs"), id="runs") as watched:
            watching = RunsTab(words, runs=site.runs, is_public=site.is_public)
            chosen, told = watching.build(page, watched, tabs, model)
        if not site.is_public:
            with gr.Tab(words("tab_train"), id="train"):
                TrainTab(words, path=site.path, runs=site.runs).build(tabs, chosen, told)


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page that is being served."""

    address: str
    public: str | None
    """Its public link, if it has one."""
    page: Any  # Any: Gradio's Blocks, which has no types

    def wait(self) -> None:
        """Return when the page is closed, by Ctrl-C."""
        self.page.block_thread()


def open_page(site: Site) -> OpenPage:
    """Serve the page. Raises `ConfigError` if its port is taken or no public link can be had."""
    bases = {str(site.path): site.base} if site.base else {}
    desk = Desk(dtype=site.dtype, device=site.device, quant=site.quant, bases=bases)
    page = build_page(site, desk)
    try:
        _, address, public = page.launch(
            server_name=site.host,
            server_port=site.port or None,
            share=site.is_public,
            quiet=True,
            # else `launch` would not return, and the address could not be told
            prevent_thread_lock=True,
            theme=gr.themes.Default(font=FONTS, font_mono=CODE_FONTS).set(
                # Gradio's own greys have a contrast of 2 to 1; https://www.w3.org/TR/WCAG22/ asks for 4.5
                body_text_color_subdued="*neutral_600",
                body_text_color_subdued_dark="*neutral_300",
            ),
            css=read_text(CSS) + part_style(".gt-report"),
            head=f"<script>{chart_script()}</script>",
            footer_links=[],
            # rendering on the server needs Node
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            # no look at its own page: on a busy machine that comes too late, and ends the program
            _frontend=False,
            app_kwargs={"middleware": [Middleware(ByBrowser)]},
        )
    except OSError as err:
        raise ConfigError(
            f"--port {site.port}: {err}",
            hint="something listens there: choose another, or 0 for a free one",
        ) from err
    if site.is_public and not public:
        page.close()
        raise ConfigError(
            "--share: Gradio's servers gave no public link",
            hint="try it later; or leave it out and reach the page by ssh: docs/web.md has the command",
        )
    return OpenPage(address, public, page)
