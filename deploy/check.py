"""Have other tools judge deploy/: hadolint the Containerfile, kubernetes-validate and checkov the manifests, promql-parser the queries.

And bandit the code that ships: what it finds is mended, or marked `nosec` with the reason. `make deploy-check` runs it. The tools come from
requirements-check.txt, in an environment of their own. Overlays are rendered where there is kustomize or kubectl.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import promql_parser
import yaml

HERE = Path(__file__).parent
KUBERNETES = HERE / "kubernetes"
VERSION = "1.35"
JUDGES = Path(sys.executable).parent
SKIPPED = {
    "development": {
        "CKV_K8S_43": "an image that was just built on this machine has no digest yet",
        "CKV_K8S_15": "and cannot be pulled from anywhere",
    },
}
"""What checkov may find, in which overlay, and why. At most three in all; nothing in the base or in production."""


def main() -> int:
    """Judge everything; returns how many judgements were bad."""
    bad = said("bandit worker", judged("bandit", "--quiet", "--severity-level", "medium", "--recursive", str(HERE.parent / "worker")))
    bad += said("hadolint Containerfile", judged("hadolint", str(HERE / "container" / "Containerfile")))
    bad += said("promql-parser alerts and dashboard", asked())
    bad += said("compose.yaml", composed())
    with tempfile.TemporaryDirectory() as folder:
        for name, manifests in rendered(Path(folder)).items():
            bad += said(f"kubernetes-validate {VERSION} {name}", validated(manifests))
            bad += said(f"checkov {name}", checked(name, manifests))
    return bad


def asked() -> str:
    """Read the alerts as YAML, and every query of alerts and dashboard as PromQL; return what cannot be read."""
    rules = yaml.safe_load((HERE / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    dashboard = json.loads((HERE / "grafana" / "taskflow-overview.json").read_text(encoding="utf-8"))
    queries = [rule["expr"] for rule in rules]
    queries += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    bad = [f"{rule.get('alert')}: has {sorted(rule)}" for rule in rules if set(rule) != {"alert", "expr", "for", "labels", "annotations"}]
    for query in queries:
        try:
            promql_parser.parse(query.replace("$__rate_interval", "5m"))
        except ValueError as wrong:
            bad.append(f"{query}: {wrong}")
    return "\n".join(bad) if queries else "there are none"


def composed() -> str:
    """Read the compose file as YAML: what it starts is hardened."""
    services = yaml.safe_load((HERE / "container" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    wanted = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    return "\n".join(f"{name}: {key}" for name, service in services.items() for key in wanted if service.get(key) != wanted[key])


def rendered(folder: Path) -> dict[str, Path]:
    """Write each set of manifests into one file: the base, and the overlays where something here can render them."""
    base = [path for path in sorted((KUBERNETES / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]
    (folder / "base.yaml").write_text("---\n".join(path.read_text(encoding="utf-8") for path in base), encoding="utf-8")
    found = {"base": folder / "base.yaml"}
    copy = shutil.copytree(KUBERNETES, folder / "kubernetes")
    (copy / "overlays" / "development" / "password").write_text("not a password", encoding="utf-8")
    for overlay in sorted((copy / "overlays").iterdir()):
        text = kustomized(overlay)
        if text is None:
            print(f"not rendered, for there is neither kustomize nor kubectl here: {overlay.name}")
            continue
        found[overlay.name] = folder / f"{overlay.name}.yaml"
        found[overlay.name].write_text(text, encoding="utf-8")
    return found


def kustomized(overlay: Path) -> str | None:
    """Render an overlay; None where nothing here can."""
    for command in (("kustomize", "build"), ("kubectl", "kustomize")):
        if shutil.which(command[0]):
            return subprocess.run([*command, str(overlay)], capture_output=True, text=True, check=True, timeout=60).stdout
    return None


def validated(manifests: Path) -> str:
    """Hold manifests against the schemas of Kubernetes; what is defined by somebody else (PodMonitor) has none there."""
    known = [document for document in manifests.read_text(encoding="utf-8").split("\n---\n") if "monitoring.coreos.com" not in document]
    own = manifests.with_suffix(".own.yaml")
    own.write_text("\n---\n".join(known), encoding="utf-8")
    return judged("kubernetes-validate", "--strict", "--kubernetes-version", VERSION, str(own))


def checked(name: str, manifests: Path) -> str:
    """Let checkov judge; print its table, and return what failed that is not in SKIPPED."""
    skipped = SKIPPED.get(name, {})
    command = [str(JUDGES / "checkov"), "-f", str(manifests), "--framework", "kubernetes", "--skip-download", "--output", "json"]
    command += ["--skip-check", ",".join(skipped)] if skipped else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "LOG_LEVEL": "ERROR"})
    report: Any = json.loads(done.stdout)
    results = report["results"]
    failed = [f"{one['check_id']} {one['check_name']}: {one['resource']}" for one in results["failed_checks"]]
    print(f"  {name}: passed {len(results['passed_checks'])}, failed {len(failed)}, skipped by reason {len(skipped)} {sorted(skipped)}")
    return "\n".join(failed) if results["passed_checks"] else "checkov looked at nothing"


def judged(judge: str, *arguments: str) -> str:
    """Run a judge; return what it says where it finds something."""
    done = subprocess.run([str(JUDGES / judge), *arguments], capture_output=True, text=True, check=False, timeout=120)
    return (done.stdout + done.stderr).strip() or f"ended with {done.returncode}" if done.returncode else ""


def said(what: str, found: str) -> int:
    """Print a judgement."""
    print(f"{'BAD ' if found else 'good'} {what}" + (f"\n{found}" if found else ""), flush=True)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
