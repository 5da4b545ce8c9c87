"""Commands that are written somewhere, held against the command line."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

import click

from distill.cli.main import distill as root
from distill.cli.options.command import Command
from distill.settings import recipe_names

PLACEHOLDER = re.compile(r"…|[A-Z][A-Z_]*|\$.*|/.*")
COMMAND = re.compile(r"(?:\$ )?(?:\w+=\S+ )*(?:(?:srun|torchrun) .*)?distill ([^|<>]*)")


def in_blocks(text: str) -> Iterator[list[str]]:
    """The words after `distill` of each command in the code blocks of a document."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            if found := COMMAND.match(re.sub(r"\$\(.*?\)", "…", line)):
                yield shlex.split(found[1], comments=True)


def require_known(words: Sequence[str]) -> None:
    """Such a command with such options; choices and recipes are some that there are."""
    context, command = click.Context(root), None
    found: click.Command | None = root
    rest = list(words)
    while isinstance(found, click.Group):
        name = rest.pop(0) if rest else "…"
        if name.startswith("-") or PLACEHOLDER.fullmatch(name):
            return
        context = click.Context(found, parent=context)
        found = found.get_command(context, name)
    command = found
    assert isinstance(command, Command), words
    known = {flag: each for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    for word, following in pairwise([*rest, ""]):
        if not word.startswith("-"):
            continue
        flag, _, value = word.partition("=")
        assert flag in known, f"{' '.join(words)}: no {flag}"
        value = value or following
        option = known[flag]
        if PLACEHOLDER.fullmatch(value):
            continue
        if isinstance(option.type, click.Choice):
            assert value in option.type.choices, words
        if flag in ("-o", "--set"):
            settings = {*command.setting_options(), *command.nested()}
            key = value.partition("=")[0]
            assert {key, re.sub(r"\.\w+$", ".*", key)} & settings, words
        if flag == "--config" and not value.endswith(".toml"):
            assert value in recipe_names(), words
