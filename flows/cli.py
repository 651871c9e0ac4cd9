"""The command line `regraft`: every verb calls what is there already, nothing is computed here.

`python -m flows.cli` is the same. What a verb needs is imported when it is asked for: DVC, torch
and Prefect take seconds, `regraft --help` none of them.
"""

# Typer reads the annotations of the verbs; `from __future__ import annotations` would hide them.

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.errors import GraphError
from tasks.errors import RegraftError

if TYPE_CHECKING:
    import psutil

MADE_OF = ("dvc.yaml", "params.yaml")  # what tells the folder of a project
CHECK = ("-m", "tasks.check", "--paths", "data/check/paths.json")
REPORT, MODEL = Path("data/report/report.html"), Path("data/report/model")
FAILED = 1
PAUSE_SECONDS = 0.05
PASSED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],  # the module answers --help itself
}

app = typer.Typer(
    name="regraft",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turns a folder of labeled images into a classifier you can trust. Works in the project "
    "that the current folder belongs to.",
)
Stages = Annotated[list[str] | None, typer.Argument(metavar="[STAGE]...", show_default=False)]


def main() -> None:
    """Run a verb with the code of the project that the current folder belongs to."""
    root = find_project(Path.cwd())
    if root is not None:
        _hand_over(root)
    try:
        app(prog_name="regraft")
    except RegraftError as err:
        typer.echo(f"regraft stopped: {err}", err=True)
        sys.exit(FAILED)


def find_project(start: Path) -> Path | None:
    """Find the project that a folder belongs to: the nearest one with dvc.yaml and params.yaml."""
    for folder in (start, *start.parents):
        if all((folder / name).is_file() for name in MADE_OF):
            return folder
    return None


def _hand_over(root: Path) -> None:
    """Start anew with the project's own code where this is that of another one.

    An environment that projects share holds the script `regraft` and the code of one of them.
    """
    own = root / "flows/cli.py"
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if not own.is_file() or own.samefile(__file__) or paths[0] == str(root):
        return
    paths = [str(root), *filter(None, paths)]
    # Without -P the current folder would come first, which may lie below the project's.
    command = [sys.executable, "-P", "-m", "flows.cli", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


def _enter_project() -> Path:
    """Go to the folder of the project and give it.

    Raises:
        GraphError: The current folder belongs to none.
    """
    here = Path.cwd()
    root = find_project(here)
    if root is None:
        raise GraphError(
            f"{here} belongs to no project: neither it nor a folder above holds "
            f"{' and '.join(MADE_OF)}; go to a project's folder, or make one with `regraft new`"
        )
    os.chdir(root)
    return root


@app.command("run")
def run_verb(stages: Stages = None) -> None:
    """Run what is stale, then say where report and model are.

    STAGE: only these, with what they need.
    """
    root = _enter_project()
    from flows.stages.holders import wait_for_others  # noqa: PLC0415 - as in _call

    chosen = stages or []
    _call_or_stop(CHECK)
    wait_for_others(root, partial(typer.echo, err=True))
    _call_or_stop(("-m", "dvc", "repro", *chosen))
    if (not chosen or "report" in chosen) and (root / REPORT).is_file():
        typer.echo(f"\nReport:  {root / REPORT}")
        typer.echo(f'Model:   {root / MODEL}  (timm.create_model("local-dir:..."))')


def _call_or_stop(words: Sequence[str]) -> None:
    status = _call(words)
    if status != 0:
        raise typer.Exit(status)


def _call(words: Sequence[str]) -> int:
    """Run Python with some words in the terminal and give its exit status.

    Ctrl-C reaches it by itself, and it decides what to finish first. SIGTERM is passed on to the
    stage that it runs, since `dvc` would leave that one running.
    """
    import psutil  # noqa: PLC0415 - as the next

    from flows.stages.runner import stage_environment  # noqa: PLC0415 - half a second

    process = subprocess.Popen([sys.executable, *words], env=stage_environment({}))
    told: list[psutil.Process] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(process.pid)
            told.extend(command.children(recursive=True) or [command])
        for one in told:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    before = [signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, _let_it_end)]
    try:
        status = process.wait()
        # A shell between `dvc` and a stage dies at once, while the stage may be saving its work.
        while any(_is_at_work(one) for one in told):
            time.sleep(PAUSE_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    return status if status >= 0 else 128 - status


def _is_at_work(process: "psutil.Process") -> bool:
    """Tell whether a process goes on; one that only waits for its parent to notice does not."""
    import psutil  # noqa: PLC0415 - as in _call

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _let_it_end(number: int, frame: FrameType | None) -> None:
    """Take Ctrl-C, which the terminal sent to the running command too."""


@app.command("plan")
def plan_verb(stages: Stages = None) -> None:
    """Say what a run would do, why, and about how long.

    STAGE: only these, with what they need.
    """
    root = _enter_project()
    from flows.commands.plan import plan_run  # noqa: PLC0415 - DVC takes seconds

    for line in plan_run(root, stages or []):
        typer.echo(line)


@app.command("ui")
def ui_verb() -> None:
    """Serve the flows on a Prefect server, until Ctrl-C."""
    _enter_project()
    from flows import serve  # noqa: PLC0415 - DVC takes seconds

    raise typer.Exit(serve.main())


@app.command("predict", context_settings=PASSED_ON, add_help_option=False)
def predict_verb(context: typer.Context) -> None:
    """Classify images by the exported model."""
    from tasks import predict as module  # noqa: PLC0415 - half a second

    _run_module("predict", module, _with_model(context.args))


@app.command("monitor", context_settings=PASSED_ON, add_help_option=False)
def monitor_verb(context: typer.Context) -> None:
    """Tell whether incoming images are still those that the model knows."""
    from tasks import monitor as module  # noqa: PLC0415 - half a second

    _run_module("monitor", module, _with_model(context.args))


@app.command("card", context_settings=PASSED_ON, add_help_option=False)
def card_verb(context: typer.Context) -> None:
    """Make a source card of images, for weights of your own."""
    from tasks.backbones import cards  # noqa: PLC0415 - torch takes seconds

    _run_module("cards", cards, context.args)


@app.command("compare")
def compare_verb(
    one: Annotated[str, typer.Argument(metavar="A", help="Commit, branch or experiment.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another, or `workspace`.")],
) -> None:
    """Say what differs between two states, and what it did."""
    root = _enter_project()
    from flows.commands.compare import compare_states  # noqa: PLC0415 - DVC takes seconds

    for line in compare_states(root, one, other):
        typer.echo(line)


@app.command("promote")
def promote_verb(
    candidate: Annotated[
        str | None,
        typer.Argument(metavar="[CANDIDATE]", help="Commit, branch or experiment."),
    ] = None,
    approve: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Why it is to be used though not surely better."),
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Use the model before again.")] = False,
) -> None:
    """Put a model into use that is better than the one in use."""
    root = _enter_project()
    from flows.commands.promote import promote_on_command  # noqa: PLC0415 - DVC takes seconds

    def say(line: str) -> None:
        typer.echo(line, err=True)

    for line in promote_on_command(root, candidate, approve, back=back, say=say):
        typer.echo(line)


@app.command("sweep")
def sweep_verb(
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE,VALUE", help="Values to try; several are combined."
        ),
    ] = None,
    backbones: Annotated[str | None, typer.Option(metavar="NAME,NAME")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="NUMBER,NUMBER", help="Every setting runs with each.")
    ] = None,
) -> None:
    """Try values, backbones and seeds on the running server."""
    root = _enter_project()
    from flows.commands.start_sweep import start_sweep  # noqa: PLC0415 - DVC takes seconds

    for line in start_sweep(root, settings or [], backbones, seeds):
        typer.echo(line)


