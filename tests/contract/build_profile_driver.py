"""Runs the Jobs that the operator makes of a build profile as processes: no cluster, no container runtime.

The operator's own planner makes the Job from the YAML and a model. Its containers run one after the other with the very
arguments and environments that it says: only the directories of a pod are under a test's own, and an image is a list of
directories with programs, real ones or stand-ins.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from rm_abstract.sources import resolve_model
from rm_api import names
from rm_api.build_steps import VersionProbe
from rm_api.kinds import AcceleratorResourceSpec, BuildArtifactSpec, BuildProfileSpec
from rm_api.report import Report
from rm_operator.plan import build_job
from rm_operator.plan.model import Images, Settings, StoreConfig
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rma_launch_driver import TERMINATION_LOG_VARIABLE, Ended
from unit.plan.chain import World

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STAND_INS = Path(__file__).parent / "compiler_stand_ins"
LAUNCHER_IMAGE = "tests/launcher:1"
RUNTIME_IMAGE = "tests/runtime:1"
SOURCE = "oci://registry.example.com/model:1"
_SYSTEM = (Path("/usr/local/bin"), Path("/usr/bin"), Path("/bin"))
_OF_POD = re.compile(r"(?<![\w./-])/(rma|tmp)(?=/|$|[,:;])")
_VOLUME = re.compile(r"/rma/(?:inputs|secrets/[^/\s]+|[a-z]+)")


@dataclass(frozen=True)
class Profile:
    """A profile under ``examples/``, and the kind of accelerator that it is for."""

    name: str
    spec: BuildProfileSpec
    accelerator: AcceleratorResourceSpec

    @classmethod
    def load(cls, profile: str, accelerator: str) -> "Profile":
        """Both by their files under ``examples/``."""
        body, kind = read(profile, "BuildProfile"), read(accelerator, "AcceleratorResource")
        return cls(
            body["metadata"]["name"],
            BuildProfileSpec.model_validate(body["spec"]),
            AcceleratorResourceSpec.model_validate(kind["spec"]),
        )

    @property
    def images(self) -> set[str]:
        """Every image that the profile names."""
        others = (self.spec.check, self.spec.probe, self.spec.version_probe)
        return {step.image for step in self.spec.steps} | {each.image for each in others if each}

    def artifact(self, facts: Object, *, source: str = SOURCE, **deployment: Any) -> Object:
        """The BuildArtifact that the operator wants for a deployment of the model on this accelerator."""
        return dict(self.deployed(facts, source=source, **deployment).of("BuildArtifact")[0])

    def deployed(self, facts: Object, *, source: str = SOURCE, **deployment: Any) -> World:
        """The operator's cluster with a deployment of the model, which waits for its artifact."""
        world = World()
        world.accelerators = [AcceleratorView("accelerator", self.accelerator, free=4, healthy=4, nodes=1)]
        world.profiles = [ProfileView(self.name, self.spec)]
        world.deploy(model={"source": source}, **deployment)
        world.settle()
        (job,) = world.jobs("resolve")
        world.finish(job, report={"facts": facts})
        world.settle()
        assert world.of("BuildArtifact"), world.condition("ModelDeployment", "hello", "Placed")
        return world


def read(file: str, kind: str) -> Object:
    """The object of a kind in a file under ``examples/``."""
    (found,) = [body for body in yaml.safe_load_all((EXAMPLES / file).read_text()) if body["kind"] == kind]
    return dict(found)


def facts_of(model: Path) -> Object:
    """What the resolve Job reports of a model in a directory."""
    with mock.patch.dict(os.environ, {"RMA_PVC_DIR": str(model.parent.parent)}):
        return dict(resolve_model(f"pvc://{model.parent.name}/{model.name}"))


