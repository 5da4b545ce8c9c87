"""Writes docs/commands.md from the command line itself: python docs/command_reference.py."""

from collections.abc import Iterator
from pathlib import Path

import click

from distill.cli.main import distill
from distill.cli.options.command import SECTIONS, Command, Group, Option

HEAD = """# Commands

Every command with all of its options and settings. Written from the command line itself, by
`python docs/command_reference.py`. Each option is also `-o KEY=VALUE`, or a line of a TOML file
that `--config` names ([settings](cli.md#settings)); a key without an option has that form alone.
"""
HIDDEN = ("help", "version", "quiet", "verbose", "config", "set")


def reference() -> str:
    """The whole page."""
    return "\n".join(
        [HEAD, *_of(click.Context(distill, info_name="distill", **distill.context_settings))]
    )


def _of(context: click.Context) -> Iterator[str]:
    command = context.command
    if isinstance(command, Group | click.Group):
        if context.parent:
            yield f"## {context.command_path}\n"
            yield f"{_text(command)}\n"
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child
            yield from _of(click.Context(child, parent=context, info_name=name))
        return
    assert isinstance(command, Command)
    level = "##" if context.parent and context.parent.parent is None else "###"
    yield f"{level} {context.command_path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"{_text(command)}\n"
    options = [
        each for each in command.params if isinstance(each, Option) and each.name not in HIDDEN
    ]
    yield "| option | default | |"
    yield "| --- | --- | --- |"
    for each in sorted(options, key=lambda option: list(SECTIONS).index(option.section)):
        yield f"| {_flags(each)} | {_default(each)} | {_cell(each.help or '')} |"
    own = [(key, value) for key, value in command.nested().items()]
    own = [(key, value) for key, value in own if key not in command.setting_options()]
    for key, value in own:
        shown = "" if value is None else f"`{value}`"
        yield f"| `-o {key}=…` | {shown} | |"
    yield ""


def _text(command: click.Command) -> str:
    lines = (command.help or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in lines).strip()


def _flags(option: Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} {_cell(' | '.join(option.type.choices))}"
    return f"{names} {option.make_metavar(click.Context(click.Command('x')))}"


def _default(option: Option) -> str:
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.required:
        return "needed"
    default = option.to_info_dict()["default"]
    if default is None or default is False or default == () or option.is_flag:
        return ""
    return f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (Path(__file__).parent / "commands.md").write_text(reference(), encoding="utf-8")
