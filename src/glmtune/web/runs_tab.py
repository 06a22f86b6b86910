"""The tab to watch runs in, live and finished, alone and side by side; stops them and goes on with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.web.background import running
from glmtune.web.markup import error_lines, lines
from glmtune.web.offers import offered, runs_in
from glmtune.web.watching import report_part, state_lines
from glmtune.web.words import Words
from glmtune.workflows.runner import find_live, start, stop

REFRESH_S = 1.5
"""Seconds between two looks at the runs that are shown."""


class RunsTab:
    """The tab of one language."""

    def __init__(self, words: Words, *, runs: Path, is_public: bool) -> None:
        """`runs`: their folder; on a public page they are only watched."""
        self._words, self._runs, self._is_public = words, runs, is_public

    def build(
        self, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs, model: gr.Dropdown
    ) -> tuple[gr.Dropdown, gr.HTML]:
        """Add the components and what they do; return the chooser of runs and a place to tell of them.

        `tab` is this one of `tabs`; `model` is the chooser of the tab to talk in.
        """
        words = self._words
        with gr.Row():
            self._chosen = gr.Dropdown(
                self._names(),
                value=[],
                multiselect=True,
                label=words("runs"),
                info=words("runs_info"),
                scale=4,
                elem_classes="gt-runs",
            )
            with gr.Column(scale=1, min_width=140):
                talk = gr.Button(words("talk_to_it"), elem_classes="gt-talk")
                if not self._is_public:
                    stop_button = gr.Button(words("stop"), variant="stop", elem_classes="gt-stop-run")
                    go_on = gr.Button(words("go_on"), elem_classes="gt-go-on")
        self._said = gr.HTML(elem_classes="gt-said")
        state = gr.HTML(elem_classes="gt-states")
        report = gr.HTML(elem_classes="gt-reports")
        self._before = gr.State(("", ""))
        timer = gr.Timer(REFRESH_S, active=False)
        private: dict[str, Any] = {"api_visibility": "private"}  # Any: keyword arguments of a listener
        shown = ([self._chosen, self._before], [state, report, self._before])
        timer.tick(self.look, *shown, show_progress="hidden", **private)
        self._chosen.change(self.look, *shown, show_progress="hidden", **private)
        self._chosen.focus(self.update_names, None, self._chosen, **private)
        page.load(self.choose_first, self._chosen, self._chosen, **private)
        tab.select(self.choose_first, self._chosen, self._chosen, **private)
        tab.select(lambda: gr.Timer(active=True), None, timer, **private)
        talk.click(self.talk_to, self._chosen, [self._said, model, tabs], **private)
        if not self._is_public:
            stop_button.click(self.stop_run, self._chosen, self._said, **private)
            go_on.click(self.go_on, self._chosen, self._said, **private)
        return self._chosen, self._said

    def _names(self) -> list[tuple[str, str]]:
        paths = [str(entry.path) for entry in runs_in(self._runs)]
        found = find_live(self._runs) if self._runs.is_dir() else []
        live = [str(state.folder) for state in found if state.is_live]
        return [(str(Path(path).relative_to(self._runs)), path) for path in dict.fromkeys([*live, *paths])]

    def update_names(self) -> Any:
        """Return the list of runs as it is now."""
        return gr.update(choices=self._names())

    def choose_first(self, chosen: list[str]) -> Any:
        """Choose the run that is training, else the newest, if none is chosen."""
        names = self._names()
        return gr.update(choices=names, value=chosen or [path for _, path in names[:1]])

    def look(self, chosen: list[str], before: tuple[str, str]) -> tuple[Any, Any, tuple[str, str]]:
        """Show the chosen runs; what has not changed stays as it is, with its folds and its scroll bars."""
        words, folder = self._words, self._runs.resolve()
        chosen = [path for path in chosen if Path(path).resolve().is_relative_to(folder)]
        if chosen:
            found = state_lines(chosen, words), report_part(chosen, words)
        else:
            told = words("pick_a_run") if self._names() else words("no_runs", folder=self._runs)
            found = lines([told]), ""
        updates = [gr.skip() if new == old else new for new, old in zip(found, before, strict=True)]
        return updates[0], updates[1], found

    def talk_to(self, chosen: list[str]) -> tuple[Any, Any, Any]:
        """Open the chosen run to talk to."""
        if len(chosen) != 1:
            return lines([self._words("one_run")], "error"), gr.skip(), gr.skip()
        known = offered(None, self._runs)
        if chosen[0] not in {path for _, path in known}:
            return lines([self._words("no_checkpoint")], "error"), gr.skip(), gr.skip()
        return "", gr.update(choices=known, value=chosen[0]), gr.Tabs(selected="chat")

    def stop_run(self, chosen: list[str]) -> str:
        """Ask the one chosen run to save itself and end."""
        if len(chosen) != 1:
            return lines([self._words("one_run")], "error")
        try:
            return lines([self._words("stop_asked", name=stop(chosen[0]).folder.name)])
        except GlmtuneError as err:
            return error_lines(err, self._words)

    def go_on(self, chosen: list[str]) -> Iterator[str]:
        """Continue the one chosen run from its last checkpoint."""
        if len(chosen) != 1:
            yield lines([self._words("one_run")], "error")
            return
        yield from running(
            lambda show: start([chosen[0]], options=["--resume"], show=show),
            lambda started: lines([self._words("started", folder=started.folder)]),
            self._words,
        )
