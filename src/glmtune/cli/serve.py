"""`glmtune serve`."""

from pathlib import Path
from typing import Any

import click

from glmtune.cli.console import MODEL, compute_option, loading_options
from glmtune.paths import read_path


class NamedPath(click.ParamType[tuple[str, Path]]):
    """Type of NAME=PATH."""

    name = "name=path"

    def convert(
        self, value: str | tuple[str, Path], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Return name and path. Raises `click.BadParameter`."""
        if isinstance(value, tuple):
            return value
        name, mark, path = value.partition("=")
        if not mark or not name.strip() or not path.strip():
            self.fail(f"{value!r} is no NAME=PATH, such as shop=runs/shop", param, ctx)
        try:
            return name.strip(), read_path(path.strip())
        except ValueError as err:
            self.fail(str(err), param, ctx)


@click.command(short_help="Answer programs: OpenAI's interface over HTTP.")
@click.argument("path", type=MODEL)
@click.option(
    "--adapter",
    "adapters",
    type=NamedPath(),
    multiple=True,
    metavar="NAME=PATH",
    help="An adapter or run on the model at PATH, which requests choose by NAME; may be given again.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    # the system would take a larger number for another port
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="A further name of this machine, as clients write it in their URL.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="An origin whose pages may ask, such as http://localhost:3000.",
)
@click.option("--max-rows", type=click.IntRange(1), help="Answers written at once; default 64.")
@click.option("--max-waiting", type=click.IntRange(0), help="Answers that wait; above it 429. Default 256.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer in tokens; default 4096.")
@click.option(
    "--max-held-tokens",
    type=click.IntRange(1),
    help="Tokens in the KV cache, each answer counted at its longest; default 4096 for each row.",
)
@click.option("--log-prompts", is_flag=True, help="Log each conversation; else no prompt is ever logged.")
@click.option("--revision", help="Branch, tag or commit of a model on a hub.")
@click.option("--template", help="Chat format, where the folder does not tell it.")
@loading_options
@compute_option
def serve(
    path: Path,
    adapters: tuple[tuple[str, Path], ...],
    host: str,
    port: int,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    log_prompts: bool,
    **options: Any,  # Any: texts and numbers of loading, and of the limits
) -> None:
    """Answer programs over HTTP, as OpenAI's interface does: chats, streams, tools, log-probabilities.

    Requests name a model: that of PATH, or one of the adapters, which answer side by side. Without --host
    only this machine can ask; any other address needs a key, in the environment variable GLMTUNE_API_KEY.
    Ctrl-C ends it, and the open answers with an error of their own.

    \b
      glmtune serve runs/chatglm3-6b-lora
      glmtune serve /models/chatglm3-6b --adapter shop=runs/shop --adapter law=runs/law
      GLMTUNE_API_KEY=... glmtune serve runs/mine --host 0.0.0.0 --allow-host mybox.lan
      curl http://127.0.0.1:8000/v1/models
    """
    import os

    from glmtune.errors import ConfigError
    from glmtune.extras import require
    from glmtune.log import tell

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, extra="serve")
    from glmtune.serve.api import build_app
    from glmtune.serve.guard import KEY_NAME, Access
    from glmtune.serve.limits import ServerLimits
    from glmtune.serve.opening import open_models
    from glmtune.serve.running import AnswerServer, listen
    from glmtune.serve.service import Service
    from glmtune.serve.worker import Worker

    access = Access(host=host, key=os.environ.get(KEY_NAME), names=names, origins=origins)
    given = {name: options.pop(name) for name in list(options) if name.startswith("max_")}
    limits = ServerLimits(**{name: value for name, value in given.items() if value is not None})
    if len({name for name, _ in adapters}) < len(adapters):
        raise ConfigError("adapter: a name is given twice", hint="give each adapter a name of its own")
    listening = listen(host, port)
    engine, models = open_models(path, dict(adapters), limits, **options)
    worker = Worker(engine, max_open=limits.max_open)
    app = build_app(Service(worker, models, limits, logs_prompts=log_prompts), access)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{listening.getsockname()[1]}"
    tell(
        f"{', '.join(model.name for model in models)}: at {url}/v1, its interface at {url}/docs; Ctrl-C ends"
    )
    AnswerServer(app, worker).run(sockets=[listening])
