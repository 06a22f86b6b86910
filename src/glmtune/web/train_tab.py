"""The tab to start a run from: model, rows, method, five settings, the plan, and the start."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.locations import BUNDLED
from glmtune.quants import QUANTS
from glmtune.recipe.describe import Description, describe
from glmtune.recipe.settings import Recipe
from glmtune.recipe.train import DEFAULT_EPOCHS
from glmtune.web.background import running
from glmtune.web.markup import error_lines, lines
from glmtune.web.offers import offered
from glmtune.web.order import (
    SHOWN_ROWS,
    Form,
    command_of,
    keep_upload,
    look_ahead,
    plan_lines,
    preview,
    recipe_of,
    words_of,
)
from glmtune.web.words import Words
from glmtune.workflows.rows import FEW_VALIDATION_ROWS
from glmtune.workflows.runner import Started, start

FIELDS = (
    "model", "rows", "method", "epochs", "lr", "batch_size", "max_tokens", "quant", "name", "more",
)  # fmt: skip
"""Names of the form's components, in the order in which their values come."""
TINY_RATE = 3e-3
"""Learning rate at which a bundled model learns a few dozen rows. Source: `glmtune demo`."""


class TrainTab:
    """The tab of one language."""

    def __init__(self, words: Words, *, path: Path | None, runs: Path) -> None:
        """`path`: the model that is offered first; `runs`: the folder that new runs go to."""
        self._words, self._path, self._runs = words, path, runs
        rows = list(describe(words.language))
        self._settings = {row.key: row for row in rows}
        self._methods = {row.kind: row for row in rows if row.key == "method.name"}

    def build(self, tabs: gr.Tabs, runs: gr.Dropdown, begun: gr.HTML) -> None:
        """Add the components and what they do.

        A started run is chosen in `runs`, which is in another of the `tabs`, and told of in `begun`.
        """
        words = self._words
        with gr.Row(), gr.Column(scale=3, min_width=300):
            upload, fields = self._lay_out_rows()
            fields |= self._lay_out_settings()
        inputs = [fields[name] for name in FIELDS]
        said = gr.HTML(elem_classes="gt-plan")
        with gr.Row():
            timed = gr.Checkbox(label=words("with_time"), elem_classes="gt-timed")
            check = gr.Button(words("check"), elem_classes="gt-check")
            begin = gr.Button(words("start"), variant="primary", interactive=False, elem_classes="gt-begin")
        shown: dict[str, Any] = {"interactive": False, "buttons": ["copy"]}  # Any: arguments of Textbox
        command = gr.Textbox("", label=words("command"), lines=1, elem_classes="gt-command", **shown)
        recipe = gr.Textbox("", label=words("recipe"), lines=8, elem_classes="gt-recipe", **shown)
        planned = gr.State([])
        private: dict[str, Any] = {"api_visibility": "private"}  # Any: keyword arguments of a listener
        seen = (self.show_rows, inputs, self._rows_seen)
        self._look.click(*seen, **private)
        kept = upload.upload(self.keep, upload, [fields["rows"], upload, self._rows_seen], **private)
        kept.success(*seen, **private)
        fields["model"].focus(lambda: gr.update(choices=self._choices()), None, fields["model"], **private)
        check.click(self.check, [timed, *inputs], [said, command, recipe, planned, begin], **private)
        for field in fields.values():
            field.change(lambda: ([], gr.update(interactive=False)), None, [planned, begin], **private)
        begin.click(self.begin, [planned, *inputs], [said, begin, runs, begun, tabs], **private)

    def _choices(self) -> list[tuple[str, str]]:
        return offered(self._path, self._runs, is_base_first=True)

    def _lay_out_rows(self) -> tuple[gr.File, dict[str, Any]]:
        words, choices = self._words, self._choices()
        with gr.Row():
            model = gr.Dropdown(
                choices,
                value=choices[0][1],
                label=words("model"),
                info=words("model_info"),
                allow_custom_value=True,
                min_width=280,
                elem_classes="gt-train-model",
            )
            name = gr.Textbox(
                "",
                label=words("run_name"),
                info=words("run_name_info", folder=self._runs),
                min_width=280,
                elem_classes="gt-name",
            )
        with gr.Row():
            upload = gr.File(label=words("rows_here"), height=120, type="filepath", elem_classes="gt-upload")
            with gr.Column(min_width=280):
                rows = gr.Textbox(
                    "", label=words("rows_path"), info=words("rows_path_info"), elem_classes="gt-rows"
                )
                self._look = gr.Button(words("look"), elem_classes="gt-look")
        self._rows_seen = gr.HTML(elem_classes="gt-seen")
        return upload, {"model": model, "rows": rows, "name": name}

    def _lay_out_settings(self) -> dict[str, Any]:
        words, of = self._words, self._settings
        default = Recipe.model_fields["method"].default.name

        def about(row: Description) -> dict[str, Any]:
            name = row.key.rpartition(".")[2]
            return {"label": row.key, "info": row.text, "min_width": 280, "elem_classes": f"gt-{name}"}

        method = gr.Radio(list(self._methods), value=default, label=words("method"), elem_classes="gt-method")
        meaning = gr.HTML(lines([self._methods[default].text]), elem_classes="gt-meaning")
        with gr.Row():
            epochs = gr.Textbox("", placeholder=str(DEFAULT_EPOCHS), **about(of["train.epochs"]))
            lr = gr.Textbox("", placeholder=f"{self._methods[default].rate}", **about(of["train.lr"]))
            batch_size = gr.Textbox(
                "", placeholder=of["train.batch_size"].default, **about(of["train.batch_size"])
            )
        method.change(
            lambda name: (lines([(row := self._methods[name]).text]), gr.update(placeholder=f"{row.rate}")),
            method,
            [meaning, lr],
            api_visibility="private",
        )
        with gr.Row():
            max_tokens = gr.Textbox("", **about(of["data.max_tokens"]))
            quant = gr.Dropdown(["", *QUANTS], value="", **about(of["quant"]))
        with gr.Accordion(words("more_settings"), open=False):
            more = gr.Textbox(
                "",
                lines=3,
                show_label=False,
                info=words("more_settings_info"),
                elem_classes="gt-more",
                container=True,
            )
        return {
            "method": method,
            "epochs": epochs,
            "lr": lr,
            "batch_size": batch_size,
            "max_tokens": max_tokens,
            "quant": quant,
            "more": more,
        }

    # --- what they do ---

    def keep(self, upload: str) -> list[Any]:  # Any: values and updates of Gradio's components
        """Keep an uploaded file beside the runs; its path is that of the rows."""
        try:
            return [str(keep_upload(upload, self._runs)), None, ""]
        except GlmtuneError as err:
            return ["", None, error_lines(err, self._words)]

    def _form(self, values: tuple[Any, ...]) -> Form:
        return Form(**{name: value or "" for name, value in zip(FIELDS, values, strict=True)})

    def show_rows(self, *values: Any) -> str:  # Any: as above
        """Show the first rows of the form's file as the model will see them."""
        words = self._words
        try:
            seen = preview(words_of(self._form(values), self._runs))
        except GlmtuneError as err:
            return error_lines(err, words)
        head = words(
            "first_rows", count=min(SHOWN_ROWS, seen.num_rows), rows=seen.num_rows, format=seen.format
        )
        rows = (
            "".join(f"<b>{escape(text)}</b>" if learned else escape(text) for text, learned in row)
            for row in seen.rows
        )
        shown = "".join(f'<div class="gt-row">{row}</div>' for row in rows)
        return lines([head]) + shown + lines(seen.notes, "warning")

    def check(self, is_timed: bool, *values: Any) -> Iterator[list[Any]]:  # Any: as above
        """Show the plan of the form and its command; the start button works if the run fits."""
        words = self._words
        disabled = gr.update(interactive=False)
        yield [lines([words("checking")]), "", "", [], disabled]
        form = self._form(values)
        try:
            command = words_of(form, self._runs)
            outlook, warned = look_ahead(command, is_timed=is_timed)
        except GlmtuneError as err:
            yield [error_lines(err, words), "", "", [], disabled]
            return
        fits = outlook.here.fits
        told = lines(plan_lines(outlook, words)[:1], "good" if fits else "error")
        told += lines(plan_lines(outlook, words)[1:])
        told += lines([words("warning", text=text) for text in warned], "warning")
        if outlook.validation_rows < FEW_VALIDATION_ROWS:
            last = Path(command[-1].partition("=")[2], "last")
            told += lines([words("plan_few", last=last)], "warning")
        if form.model in BUNDLED and not form.lr and (self._methods[form.method].rate or 0) < TINY_RATE:
            told += lines([words("tiny", name=form.model, rate=f"{TINY_RATE:g}")], "warning")
        begin = gr.update(interactive=fits)
        yield [told, command_of(command), recipe_of(command), command if fits else [], begin]

    def begin(self, planned: list[str], *values: Any) -> Iterator[list[Any]]:  # Any: as above
        """Start the planned run, if the form still says what was planned."""
        words = self._words
        try:
            is_planned = planned == words_of(self._form(values), self._runs)
        except GlmtuneError:  # a check says which
            is_planned = False
        unchanged = [gr.skip()] * 3
        if not is_planned:
            yield [lines([words("check_first")], "error"), gr.update(interactive=False), *unchanged]
            return
        begun: list[Started] = []

        def done(started: Started) -> str:
            begun.append(started)
            return lines([words("started", folder=started.folder)], "good")

        for said in running(lambda show: start(planned, show=show), done, words):
            yield [said, gr.update(interactive=False), *unchanged]
        if begun:
            folder = begun[0].folder
            choices = [(str(folder.relative_to(self._runs)), str(folder))]
            chosen = gr.update(choices=choices, value=[str(folder)])
            yield [gr.skip(), gr.skip(), chosen, said, gr.Tabs(selected="runs")]
