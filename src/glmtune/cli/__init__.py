"""The command line of glmtune: one function per verb; all exit codes are set here.

A verb imports what it needs inside its function, so that `glmtune --help` answers at once.
"""

import os
import sys
import time
import warnings

import click

from glmtune.cli.chat import chat
from glmtune.cli.checkup import checkup
from glmtune.cli.compare import compare
from glmtune.cli.console import leave_group, program, settle_streams
from glmtune.cli.data import data
from glmtune.cli.demo import demo
from glmtune.cli.doctor import doctor
from glmtune.cli.evaluate import evaluate
from glmtune.cli.explain import explain, explain_traceback, short_explanation
from glmtune.cli.export import export
from glmtune.cli.hints import Verbs, misuse_hint
from glmtune.cli.info import info
from glmtune.cli.migrate import migrate
from glmtune.cli.plan import plan
from glmtune.cli.report import card, report
from glmtune.cli.running import logs, status, stop
from glmtune.cli.runs import runs
from glmtune.cli.serve import serve
from glmtune.cli.settings import settings
from glmtune.cli.train import train
from glmtune.cli.verify import verify
from glmtune.cli.web import web
from glmtune.errors import GlmtuneError
from glmtune.extras import put_off
from glmtune.log import is_main_process, lines_on_stderr
from glmtune.training.stopping import Interrupted

FIRST_SPEAKS_S = 5.0
"""Seconds that a process of `torchrun` other than the first waits before it prints its error.

If all processes have the same error, the first prints it and ends, and `torchrun` then ends the others: the
error is printed once. A process that is still there after the wait has an error of its own.
"""


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
      glmtune plan model=/models/chatglm3-6b data.train=my.json
      glmtune train model=/models/chatglm3-6b data.train=my.json
      glmtune evaluate runs/chatglm3-6b-lora --data test.json
      glmtune chat runs/chatglm3-6b-lora

    \b
    An error message, of any program:
      glmtune explain train.log

    PATH is always a model folder, a run folder or an adapter folder: a run or an adapter finds its own base
    model, chat format and settings. It may also be a model's name on a hub: OWNER/NAME or hf:OWNER/NAME
    (Hugging Face), modelscope:OWNER/NAME.
    """


for verb in (
    demo, plan, train, status, logs, stop, evaluate, checkup, runs, compare, report, card, chat, web, serve,
    verify, export, migrate, info, data, settings, explain, doctor,
):  # fmt: skip
    glmtune.add_command(verb)


def main() -> None:
    """Run the command line; errors that a user can fix print `error:` and `hint:` and exit with code 2."""
    settle_streams()
    warnings.simplefilter("ignore", FutureWarning)  # libraries telling other libraries' developers
    try:
        # PEFT imports it for layers that are never made here, and it torch's compiler: seconds, and 60 MB
        with lines_on_stderr(), put_off("bitsandbytes"):
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
        # a workflow raises `Interrupted`, which says what is saved and how to go on; click makes it an Abort
        cause = err.__cause__ or err
        interrupted = cause if isinstance(cause, Interrupted) else Interrupted("interrupted")
        if is_main_process():
            click.echo(str(interrupted), err=True)
        leave_group()
        sys.exit(interrupted.exit_code)
    except GlmtuneError as err:
        if not is_main_process():
            time.sleep(FIRST_SPEAKS_S)
        process = "" if is_main_process() else f"process {os.environ['RANK']}: "
        click.echo(f"error: {process}{err}", err=True)
        if err.hint:
            click.echo(f"hint: {err.hint}", err=True)
        if explanation := short_explanation(err):
            click.echo(explanation, err=True)
        leave_group()
        sys.exit(err.exit_code)
    except Exception as err:
        explain_traceback(err)
        raise


def _show_misuse(err: click.ClickException) -> None:
    """Print click's own error in the form of glmtune's."""
    context = getattr(err, "ctx", None)
    command = context.command_path if context else program()
    # NoSuchOption.format_message adds a guess of click's; `misuse_hint` has a better one
    text = str(err.message if isinstance(err, click.NoSuchOption) else err.format_message()).rstrip(".")
    click.echo(f"error: {command}: {text[:1].lower()}{text[1:]}", err=True)
    click.echo(f"hint: {misuse_hint(err) or f'`{command} --help` has examples'}", err=True)
