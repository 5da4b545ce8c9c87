"""How every command looks: options in named sections, settings, flags that all share.

An option is shown by --help, or is a setting: a less common one that --help leaves out. Each can be
given as `--key VALUE`, as `-o key=VALUE` or in a TOML file (--config), and `distill settings
COMMAND` lists them all with their defaults.
"""

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from click.types import OptionHelpExtra

from distill.errors import DISTRIBUTION, ConfigError, did_you_mean
from distill.settings import flat, read_toml

# Where each option stands in --help; those that are not named here stand under "Output".
SECTIONS = {
    "Input": (
        "data path-column label-column split val-data limit samples label-set scheme targets tags "
        "val-tags labels truth "
        "max-bad-fraction min-images val-images seed agreed missing-above suspect-above "
        "sure-above keys class rows images not-in"
    ),
    "Teacher": (
        "teacher weights head random-weights input-size precision confidence teacher-weights "
        "teacher-head"
    ),
    "Student": "student init image-size",
    "Output": "",
    "Training": (
        "kd-weight divergence epochs batch-size lr weight-decay label-smoothing view-policy "
        "checkpoint-every compare longer"
    ),
    "Server": (
        "serve ask api-key host port api-key-file tls-certificate tls-key max-batch-size "
        "max-wait-ms max-inflight-images max-inflight-mib max-inflight-requests max-images "
        "max-body-mib max-pixels deadline-s drain-s"
    ),
    "Machine": (
        "device workers cache compile cache-gib read engine ray-workers shard-index num-shards"
    ),
    "Settings": "config set",
}
SECTION_OF = {f"--{name}": title for title, names in SECTIONS.items() for name in names.split()}
PATH = click.Path(path_type=Path)
FILE = click.Path(exists=True, path_type=Path)  # to be read
COMMON = "Common: -h, --help; --version; -q, --quiet: no progress; -v, --verbose: tracebacks"
EXTRA = "distill.extra_settings"
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class NumberOrAuto(click.ParamType[Any]):
    """A number, or auto."""

    name = "float or auto"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As other numbers."""
        return "X"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """See `click.ParamType`."""
        try:
            return "auto" if value == "auto" else float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} found, expected a number or auto", param, ctx)


class Option(click.Option):
    """section: of --help. setting: left out there, listed by `distill settings`."""

    def __init__(
        self, *names: Any, section: str = "", setting: bool = False, **keywords: Any
    ) -> None:
        keywords.setdefault("show_default", not keywords.get("is_flag"))
        super().__init__(*names, **{"hidden": setting, **keywords})
        known = (SECTION_OF[name] for name in self.opts if name in SECTION_OF)
        self.section, self.setting = section or next(known, "Output"), setting

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """The default as a plain word, and no range: errors name it."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra

    def make_metavar(self, ctx: click.Context) -> str:
        """N for whole numbers, X for others."""
        kinds = {click.types.IntParamType: "N", click.types.FloatParamType: "X"}
        short = next((name for kind, name in kinds.items() if isinstance(self.type, kind)), None)
        return short if short and not self.metavar else super().make_metavar(ctx)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As click does, but without empty texts, which would be the current folder, and NaN."""
        if value == "" or (isinstance(value, tuple | list) and "" in value):
            raise click.BadParameter("empty, expected a value", ctx, self)
        cast = super().type_cast_value(ctx, value)
        if isinstance(cast, float) and math.isnan(cast):
            raise click.BadParameter("NaN found, expected a number", ctx, self)
        return cast

    def check_setting(self, ctx: click.Context, value: Any, where: str) -> Any:
        """A value of a file or of -o, as click takes it.

        Raises:
            ConfigError: it is of another type.
        """
        kind, expected = self._kind()
        values = value if self.multiple and isinstance(value, list) else [value]
        if isinstance(value, str) and self.multiple:
            values = value.split(",")
        typed = (str, kind) if where == "-o " else (kind,)
        for each in values:
            if not isinstance(each, typed) or (isinstance(each, bool) and kind is not bool):
                raise ConfigError(f"{where}{self.key} {each!r} found, expected {expected}")
        try:
            self.type_cast_value(ctx, values if self.multiple else value)
        except click.BadParameter as error:
            raise ConfigError(f"{where}{self.key}: {error.message}") from error
        return values if self.multiple else value

    def _kind(self) -> tuple[Any, str]:
        if self.is_flag or isinstance(self.type, click.types.BoolParamType):
            return bool, "true or false"
        if isinstance(self.type, click.types.IntParamType):
            return int, "a whole number"
        if isinstance(self.type, NumberOrAuto):
            return int | float | str, "a number or auto"
        if isinstance(self.type, click.types.FloatParamType):
            return int | float, "a number"
        return str, "a list of texts" if self.multiple else "a text"

    @property
    def key(self) -> str:
        """Its name as a setting."""
        longest = next(name for name in self.opts if name.startswith("--"))
        return longest.removeprefix("--").replace("-", "_")


option = partial(click.option, cls=Option)
setting = partial(option, setting=True)


def adapt(*settings: str, **defaults: str) -> Callable[[Decorated], Decorated]:
    """A decorator: how shared options differ in this command.

    settings: options that are settings here. defaults: by key, what the command takes instead.
    """

    def mark(function: Decorated) -> Decorated:
        params: list[click.Parameter] = getattr(function, "__click_params__", [])
        for param in params:
            if isinstance(param, Option):
                param.setting = param.hidden = param.hidden or bool({*settings} & {*param.opts})
                param.show_default = defaults.get(param.key, param.show_default)
        return function

    return mark


class Command(click.Command):
    """examples: arguments of calls that --help shows.

    nested: gives further settings by dotted name, with defaults, which the command reads itself
    from `extra_settings`.
    """

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[str] = (),
        nested: Callable[[], Mapping[str, Any]] = dict,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.examples, self.nested = examples, nested
        self.has_settings = any(isinstance(each, Option) and each.setting for each in self.params)
        if self.has_settings:
            self.params += _settings_options()
        self.params += _common_options()

    def setting_options(self) -> dict[str, Option]:
        """All options that a file of settings may hold, by key."""
        options = [each for each in self.params if isinstance(each, Option)]
        hidden = ("Common", "Settings")
        return {each.key: each for each in options if each.section not in hidden}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In sections, each once."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, Option):
                sections.setdefault(param.section, []).append(record)
        for title in sorted(sections, key=list(SECTIONS).index):
            with formatter.section(title):
                formatter.write_dl(sections[title])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and the flags of every command."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {ctx.command_path} {example}\n")
        formatter.write_paragraph()
        if self.has_settings:
            formatter.write(f"More options, with defaults: {_listing(ctx)}\n")
        formatter.write(f"{COMMON}\n")


command = partial(click.command, cls=Command)


class Group(click.Group):
    """A group whose unknown commands suggest near ones."""

    command_class = Command

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _common_options()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands alone."""
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its first sentence."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(200)) for n, c in commands if c])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The flags of every command."""
        formatter.write_paragraph()
        formatter.write(f"{COMMON}\n")