@app.command("doctor")
def doctor_verb() -> None:
    """Look for what may go wrong here, each with its fix."""
    root = _enter_project()
    from flows.commands.doctor import examine  # noqa: PLC0415 - DVC and torch take seconds

    levels = set()
    for finding in examine(root):
        typer.echo(finding.line())
        levels.add(finding.level)
    raise typer.Exit(FAILED if "fault" in levels else 0)


@app.command("new")
def new_verb(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The project's folder.")],
    source: Annotated[
        str,
        typer.Option(
            metavar="IMAGES",
            help="Folder with one folder of images per class, csv or descriptor.",
        ),
    ],
    views: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Which changes to an image leave its label: none, light, medium, heavy, custom.",
        ),
    ] = None,
) -> None:
    """Make a project for other images; it shares this environment."""
    from flows.commands.new_project import VIEWS, choose_views, make_project  # noqa: PLC0415 - seconds

    if views is None and sys.stdin.isatty():
        typer.echo("Which changes to an image leave its label as it is?")
        for word, meaning in VIEWS.items():
            typer.echo(f"  {word:8}{meaning}")
        views = typer.prompt("Views")
    checkout = Path(__file__).parent.parent
    for line in make_project(checkout, folder, source, choose_views(views)):
        typer.echo(line)


def _with_model(words: Sequence[str]) -> list[str]:
    """Name the project's own model, before what the user says, where there is a project."""
    root = find_project(Path.cwd())
    own = ["--model", os.path.relpath(root / MODEL)] if root else []
    return [*own, *words]


def _run_module(name: str, module: Any, words: Sequence[str]) -> None:
    """Run a module that has a command line of its own, as `python -m` does."""
    from tasks.runtime.entry import run_stage  # noqa: PLC0415 - a third of a second

    raise typer.Exit(run_stage(name, lambda _: module.main(words), timed=False))


if __name__ == "__main__":
    main()
