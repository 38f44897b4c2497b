"""From the checkout to the registry: make the parts, see what is missing, build and push only that."""

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import oci
from . import labels, parts, settings
from .builders import Builder, Recipe
from .catalogue import Image, Part, select
from .detect import detect
from .keys import image_tag
from .plan import Action, Job, local_reference, outdated, plan, remote_reference
from .process import Progress, duration


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build(
    names: Iterable[str] | None = None,
    *,
    push: str | None = None,
    pull: str | None = None,
    progress: Progress = _say,
    root: Path | None = None,
) -> dict[str, str]:
    """Have these images built from the checkout, and return the reference of each by name.

    None stands for all that are made by default.

    With `push`, a registry's `host:port[/path]`, they are there afterwards, and the references are the ones under which
    pods pull them: under `pull` where pods know the registry by another name. Without it they stay in the builder's
    storage. What is already where it is wanted is left alone. `progress` gets a line for each step, with its time.

    Raises LocalClusterError for an unknown name, a missing tool, a build that fails or a registry that does not answer.
    """
    images = select(names)
    checkout = root or parts.checkout()
    builder = detect()
    started = time.monotonic()
    with builder.locked(progress) as scratch:
        made = {
            part: parts.make(part, checkout, scratch, progress)
            for part in dict.fromkeys(image.part for image in images)
        }
        epoch = labels.epoch(os.environ)
        tags = {image.name: _tag(image, checkout, made[image.part], builder.base(), epoch) for image in images}
        jobs = plan(images, tags, push=push, existing=_existing(builder, images, tags, push))
        todo = [job for job in jobs if job.action is not Action.KEEP]
        if any(job.action is Action.BUILD and job.image.on_base for job in todo):
            builder.ensure_base(progress)
        about = labels.of_checkout(checkout, epoch) if todo else {}
        common = _Common(builder, checkout, scratch, settings.write_secrets(scratch), about, epoch)
        for number, job in enumerate(todo, start=1):
            label = f"image {job.image.name} ({number} of {len(todo)})"
            _do(common, job, made[job.image.part], label, progress)
        builder.remove(outdated(builder.present(), jobs))
    if todo:
        progress(f"images: {len(todo)} of {len(jobs)} renewed in {duration(time.monotonic() - started)}")
    registry = pull or push
    return {
        image.name: remote_reference(registry, image, tags[image.name])
        if registry
        else local_reference(image, tags[image.name])
        for image in images
    }


@dataclass(frozen=True)
class _Common:
    """What is the same for all images of one run."""

    builder: Builder
    checkout: Path
    scratch: Path
    secrets: dict[str, Path]
    labels: dict[str, str]
    epoch: int

    def recipe(self, job: Job, context: Path) -> Recipe:
        on_base = job.image.on_base
        arguments = {"BASE": self.builder.base()} if on_base else {}
        if job.image.part is Part.LAUNCHER:
            arguments["BINARY"] = "prebuilt"
        dockerfile = self.checkout / job.image.dockerfile
        secrets = self.secrets if on_base else {}
        return Recipe(job.local, dockerfile, context, arguments, secrets, self.labels, self.epoch)


def _tag(image: Image, checkout: Path, made: parts.Made, base: str, epoch: int) -> str:
    files = parts.file_digests(image, checkout)
    architecture = oci.architecture()
    return image_tag(image, files=files, part=made.digest, base=base, architecture=architecture, epoch=epoch)


def _existing(builder: Builder, images: Sequence[Image], tags: dict[str, str], push: str | None) -> set[str]:
    existing = builder.present()
    if push is not None:
        wanted = [remote_reference(push, image, tags[image.name]) for image in images]
        existing |= {reference for reference in wanted if builder.pushed(reference)}
    return existing


def _do(common: _Common, job: Job, made: parts.Made, label: str, progress: Progress) -> None:
    started = time.monotonic()
    builder = common.builder
    if job.action is Action.BUILD:
        with tempfile.TemporaryDirectory(prefix="context-", dir=common.scratch) as context:
            parts.write_context(job.image, common.checkout, made, Path(context))
            builder.build(common.recipe(job, Path(context)), what=f"building {label}", progress=progress)
    built = time.monotonic()
    said = f"built in {duration(built - started)}" if job.action is Action.BUILD else "was built before"
    if job.remote is not None:
        builder.push(job.local, job.remote, what=f"pushing {label}", progress=progress)
        said += f", pushed in {duration(time.monotonic() - built)}"
    progress(f"{label}: {said}")
