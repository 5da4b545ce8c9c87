"""What deploy/ starts is what the commands are: flags, metrics, exit codes, schemas, scripts."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from command_words import require_known

from distill.teacher_server.serve.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = "1.31"


def documents(folder: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((DEPLOY / folder).rglob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def strings(value: Any) -> Iterator[str]:
    """All texts in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every distill command that deploy/ starts: where, and its words without `distill`."""
    for path, document in documents("kubernetes"):
        for container in _containers(document):
            words = [*container.get("command", ["distill"]), *container.get("args", [])]
            if "distill" in words and len(words) > 1:
                yield path.name, words[words.index("distill") + 1 :]
        if "entrypoint" in document.get("spec", {}):
            yield path.name, document["spec"]["entrypoint"].split()[1:]
    for path, document in documents("compose"):
        for service in document.get("services", {}).values():
            if service.get("image") == "distill":
                yield path.name, service["command"]
    for path in (*DEPLOY.glob("slurm/*"), *DEPLOY.glob("systemd/*"), *DEPLOY.glob("*.sh")):
        text = re.sub(r" *\\\n *", " ", path.read_text())
        for line in text.splitlines():
            if found := re.search(r"^[^#]*?(?:srun.*|/)?\bdistill ((?:[a-z]+ )+--.*)", line):
                yield path.name, found[1].replace(" &", "").split()


def _containers(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from value.get("containers", [])
        for each in value.values():
            yield from _containers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _containers(each)


STARTED = list(commands())


def test_every_part_starts_something() -> None:
    assert {name for name, _ in STARTED} >= {
        "deployment.yaml",
        "job.yaml",
        "rayjob.yaml",
        "compose.yaml",
        "precompute.sbatch",
        "student.sbatch",
        "distill-teacher.service",
    }


@pytest.mark.parametrize(("where", "words"), STARTED, ids=lambda each: str(each)[:30])
def test_a_command_that_is_started_has_its_options(where: str, words: list[str]) -> None:
    require_known([word.strip('"') for word in words])


@pytest.mark.parametrize(
    ("path", "document"),
    [
        each
        for each in documents("kubernetes")
        if each[1]["kind"] not in ("Kustomization", "PodMonitor", "RayJob")
    ],
    ids=lambda each: each.stem if isinstance(each, Path) else each["kind"],
)
def test_manifests_fit_the_schemas_of_kubernetes(path: Path, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_audit_looks_at_what_the_image_has() -> None:
    dockerfile = (DEPLOY / "container/Dockerfile").read_text()
    extras = re.findall(r"'\.\[(.*?)\]'", dockerfile)
    assert extras == [",".join(runpy.run_path(str(DEPLOY / "audit.py"))["EXTRAS"])]


def test_a_kustomization_names_all_files_beside_it() -> None:
    for path, document in documents("kubernetes"):
        if document["kind"] == "Kustomization":
            beside = {each.name for each in path.parent.iterdir()} - {path.name}
            assert beside == {*document["resources"]}


def test_a_precompute_job_knows_the_exit_codes() -> None:
    """2 is a user's error and ends the job, 75 is work that is left and goes on."""
    job = next(d for p, d in documents("kubernetes/precompute") if d["kind"] == "Job")
    rules = {
        rule["onExitCodes"]["values"][0]: rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {2: "FailJob", 75: "Ignore"}
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--num-shards={job['spec']['completions']}" in args


def test_queries_are_of_metrics_that_a_server_has() -> None:
    kept = Metrics()
    kept.rejected.labels("x").inc()
    exported = {sample.name for metric in kept.registry.collect() for sample in metric.samples} | {
        "teacher_requests_total",
        "teacher_images_total",
        "teacher_elements_total",
    }
    dashboard = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
    alerts = yaml.safe_load((DEPLOY / "monitoring/alerts.yml").read_text())
    hpa = next(d for _, d in documents("kubernetes") if d["kind"] == "HorizontalPodAutoscaler")
    asked = {
        name
        for text in (*strings(dashboard), *strings(alerts), *strings(hpa["spec"]["metrics"]))
        for name in re.findall(r"\b(?:teacher|process)_[a-z_]+", text)
        if not text.startswith(("Look at", "Compare"))
    }
    assert "teacher_queue_images" in asked
    assert asked <= exported, asked - exported


@pytest.mark.parametrize(
    "words",
    [
        ["shellcheck", *map(str, sorted([*DEPLOY.glob("slurm/*"), *DEPLOY.rglob("*.sh")]))],
        ["promtool", "check", "rules", str(DEPLOY / "monitoring/alerts.yml")],
        ["promtool", "test", "rules", str(DEPLOY / "monitoring/alerts_test.yml")],
        ["hadolint", str(DEPLOY / "container/Dockerfile")],
    ],
    ids=lambda words: " ".join(words[:2]) if words[0] == "promtool" else words[0],
)
def test_tools_find_nothing(words: list[str]) -> None:
    tool = shutil.which(words[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not tool:
        pytest.skip(f"no {words[0]} here")
    done = subprocess.run(
        [tool, *words[1:]], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