@dataclass(frozen=True)
class Image:
    """What stands for a container image: its programs, its variables, and files that it has at fixed places."""

    programs: tuple[Path, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return os.pathsep.join(map(str, (*self.programs, *_SYSTEM)))


def program(
    path: Path, *command: str, behind: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Path:
    """Writes a program that runs ``command``, then its own arguments, then those ``behind``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [f"{name}={value}" for name, value in (environment or {}).items()]
    path.write_text(f'#!/bin/sh\nexec env {shlex.join([*words, *command])} "$@" {shlex.join(behind)}\n')
    path.chmod(0o755)
    return path


def stand_ins(directory: Path, **programs: str) -> Image:
    """An image with stand-ins for closed programs, each by the name that its vendor gave it."""
    for name, file in programs.items():
        source = STAND_INS / f"{file}.py"
        assert source.is_file(), source
        program(directory / name.replace("_", "-"), sys.executable, "-SE", str(source))
    return Image((directory,))


def runtime_image(directory: Path) -> Image:
    """The image of ours: this checkout's own command line."""
    roots = ("crds", "operator", "device_plugins", "sdk", "cli", "local_cluster")
    environment = {"PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in roots)}
    program(directory / "rm-abstract", sys.executable, "-m", "rm_cli", environment=environment)
    program(directory / "python", sys.executable, environment=environment)
    return Image((directory,))


@dataclass
class Node:
    """Where pods run: its images, a directory for each pod's volumes, and a store to push to."""

    launcher: str
    directory: Path
    images: Mapping[str, Image]
    store: str = "store.example.com:5000"
    patience: float = 600.0
    """Seconds that a container may take on a busy machine; reached only by a failure."""

    @property
    def settings(self) -> Settings:
        return Settings(
            images=Images(RUNTIME_IMAGE, LAUNCHER_IMAGE),
            store=StoreConfig(self.store, plain_http=True),
            system_namespace="system",
        )

    def build(self, artifact: Object) -> "Build":
        """An attempt at an artifact, in a directory of its own."""
        return Build(self, artifact, self.directory / "pod")


@dataclass
class Run:
    """What came of a pod's containers, in the order in which they ran; after one that fails, none runs."""

    containers: dict[str, Ended] = field(default_factory=dict)

    @property
    def last(self) -> tuple[str, Ended]:
        return list(self.containers.items())[-1]

    def succeeded(self) -> "Run":
        """Asserts that all did."""
        name, ended = self.last
        assert ended.code == 0, (name, ended)
        return self


@dataclass
class Build:
    """One attempt."""

    node: Node
    artifact: Object
    directory: Path

    @property
    def spec(self) -> BuildArtifactSpec:
        return BuildArtifactSpec.model_validate(self.artifact["spec"])

    @property
    def stages(self) -> int:
        return len(build_job.stages(self.spec))

    def place(self, path: str) -> Path:
        """Where a directory of the pod is."""
        return Path(inside(path, self.directory))

    @property
    def model(self) -> Path:
        return self.place(names.MODEL_DIR)

    @property
    def work(self) -> Path:
        return self.place(names.WORK_DIR)

    @property
    def output(self) -> Path:
        return self.place(names.OUTPUT_DIR)

    def lay(self, model: Path) -> "Build":
        """Puts the model where the container that fetches it would."""
        shutil.copytree(model, self.model, dirs_exist_ok=True)
        return self

    def template(self, stage: int = 0) -> Object:
        """The pod that the operator makes for a stage."""
        devices = (
            build_job.Devices("npu", {str(self.spec.target.type): "1"}, {}, [])
            if build_job.on_device(self.spec, stage)
            else None
        )
        run = build_job.Run(attempt=1, stage=stage, devices=devices)
        job = build_job.render(self.artifact, self.spec, run, self.node.settings)
        return dict(job["spec"]["template"]["spec"])

    def vendor(self, stage: int = 0, *, only: Collection[str] = (), device: Mapping[str, str] | None = None) -> Run:
        """Runs the check, the steps and the probe, and writes their configuration; nothing is fetched or pushed."""

        def wanted(container: Object) -> bool:
            ours = container["image"] == RUNTIME_IMAGE and container["name"] != "config"
            return not ours and (not only or container["name"] in only)

        return self.run(stage, wanted, device)

    def probe_version(self, probe: VersionProbe, image: Image) -> Report:
        """What rma-launch reads of the toolchain's version, as the operator has it do."""
        command = [
            "/rma-launch",
            "version-probe",
            "--name=toolchain",
            f"--pattern={probe.pattern}",
            "--",
            *probe.command,
        ]
        container = {"name": "version", "image": probe.image, "command": command, "env": [], "volumeMounts": []}
        ended = self._run(container, {}, image)
        assert ended.code == 0, ended
        return ended.report

    def run(
        self,
        stage: int = 0,
        wanted: Callable[[Object], bool] = lambda container: True,
        device: Mapping[str, str] | None = None,
    ) -> Run:
        """Runs the containers of a stage that are wanted; ``device`` is what a device plugin sets."""
        return self.pod(self.template(stage), wanted, device)

    def pod(self, template: Object, wanted: Callable[[Object], bool], device: Mapping[str, str] | None = None) -> Run:
        """Runs the containers of a pod that are wanted, one after the other, up to the first that fails."""
        for volume in ("bin", "tmp", "model", "work", "output", "cache", "inputs", "artifact", "report"):
            self.place("/tmp" if volume == "tmp" else f"/rma/{volume}").mkdir(parents=True, exist_ok=True)
        done = Run()
        for container in [*template["initContainers"], *template["containers"]]:
            if wanted(container) or container["name"] == "launcher":
                sealed = self._sealed(container)
                done.containers[container["name"]] = ended = self._run(container, device or {})
                assert self._sealed(container) == sealed, f"{container['name']} wrote where it may only read"
                if ended.code:
                    break
        return done

    def _run(self, container: Object, device: Mapping[str, str], image: Image | None = None) -> Ended:
        process = self.start(container, device, image)
        try:
            said, _ = process.communicate(timeout=self.node.patience)
        finally:
            # What it started goes with it, as with a container.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        left = self._left(container)
        return Ended(process.returncode, said, said, left.read_bytes() if left.exists() else b"")

    def _left(self, container: Object) -> Path:
        """Where the container's termination message is."""
        return self.directory / f"{container['name']}.report"

    def start(
        self, container: Object, device: Mapping[str, str], image: Image | None = None
    ) -> "subprocess.Popen[str]":
        """Starts a container."""
        image = image or self.node.images.get(container["image"]) or Image(())
        own = {each["name"]: self._here(unescaped(each["value"])) for each in container["env"]}
        argv = [unescaped(word) for word in container["command"]]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        variables = {each["name"]: each["value"] for each in container["env"]}
        for word in argv:
            reached = {found for found in _VOLUME.findall(names.expand(word, variables)) if found != "/rma/secrets"}
            assert reached <= mounted, f"{container['name']} has no {reached - mounted}: {word}"
        there = {"/rma-launch": self.node.launcher, **{path: str(file) for path, file in image.files.items()}}
        argv = [there[word] if word in there else self._here(word) for word in argv]
        left = self._left(container)
        left.unlink(missing_ok=True)
        environment = {"PATH": image.path, **image.environment, **own, **device, TERMINATION_LOG_VARIABLE: str(left)}
        found = shutil.which(argv[0], path=image.path)
        assert found, f"no image has {argv[0]}"
        place = self.place(container["workingDir"]) if "workingDir" in container else self.directory
        # Both streams are one text, as kubectl shows them.
        return subprocess.Popen(
            [found, *argv[1:]], env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def _sealed(self, container: Object) -> list[tuple[str, int, int]]:
        """What is in the volumes that the container may only read."""
        found = []
        for mount in container["volumeMounts"]:
            if mount.get("readOnly") and mount["name"] != "bin" and not mount["name"].startswith("secret-"):
                for path in sorted(self.place(mount["mountPath"]).rglob("*")):
                    status = path.lstat()
                    found.append((str(path), status.st_size, status.st_mtime_ns))
        return found

    def _here(self, text: str) -> str:
        return inside(text, self.directory)


def files_in(directory: Path) -> set[str]:
    """Names of all files under a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def inside(text: str, directory: Path) -> str:
    """``text`` with the pod's directories under ``directory``."""
    return _OF_POD.sub(lambda match: f"{directory}/{match.group(1)}", text)


def unescaped(text: str) -> str:
    """``text`` as the kubelet hands it on: it halves the dollars. None of ours is a $(NAME) that it would replace."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), text
    return text.replace("$$", "$")


def edited(profile: Profile, **changes: Any) -> Profile:
    """The profile with other members of its spec, as its author could have written it."""
    wire = {**profile.spec.to_wire(), **changes}
    return replace(profile, spec=BuildProfileSpec.model_validate(wire))
