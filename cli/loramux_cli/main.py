"""This module is the `loramux` command.

It registers the subcommands and turns errors into exit codes; commands import what is heavy.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from loramux_cli import doctor, estimate, evaluate, fitting, live, plot, policies, profiling, queue, recommend, trace
from loramux_cli import simulate as simulate_module
from loramux_cli import sweep as sweep_module
from loramux_cli import train as train_module
from loramux_cli import validate as validate_module
from loramux_cli.terms import epilog
from loramux_traces.errors import Interrupted, LoramuxError

EXIT_INTERNAL = 1
EXIT_USAGE = 2
OF_THE_NAME = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)
"""Errors about the path that was given; others (a full disk) are the machine's."""
EXIT_SIGINT = 130
EXIT_SIGTERM = 143
AGAIN_S = 0.01
"""Seconds after which a signal that was lost is taken up again."""

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="loramux",
    help="Memory-aware scheduling of LoRA fine-tuning jobs that share a frozen base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=HELP,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "simulate": simulate_module.simulate_command,
    "sweep": sweep_module.sweep_command,
    "train": train_module.train_command,
    "run": live.run_command,
    "submit": queue.submit_command,
    "status": queue.status_command,
    "cancel": queue.cancel_command,
    "pause": queue.pause_command,
    "resume": queue.resume_command,
    "logs": queue.logs_command,
    "export": queue.export_command,
    "drain": queue.drain_command,
    "prune": queue.prune_command,
    "set-policy": queue.set_policy_command,
    "profile": profiling.profile_command,
    "fit": fitting.fit_command,
    "estimate": estimate.estimate_command,
    "recommend": recommend.recommend_command,
    "validate": validate_module.validate_command,
    "compare": plot.compare_command,
    "plot": plot.plot_command,
    "policies": policies.policies_command,
    "doctor": doctor.doctor_command,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=epilog(name))(command)
app.add_typer(trace.app, name="trace")
app.add_typer(evaluate.app, name="evaluate")

simulate_app = typer.Typer(name="simulate", pretty_exceptions_enable=False, add_completion=False, context_settings=HELP)
simulate_app.command(epilog=epilog("simulate"))(simulate_module.simulate_command)


def _version(asked: bool) -> None:
    if not asked:
        return
    import platform
    from importlib.metadata import version

    typer.echo(f"loramux {version('loramux')}")
    typer.echo(f"Python {platform.python_version()} on {platform.platform()}")
    raise typer.Exit


@app.callback()
def _loramux(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version, Python and platform."
        ),
    ] = False,
) -> None:
    """Memory-aware scheduling of LoRA fine-tuning jobs that share a frozen base model."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `loramux` command and exit with its code."""
    _run(app, argv)


def simulate_main(argv: Sequence[str] | None = None) -> None:
    """Run `simulate` alone, which is the same as `loramux simulate`."""
    _run(simulate_app, argv)


class _Stopped(Interrupted):
    """Means that a signal arrived.

    It is not KeyboardInterrupt: libraries that catch that would end the program in ways of their
    own.
    """

    signal = 0
    """The signal; it is on the class, for an import that it broke off reports some other error."""


def _stop(number: int, _frame: FrameType | None) -> None:
    _Stopped.signal = number
    raise _Stopped


def _lost(what: sys.UnraisableHookArgs) -> None:
    """Stop a moment later, where the signal came in a callback whose exceptions Python drops.

    The locks of imports have such callbacks: the command would go on as if nothing had come.
    """
    if isinstance(what.exc_value, _Stopped):
        signal.signal(signal.SIGALRM, lambda number, frame: _stop(_Stopped.signal, frame))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        sys.__unraisablehook__(what)


def _hear_no_more() -> None:
    """Let a further signal change nothing: on its way out, the process would die by it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopped() -> NoReturn:
    _hear_no_more()
    interrupted = _Stopped.signal == signal.SIGINT
    _complain("interrupted" if interrupted else "terminated")
    sys.exit(EXIT_SIGINT if interrupted else EXIT_SIGTERM)


def _run(command: Callable[..., object], argv: Sequence[str] | None) -> None:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if argv is None:
        sys.unraisablehook = _lost
    try:
        command(None if argv is None else list(argv))
    except LoramuxError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except _Stopped:
        _stopped()
    except SystemExit as error:
        if error.code in (EXIT_SIGINT, EXIT_SIGTERM):
            _hear_no_more()
            if argv is None:
                _leave(error.code)
        raise
    except BrokenPipeError:
        # without this the interpreter complains at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_INTERNAL)
    except OSError as error:
        if os.environ.get("LORAMUX_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        sys.exit(EXIT_USAGE if error.errno in OF_THE_NAME else EXIT_INTERNAL)
    except Exception as error:
        if _Stopped.signal:
            _stopped()
        if os.environ.get("LORAMUX_DEBUG"):
            raise
        _complain(
            f"internal error: {type(error).__name__}: {error}\n"
            "This is a fault of loramux; set LORAMUX_DEBUG=1 for the traceback and report it, please."
        )
        sys.exit(EXIT_INTERNAL)


def _leave(code: int) -> NoReturn:
    """End this process without taking its modules apart, which is 1.8 s with torch in memory.

    Whoever sends a signal waits for that; everything is on disk and closed by now.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # a pipe that nobody reads any more changes nothing about the code
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _complain(text: str) -> None:
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    sys.stderr.write(f"loramux: {shown}\n")


if __name__ == "__main__":
    main()
