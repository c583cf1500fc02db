"""Files for clusters: Ray's own validators and scheduler, KubeRay's CRD where it is at hand, and what must agree."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support import rayjob as rayjobs
from tests.support.commands import REPOSITORY
from textinv_ray.cli import jobs
from textinv_ray.config.job import JobConfig
from textinv_ray.config.machine import load_config
from textinv_ray.config.presets import preset_names
from textinv_ray.util.errors import UserError

tomllib = pytest.importorskip("tomllib")  # Python 3.11
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own imports

CRD = os.environ.get("KUBERAY_RAYJOB_CRD", "")
"""KubeRay's helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml. Too large to keep a copy of here."""
SECONDS_LONGER = 5


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return _load("cluster.yaml")


@pytest.fixture(scope="module", params=["kuberay", "kueue"])
def rayjob(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each file for Kubernetes."""
    return _load(f"configs/{request.param}.yaml")


@pytest.fixture(scope="module")
def kuberay() -> dict[str, Any]:
    return _load("configs/kuberay.yaml")


@pytest.fixture(scope="module")
def kueue() -> dict[str, Any]:
    return _load("configs/kueue.yaml")


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its text), lines that go on joined, comments left out."""
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    split = [line.split(None, 1) for line in lines if line.strip()]
    return [(name, rest) for name, rest in split]


def _load(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((REPOSITORY / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def _pinned(package: str) -> str:
    found = re.search(rf"^{package}==([^;\s]+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def _pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    spec = rayjob["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# AWS


def test_ray_accepts_cluster_yaml(aws: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(aws)
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "no_such_field": 1})


def test_gpu_machines_come_from_spot_first_and_from_0(aws: dict[str, Any]) -> None:
    """Ray's own scheduler decides: nothing without demand, then spot, and on-demand where spot can't be had."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    config = AutoscalingConfig(aws, skip_content_hash=True)

    def launched(demand: int, market: str = "", **availability: float) -> dict[str, int]:
        selector = [[("ray.io/market-type", LabelSelectorOperator.LABEL_OPERATOR_IN, [market])]]
        worker = ResourceRequestUtil.make(
            {"GPU": 1.0, "CPU": 0.9}, label_selectors=selector if market else None
        )
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([worker] * demand),
            recoverable_resource_availabilities=availability,
        )
        reply = ResourceDemandScheduler().schedule(request)
        return {item.instance_type: item.count for item in reply.to_launch if item.instance_type != "head"}

    assert launched(0) == {}
    assert launched(3) == {"gpu_spot": 3}
    assert launched(3, gpu_spot=0.0) == {"gpu_on_demand": 3}
    assert launched(99)["gpu_spot"] == 16
    assert launched(3, "spot") == {"gpu_spot": 3}
    assert launched(3, "on-demand") == {"gpu_on_demand": 3}


def test_aws_gets_what_it_understands(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["gpu_on_demand"]["node_config"], "boto3 refuses a null"
    assert "GPU" not in types["head"]["resources"]
    assert types["gpu_spot"]["max_workers"] == aws["max_workers"]


def test_what_the_clusters_machines_set(aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = [shlex.split(option) for option in aws["docker"]["run_options"]]
    given = dict(option[1].split("=", 1) for option in options if option[0] == "--env")
    assert given["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("TEXTINV_SET", given["TEXTINV_SET"])
    job = load_config("sd15", None)
    assert job.service.workers == aws["max_workers"]
    assert job.service.gpus_per_worker == 1
    assert job.service.output.startswith("s3://")


# Kubernetes


@pytest.mark.parametrize("name", ["kuberay", "kueue"])
def test_files_for_kubernetes_are_no_presets(name: str) -> None:
    assert name not in preset_names()
    with pytest.raises(UserError, match=f"no configuration '{name}'"):
        JobConfig.load(name)


def test_fields_are_those_of_a_rayjob(rayjob: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(rayjobs.SCHEMA)
    validator.validate(rayjob)
    for wrong in ({"entryPoint": "x"}, {"suspend": "yes"}, {"activeDeadlineSeconds": 1.5}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**rayjob, "spec": {**rayjob["spec"], **wrong}})


def test_the_machines_of_a_rayjob(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == _pinned("ray")
    head, gpu = (pod["containers"][0] for pod in _pods(rayjob))
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert (
        gpu["resources"]["limits"]["nvidia.com/gpu"] == gpu["resources"]["requests"]["nvidia.com/gpu"] == "1"
    )
    for container in (head, gpu):
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    assert rayjob["spec"]["shutdownAfterJobFinishes"] is True


def test_what_kueue_asks_for(kueue: dict[str, Any]) -> None:
    """A queue, a job that doesn't begin by itself, and a number of pods that stays."""
    assert kueue["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    spec = kueue["spec"]
    assert spec["suspend"] is True
    assert spec["activeDeadlineSeconds"] > 0
    assert "backoffLimit" not in spec, "it is admitted anew by being created anew"
    assert not spec["rayClusterSpec"].get("enableInTreeAutoscaling")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_kuberay_grows_from_0(kuberay: dict[str, Any]) -> None:
    spec = kuberay["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)


def test_a_rayjobs_command_is_one(rayjob: dict[str, Any]) -> None:
    """The entry point's file is there, its options are known, and it asks for as many workers as may come."""
    from typer.main import get_command

    program, script, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert program == "python"
    assert (REPOSITORY / script).is_file()
    invert: Any = get_command(jobs.app).commands["invert"]  # type: ignore[attr-defined]
    given = invert.make_context("invert", arguments).params
    job = JobConfig.load(given["config"], given["overrides"])
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert job.service.workers == group["maxReplicas"]
    assert job.service.gpus_per_worker == 1


def test_a_pod_that_goes_has_time_and_says_so(rayjob: dict[str, Any]) -> None:
    """preStop is a command line that this Ray knows, and ends before Kubernetes kills."""
    from ray.scripts.scripts import cli as ray_cli

    _, pod = _pods(rayjob)
    shell, flag, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("/bin/bash", "-c")
    drain, wait = script.split(" || true; ")
    program, name, *arguments = shlex.split(drain)
    assert program == "ray"
    # RAY_ADDRESS, which KubeRay sets, stands for --address.
    given = ray_cli.commands[name].make_context(name, ["--address", "head:6379", *arguments]).params
    assert given["node_id"] is None, "the node it runs on"
    assert given["deadline_remaining_seconds"] == int(wait.removeprefix("sleep "))
    assert pod["terminationGracePeriodSeconds"] >= given["deadline_remaining_seconds"] + SECONDS_LONGER


@pytest.mark.skipif(not CRD, reason="KUBERAY_RAYJOB_CRD names no file")
def test_kuberays_crd_accepts_it(rayjob: dict[str, Any]) -> None:
    crd = yaml.load(Path(CRD).read_text(), Loader=yaml.CSafeLoader)
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    jsonschema.Draft202012Validator(schema).validate(rayjob)
    assert _names(rayjobs.SCHEMA) <= _names(schema), (
        "what the small schema knows, the whole one knows as well"
    )
    wrong = {**rayjob, "spec": {**rayjob["spec"], "entryPoint": "x"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(wrong)


def _names(schema: Any, path: str = "") -> set[str]:
    """Dotted names of the fields, with the depth of the small schema."""
    if schema.get("type") == "array":
        return _names(schema.get("items", {}), path)
    fields = schema.get("properties", {})
    within = (_names(field, f"{path}{name}.") for name, field in fields.items() if name != "metadata")
    return {f"{path}{name}" for name in fields}.union(*within)


def _strict(schema: Any) -> Any:
    """As `kubectl --validate=strict`: nothing unknown. Quantities may be numbers or texts."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(value) for name, value in schema.items() if name != "format"}
    if schema.get("x-kubernetes-int-or-string"):
        strict = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties")
    if schema.get("type") == "object" and "properties" in schema and not open_ended:
        strict["additionalProperties"] = False
    return strict


# The image


def test_one_image_for_all(aws: dict[str, Any], rayjob: dict[str, Any]) -> None:
    images = {container["image"] for pod in _pods(rayjob) for container in pod["containers"]}
    assert images == {aws["docker"]["image"]}
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert aws["docker"]["image"].endswith(f"/textinv_ray:{version}")


def test_the_image_has_the_pinned_ray_and_python(dockerfile: list[tuple[str, str]]) -> None:
    assert dockerfile[0] == ("FROM", f"rayproject/ray:{_pinned('ray')}-py311")
    python = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mypy"]["python_version"]
    assert f"py{python.replace('.', '')}" == "py311"
    assert {name for name, _ in dockerfile} <= {"FROM", "ENV", "WORKDIR", "COPY", "RUN"}


def test_the_image_takes_files_that_are_there(dockerfile: list[tuple[str, str]]) -> None:
    copied = [
        source
        for name, rest in dockerfile
        if name == "COPY"
        for source in [part for part in shlex.split(rest) if not part.startswith("--")][:-1]
    ]
    assert "." in copied
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    needed = ("textinv_ray", "jobs", "configs", "pyproject.toml", "README.md", "LICENSE", "constraints.txt")
    assert not set(needed) & set(ignored)


def test_the_images_packages(dockerfile: list[tuple[str, str]]) -> None:
    """All pip calls are held to constraints.txt, and the extras exist."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    runs = [shlex.split(rest) for name, rest in dockerfile if name == "RUN"]
    for run in runs:
        assert run[:2] == ["pip", "install"]
        assert "constraints.txt" in run
    (extras,) = [re.findall(r"\w+", part) for part in runs[-1] if part.startswith(".[")]
    assert set(extras) <= set(project["optional-dependencies"])


def test_telemetry_is_off(dockerfile: list[tuple[str, str]]) -> None:
    (environment,) = [
        dict(part.split("=") for part in rest.split()) for name, rest in dockerfile if name == "ENV"
    ]
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_jobs_start_in_the_repository(
    aws: dict[str, Any], rayjob: dict[str, Any], dockerfile: list[tuple[str, str]]
) -> None:
    """A job without --working-dir runs where its node was started."""
    (folder,) = [rest for name, rest in dockerfile if name == "WORKDIR"]
    assert aws["file_mounts"] == {folder: "."}
    starts = [aws["head_start_ray_commands"][-1], aws["worker_start_ray_commands"][-1]]
    assert all(start.startswith(f"cd {folder} && ray start ") for start in starts)
    assert {container["workingDir"] for pod in _pods(rayjob) for container in pod["containers"]} == {folder}


def test_what_a_submitted_job_uploads() -> None:
    """Ray's own packing, by .gitignore and .rayignore: the bundled model goes along, and all of it is small."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    packed: list[Path] = []

    def note(path: Path) -> None:
        if path.is_file():
            packed.append(path.relative_to(REPOSITORY))

    excludes = [
        packaging._get_excludes(REPOSITORY, get_runtime_env_default_excludes()),
        *packaging.get_excludes_from_ignore_files(REPOSITORY, include_gitignore=True),
    ]
    packaging._dir_travel(REPOSITORY, excludes, note, include_gitignore=True)
    assert Path("jobs/invert_many.py") in packed
    assert Path("examples/manifest.parquet") in packed
    assert any(path.match("textinv_ray/models/mini-sd/unet/*.safetensors") for path in packed)
    assert not [path for path in packed if path.parts[0] in ("tests", "training", "docs", ".git", "outputs")]
    assert sum((REPOSITORY / path).stat().st_size for path in packed) < 200 * 2**20
