"""What cannot be run here (containers, systemd, a cluster of Kubernetes) is held to what it will be read by.

`compose-spec.json` is the Compose Specification's own schema (Apache-2.0), as compose-go 2.16.2 carries it.
The fields of Kubernetes' objects are held to the models of its official client, the command lines to the
programs that parse them.
"""

import importlib.util
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]
import kubernetes.client  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_cli
from dagster._cli import create_dagster_cli
from dagster._config import validate_config
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from dagster_webserver.cli import dagster_webserver
from pydantic_settings import BaseSettings

from scripts.documents import pages, shell_lines
from somabrain_dagster import __version__
from somabrain_dagster.cli import main
from somabrain_dagster.embedded import valkey as embedded_valkey
from somabrain_dagster.embedded.prometheus import PrometheusTools
from somabrain_dagster.operations.dagster_home import EVENT_BATCH, INSTANCE, WORKSPACE
from somabrain_dagster.settings import Settings
from somabrain_dagster.workers.launcher import Launcher

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SYSTEMD = DEPLOY / "systemd"
KUBERNETES = DEPLOY / "kubernetes"
INSTALLED = "/opt/somabrain/.venv/bin"
"""Where the units expect the programs."""
PREPARED = "/var/lib/somabrain/dagster/workspace.yaml"
"""Where `somabrain exec` puts the workspace before it becomes another program."""

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "Docker_Canonical.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {name for name, service in SERVICES.items() if service["restart"] == "no"}
EXAMPLE = dict(
    line.split("=", 1)
    for line in (DEPLOY / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
)
VALUES: dict[str, Any] = yaml.safe_load((KUBERNETES / "values.yaml").read_text())
ON_CELERY: dict[str, Any] = yaml.safe_load((KUBERNETES / "values-celery.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name not in ("values.yaml", "values-celery.yaml", "kustomization.yaml")
    for manifest in yaml.safe_load_all(path.read_text())
]
KINDS = {
    "Deployment": kubernetes.client.V1Deployment,
    "Job": kubernetes.client.V1Job,
    "PodDisruptionBudget": kubernetes.client.V1PodDisruptionBudget,
    "Service": kubernetes.client.V1Service,
}
WORKLOADS = [manifest for manifest in MANIFESTS if "template" in manifest["spec"]]


def named(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


# Compose


def test_compose_has_only_what_its_specification_allows() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    faults = jsonschema.Draft7Validator(schema).iter_errors(COMPOSE)
    assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_a_pinned_image_and_limits(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r":(\$\{IMAGE_TAG:\?|v?\d+\.\d+\.\d+)", image), image
    assert {"cpus", "memory"} <= SERVICES[name]["deploy"]["resources"]["limits"].keys()


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_a_container_that_stays_is_started_again_and_says_whether_it_is_well(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_what_is_waited_for_exists_and_can_come_about() -> None:
    for service in SERVICES.values():
        for needed, wanted in service.get("depends_on", {}).items():
            ends = needed in ONE_SHOT
            assert wanted["condition"] == ("service_completed_successfully" if ends else "service_healthy")
            assert needed in SERVICES


def test_data_are_in_declared_volumes_and_files_are_there() -> None:
    used = set()
    for service in SERVICES.values():
        for source, *_ in (volume.split(":") for volume in service.get("volumes", ())):
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                used.add(source)
    assert used == COMPOSE["volumes"].keys()


def test_only_the_service_may_listen_beyond_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports.pop("service") == ["${SERVICE_ADDRESS:-127.0.0.1}:8400:8400"]
    for published in ports.values():
        assert all(port.startswith("127.0.0.1:") for port in published)
    assert EXAMPLE["SERVICE_ADDRESS"] == "127.0.0.1"


def test_no_password_has_a_default() -> None:
    text = (DEPLOY / "Docker_Canonical.yml").read_text()
    variables = dict(re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text))
    from_files = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert variables.keys() | from_files == EXAMPLE.keys()
    secret = re.compile("PASSWORD|KEY$|_ID$")
    for variable in filter(secret.search, EXAMPLE):
        assert EXAMPLE[variable] == ""
        assert variables.get(variable, ":?").startswith(":?"), variable
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not secret.search(name.removesuffix("NODE_ID")) or re.search(r"^/run/secrets/|\$\{", value)


def test_every_container_of_the_image_can_write_nothing_but_its_volumes() -> None:
    ours = [service for service in SERVICES.values() if service["image"].startswith("somabrain-dagster:")]
    assert len(ours) >= 5
    for service in ours:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_three_nodes_of_kafka_outlive_one() -> None:
    nodes = {name: one["environment"] for name, one in SERVICES.items() if "kafka:" in one["image"]}
    assert sorted(node["KAFKA_NODE_ID"] for node in nodes.values()) == [1, 2, 3]
    voters = ",".join(f"{node['KAFKA_NODE_ID']}@{name}:9093" for name, node in nodes.items())
    for name, node in nodes.items():
        assert node["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        assert node["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{name}:9092"
        assert node["KAFKA_DEFAULT_REPLICATION_FACTOR"] == 3
        assert node["KAFKA_MIN_INSYNC_REPLICAS"] == 2
        assert node["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"


def test_the_relay_is_told_of_all_three() -> None:
    nodes = sorted(name for name, one in SERVICES.items() if "kafka:" in one["image"])
    assert SERVICES["relay"]["environment"]["SOMABRAIN_KAFKA_BOOTSTRAP"] == ",".join(
        f"{name}:9092" for name in nodes
    )
    assert sorted(SERVICES["kafka-topics"]["depends_on"]) == nodes


def test_valkey_keeps_what_the_embedded_one_keeps() -> None:
    lines = (DEPLOY / "valkey" / "valkey.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    kept = ("appendonly", "appendfsync", "save", "maxmemory-policy", "shutdown-on-sigterm")
    assert {name: settings[name] for name in kept} == {name: embedded_valkey.SETTINGS[name] for name in kept}
    assert settings["save"] == "60 1"


# The image


def test_the_image_is_built_by_the_lock_file_and_has_no_tools_at_its_end() -> None:
    build, final = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    installs = re.findall(r"pip install (?:[^&\n]|\\\n)+", build)
    for install in installs:
        assert "--require-hashes" in install or "--no-deps /wheels/*.whl" in install
    assert build.split()[0] == final.split()[0]
    assert re.match(r"python:3\.\d+\.\d+-slim-\w+$", build.split()[0])
    assert not re.search(r"apt|pip install|gcc", final)
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    extras = set(re.findall(r"--extra (\w+)", build))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras <= declared.keys()


def test_the_image_has_the_version_of_the_project() -> None:
    assert EXAMPLE["IMAGE_TAG"] == __version__
    (image,) = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    assert image["newTag"] == __version__
    code = VALUES["dagster-user-deployments"]["deployments"][0]["image"]
    assert (code["repository"], code["tag"]) == (image["newName"], image["newTag"])
    for workload in WORKLOADS:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert container["image"] == f"{image['name']}:{__version__}"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not on this machine")
def test_hadolint_finds_nothing_in_the_image() -> None:
    subprocess.run(["hadolint", DEPLOY / "Dockerfile"], check=True)


# Commands


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command of a program of ours or of Dagster's, and where it is said."""
    for name, service in SERVICES.items():
        if service["image"].startswith("somabrain-dagster:"):
            yield from parts(f"compose {name}", service["command"])
            if "healthcheck" in service:
                yield from parts(f"compose {name} healthcheck", service["healthcheck"]["test"][1:])
    for unit in sorted(SYSTEMD.glob("*.service")):
        for line in re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE):
            yield unit.name, shlex.split(line.removeprefix(f"{INSTALLED}/"))
    for workload in WORKLOADS:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            yield from parts(named(workload), container["command"])
    for deployment in VALUES["dagster-user-deployments"]["deployments"]:
        said = ["-h", "0.0.0.0", "-p", str(deployment["port"]), *deployment["dagsterApiGrpcArgs"]]
        yield "values.yaml", ["dagster", "api", "grpc", *said]
    (image,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    yield "Dockerfile", json.loads(image)
    yield from documented()


def documented() -> Iterator[tuple[str, list[str]]]:
    """The commands of ours in every document, whatever runs them: a shell, a container, a pod."""
    for path in pages():
        for line in shell_lines(path.read_text()):
            words = [*shlex.shlex(line, posix=True, punctuation_chars="|>&;()")]
            for place, word in enumerate(words[:-1]):
                if Path(word).name == "somabrain" and re.match("[a-z]", words[place + 1]):
                    after = itertools.takewhile(lambda one: one[0] not in "|>&;()", words[place + 1 :])
                    yield path.name, ["somabrain", *after]


def parts(where: str, command: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The commands of one, which may be a line for the shell."""
    if command[:2] == ["sh", "-c"]:
        for one in command[2].split("&&"):
            yield where, shlex.split(one)
    else:
        yield where, list(command)


PROGRAMS: dict[str, click.Command] = {
    "somabrain": main,
    "celery": celery_cli,
    "dagster": create_dagster_cli(),  # type: ignore[no-untyped-call]
    "dagster-daemon": create_dagster_daemon_cli(),
    "dagster-webserver": dagster_webserver,
}


def parse(program: str, arguments: Sequence[str]) -> None:
    """Parse a command line as the program would, and go no further.

    Raises:
        click.UsageError: there is no such command, option or argument.
    """
    command = PROGRAMS[program]
    rest = [argument.replace(PREPARED, str(WORKSPACE)) for argument in arguments]
    if program == "celery":
        option, app, *rest = rest
        assert option == "-A"
        assert importlib.util.find_spec(app) is not None
    while isinstance(command, click.Group):
        known = command.commands
        if not rest or rest[0] not in known:
            raise click.UsageError(f"{program} has no command {rest[:1]}: {', '.join(known)}")
        command = known[rest.pop(0)]
    # Celery's options take their defaults from its application.
    context = command.make_context(program, rest, obj=CLIContext(Celery(), no_color=True, workdir=None))
    if program == "somabrain" and command.name == "exec":
        parse(context.params["program"], context.params["arguments"])


@pytest.mark.parametrize(("where", "command"), [*command_lines()])
def test_a_command_is_one_that_its_program_takes(where: str, command: list[str]) -> None:
    program, *arguments = command
    if program == "python":
        compile(arguments[1], where, "exec")
        return
    parse(program, arguments)


def test_a_wrong_command_would_be_found() -> None:
    for wrong in ("somabrain server", "somabrain serve --prot 1", "somabrain exec dagster-daemon --readonly"):
        program, *arguments = wrong.split()
        with pytest.raises(click.UsageError):
            parse(program, arguments)


# Settings


def variables_of(settings: type[BaseSettings]) -> set[str]:
    """The names of the variables that settings are read from."""
    names = set()
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings):
            names |= variables_of(field.annotation)
        else:
            names.add(f"{settings.model_config['env_prefix']}{name}".upper())
    return names


FILES = [
    path
    for path in [*sorted(DEPLOY.rglob("*")), ROOT / "docs" / "DEPLOYMENT_PROD.md"]
    if path.is_file() and "secrets" not in path.parts and path.name != ".env"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_is_named_is_a_setting(path: Path) -> None:
    assert set(re.findall(r"\bSOMABRAIN_[A-Z_]*[A-Z]", path.read_text())) <= variables_of(Settings)


# systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    units = [tmp_path / path.name for path in SYSTEMD.iterdir() if path.suffix in (".service", ".timer")]
    for unit in units:
        text = (SYSTEMD / unit.name).read_text()
        unit.write_text(
            text.replace(INSTALLED, str(Path(sys.executable).parent)).replace("/opt/somabrain", str(ROOT))
        )
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("unit", sorted(SYSTEMD.glob("*.service")), ids=lambda unit: unit.name)
def test_a_unit_runs_as_nobody_special_and_sees_little(unit: Path) -> None:
    text = unit.read_text()
    for line in ("User=somabrain", "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes"):
        assert f"\n{line}\n" in text


# Prometheus and Grafana


def test_prometheus_accepts_its_configuration(tools: PrometheusTools) -> None:
    path = DEPLOY / "prometheus" / "prometheus.yml"
    subprocess.run([tools.promtool, "check", "config", "--syntax-only", path], check=True)


def test_prometheus_scrapes_the_service_with_a_key_that_is_mounted() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ours = next(job for job in jobs if job["job_name"] == "somabrain")
    assert ours["static_configs"] == [{"targets": ["service:8400"]}]
    folder = Path(ours["authorization"]["credentials_file"]).parent
    assert f"./secrets:{folder}:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_asks_prometheus_and_reads_the_mounted_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "$PROMETHEUS_URL"
    assert SERVICES["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "somabrain.yml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


# Kubernetes


@pytest.mark.parametrize("manifest", MANIFESTS, ids=named)
def test_a_manifest_has_only_fields_that_kubernetes_knows(manifest: dict[str, Any]) -> None:
    kind = KINDS[manifest["kind"]]
    k8s_model_from_dict(kind, k8s_snake_case_dict(kind, manifest))


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_a_pod_is_no_root_and_writes_nothing_but_its_volumes(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_service_finds_its_pods_and_they_are_asked_whether_they_are_ready() -> None:
    by_name = {named(manifest): manifest["spec"] for manifest in MANIFESTS}
    deployment = by_name["Deployment/somabrain"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert by_name["Service/somabrain"]["selector"] == labels
    assert by_name["PodDisruptionBudget/somabrain"]["selector"]["matchLabels"] == labels
    assert deployment["replicas"] > by_name["PodDisruptionBudget/somabrain"]["minAvailable"]
    (container,) = deployment["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert by_name["Service/somabrain"]["ports"][0]["targetPort"] == port["name"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths == {
        "startupProbe": "/healthz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }


def test_the_chart_keeps_to_the_rules_of_our_own_instance() -> None:
    instance = yaml.safe_load(INSTANCE.read_text())
    daemon = VALUES["dagsterDaemon"]
    # With a coordinator of its own Dagster refuses `concurrency`.
    assert daemon["runCoordinator"] == {"enabled": False}
    assert VALUES["additionalInstanceConfig"] == {
        "concurrency": instance["concurrency"],
        "run_queue": instance["run_queue"],
        "freshness": instance["freshness"],
    }
    assert daemon["runRetries"] == {
        "enabled": instance["run_retries"]["enabled"],
        "maxRetries": instance["run_retries"]["max_retries"],
        "retryOnAssetOrOpFailure": instance["run_retries"]["retry_on_asset_or_op_failure"],
    }
    retention = instance["retention"]
    assert VALUES["retention"]["sensor"]["purgeAfterDays"] == retention["sensor"]["purge_after_days"]
    assert VALUES["retention"]["schedule"]["purgeAfterDays"] == retention["schedule"]["purge_after_days"]
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    assert code["env"]["DAGSTER_EVENT_BATCH_SIZE"] == str(EVENT_BATCH)
    assert VALUES["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"


def test_what_runs_are_given_is_what_the_launcher_takes() -> None:
    config = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    snake = {re.sub("(?<!^)([A-Z0-9]+)", r"_\1", name).lower(): value for name, value in config.items()}
    snake = {name.replace("_k_8_s", "_k8s"): value for name, value in snake.items()}
    context = K8sContainerContext.create_from_config({"k8s": {"run_k8s_config": snake}})
    assert context.run_k8s_config.container_config["resources"]["limits"] == {"memory": "4Gi"}


def test_with_celery_the_chart_names_our_launcher_and_gives_out_as_many_runs_as_there_are_workers() -> None:
    configured = ON_CELERY["runLauncher"]["config"]["customRunLauncher"]
    assert ON_CELERY["runLauncher"]["type"] == "CustomRunLauncher"
    assert getattr(importlib.import_module(configured["module"]), configured["class"]) is Launcher
    checked = validate_config(Launcher.config_type(), configured["config"])
    assert checked.success, checked.errors
    (workers,) = [one for one in WORKLOADS if one["metadata"]["name"] == "somabrain-worker"]
    concurrency = ON_CELERY["additionalInstanceConfig"]["concurrency"]
    assert concurrency["runs"] == {"max_concurrent_runs": workers["spec"]["replicas"]}
    assert concurrency["pools"] == VALUES["additionalInstanceConfig"]["concurrency"]["pools"]
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    for who in ("dagsterWebserver", "dagsterDaemon"):
        assert ON_CELERY[who] == {"image": code["image"], "envSecrets": code["envSecrets"]}


def test_the_chart_makes_no_second_service_of_the_same_name() -> None:
    code = {deployment["name"] for deployment in VALUES["dagster-user-deployments"]["deployments"]}
    assert code.isdisjoint(manifest["metadata"]["name"] for manifest in MANIFESTS)
