"""The command line: one verb a function. All exit codes are here.

What a verb needs is imported inside it, so that `glmtune --help` answers at once.
"""

import os
import sys
import time
import warnings
from typing import NoReturn

import click

from glmtune.cli.chat import chat
from glmtune.cli.compare import compare
from glmtune.cli.console import leave_group, program, settle_streams
from glmtune.cli.data import data
from glmtune.cli.demo import demo
from glmtune.cli.evaluate import evaluate
from glmtune.cli.export import export
from glmtune.cli.hints import Verbs, misuse_hint
from glmtune.cli.info import info
from glmtune.cli.migrate import migrate
from glmtune.cli.runs import runs
from glmtune.cli.settings import settings
from glmtune.cli.train import train
from glmtune.cli.verify import verify
from glmtune.errors import GlmtuneError
from glmtune.log import is_main_process, lines_on_stderr
from glmtune.training.stopping import Interrupted

FIRST_SPEAKS_S = 5.0
"""How long a process that `torchrun` started waits before it tells its error, which may be every one's."""


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="glmtune")
def glmtune() -> None:
    """Fine-tune, evaluate and talk to models of the GLM family: ChatGLM-6B, ChatGLM2, ChatGLM3, GLM-4,
    GLM-4-0414, GLM-Z1, GLM-4.5, GLM-4.6; and glm-tiny, which comes with it.

    \b
    See it work, with the bundled model and rows:
      glmtune demo

    \b
    A first round with a model of your own:
      glmtune info /models/chatglm3-6b
      glmtune train model=/models/chatglm3-6b data.train=my.json
      glmtune evaluate runs/chatglm3-6b-lora --data test.json
      glmtune chat runs/chatglm3-6b-lora

    PATH is always a model folder, a run folder or an adapter folder: a run or an adapter finds its own base
    model, chat format and settings. It may also be a model's name on a hub: OWNER/NAME or hf:OWNER/NAME
    (Hugging Face), modelscope:OWNER/NAME.
    """


for verb in (
    demo, train, evaluate, runs, compare, chat, verify, export, migrate, info, data, settings,
):  # fmt: skip
    glmtune.add_command(verb)


def main() -> None:
    """Run the command line; what a user can fix ends in `error:` and `hint:` and exit code 2."""
    settle_streams()
    warnings.simplefilter("ignore", FutureWarning)  # libraries telling other libraries' developers
    try:
        with lines_on_stderr():
            glmtune(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as err:
        err.show()
        sys.exit(2)
    except click.ClickException as err:
        _show_misuse(err)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as err:
        _end_interrupted(err.__cause__ or err)
    except GlmtuneError as err:
        _show_error(err)
        leave_group()
        sys.exit(err.exit_code)


def _end_interrupted(err: BaseException) -> NoReturn:
    """Say what is kept and how to go on, where somebody knows."""
    told = err if isinstance(err, Interrupted) else Interrupted("interrupted")
    if is_main_process():
        click.echo(str(told), err=True)
    leave_group()
    sys.exit(told.exit_code)


def _show_error(err: GlmtuneError) -> None:
    """Print an error; of several processes with the same one only the first prints it.

    That one ends first, and `torchrun` then ends the others. Where it does not, the error is another's alone.
    """
    if not is_main_process():
        time.sleep(FIRST_SPEAKS_S)
    process = "" if is_main_process() else f"process {os.environ['RANK']}: "
    click.echo(f"error: {process}{err}", err=True)
    if err.hint:
        click.echo(f"hint: {err.hint}", err=True)


def _show_misuse(err: click.ClickException) -> None:
    """What click has found wrong with the command line, as our own errors are shown."""
    context = getattr(err, "ctx", None)
    command = context.command_path if context else program()
    message = str(err.message if isinstance(err, click.NoSuchOption) else err.format_message()).rstrip(".")
    click.echo(f"error: {command}: {message[:1].lower()}{message[1:]}", err=True)
    click.echo(f"hint: {misuse_hint(err) or f'`{command} --help` has examples'}", err=True)
