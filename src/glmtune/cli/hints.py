"""Hints as the command line says them: settings by the running verb's options, misuse by what leads on."""

import re
from collections.abc import Mapping
from typing import Any

import click

from glmtune.errors import GlmtuneError
from glmtune.near import nearest

_SETTING = re.compile(r"(?<![\w.`-])(?:data\.(?=test=))?([a-z_]+)=(\S*?)(?=[\s,;:?)]|\.?$|\.\s)")
"""A setting in a hint, as a recipe has it; a command in backticks stands as it is."""

_SERVING = (
    "there is no server here yet: `glmtune chat RUN` talks in the terminal, and vLLM serves what "
    "`glmtune export RUN --to hf` writes"
)
_TRAINING = "it is `glmtune train model=MODEL data.train=FILE`; method=full trains every weight"
_ANSWERING = "`glmtune chat PATH` answers you, `glmtune evaluate PATH --data FILE` a file of rows"
OTHER_VERBS: Mapping[str, str] = {
    **dict.fromkeys(("serve", "server", "api", "web", "webui", "web_demo", "openai", "deploy"), _SERVING),
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
    **dict.fromkeys(("ls", "list"), "it is `glmtune runs`"),
    **dict.fromkeys(("show", "inspect"), "it is `glmtune info PATH`"),
    **dict.fromkeys(("plot", "diff"), "it is `glmtune compare RUN RUN`"),
    "recipe": "`glmtune settings` lists what a recipe can say",
    "help": "it is `glmtune --help`",
    "version": "it is `glmtune --version`",
}
"""By a word that is no verb here: what leads on."""


class Verbs(click.Group):
    """A group of verbs whose errors name settings as the verb that ran takes them.

    A verb whose option for a path is given twice is refused: it would read the last of them alone.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is meant, and its words. Raises `click.UsageError`."""
        name, verb, words = super().resolve_command(ctx, args)
        if verb:
            _refuse_two_paths(click.Context(verb, parent=ctx, info_name=name), words)
        return name, verb, words

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except click.UsageError as err:
            verb = self.commands.get(str(ctx.invoked_subcommand))
            if err.ctx is None and verb:  # refused before click had begun with the verb
                err.ctx = click.Context(verb, parent=ctx, info_name=verb.name)
            raise
        except GlmtuneError as err:
            verb = self.commands.get(str(ctx.invoked_subcommand))
            err.hint = spoken(err.hint, verb) if verb else err.hint
            raise


def _refuse_two_paths(ctx: click.Context, words: list[str]) -> None:
    try:
        *_, given = ctx.command.make_parser(ctx).parse_args(list(words))
    except click.UsageError:
        return  # the verb itself says so, by its name
    if any(p.is_eager for p in given):  # such as --help
        return
    for option in given:
        times = given.count(option)
        if isinstance(option, click.Option) and option.type.name == "path" and times > 1:
            raise click.UsageError(f"option '{option.opts[-1]}' takes one path, got {times}", ctx)


def spoken(hint: str, command: click.Command) -> str:
    """A hint with each setting that is an option of the running verb written as that option."""
    options = {p.name: p.opts[-1] for p in command.params if isinstance(p, click.Option)}

    def say(found: re.Match[str]) -> str:
        name, value = found.groups()
        name = "data" if found[0].startswith("data.") else name
        return f"{options[name]} {value}".strip() if name in options else found[0]

    return "`".join(part if i % 2 else _SETTING.sub(say, part) for i, part in enumerate(hint.split("`")))


def misuse_hint(err: click.ClickException) -> str:
    """What to type in place of what click has refused; empty where its own message says it."""
    context = getattr(err, "ctx", None)
    if isinstance(err, click.exceptions.NoSuchCommand) and context:
        return _for_verb(err.command_name, context)
    if isinstance(err, click.NoSuchOption) and context:
        return _for_option(err.option_name, context.command)
    if isinstance(err, click.MissingParameter) and context:
        return _by_example(context)
    return ""


def _for_option(name: str, command: click.Command) -> str:
    if takes_settings(command):
        from glmtune.recipe.names import name_here

        if named := name_here(name.lstrip("-").replace("-", "_")):
            return f"settings are typed without dashes: {named}"
    options = [option for p in command.params if isinstance(p, click.Option) for option in p.opts]
    begun = [option for option in options if option.startswith(name)]
    near = " or ".join(begun) or nearest(name, options)
    return f"did you mean {near}?" if near else ""


def _by_example(context: click.Context) -> str:
    """The first example of the verb's help; the runs, where it takes one."""
    verb = context.command_path.removeprefix(context.find_root().command_path).strip()
    start = f"glmtune {verb} "
    lines = map(str.strip, (context.command.help or "").splitlines())
    example = next((line for line in lines if line.startswith(start)), "")
    if not example:
        return ""
    from glmtune.locations import newest_runs_hint

    runs = newest_runs_hint() if "runs/" in example else ""
    return f"for example `{example}`" + (f"; {runs}" if runs else "")


def _for_verb(word: str, context: click.Context) -> str:
    if context.parent is not None:
        return ""
    if "=" in word or word.endswith((".yaml", ".yml")):
        return f"the verb comes first: `glmtune train {word}`"
    return OTHER_VERBS.get(word.lower().lstrip("-"), "")


def takes_settings(command: click.Command) -> bool:
    """Whether a verb takes KEY=VALUE words."""
    return any("KEY=VALUE" in (parameter.metavar or "") for parameter in command.params)