def extra_settings() -> dict[str, Any]:
    """The settings of the command that runs which are none of its options, by dotted key."""
    own_settings: dict[str, Any] = click.get_current_context().meta.get(EXTRA, {})
    return own_settings


def given_options(*sections: str) -> list[str]:
    """The options of these sections that the user of the command that runs gave."""
    ctx = click.get_current_context()
    default = (None, click.core.ParameterSource.DEFAULT)
    return [
        each.opts[0]
        for each in ctx.command.params
        if isinstance(each, Option)
        and each.section in sections
        and ctx.get_parameter_source(str(each.name)) not in default
    ]


# -- settings --------------------------------------------------------------------------------------


def _settings_options() -> list[click.Parameter]:
    return [
        Option(
            ["--config"],
            multiple=True,
            type=PATH,
            is_eager=True,
            expose_value=False,
            callback=_take_settings,
            help="TOML file of settings, or a recipe's name; options override it. May be repeated.",
        ),
        Option(
            ["-o", "--set"],
            multiple=True,
            metavar="KEY=VALUE",
            is_eager=True,
            expose_value=False,
            callback=_take_settings,
            help="One setting; may be repeated.",
        ),
    ]


def _listing(ctx: click.Context) -> str:
    """The command that lists the settings of this one."""
    return f"distill settings {ctx.command_path.removeprefix('distill ')}"


def _take_settings(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Settings become the defaults of the options they name, those of -o above those of a file."""
    if not value:
        return
    layers = ctx.meta.setdefault("distill.settings", {})
    if param.name == "config":
        for path in value:
            read = flat(read_toml(path)).items()
            layers.setdefault("file", {}).update({key: (each, f"{path}: ") for key, each in read})
    else:
        layers["words"] = {key: (each, "-o ") for key, each in map(_key_and_value, value)}
    command = ctx.command
    assert isinstance(command, Command)
    options = command.setting_options()
    defaults, extra = {}, {}
    for key, (each, where) in {**layers.get("file", {}), **layers.get("words", {})}.items():
        if option := options.get(key):
            defaults[option.name] = option.check_setting(ctx, each, where)
        else:
            extra[key] = each
            known = {*options, *command.nested()}
            tables = tuple(name.removesuffix("*") for name in known if name.endswith(".*"))
            if key not in known and not key.startswith(tables):
                file = where.removeprefix("-o ")
                raise ConfigError(
                    f"{file}unknown setting {key!r}{did_you_mean(key, known)}; "
                    f"`{_listing(ctx)}` lists them"
                )
    ctx.default_map, ctx.meta[EXTRA] = defaults, extra


def _key_and_value(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not (equals and key.strip() and value.strip()):
        raise ConfigError(f"-o {word!r} found, expected KEY=VALUE, as in -o lr=3e-4")
    return key.strip(), value.strip()


# -- flags of every command ------------------------------------------------------------------------


def _common_options() -> list[click.Parameter]:
    common: dict[str, Any] = {
        "section": "Common",
        "is_flag": True,
        "is_eager": True,
        "expose_value": False,
        "hidden": True,
    }
    return [
        Option(["-q", "--quiet"], callback=_be_quiet, **common),
        Option(["-v", "--verbose"], callback=_be_verbose, **common),
        Option(["--version"], callback=_print_version, **common),
    ]


@dataclass
class Flags:
    """What the common flags said; `distill.cli.main.run` makes it."""

    quiet: bool = False
    verbose: bool = False


def _be_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    flags = ctx.find_object(Flags)
    if value and flags and not flags.quiet:
        flags.quiet = True
        sys.stderr = Path("/dev/null").open("w", encoding="utf-8")  # noqa: SIM115 (run closes it)


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    flags = ctx.find_object(Flags)
    if value and flags:
        flags.verbose = True
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"distill {version(DISTRIBUTION)}")
        ctx.exit()
