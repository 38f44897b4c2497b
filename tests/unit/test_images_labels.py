"""What images say of themselves: labels, the time that they are of, and the description beside each Dockerfile."""

import json
import subprocess
from pathlib import Path

import pytest
from rm_abstract.packaged.description import Description
from rm_local_cluster.errors import LocalClusterError
from rm_local_cluster.images import IMAGES
from rm_local_cluster.images.buildah import Buildah
from rm_local_cluster.images.builders import Builder, Recipe
from rm_local_cluster.images.catalogue import Part
from rm_local_cluster.images.docker import Docker
from rm_local_cluster.images.labels import EPOCH, epoch, labels, of_checkout, public_source

ROOT = Path(__file__).parents[2]
PYTHON_IMAGES = [image.name for image in IMAGES.values() if image.part is Part.WHEEL]


class TestTime:
    def test_is_the_releases_where_it_says_so_and_else_always_the_same(self):
        assert epoch({"SOURCE_DATE_EPOCH": "1795300000"}) == 1795300000
        assert epoch({}) == epoch({"SOURCE_DATE_EPOCH": ""}) == EPOCH

    @pytest.mark.parametrize("given", ["yesterday", "-1", "1.5", "2026-11-21", "٣", "999999999999"])
    def test_is_refused_where_it_is_none(self, given):
        with pytest.raises(LocalClusterError, match="seconds since 1970"):
            epoch({"SOURCE_DATE_EPOCH": given})


class TestLabels:
    def test_have_the_names_of_the_oci_annotations(self):
        assert labels(number="0.1.0", time=1795300000, revision="abc", source="https://example.com/x") == {
            "org.opencontainers.image.version": "0.1.0",
            "org.opencontainers.image.created": "2026-11-21T22:26:40Z",
            "org.opencontainers.image.revision": "abc",
            "org.opencontainers.image.source": "https://example.com/x",
        }

    def test_leave_out_what_is_not_known(self):
        assert list(labels(number="1", time=0, revision=None, source=None)) == [
            "org.opencontainers.image.version", "org.opencontainers.image.created",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("remote", "source"),
        [
            ("https://example.com/group/project.git", "https://example.com/group/project"),
            ("https://user:word@example.com:8443/project", "https://example.com:8443/project"),
            ("git@example.com:group/project.git", None),
            ("ssh://git@example.com/project", None),
            ("http://example.com/project", None),
            ("/srv/git/project", None),
            ("file:///srv/git/project", None),
            ("", None),
        ],
    )
    def test_name_a_source_that_others_reach_and_no_credential(self, remote, source):
        assert public_source(remote) == source

    def test_name_a_revision_only_where_nothing_differs_from_it(self, tmp_path):
        def git(*arguments: str) -> str:
            names = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
            done = subprocess.run(["git", "-C", tmp_path, *names, *arguments], check=True, capture_output=True)
            return done.stdout.decode().strip()

        revision = "org.opencontainers.image.revision"
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "7"\n')
        assert revision not in of_checkout(tmp_path, 0)
        git("init", "-q")
        git("add", ".")
        git("commit", "-qm", "one")
        assert of_checkout(tmp_path, 0)[revision] == git("rev-parse", "HEAD")
        (tmp_path / "more").write_text("x")
        assert revision not in of_checkout(tmp_path, 0)
        assert of_checkout(tmp_path, 0)["org.opencontainers.image.version"] == "7"


class Recorded(Exception):
    """Raised in place of running a command."""


@pytest.mark.parametrize(
    ("kind", "dated"), [(Buildah, "--timestamp=1795300000"), (Docker, "--build-arg=SOURCE_DATE_EPOCH=1795300000")]
)
def test_either_builder_is_given_time_and_labels(kind, dated, tmp_path, monkeypatch):
    def run(self: Builder, argv: list[str], *rest: object, **more: object) -> None:
        raise Recorded(argv)

    monkeypatch.setattr(kind, "_run", run)
    (tmp_path / "storage/overlay").mkdir(parents=True)
    recipe = Recipe("localhost/x:t", tmp_path / "Dockerfile", tmp_path, labels={"a.b": "c d"}, epoch=1795300000)
    with pytest.raises(Recorded) as caught:
        kind(tmp_path).build(recipe, what="building x", progress=print)
    argv = caught.value.args[0]
    assert dated in argv
    assert "--label=a.b=c d" in argv


GOOD = {"name": "x", "modules": ["a"], "programs": [], "mayBeRoot": False, "maxMegabytes": 1}


class TestDescriptions:
    @pytest.mark.parametrize("name", PYTHON_IMAGES)
    def test_are_beside_every_dockerfile_and_in_the_image(self, name):
        described = Description.read(ROOT / f"runtime_images/{name}/image.json")
        assert described.name == IMAGES[name].repository
        assert "rm-abstract" in described.programs
        assert described.modules
        dockerfile = (ROOT / IMAGES[name].dockerfile).read_text()
        assert f"COPY runtime_images/{name}/image.json /usr/share/rm-abstract/\n" in dockerfile
        assert f'title="{described.name}"' in dockerfile

    def test_let_only_the_device_plugins_be_root(self):
        described = [Description.read(ROOT / f"runtime_images/{name}/image.json") for name in PYTHON_IMAGES]
        assert [one.name for one in described if one.may_be_root] == ["rm-abstract/device-plugin"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (None, "is missing"),
            ("{", "is no JSON"),
            ("[]", "exactly the keys name, modules"),
            (json.dumps(GOOD | {"more": 1}), "exactly the keys"),
            (json.dumps(GOOD | {"maxMegabytes": True}), "maxMegabytes is to be of type int, not True"),
            (json.dumps(GOOD | {"modules": "a"}), "modules is to be of type list"),
            (json.dumps(GOOD | {"programs": [1]}), "programs is to hold strings"),
        ],
    )
    def test_that_are_not_valid_are_refused(self, text, said, tmp_path):
        path = tmp_path / "image.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=said):
            Description.read(path)


@pytest.mark.parametrize("name", PYTHON_IMAGES)
def test_images_leave_no_file_that_differs_with_every_build(name):
    """ldconfig's cache of what it has looked at holds times of this machine's files."""
    steps = [step for step in (ROOT / IMAGES[name].dockerfile).read_text().split("\nRUN ") if "apt-get install" in step]
    assert steps
    assert [step for step in steps if "/var/cache/ldconfig/*" not in step] == []
