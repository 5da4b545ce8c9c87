import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from distill.cli.main import distill; "
        "distill(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'numpy', 'zarr', 'timm', 'rich') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "precompute" in ran.stdout


def test_unknown_command_is_the_users_error(distill) -> None:  # type: ignore[no-untyped-def]
    ran = distill("precomptue")
    assert ran.code == 2
    assert ran.err == (
        "distill: no command 'precomptue' (did you mean precompute?); see `distill -h`\n"
    )


def test_demo_walks_the_whole_path_and_resumes(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real demo with fewer and smaller figures and one epoch each."""
    from distill.cli import demo
    from distill.data.rendered import plane_figures

    small = partial(plane_figures.FigureSet, train=128, val=32, pixels=32)
    monkeypatch.setattr(plane_figures, "FigureSet", small)
    monkeypatch.setattr(demo, "TEACHER_EPOCHS", 1)
    monkeypatch.setattr(demo, "STUDENT_EPOCHS", 1)
    ran = distill("demo", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    table = [line.split() for line in ran.out.splitlines()]
    for name in ("without-kd", "with-kd", "teacher"):
        (row,) = [line for line in table if line and line[0] == name]
        assert len(row) == 6
    listed = [line.split(":")[0].strip() for line in ran.out.splitlines() if line[:3] == "  /"]
    assert len(listed) == 6
    assert all(Path(path).exists() for path in listed)
    again = distill("demo", "--out", tmp_path / "out")
    assert again.code == 0
    assert again.out.count("0 steps at") == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    assert "choose another --out" in fails("demo", "--out", tmp_path / "other")
