"""The tab to start a run from: model, rows, method, five settings, the plan, and the start."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.quants import QUANTS
from glmtune.recipe.describe import Description, describe
from glmtune.recipe.settings import Recipe
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
from glmtune.workflows.runner import Started, start

FIELDS = (
    "model", "upload", "rows", "method", "epochs", "lr", "batch_size", "max_tokens", "quant", "name", "more",
)  # fmt: skip
"""Names of the form's components, in the order in which their values come."""


class TrainTab:
    """The tab of one language."""

    def __init__(self, words: Words, *, path: Path | None, runs: Path) -> None:
        """`path`: the model that is offered first; `runs`: the folder that new runs go to."""
        self._words, self._path, self._runs = words, path, runs
        rows = list(describe(words.language))
        self._settings = {row.key: row for row in rows}
        self._methods = {row.kind: row for row in rows if row.key == "method.name"}

    def build(self, runs: gr.Dropdown) -> None:
        """Add the components and what they do; a started run is chosen in `runs`."""
        words = self._words
        with gr.Row(), gr.Column(scale=3, min_width=300):
            fields = {**self._lay_out_rows(), **self._lay_out_settings()}
        inputs = [fields[name] for name in FIELDS]
        self._said = gr.HTML(elem_classes="gt-plan")
        with gr.Row():
            timed = gr.Checkbox(label=words("with_time"), elem_classes="gt-timed")
            check = gr.Button(words("check"), elem_classes="gt-check")
            begin = gr.Button(words("start"), variant="primary", interactive=False, elem_classes="gt-begin")
        command = gr.Code(
            label=words("command"), language="shell", interactive=False, elem_classes="gt-command"
        )
        recipe = gr.Code(label=words("recipe"), language="yaml", interactive=False, elem_classes="gt-recipe")
        planned = gr.State([])
        private: dict[str, Any] = {"api_visibility": "private"}  # Any: keyword arguments of a listener
        self._look.click(
            self._preview, inputs, [self._rows_seen, fields["rows"], fields["upload"]], **private
        )
        checked = [self._said, command, recipe, planned, begin, fields["rows"], fields["upload"]]
        check.click(self._check, [timed, *inputs], checked, **private)
        for name, field in fields.items():
            if name != "upload":  # it is emptied once its file is kept
                field.input(lambda: ([], gr.update(interactive=False)), None, [planned, begin], **private)
        fields["upload"].upload(lambda: ([], gr.update(interactive=False)), None, [planned, begin], **private)
        begin.click(self._start, [planned, *inputs], [self._said, begin, runs], **private)

    def _lay_out_rows(self) -> dict[str, Any]:
        words = self._words
        choices = offered(self._path, self._runs, is_base_first=True)
        with gr.Row():
            model = gr.Dropdown(
                choices,
                value=choices[0][1],
                label=words("model"),
                info=words("model_info"),
                allow_custom_value=True,
                elem_classes="gt-train-model",
            )
            name = gr.Textbox(
                "",
                label=words("run_name"),
                info=words("run_name_info", folder=self._runs),
                elem_classes="gt-name",
            )
        with gr.Row():
            upload = gr.File(label=words("rows_here"), height=120, type="filepath", elem_classes="gt-upload")
            with gr.Column():
                rows = gr.Textbox(
                    "", label=words("rows_path"), info=words("rows_path_info"), elem_classes="gt-rows"
                )
                self._look = gr.Button(words("look"), elem_classes="gt-look")
        self._rows_seen = gr.HTML(elem_classes="gt-seen")
        return {"model": model, "upload": upload, "rows": rows, "name": name}

    def _lay_out_settings(self) -> dict[str, Any]:
        words, of = self._words, self._settings
        default = Recipe.model_fields["method"].default.name

        def about(row: Description) -> dict[str, str]:
            return {"label": row.key, "info": row.text, "elem_classes": f"gt-{row.key.split('.')[-1]}"}

        method = gr.Radio(list(self._methods), value=default, label=words("method"), elem_classes="gt-method")
        meaning = gr.HTML(lines([self._methods[default].text]), elem_classes="gt-meaning")
        method.change(
            lambda name: lines([self._methods[name].text]), method, meaning, api_visibility="private"
        )
        with gr.Row():
            epochs = gr.Textbox("", **about(of["train.epochs"]))
            lr = gr.Textbox("", **about(of["train.lr"]))
            batch_size = gr.Textbox("", **about(of["train.batch_size"]))
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

    def _words_of(self, values: tuple[Any, ...]) -> list[str]:
        """Return the words of the form's command; an uploaded file is kept first. Raises `GlmtuneError`."""
        fields = dict(zip(FIELDS, values, strict=True))
        if upload := fields.pop("upload"):
            fields["rows"] = str(keep_upload(upload, self._runs))
        return words_of(Form(**{name: value or "" for name, value in fields.items()}), self._runs)

    def _preview(self, *values: Any) -> list[Any]:
        words = self._words
        try:
            command = self._words_of(values)
            seen = preview(command)
        except GlmtuneError as err:
            return [error_lines(err, words), gr.skip(), gr.skip()]
        head = words(
            "first_rows", count=min(SHOWN_ROWS, seen.num_rows), rows=seen.num_rows, format=seen.format
        )
        rows = (
            "".join(f"<b>{escape(text)}</b>" if learned else escape(text) for text, learned in row)
            for row in seen.rows
        )
        shown = "".join(f'<div class="gt-row">{row}</div>' for row in rows)
        return [lines([head]) + shown + lines(seen.notes, "warning"), *_as_kept(command)]

    def _check(self, is_timed: bool, *values: Any) -> Iterator[list[Any]]:
        """Show the plan of the form and its command; the start button works if the run fits."""
        words = self._words
        disabled = gr.update(interactive=False)
        yield [lines([words("checking")]), "", "", [], disabled, gr.skip(), gr.skip()]
        try:
            command = self._words_of(values)
            outlook, warned = look_ahead(command, is_timed=is_timed)
        except GlmtuneError as err:
            yield [error_lines(err, words), "", "", [], disabled, gr.skip(), gr.skip()]
            return
        fits = outlook.here.fits
        told = lines(plan_lines(outlook, words)[:1], "good" if fits else "error")
        told += lines(plan_lines(outlook, words)[1:])
        told += lines([words("warning", text=text) for text in warned], "warning")
        recipe = recipe_of(command)
        begin = gr.update(interactive=fits)
        yield [told, command_of(command), recipe, command if fits else [], begin, *_as_kept(command)]

    def _start(self, planned: list[str], *values: Any) -> Iterator[list[Any]]:
        """Start the planned run; the form is as it was planned, for a change takes the plan away."""
        words = self._words
        if not planned:
            yield [lines([words("check_first")], "error"), gr.skip(), gr.skip()]
            return
        begun: list[Started] = []

        def done(started: Started) -> str:
            begun.append(started)
            return lines([words("started", folder=started.folder)], "good")

        for said in running(lambda show: start(planned, show=show), done, words):
            yield [said, gr.update(interactive=False), gr.skip()]
        if begun:
            folder = begun[0].folder
            choices = [(str(folder.relative_to(self._runs)), str(folder))]
            yield [gr.skip(), gr.skip(), gr.update(choices=choices, value=[str(folder)])]


def _as_kept(command: list[str]) -> list[Any]:
    """Return the updates of the path and the upload: the path of the file that is kept, and no file."""
    path = next(word for word in command if word.startswith("data.train=")).partition("=")[2]
    return [path, None]
