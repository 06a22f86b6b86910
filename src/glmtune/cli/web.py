"""`glmtune web`."""

from pathlib import Path

import click

from glmtune.cli.console import MODEL, PATH, loading_options


@click.command(short_help="Talk, watch and train on a page in the browser.")
@click.argument("path", type=MODEL, required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: from other machines too.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0: a free one.")
@click.option("--share", is_flag=True, help="Also a public link, through Gradio's servers: it answers and "
              "shows runs, but starts no training.")  # fmt: skip
@click.option("--base", type=PATH, help="Base model of the adapter at PATH, if it has moved.")
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of the runs.")
@loading_options
def web(
    path: Path | None,
    host: str,
    port: int,
    share: bool,
    base: Path | None,
    runs: Path,
    dtype: str,
    quant: str | None,
    device: str,
) -> None:
    """Open a page for the browser, in English and Chinese: talk to models, watch runs, start them.

    PATH is the model, run or adapter to talk to first; without it, the newest run, or glm-tiny. The page
    goes on until Ctrl-C; a run that was started on it goes on after that.

    \b
      glmtune web
      glmtune web runs/chatglm3-6b-lora
      glmtune web /models/chatglm3-6b --quant int4 --port 6006
    """
    from glmtune.extras import require

    require("gradio", extra="web")
    from glmtune.web.page import Site, open_page

    site = Site(path, base, runs, host, port, is_public=share, dtype=dtype, device=device, quant=quant)
    if share:
        click.echo("warning: a public link is public: whoever has it talks to these models", err=True)
    elif host not in ("127.0.0.1", "localhost", "::1"):
        click.echo(
            f"warning: --host {host}: whoever reaches this machine reads files and starts runs as you",
            err=True,
        )
    opened = open_page(site)
    click.echo(f"> {opened.address}")
    if opened.public:
        click.echo(f"> {opened.public}")
    opened.wait()
