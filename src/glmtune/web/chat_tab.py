"""The tab to talk in: one model, or a tuned one beside its base."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.reports.recorded_run import has_one_round
from glmtune.web.desk import Asking, Desk, Opened
from glmtune.web.markup import error_lines, lines
from glmtune.web.offers import offered
from glmtune.web.talks import Exchange, ShownAnswer, as_typed, bubbles, find_exchange, messages_for
from glmtune.web.words import Words

SHOWN_EVERY_S = 0.05
"""Seconds between two pictures of an answer that is being written."""
ADVERT = "类型#裙*版型#宽松*颜色#浅蓝*风格#文艺*图案#碎花*袖长#七分袖"
ADVERT_LABEL = "浅蓝的底色铺满细碎小花，文艺气息扑面而来；宽松的版型不挑身材，七分袖恰好露出纤细的手腕。"
TWO_TURNS = ("借山地车一天要多少钱？", "保证金呢？")
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
Exchanges = list[Exchange]


class ChatTab:
    """The tab of one language; the visitors' conversations are in their own states."""

    def __init__(self, desk: Desk, words: Words, *, path: Path | None, runs: Path, is_public: bool) -> None:
        """`path`: what is opened first; `runs`: the folder of runs; a public page opens nothing else."""
        self._desk, self._words, self._runs, self._path = desk, words, runs, path
        self._is_public = is_public

    def build(self, page: gr.Blocks) -> gr.Dropdown:
        """Add the components and what they do; return the chooser of models."""
        words = self._words
        self._exchanges = gr.State([])
        self._lay_out_head()
        with gr.Row():
            self._bots = [self._bot(side) for side in ("tuned", "base")]
        self._status = gr.HTML()
        with gr.Row(equal_height=True):
            self._question = gr.Textbox(
                label=words("question"),
                placeholder=words("question_hint"),
                scale=6,
                autofocus=True,
                elem_classes="gt-question",
            )
            with gr.Column(scale=1, min_width=110):
                self._send = gr.Button(words("send"), variant="primary", elem_classes="gt-send")
                self._stop = gr.Button(words("stop"), variant="stop", visible=False, elem_classes="gt-stop")
        self._lay_out_examples()
        self._lay_out_sampling()
        self._connect(page)
        return self._model

    # --- components ---

    def _lay_out_head(self) -> None:
        words = self._words
        with gr.Row():
            self._model = gr.Dropdown(
                self._choices(),
                value=None,  # chosen as the page is opened: the newest run may be newer than the program
                label=words("model"),
                info=None if self._is_public else words("model_info"),
                allow_custom_value=not self._is_public,
                scale=3,
                elem_classes="gt-model",
            )
            with gr.Column(scale=2, min_width=260):
                self._rounds = gr.Radio(
                    [(words("multi_turn"), "2"), (words("single_turn"), "1")],
                    value="2",
                    label=words("rounds"),
                    elem_classes="gt-rounds",
                )
                self._compare = gr.Checkbox(label=words("side_by_side"), elem_classes="gt-compare")

    def _bot(self, side: str) -> gr.Chatbot:
        is_base = side == "base"
        return gr.Chatbot(
            label=self._words(side),
            visible=not is_base,
            height=420,
            editable=None if is_base else "user",
            buttons=["copy"],
            placeholder=self._words("begin_here"),
            layout="bubble",
            allow_tags=False,
            min_width=280,
            elem_classes=f"gt-{side}",
        )

    def _lay_out_examples(self) -> None:
        words = self._words
        shown = {
            "example_advert": (ADVERT, words("label", label=ADVERT_LABEL)),
            "example_identity": (words("who_are_you"), ""),
            "example_first": (TWO_TURNS[0], ""),
            "example_second": (TWO_TURNS[1], ""),
        }
        with gr.Accordion(words("examples"), open=True):
            with gr.Row():
                buttons = [
                    gr.Button(words(key), size="sm", min_width=120, elem_classes=f"gt-{key}") for key in shown
                ]
            label = gr.HTML(elem_classes="gt-label")
        for button, (question, beside) in zip(buttons, shown.values(), strict=True):
            button.click(
                lambda question=question, beside=beside: (question, lines([beside] if beside else [])),
                None,
                [self._question, label],
                api_visibility="private",
            )

    def _lay_out_sampling(self) -> None:
        words = self._words

        def about(name: str) -> dict[str, str]:
            return {"label": words(name), "info": words(f"{name}_info"), "elem_classes": f"gt-{name}"}

        with gr.Accordion(words("sampling"), open=False):
            with gr.Row():
                temperature = gr.Slider(0, 2, value=0.8, step=0.01, **about("temperature"))
                top_p = gr.Slider(0, 1, value=0.8, step=0.01, **about("top_p"))
                top_k = gr.Number(value=0, precision=0, minimum=0, **about("top_k"))
            with gr.Row():
                penalty = gr.Slider(0.5, 2, value=1, step=0.01, **about("repetition_penalty"))
                longest = gr.Number(value=512, precision=0, minimum=1, **about("max_new_tokens"))
                self._seed = gr.Textbox("", **about("seed"))
            self._system = gr.Textbox("", lines=2, **about("system"))
        self._sampling = [temperature, top_p, top_k, penalty, longest]

    # --- what they do ---

    def _connect(self, page: gr.Blocks) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}  # Any: keyword arguments of a listener
        asked = [self._exchanges, self._model, self._compare, self._rounds, self._system, self._seed]
        answered = [self._exchanges, *self._bots, self._status, self._send, self._stop]
        opened = [self._status, *self._bots, *self._sampling]

        def then_answer(event: Any) -> None:  # Any: Gradio's Dependency
            answer = event.then(self.answer, [*asked, *self._sampling], answered, **private)
            # whatever has happened: nobody is left with a page that only stops
            buttons = [self._send, self._stop]
            answer.then(self.settle, self._exchanges, buttons, show_progress="hidden", **private)

        typed = [self._question, self._exchanges]
        taken = [*typed, *self._bots]
        for begin in (self._question.submit, self._send.click):
            then_answer(begin(self.take, typed, taken, **private))
        tuned = self._bots[0]
        for ask_anew, change in ((tuned.retry, self.retry), (tuned.edit, self.edit)):
            then_answer(ask_anew(change, self._exchanges, taken[1:], **private))
        tuned.undo(self.undo, self._exchanges, taken, **private)
        for bot in self._bots:
            bot.clear(self.clear, self._exchanges, [*taken[1:], self._status], **private)
        self._stop.click(self.stop, self._exchanges, None, **private)
        self._compare.change(self.show_base, [self._compare, self._exchanges], self._bots[1], **private)
        self._model.focus(lambda: gr.update(choices=self._choices()), None, self._model, **private)
        self._model.change(self.open_model, self._model, opened, **private)
        page.load(self.choose_first, None, self._model, **private)
        page.unload(self.leave)

    def _choices(self) -> list[tuple[str, str]]:
        return offered(self._path, self._runs)

    def choose_first(self) -> Any:
        """Choose the first of the models that there are now; to choose one is to open it."""
        choices = self._choices()
        return gr.update(choices=choices, value=choices[0][1])

    def open_model(self, path: str) -> Iterator[list[Any]]:
        """Open the chosen model; show its own sampling settings."""
        words = self._words
        unchanged = [gr.skip()] * (len(self._bots) + len(self._sampling))
        yield [lines([words("loading", name=path)]), *unchanged]
        try:
            opened = self._require_allowed(path)
        except GlmtuneError as err:
            yield [error_lines(err, words), *unchanged]
            return
        told = [words("ready", name=opened.name, format=opened.tokenizer.template)]
        if opened.location.run and has_one_round(opened.location.run):
            told.append(words("one_round"))
        own = opened.sampling
        temperature = 0.0 if own.is_greedy else own.temperature
        base = (
            words("base_of", name=Path(opened.location.under.name).name) if opened.is_tuned else words("base")
        )
        labels = [gr.update(label=opened.name), gr.update(label=base)]
        numbers = [temperature, own.top_p, own.top_k, own.repetition_penalty, own.max_new_tokens]
        yield [lines(told), *labels, *numbers]

    def take(self, question: str, exchanges: Exchanges) -> list[Any]:
        """Move what was typed into the conversation; it stays where it is while an answer is written."""
        if not question.strip() or (exchanges and exchanges[-1].state != "over"):
            return [gr.skip()] * 4
        return ["", *self._as_shown([*exchanges, Exchange(question)])]

    def retry(self, exchanges: Exchanges, event: gr.RetryData) -> list[Any]:
        """Ask a question again; what came after it is gone."""
        number = find_exchange(exchanges, 0, _index(event), self._words)
        return self._as_shown([*exchanges[:number], Exchange(exchanges[number].question)])

    def edit(self, exchanges: Exchanges, event: gr.EditData) -> list[Any]:
        """Ask a question as it was changed; what came after it is gone."""
        number = find_exchange(exchanges, 0, _index(event), self._words)
        return self._as_shown([*exchanges[:number], Exchange(as_typed(str(event.value)))])

    def undo(self, exchanges: Exchanges, event: gr.UndoData) -> list[Any]:
        """Take a question and its answer back, to be typed anew."""
        number = find_exchange(exchanges, 0, _index(event), self._words)
        return [exchanges[number].question, *self._as_shown(exchanges[:number])]

    def clear(self, request: gr.Request, exchanges: Exchanges) -> list[Any]:
        """Forget the conversation, and end an answer that is on its way."""
        self.stop(request, exchanges)
        exchanges.clear()  # the list itself, which the answer on its way shows
        return [*self._as_shown(exchanges), ""]

    def settle(self, exchanges: Exchanges) -> list[Any]:
        """Be ready for the next question, unless another answer is being written."""
        is_running = bool(exchanges) and exchanges[-1].state in ("answering", "stopping")
        return [gr.update(visible=not is_running), gr.update(visible=is_running)]

    def _as_shown(self, exchanges: Exchanges) -> list[Any]:
        return [exchanges, *(bubbles(exchanges, side, self._words) for side in range(len(self._bots)))]

    def answer(
        self,
        request: gr.Request,
        exchanges: Exchanges,
        path: str,
        is_compared: bool,
        rounds: str,
        system: str,
        seed: str,
        *sampling: float,
    ) -> Iterator[list[Any]]:
        """Answer the last question, if it has no answer yet, by the model and perhaps its base."""
        if not exchanges or exchanges[-1].state != "asked":
            yield [gr.skip()] * 6
            return
        latest, owner = exchanges[-1], str(request.session_hash)
        latest.state = "answering"
        yield self._shown(exchanges, is_running=True)
        settings: dict[str, Any] = dict(zip(SAMPLING, sampling, strict=True))
        try:
            settings["seed"] = _read_seed(seed)
            opened = [self._require_allowed(path)]
            if is_compared and opened[0].is_tuned:
                # without `keep` the base could push the tuned one out of memory
                opened.append(self._desk.open(path, untuned=True, keep=[opened[0].key]))
            asked: list[list[dict[str, Any]]] = [
                messages_for(
                    [*exchanges[:-1], latest],
                    side,
                    system=system,
                    taught=each.taught,
                    is_multi_turn=rounds == "2",
                )
                for side, each in enumerate(opened)
            ]
            askings = [
                self._desk.ask(each, messages, settings, owner=owner)
                for each, messages in zip(opened, asked, strict=True)
            ]
            if str(latest.state) == "stopping":  # by `stop`, from another thread, before a model was there
                self._desk.stop(owner)
            yield from self._stream(exchanges, latest, askings)
            took = max(asking.seconds for asking in askings)
            told = [self._words("took", seconds=f"{took:.1f}")]
            if is_compared and not opened[0].is_tuned:
                told.append(self._words("nothing_to_compare", name=opened[0].name))
            yield self._shown(exchanges, is_running=False, status=lines(told))
        except GlmtuneError as err:
            self._desk.stop(owner)  # of two, one may be answering already
            latest.answers = []
            yield self._shown(exchanges, is_running=False, status=error_lines(err, self._words))
        finally:
            latest.state = "over"

    def _stream(self, exchanges: Exchanges, latest: Exchange, askings: list[Asking]) -> Iterator[list[Any]]:
        """Write the answers into the latest exchange, all at once, as they come."""
        answers = latest.answers = [ShownAnswer() for _ in askings]
        going = [(asking, answer, iter(asking)) for asking, answer in zip(askings, answers, strict=True)]
        shown_at = time.perf_counter()
        while going:
            for each in list(going):
                asking, answer, pieces = each
                # `self` as the mark of the end: the pieces themselves are None
                is_over = next(pieces, self) is self
                answer.thought, answer.text = asking.thought, asking.text
                if is_over:
                    answer.is_done, answer.remembered = True, asking.remembered
                    cut = self._words("cut", count=asking.longest) if asking.is_cut else ""
                    answer.note = self._words("stopped") if asking.is_stopped else cut
                    going.remove(each)
            if time.perf_counter() - shown_at > SHOWN_EVERY_S:
                shown_at = time.perf_counter()
                yield self._shown(exchanges, is_running=True)

    def _shown(self, exchanges: Exchanges, *, is_running: bool, status: str | None = None) -> list[Any]:
        # a cleared conversation stays as the visitor sees it: a new question may have begun another
        shown = self._as_shown(exchanges) if exchanges else [gr.skip()] * (1 + len(self._bots))
        return [
            *shown,
            gr.skip() if status is None else status,
            gr.update(visible=not is_running),
            gr.update(visible=is_running),
        ]

    def show_base(self, is_compared: bool, exchanges: Exchanges) -> Any:
        """Show or hide the base beside the tuned model."""
        return gr.update(visible=is_compared, value=bubbles(exchanges, 1, self._words))

    def stop(self, request: gr.Request, exchanges: Exchanges) -> None:
        """End what a visitor waits for, also where its model is still being opened."""
        if exchanges and exchanges[-1].state == "answering":
            exchanges[-1].state = "stopping"
        self._desk.stop(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        """End the answers of a visitor who has closed the page."""
        self._desk.stop(str(request.session_hash))

    def _require_allowed(self, path: str) -> Opened:
        """Open a model; on a public page only one of the offered. Raises `CheckpointError`, `ConfigError`."""
        if self._is_public and path not in {choice for _, choice in self._choices()}:
            raise ConfigError(f"{path}: not offered on this page", hint="choose one of the list")
        return self._desk.open(path)


def _read_seed(text: str) -> int | None:
    """Return a typed seed; None for an empty one. Raises `ConfigError`."""
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise ConfigError(f"seed: a whole number, got {text!r:.40}", hint="42, or leave it empty") from None


def _index(event: gr.RetryData | gr.EditData | gr.UndoData) -> int:
    """Return the number of the message that an event is about; Gradio gives a pair for an old format."""
    return event.index if isinstance(event.index, int) else event.index[0]
