"""Hints of the command line: settings as the running verb's options, and help for mistyped commands."""

import re
from collections.abc import Mapping
from typing import Any

import click

from glmtune.errors import GlmtuneError
from glmtune.near import nearest

_SETTING = re.compile(r"(?<![\w.`-])(?:data\.(?=test=))?([a-z_]+)=(\S*?)(?=[\s,;:?)]|\.?$|\.\s)")
"""Matches a setting in a hint, such as `dtype=fp32`; commands in backticks are not searched."""

_SERVING = "it is `glmtune serve RUN`: OpenAI's interface, for programs"
_PAGE = "it is `glmtune web PATH`: a page to talk, watch and train on"
_TRAINING = "it is `glmtune train model=MODEL data.train=FILE`; method=full trains every weight"
_ANSWERING = "`glmtune chat PATH` answers you, `glmtune evaluate PATH --data FILE` a file of rows"
OTHER_VERBS: Mapping[str, str] = {
    **dict.fromkeys(("server", "api", "openai", "deploy"), _SERVING),
    **dict.fromkeys(("webui", "web_demo", "ui", "gradio", "streamlit", "board"), _PAGE),
    **dict.fromkeys(("finetune", "fine-tune", "tune", "sft", "lora", "pretrain", "fit", "run"), _TRAINING),
    **dict.fromkeys(("infer", "inference", "predict", "generate", "ask", "cli_demo"), _ANSWERING),
    **dict.fromkeys(("eval", "test", "score"), "it is `glmtune evaluate PATH --data FILE`"),
    "merge": "it is `glmtune export RUN --to merged`",
    **dict.fromkeys(("quantize", "quantise", "quant"), "it is `glmtune export PATH --to int4`, or int8"),
    **dict.fromkeys(("gguf", "hf"), "it is a kind of export: `glmtune export --help`"),
    "resume": "it is `glmtune train RUN --resume`",
    **dict.fromkeys(
        ("convert", "stats", "check"),
        "of rows it is `glmtune data stats FILE` and `glmtune data convert IN OUT --to FORMAT`",
    ),
    **dict.fromkeys(
        ("download", "pull"), "a name on a hub is fetched when it is used: `glmtune info OWNER/NAME`"
    ),
    **dict.fromkeys(
        ("estimate", "memory", "vram", "fits", "dry-run", "eta"),
        "it is `glmtune plan model=MODEL data.train=FILE`",
    ),
    **dict.fromkeys(("ls", "list"), "it is `glmtune runs`"),
    **dict.fromkeys(("show", "inspect"), "it is `glmtune info PATH`"),
    **dict.fromkeys(("why", "error", "diagnose"), "it is `glmtune explain LOG`"),
    **dict.fromkeys(("plot", "curves", "html", "dashboard"), "it is `glmtune report RUN`"),
    "diff": "it is `glmtune compare RUN RUN`",
    "recipe": "`glmtune settings` lists what a recipe can say",
    "help": "it is `glmtune --help`",
    "version": "it is `glmtune --version`",
}
"""Hints by a word that is no verb of glmtune but that users of other programs type."""


class Verbs(click.Group):
    """A group of verbs; hints of errors name settings as options of the verb that ran.

    A path option that is given twice is an error, where click alone would silently take the last.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb and its words. Raises `click.UsageError` for a path option given twice."""
        name, verb, words = super().resolve_command(ctx, args)
        if not verb:
            return name, verb, words
        verb_context = click.Context(verb, parent=ctx, info_name=name)
        # the parser lists a parameter as often as it was typed; click's own result has the last value only
        try:
            *_, parsed = verb.make_parser(verb_context).parse_args(list(words))
        except click.UsageError:  # the verb itself raises it again, with its own name
            return name, verb, words
        if any(parameter.is_eager for parameter in parsed):  # such as --help
            return name, verb, words
        for option in parsed:
            times = parsed.count(option)
            if isinstance(option, click.Option) and option.type.name == "path" and times > 1:
                text = f"option '{option.opts[-1]}' takes one path, got {times}"
                raise click.UsageError(text, verb_context)
        return name, verb, words

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, and word its errors for it."""
        try:
            return super().invoke(ctx)
        except click.UsageError as err:
            verb = self.commands.get(str(ctx.invoked_subcommand))
            if err.ctx is None and verb:  # raised before click had made a context for the verb
                err.ctx = click.Context(verb, parent=ctx, info_name=verb.name)
            raise
        except GlmtuneError as err:
            verb = self.commands.get(str(ctx.invoked_subcommand))
            err.hint = name_options(err.hint, verb) if verb else err.hint
            raise


def name_options(hint: str, command: click.Command) -> str:
    """Return the hint with each setting that is an option of the verb written as that option."""
    options = {p.name: p for p in command.params if isinstance(p, click.Option)}

    def as_option(match: re.Match[str]) -> str:
        name, value = match.groups()
        name = "data" if match[0].startswith("data.") else name
        if not (option := options.get(name)):
            return match[0]
        return option.opts[-1] if option.is_flag else f"{option.opts[-1]} {value}".strip()

    # odd parts stand between backticks: commands, which take settings as they are
    parts = enumerate(hint.split("`"))
    return "`".join(part if i % 2 else _SETTING.sub(as_option, part) for i, part in parts)


def misuse_hint(err: click.ClickException) -> str:
    """Return what to type instead of a command line that click refused; empty if click's message says it."""
    context = getattr(err, "ctx", None)
    if context is None:
        return ""
    if isinstance(err, click.exceptions.NoSuchCommand) and context.parent is None:
        word = err.command_name
        if "=" in word or word.endswith((".yaml", ".yml")):
            return f"the verb comes first: `glmtune train {word}`"
        return OTHER_VERBS.get(word.lower().lstrip("-"), "")
    if isinstance(err, click.NoSuchOption):
        return _option_hint(err.option_name, context.command)
    if isinstance(err, click.MissingParameter):
        return _example_hint(context)
    typed = re.search(r"\(([a-z_]+)=(\S+)\)", str(getattr(err, "message", "")))
    option = f"--{typed[1].replace('_', '-')}" if typed else ""
    if typed and any(option in parameter.opts for parameter in context.command.params):
        return f"did you mean {option} {typed[2]}?"
    return ""


def _option_hint(name: str, command: click.Command) -> str:
    """Return the setting that an unknown option names, else the options that are spelled like it."""
    if takes_settings(command):
        from glmtune.recipe.names import name_here

        if named := name_here(name.lstrip("-").replace("-", "_")):
            return f"settings are typed without dashes: {named}"
    options = [option for p in command.params if isinstance(p, click.Option) for option in p.opts]
    # `--max` means each option that begins so; only without one is a misspelling looked for
    begun = [option for option in options if option.startswith(name)]
    near = " or ".join(begun) or nearest(name, options)
    return f"did you mean {near}?" if near else ""


def _example_hint(context: click.Context) -> str:
    """Return the first example of the verb's help, with the newest runs if the example has one."""
    verb = context.command_path.removeprefix(context.find_root().command_path).strip()
    start = f"glmtune {verb} "
    lines = map(str.strip, (context.command.help or "").splitlines())
    example = next((line for line in lines if line.startswith(start)), "")
    if not example:
        return ""
    from glmtune.locations import newest_runs_hint

    runs = newest_runs_hint() if "runs/" in example else ""
    return f"for example `{example}`" + (f"; {runs}" if runs else "")


def takes_settings(command: click.Command) -> bool:
    """True if a verb takes KEY=VALUE words."""
    return any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params)
