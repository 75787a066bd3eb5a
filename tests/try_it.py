"""A control plane of this machine's own, `moorline up` on it, and kubectl through the tunnel: what `./try --real` runs.

The programs are those of the end-to-end tests, built once into a cache outside the checkout. Everything else lives in a
temporary folder and is gone at the end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from e2e.controlplane.build import PROGRAM_SETS, Assets, BuildError, build, cache_directory
from e2e.testbed.cluster import ControlPlane
from e2e.testbed.processes import BedError, Process

SHOWN = [
    "version",
    "get namespaces",
    "create configmap greeting --from-literal=through=the-tunnel",
    "get configmap greeting -o yaml",
    "run hello --image=local/process --restart=Never --command -- sleep 3600",
    "wait --for=condition=Ready pod/hello --timeout=30s",
    "exec hello -- echo hello from a pod",
    "auth whoami",
]
"""What is shown, each with kubectl in front."""


def main() -> int:
    """Bring everything up, show kubectl, and wait for Ctrl-C (not with ``--once``)."""
    parser = argparse.ArgumentParser(prog="./try --real", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the commands that are shown")
    options = parser.parse_args()
    try:
        assets = control_plane_assets()
    except BuildError as exc:
        print(exc, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="moorline-try-") as name:
        try:
            return run(assets, Path(name), once=options.once)
        except BedError as exc:
            print(exc, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130


def control_plane_assets() -> Assets:
    """The programs of a control plane, and none of the others that the tests use."""
    cache = cache_directory(os.environ)
    unused = Path(os.devnull)
    programs = {
        name: path
        for kind in ("etcd", "kubernetes", "kubelet")
        for name, path in build(PROGRAM_SETS[kind], cache=cache).items()
    }
    return Assets(
        kubectl=programs["kubectl"],
        etcd=programs["etcd"],
        kube_apiserver=programs["kube-apiserver"],
        kube_controller_manager=programs["kube-controller-manager"],
        kubelet=programs["kubelet"],
        kubeconfig=None,
        informer=unused,
        h2spec=unused,
    )


def run(assets: Assets, directory: Path, *, once: bool) -> int:
    """Start the control plane and `moorline up`, and show kubectl."""
    control_plane = ControlPlane(assets, directory / "control-plane")
    try:
        say("starting etcd, kube-apiserver and a kubelet on 127.0.0.1 …")
        cluster = control_plane.start()
        folder = directory / "moorline-up"
        command = ["up", "--kubeconfig", str(cluster.kubeconfig), "--dir", str(folder)]
        say(f"$ moorline {shlex.join(command)}")
        moorline = Process(
            "moorline up", [Path(sys.executable).with_name("moorline"), *command], log=directory / "moorline.log"
        )
        control_plane.processes["moorline up"] = moorline
        say(moorline.wait_for_line(r"(?m)^ready.*$", seconds=30).group())
        status = show(assets.kubectl, folder / "kubeconfig")
        if not once and status == 0:
            wait(assets.kubectl, folder / "kubeconfig")
        return status
    finally:
        control_plane.stop()


def show(kubectl: Path, kubeconfig: Path) -> int:
    """Run the commands; the exit status of the first one that failed, else 0."""
    for arguments in SHOWN:
        say(f"$ kubectl {arguments}")
        done = subprocess.run([kubectl, f"--kubeconfig={kubeconfig}", *shlex.split(arguments)], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


def wait(kubectl: Path, kubeconfig: Path) -> None:
    """Until Ctrl-C."""
    say("Go on in another terminal; Ctrl-C ends everything:")
    say(f"  export KUBECONFIG={kubeconfig} PATH={kubectl.parent}:$PATH")
    signal.pause()


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
