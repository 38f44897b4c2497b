"""The same sources make the same image, whoever builds it and when: each is built twice from nothing on the same base.

It takes minutes, and so is no part of ``make test``: ``make test-slow-images``.
"""

import json
import time

import pytest
from rm_local_cluster import images
from rm_local_cluster.images import pipeline
from rm_local_cluster.images.buildah import Buildah
from rm_local_cluster.images.detect import detect
from rm_local_cluster.shell import run

NAMES = ["launcher", "runtime", "device-plugin"]
"""A program alone, and two with Python and other dependencies; all others are made like them."""


class Anew(Buildah):
    """Takes nothing from an earlier build but the base."""

    def present(self) -> set[str]:
        return set()

    def _build_command(self) -> list[str]:
        return [*super()._build_command(), "--no-cache"]


def _built(builder: Anew, name: str) -> tuple[str, list[str]]:
    """Digest of the image's configuration, and of each of its layers."""
    reference = images.build([name])[name]
    image = json.loads(run([*builder.command(), "inspect", "--type=image", reference]).stdout)
    return image["FromImageID"], image["OCIv1"]["rootfs"]["diff_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_is_built_twice_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect()
    if not isinstance(found, Buildah):
        pytest.skip("Docker gives the files in layers the time of the build")
    builder = Anew(found.root)
    monkeypatch.setattr(pipeline, "detect", lambda: builder)
    first = _built(builder, name)
    # Two seconds later nothing may be, which says when it was made.
    time.sleep(2)
    assert _built(builder, name) == first
