"""`distill`: the group of commands, and what an error looks like."""

import errno
import importlib
import os
import resource
import sys
import threading
import traceback
from contextlib import suppress

import click

from distill.cli.options.command import Command, Flags, Group
from distill.cli.signals import WORK_LEFT, end_on_signals, ignore_signals, stopped
from distill.cli.streams import lost_output, make_streams_last
from distill.errors import (
    PASSING,
    DistillError,
    dead_decoder,
    did_you_mean,
    first_line,
    is_dead_decoder,
    printable,
)

# Command → module of distill.cli that holds it, imported when it is asked for: --help is instant.
COMMANDS = {
    "demo": ("demo", "the whole path on built-in figures, in a few minutes"),
    "prepare": ("curate.prepare", "raw ImageNet-21K → ImageNet-21K-P"),
    "data": ("curate.data", "check a data set, clean its tags, reassess its labels"),
    "hierarchy": ("curate.hierarchy", "build, show and import hierarchies"),
    "plan": ("teacher.plan", "estimate time, bytes and fidelity of a store"),
    "precompute": ("teacher.precompute", "run a teacher over a data set into a store"),
    "store": ("store", "inspect, verify, repair and transform stores"),
    "serve": ("teacher.serve", "serve a teacher over HTTP"),
    "api-key": ("teacher.serve", "make an API key for a server"),
    "pretrain": ("student.pretrain", "train a student on labels and a teacher's targets"),
    "finetune": ("student.finetune", "train a student for another task"),
    "detect": ("student.detect", "train a detector on a backbone, pretrained against random"),
    "transfer": ("student.transfer", "fine-tune runs on tasks and tabulate their accuracy"),
    "evaluate": ("student.evaluate", "measure trained models on labelled images"),
    "export": ("student.export", "export a trained model for timm and ONNX"),
    "inspect": ("inspect.command", "teacher confidence per hierarchy, missing and suspect tags"),
    "cache": ("cache", "list, check and clear the cache of this machine"),
    "settings": ("settings", "list all options and settings of a command"),
}


MOST_FILES = 2**16
LONGEST_END_S = 30.0
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class _Stopped(BaseException):
    """By a signal, which is its text."""


class _Commands(Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; click would answer Ctrl-C with an empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped(*error.args) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"distill.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, Command | Group)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=_Commands,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def distill() -> None:
    """Run the teacher once: a logit store for semantic knowledge distillation."""


def run() -> None:
    """The process of a command; see `run_command`."""
    make_streams_last()
    try:
        run_command()
    except SystemExit as end:
        # Threads that a disk keeps waiting are waited for by the interpreter's end, and hear none.
        hung = threading.Timer(LONGEST_END_S, os._exit, [end.code])
        hung.daemon = True
        hung.start()
        raise


def run_command() -> None:
    """Exit code 0 done, 2 the user can fix it, 75 work is left that may go on, 1 a bug."""
    flags, terminal = Flags(), sys.stderr
    end_on_signals()
    _allow_many_files()
    threading.excepthook = _in_a_thread
    try:
        distill.main(prog_name="distill", standalone_mode=False, obj=flags)
        sys.stdout.flush()
        if error := lost_output():
            _fail(terminal, f"standard output: {error.strerror}, expected to be written", 2)
    except (KeyboardInterrupt, click.Abort, _Stopped) as error:
        _fail(terminal, stopped(str(error)), WORK_LEFT)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=terminal)
        sys.exit(2)
    except Exception as error:
        told = _of_a_device(error) or error
        line = _message(told)
        if line is None:
            raise
        if flags.verbose:
            traceback.print_exc(file=terminal)
        _fail(terminal, line, WORK_LEFT if isinstance(told, PASSING) else 2)
    finally:
        ignore_signals()
        if sys.stderr is not terminal:
            sys.stderr.close()
            sys.stderr = terminal


def _of_a_device(error: Exception) -> DistillError | None:
    """What torch raises where a device is in trouble, said as such."""
    if not isinstance(error, RuntimeError | MemoryError) or is_dead_decoder(error):
        return None
    from distill.models.devices import device_error

    return device_error(error)


def _message(error: Exception) -> str | None:
    """One line for the user; None for a bug."""
    if isinstance(error, DistillError):
        return str(error)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "distill"
        command = path.removeprefix("distill").strip()
        text = _usage(error).rstrip(".")
        return f"{command + ': ' if command else ''}{text}; see `{path} -h`"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"{first_line(error)}; allow more (`ulimit -n 65536`), or lower --workers"
        if error.filename is None and error.errno not in FULL_DISK:
            return None
        where = os.fsdecode(error.filename) if error.filename else "disk"
        return (
            f"{where}: {error.strerror}; fix this and run the same command again, it goes on from "
            "what is there"
        )
    if isinstance(error, RuntimeError) and is_dead_decoder(error):
        return dead_decoder(error)
    return None


def _in_a_thread(error: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread says the disk's trouble by itself, and its writer says it once more."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _allow_many_files() -> None:
    """As many as this user may have open: loaders hand their images over through descriptors."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems promise more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, MOST_FILES)), most))


def _usage(error: click.UsageError) -> str:
    params = error.ctx.command.params if error.ctx else []
    if isinstance(error, click.NoSuchOption):
        known = [name for param in params for name in param.opts]
        return f"no option {error.option_name}{did_you_mean(error.option_name, known)}"
    if isinstance(error, click.MissingParameter) and error.param:
        name = error.param.opts[0] if error.param.opts[0].startswith("-") else error.param.name
        return f"no {name} found, expected one"
    if isinstance(error, click.BadParameter) and error.param:
        return f"{error.param.opts[0]}: {error.message}"
    return error.format_message()


def _fail(stream: object, message: str, code: int) -> None:
    line = printable(" ".join(message.split()))
    print(f"distill: {line}", file=stream, flush=True)  # type: ignore[call-overload]
    sys.exit(code)


if __name__ == "__main__":
    run()
