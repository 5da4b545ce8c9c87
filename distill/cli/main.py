"""`distill`: the group of commands, and what an error looks like."""

import errno
import importlib
import sys

import click

from distill.errors import DistillError, dead_decoder, is_dead_decoder

# Command → module of distill.cli that holds it, imported when it is asked for: --help is instant.
COMMANDS = {
    "demo": ("distill.cli.demo", "the whole path on built-in figures, in a few minutes"),
    "hierarchy": ("distill.cli.curate.hierarchy", "build, show and import hierarchies"),
    "data": ("distill.cli.curate.data", "check a data set, cut it into folds, reassess its labels"),
    "prepare": ("distill.cli.curate.prepare", "raw ImageNet-21K → ImageNet-21K-P"),
    "plan": ("distill.cli.teacher.plan", "time, bytes and fidelity before a precompute"),
    "precompute": ("distill.cli.teacher.precompute", "data × teacher → store"),
    "store": ("distill.cli.store", "look at, check, mend and remake stores"),
    "serve": ("distill.cli.teacher.serve", "the live teacher server"),
    "api-key": ("distill.cli.teacher.serve", "a key for the live teacher server"),
    "pretrain": (
        "distill.cli.student.pretrain",
        "train a student on labels and a teacher's targets",
    ),
    "finetune": ("distill.cli.student.finetune", "train it on for another task"),
    "evaluate": ("distill.cli.student.evaluate", "judge trained models"),
    "export": ("distill.cli.student.export", "a trained model for timm and ONNX"),
    "inspect": ("distill.cli.inspect.command", "the teacher's confidence per hierarchy"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(
            importlib.import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_")
        )
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"max_content_width": 100})
@click.version_option(package_name="distill")
def distill() -> None:
    """Run the teacher once: a logit store for semantic knowledge distillation."""


def run() -> None:
    """Exit code 0 done, 2 the user can fix it, 130 interrupted, 1 a bug (traceback)."""
    try:
        distill(standalone_mode=False)
    except DistillError as error:
        print(f"distill: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"distill: {error.filename or 'disk'}: {error.strerror}; finished work is kept, "
            "mend it and run the same command again",
            file=sys.stderr,
        )
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        print(
            "distill: interrupted; finished work is kept, run the same command again to go on",
            file=sys.stderr,
        )
        sys.exit(130)
    except RuntimeError as error:
        if not is_dead_decoder(error):
            raise
        print(f"distill: {dead_decoder(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
