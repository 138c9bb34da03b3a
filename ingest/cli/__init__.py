"""The ``ingest`` command: a thin skin over the client. Exit status 0: all well; 1: something failed; 2: wrong usage.

Commands are loaded when called, and what goes wrong is said on stderr, a line a cause, never as a traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from ingest.errors import ConfigError, IngestError, JobFailed, UsageError

#: command → module:attribute, in the order of the help text.
COMMANDS = {
    "up": "ingest.cli.up:up",
    "demo": "ingest.cli.demo:demo",
    "fetch": "ingest.cli.fetch:fetch",
    "submit": "ingest.cli.jobs:submit",
    "status": "ingest.cli.jobs:status",
    "watch": "ingest.cli.watch:watch",
    "failures": "ingest.cli.jobs:failures",
    "retry": "ingest.cli.jobs:retry",
    "cancel": "ingest.cli.jobs:cancel",
    "nodes": "ingest.cli.nodes:nodes",
    "health": "ingest.cli.health:health",
    "store": "ingest.cli.store:store",
    "doctor": "ingest.cli.doctor:doctor",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"ingest {version('ingest')}")
    except PackageNotFoundError:  # run from a checkout that is not installed
        click.echo("ingest, not installed")
    ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Bring training data to local disk: submit, watch and read download jobs."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """The command's exit status; everything that we raise on purpose becomes a line on stderr."""
    try:
        answer: Any = cli.main(args=argv, prog_name="ingest", standalone_mode=False)
        return answer if isinstance(answer, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return 130
    except (UsageError, ConfigError) as error:
        complain(str(error))
        return 2
    except JobFailed as error:
        for failure in error.failures:
            complain(str(failure))
        return 1
    except (IngestError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone (`ingest … | head`); say nothing more to it, also not at exit.
            sys.stdout = None
            return 1
        complain(str(error))
        return 1


def complain(text: str) -> None:
    """One line on stderr."""
    click.echo(f"ingest: {text}", err=True)
