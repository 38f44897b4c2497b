"""From the checkout to the registry: make the parts, see what is missing, build and push only that."""

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import oci
from . import parts, settings
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
    """Have these images (all for None) built from the checkout, and return the reference of each by name.

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
        tags = {image.name: _tag(image, checkout, made[image.part], builder.base()) for image in images}
        jobs = plan(images, tags, push=push, existing=_existing(builder, images, tags, push))
        todo = [job for job in jobs if job.action is not Action.KEEP]
        if any(job.action is Action.BUILD and job.image.on_base for job in todo):
            builder.ensure_base(progress)
        secrets = settings.write_secrets(scratch)
        for number, job in enumerate(todo, start=1):
            label = f"image {job.image.name} ({number} of {len(todo)})"
            _do(builder, job, checkout, made[job.image.part], scratch, secrets, label, progress)
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


def _tag(image: Image, checkout: Path, made: parts.Made, base: str) -> str:
    files = parts.file_digests(image, checkout)
    return image_tag(image, files=files, part=made.digest, base=base, architecture=oci.architecture())


def _existing(builder: Builder, images: Sequence[Image], tags: dict[str, str], push: str | None) -> set[str]:
    existing = builder.present()
    if push is not None:
        wanted = [remote_reference(push, image, tags[image.name]) for image in images]
        existing |= {reference for reference in wanted if builder.pushed(reference)}
    return existing


def _do(
    builder: Builder,
    job: Job,
    checkout: Path,
    made: parts.Made,
    scratch: Path,
    secrets: dict[str, Path],
    label: str,
    progress: Progress,
) -> None:
    started = time.monotonic()
    if job.action is Action.BUILD:
        arguments = {"BASE": builder.base()} if job.image.on_base else {}
        if job.image.part is Part.LAUNCHER:
            arguments["BINARY"] = "prebuilt"
        with tempfile.TemporaryDirectory(prefix="context-", dir=scratch) as context:
            parts.write_context(job.image, checkout, made, Path(context))
            dockerfile = checkout / job.image.dockerfile
            recipe = Recipe(job.local, dockerfile, Path(context), arguments, secrets if job.image.on_base else {})
            builder.build(recipe, what=f"building {label}", progress=progress)
    built = time.monotonic()
    said = f"built in {duration(built - started)}" if job.action is Action.BUILD else "was built before"
    if job.remote is not None:
        builder.push(job.local, job.remote, what=f"pushing {label}", progress=progress)
        said += f", pushed in {duration(time.monotonic() - built)}"
    progress(f"{label}: {said}")
