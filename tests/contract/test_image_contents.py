"""Every image of ours with Python, from inside: whole, as locked, no larger than it may be, without need of root."""

import json
from collections.abc import Iterator
from pathlib import Path

import image_in_a_box
import pytest
from image_in_a_box import Box
from rm_abstract.packaged.description import Description
from rm_local_cluster import images
from rm_local_cluster.images import IMAGES
from rm_local_cluster.images.catalogue import Part
from rm_local_cluster.images.detect import detect

ROOT = Path(__file__).parents[2]
NAMES = [image.name for image in IMAGES.values() if image.part is Part.WHEEL and image.by_default]


@pytest.fixture(scope="module", params=NAMES)
def box(request: pytest.FixtureRequest) -> Iterator[tuple[str, Box]]:
    name = request.param
    reference = images.build([name])[name]
    with image_in_a_box.opened(detect(), reference) as opened:
        yield name, opened


def test_doctor_finds_nothing_wrong_in_a_read_only_image_without_root(box: tuple[str, Box]) -> None:
    name, opened = box
    done = opened.run("rm-abstract", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {one["check"]: one for one in json.loads(done.stdout)}
    assert {check: one["message"] for check, one in findings.items() if one["severity"] != "ok"} == {}
    assert findings["user"]["message"] == f"rm-abstract/{name} runs as user 65532"
    assert findings["root file system"]["message"] == "is read-only"
    assert {"HOME", "cache", "shared memory", "packages", "bill of materials", "modules", "programs"} <= findings.keys()


def test_is_no_larger_than_it_may_be(box: tuple[str, Box]) -> None:
    name, opened = box
    bound = Description.read(ROOT / f"runtime_images/{name}/image.json").max_megabytes
    assert opened.megabytes() <= bound
    # A bound that is far off would not notice anything.
    assert opened.megabytes() >= 0.75 * bound


# The image of the fixture: as long as it is open, nobody builds images, this process neither.
@pytest.mark.parametrize("box", ["runtime"], indirect=True)
def test_doctor_names_what_is_wrong(box: tuple[str, Box]) -> None:
    _, opened = box
    done = opened.run("rm-abstract", "doctor", "--json", environment=["HOME=/proc", "PATH=/opt/rma/bin"])
    problems = {one["check"] for one in json.loads(done.stdout) if one["severity"] == "problem"}
    assert (done.returncode, problems) == (1, {"HOME", "cache"})
