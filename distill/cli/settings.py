"""`distill settings`: every option of a command with its default, as TOML for --config; recipes."""

import json
from typing import Any

import click

from distill.cli.options import common
from distill.cli.options.command import Command, Group, Option, command, option
from distill.errors import ConfigError, did_you_mean
from distill.settings import RECIPES, flat, read_toml, recipe_names

WORDS = ("measured", "none", "all")  # describe a default, and are none
SKIPPED = ("config", "set", "json", "dry_run")


@command(examples=["precompute", "pretrain > my.toml", "--recipe imagenet21k-p > my.toml"])
@click.argument("names", metavar="COMMAND...", nargs=-1)
@option("--recipe", help="Print this recipe instead, which --config takes by its name.")
@common.as_json
@click.pass_context
def settings(ctx: click.Context, names: tuple[str, ...], recipe: str | None, as_json: bool) -> None:
    """List all options and settings of COMMAND with their defaults.

    The list is a TOML file: save it, edit it, and pass it as --config.
    """
    known = recipe_names()
    if bool(names) == bool(recipe):
        raise ConfigError(
            f"{'both' if recipe else 'neither'} COMMAND and --recipe found, expected one; "
            f"recipes: {', '.join(known)}"
        )
    if recipe:
        if recipe not in known:
            guess = did_you_mean(recipe, known)
            raise ConfigError(f"--recipe {recipe!r} found{guess}, expected {', '.join(known)}")
        file = RECIPES / f"{recipe}.toml"
        text = json.dumps(flat(read_toml(file))) if as_json else file.read_text(encoding="utf-8")
        click.echo(text, nl=as_json)
        return
    target = _find(ctx.find_root(), names)
    entries = [
        (key, each.help or "", _default(each))
        for key, each in target.setting_options().items()
        if key not in SKIPPED
    ]
    shown = {key for key, _, _ in entries}
    nested = [(key, value) for key, value in target.nested().items() if key not in shown]
    if as_json:
        click.echo(json.dumps({**{key: value for key, _, value in entries}, **dict(nested)}))
        return
    click.echo(f"# distill {' '.join(names)}: a setting that is commented out has that default")
    for key, text, value in entries:
        click.echo(f"\n# {text}\n{_line(key, value)}")
    plain = [(key, value) for key, value in nested if "." not in key]
    for key, value in plain:
        click.echo(f"\n{_line(key, value)}")
    table = ""
    for key, value in nested:
        head, _, last = key.rpartition(".")
        if head and head != table:
            table = head
            click.echo(f"\n[{table}]")
        if head:
            click.echo(_line(last, value))


def _find(root: click.Context, names: tuple[str, ...]) -> Command:
    context: click.Context = root
    for position, name in enumerate(names):
        group = context.command
        known = group.list_commands(context) if isinstance(group, Group) else []
        if name not in known:
            where = " ".join(("distill", *names[:position]))
            raise ConfigError(
                f"no command {name!r} of {where}{did_you_mean(name, known)}; `{where} -h` has more"
            )
        assert isinstance(group, Group)
        child = group.get_command(context, name)
        assert child is not None
        context = click.Context(child, parent=context, info_name=name)
    if not isinstance(context.command, Command):
        known = context.command.list_commands(context)  # type: ignore[attr-defined]
        raise ConfigError(f"{' '.join(names)} is a group, expected one of {', '.join(known)}")
    return context.command


def _default(each: Option) -> Any:
    if isinstance(each.show_default, str):
        return each.show_default
    value = each.to_info_dict()["default"]
    return str(value) if value is not None and not isinstance(value, int | float | str) else value


def _line(key: str, value: Any) -> str:
    if value is None:
        return f"# {key} (no default)"
    if isinstance(value, str) and (" " in value or value in WORDS):
        return f"# {key} (default: {value})"
    if isinstance(value, bool):
        return f"# {key} = {str(value).lower()}"
    return (
        f"# {key} = {_quoted(value) if isinstance(value, str) and not _is_number(value) else value}"
    )


def _is_number(text: str) -> bool:
    try:
        return bool(text) and float(text) is not None
    except ValueError:
        return False


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
