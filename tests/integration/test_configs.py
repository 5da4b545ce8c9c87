"""The recipes in deploy/configs are what the commands take them for."""

from collections.abc import Callable
from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).parents[2] / "deploy/configs").glob("*.toml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_lacks_nothing_but_data_and_out(
    config: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    """Its own command comes as far as the data; every setting is known and fits the others."""
    text = config.read_text()
    command = text.split("distill ", 2)[-1].split()[0]
    assert command in ("pretrain", "finetune")
    for word in ("Expected:", "Source:"):
        assert word in text
    missing = tmp_path / "none"
    given = ("--config", config, "--data", missing, "--out", tmp_path / "out", "--device", "cpu")
    assert f"{missing}" in fails(command, *given)
