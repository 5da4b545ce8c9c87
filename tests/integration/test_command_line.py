"""The command line as a whole: help, settings, flags of every command, errors of options."""

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from distill.cli.main import distill as root
from distill.cli.options.command import Command, Group, Option

MOST_OPTIONS, MOST_LINES = 15, 50
PRECOMPUTE = ("precompute", "--teacher", "resnet18", "--data", ".", "--store", "s")
PRETRAIN = ("pretrain", "--student", "resnet18", "--data", ".", "--out", "o")


def commands(context: click.Context | None = None) -> Iterator[click.Context]:
    """Every command that is no group."""
    context = context or click.Context(
        root, info_name="distill", help_option_names=["-h", "--help"], max_content_width=100
    )
    group = context.command
    if not isinstance(group, Group):
        yield context
        return
    for name in group.list_commands(context):
        child = group.get_command(context, name)
        assert child is not None
        yield from commands(click.Context(child, parent=context, info_name=name))


ALL = list(commands())
each_command = pytest.mark.parametrize("context", ALL, ids=lambda each: each.command_path)


def command_of(context: click.Context) -> Command:
    assert isinstance(context.command, Command)
    return context.command


@each_command
def test_help_fits_on_a_screen_and_shows_examples(
    context: click.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    command = command_of(context)
    text = command.get_help(context)
    assert len(text.splitlines()) <= MOST_LINES, text
    shown = [each for each in command.params if isinstance(each, Option) and not each.hidden]
    assert len(shown) <= MOST_OPTIONS
    assert command.examples
    assert f"  {context.command_path} {command.examples[0]}" in text
    assert "-h, --help" in text


@each_command
def test_every_option_says_what_it_does_and_what_it_is_by_default(context: click.Context) -> None:
    for option in command_of(context).params:
        if isinstance(option, click.Option) and getattr(option, "section", "") != "Common":
            assert isinstance(option, Option), option
            assert option.help, option
            assert option.help[0].isupper() or option.help.split()[0].strip(",:") in WORDS, option
            assert option.help.endswith((".", "…")), option


# What a help text may begin with in lower case: values and names.
WORDS = ("auto", "augmented", "cpu", "mse", "pretrained", "resident", "safetensors", "semantic")
WORDS += ("single-label", "small", "tags", "timm", "wnid", "KD")


@each_command
def test_examples_are_calls_that_the_parser_takes(
    context: click.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as parsing goes: files that an example names are made."""
    import shlex

    monkeypatch.chdir(tmp_path)
    for example in command_of(context).examples:
        words = shlex.split(example.partition(" > ")[0])
        for word in words:
            if not word.startswith(("-", "http", "timm:")) and "=" not in word:
                if word.endswith(".toml"):
                    (tmp_path / word).write_text('student = "resnet18"')
                elif word in ("DATA", "IMAGENET", "STORE"):
                    (tmp_path / word).mkdir(exist_ok=True)
                elif word.endswith((".csv", ".txt", ".pth")):
                    (tmp_path / word).parent.mkdir(exist_ok=True)
                    (tmp_path / word).touch()
        command_of(context).make_context(
            context.info_name, words, help_option_names=["-h", "--help"]
        )


@pytest.mark.parametrize("name", ["precompute", "serve", "pretrain", "finetune", "store verify"])
def test_settings_of_a_command_are_a_file_that_it_takes(
    name: str, distill: Callable[..., object], tmp_path: Path
) -> None:
    ran = distill("settings", *name.split())
    text = ran.out  # type: ignore[attr-defined]
    assert not any(tomllib.loads(text).values())  # tables alone, and all empty
    literal = "\n".join(
        line.removeprefix("# ")
        for line in text.splitlines()
        if line.startswith("[")
        or (" = " in line and not line.endswith(" =") and " =  # " not in line)
    )
    path = tmp_path / "my.toml"
    path.write_text(literal)
    assert tomllib.loads(literal)
    context = next(each for each in ALL if each.command_path == f"distill {name}")
    keys = {*command_of(context).setting_options(), *command_of(context).nested()}
    tables = {key for key, value in tomllib.loads(literal).items() if isinstance(value, dict)}
    assert tomllib.loads(literal).keys() - tables <= keys
    assert tables <= {"views", "optimizer_args", "model"}


def test_words_come_before_a_file_and_options_before_both(
    fails: Callable[..., str], train: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    path.write_text("epochs = -1\nlr = 0.1\n")
    base = [word for word in train("run") if word not in ("--epochs", "2")]
    assert "epochs -1 found" in fails(*base, "--config", path)
    assert "epochs -2 found" in fails(*base, "--config", path, "-o", "epochs=-2")
    assert "epochs -3 found" in fails(*base, "--config", path, "-o", "epochs=-2", "--epochs", -3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("views = [1, 2]", "views [1, 2] found, expected a whole number"),
        ("views = 2024-01-01", "views datetime.date(2024, 1, 1) found, expected a whole number"),
        ("views = true", "views True found, expected a whole number"),
        ("views = 2.5", "views 2.5 found, expected a whole number"),
        ("max_bad_fraction = nan", "max_bad_fraction: NaN found, expected a number"),
        ("max_bad_fraction = true", "max_bad_fraction True found, expected a number"),
        ("random_weights = 'yes'", "random_weights 'yes' found, expected true or false"),
        ("teacher = ['a', 1]", "teacher 1 found, expected a list of texts"),
        ("encoding = 9", "encoding 9 found, expected a text"),
        ("store = ''", "store: empty, expected a value"),
        ("config = 'x'", "unknown setting 'config'"),
    ],
)
def test_values_of_a_file_have_the_type_that_their_option_has(
    line: str, message: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    """An option on the command line does not hide what is wrong in the file."""
    path = tmp_path / "my.toml"
    path.write_text(line)
    assert f"{path}: {message}" in fails(*PRECOMPUTE, "--views", 2, "--config", path)


def test_several_files_override_each_other_in_turn(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("epochs = -1\nlr = -5.0\n")
    second.write_text("epochs = 3\n")
    assert "lr -5.0 found" in fails(*PRETRAIN, "--config", first, "--config", second)


def test_an_unknown_setting_of_a_file_names_the_file(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    path.write_text("blok_rows = 16\n")
    message = fails("precompute", "--config", path)
    assert f"{path}: unknown setting 'blok_rows' (did you mean block_rows?)" in message
    assert "distill settings precompute" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precomptue"], "no command 'precomptue' (did you mean precompute?)"),
        (["xyz"], "no command 'xyz'; see `distill -h`"),
        (["store", "verfy"], "store: no command 'verfy' (did you mean verify?)"),
        (["precompute", "--vews", "2"], "precompute: no option --vews (did you mean --views"),
        (["precompute", "--views", "many"], "'many' is not a valid integer range"),
        (["precompute", "--views", "0"], "0 is not in the range"),
        (["precompute"], "precompute: no --teacher found, expected one"),
        (["settings", "precompte"], "no command 'precompte' of distill (did you mean precompute"),
        (["settings", "store"], "store is a group, expected one of diff, info"),
        (
            ["pretrain", "--student", "resnet19"],
            "unknown student 'resnet19' (did you mean resnet18",
        ),
        (["pretrain", "-o", "lrr=1"], "unknown setting 'lrr' (did you mean lr?)"),
        (["pretrain", "-o", "lr"], "-o 'lr' found, expected KEY=VALUE"),
        (["pretrain", "-o", "lr="], "-o 'lr=' found, expected KEY=VALUE"),
        (["precompute", "--data", ""], "--data: empty, expected a value"),
        (["pretrain", "--out", ""], "--out: empty, expected a value"),
        (["precompute", "--max-bad-fraction", "nan"], "NaN found, expected a number"),
        ([*PRECOMPUTE, "--random-weights", "--weights", "w"], "expected one of them"),
        (["pretrain", "--out", "/dev/null/x"], "/dev/null: a file, expected a folder for --out"),
        (["pretrain", "--label-set", "fall11"], "(did you mean imagenet21k-p-fall11?)"),
        (["precompute", "--data", "/nowhere"], "/nowhere: no such file or folder"),
        ([*PRECOMPUTE, "--view-policy", "wild"], "expected plain or augmented"),
        ([*PRECOMPUTE, "--view-policy", "plain", "--views", "2"], "expected 1"),
        ([*PRECOMPUTE, "--encoding", "smal"], "'smal' found (did you mean small?)"),
        ([*PRECOMPUTE, "--shard-index", "1"], "pass --num-shards as well"),
        ([*PRETRAIN, "--epochs", "0"], "epochs 0 found, expected more than 0"),
        ([*PRETRAIN, "--scheme", "semantik"], "scheme 'semantik' found"),
        ([*PRETRAIN, "-o", "views.cutout=2"], "expected 0 to 1"),
        (["pretrain", "--targets", "/nowhere"], "/nowhere: no such store"),
        (["pretrain", "--targets", "timm:resnet19"], "unknown teacher 'resnet19'"),
        (["pretrain", "--samples", "/nowhere"], "--samples: Path '/nowhere' does not exist"),
        (["evaluate", "MODEL", "--truth", "/nowhere"], "--truth: Path '/nowhere' does not exist"),
        (["pretrain", "--device", "gpu 0"], "device 'gpu 0' found, expected auto, cpu"),
        (["inspect", "STORE", "--port", "80"], "--port found without --serve"),
    ],
)
def test_wrong_words_are_one_line_before_torch_is_loaded(words: list[str], message: str) -> None:
    script = (
        "import sys; from distill.cli.main import run; sys.argv[0] = 'distill'\n"
        "try: run()\n"
        "finally: print([m for m in ('torch', 'timm', 'zarr') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"
    (line,) = ran.stderr.splitlines()
    assert line.startswith("distill: ")
    assert message in line


@each_command
def test_every_command_that_has_a_result_gives_it_as_json(context: click.Context) -> None:
    if context.command_path != "distill serve":
        assert "json" in command_of(context).setting_options()


@each_command
def test_common_flags_are_everywhere(
    context: click.Context, distill: Callable[..., object]
) -> None:
    words = context.command_path.split()[1:]
    for flag in ("-h", "--help"):
        ran = distill(*words, flag)
        assert ran.code == 0, ran.err  # type: ignore[attr-defined]
    for flags in (["--version"], ["-q", "--version"], ["-v", "--version"]):
        ran = distill(*words, *flags)
        assert ran.out.startswith("distill 0.")  # type: ignore[attr-defined]


def test_quiet_shows_results_and_errors_alone(
    distill: Callable[..., object], precompute_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    ran = distill(*precompute_command(tmp_path / "store", "-q"))
    assert ran.code == 0  # type: ignore[attr-defined]
    assert ran.err == ""  # type: ignore[attr-defined]
    assert "complete" in ran.out  # type: ignore[attr-defined]
    failed = distill("precompute", "-q", "--views", "0")
    assert failed.err.startswith("distill: precompute: ")  # type: ignore[attr-defined]


def test_verbose_shows_the_traceback_of_an_error(distill: Callable[..., object]) -> None:
    ran = distill("store", "info", "-v", "/nowhere")
    assert "Traceback" in ran.err  # type: ignore[attr-defined]
    assert ran.err.splitlines()[-1].startswith("distill: /nowhere")  # type: ignore[attr-defined]
