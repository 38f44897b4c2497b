"""Which images a node keeps: of each of ours the two that were pushed last, and nothing in its store besides."""

import os
from pathlib import Path

import pytest
from rm_local_cluster.kept_images import forget, known, listed, outdated

REPOSITORIES = "docker/registry/v2/repositories"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


class Storage:
    """A registry's storage, as the registry lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def push(self, repository: str, tag: str, number: int, at: int) -> None:
        manifests = self.root / REPOSITORIES / repository / "_manifests"
        for name in (
            f"tags/{tag}/current",
            f"tags/{tag}/index/sha256/{number:064x}",
            f"revisions/sha256/{number:064x}",
        ):
            (manifests / name).mkdir(parents=True, exist_ok=True)
            link = manifests / name / "link"
            link.write_text(digest(number))
            os.utime(link, (at, at))

    def tags(self, repository: str) -> list[str]:
        return sorted(path.name for path in self.root.glob(f"{REPOSITORIES}/{repository}/_manifests/tags/*"))

    def revisions(self, repository: str) -> list[int]:
        found = self.root.glob(f"{REPOSITORIES}/{repository}/_manifests/revisions/sha256/*")
        return sorted(int(path.name, 16) for path in found)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


class TestRegistry:
    def test_keeps_of_each_image_the_two_that_were_pushed_last(self, storage):
        for number, tag in enumerate(("z", "c", "b", "a")):
            storage.push("rm-abstract/operator", tag, number, at=100 + number)
        storage.push("rm-abstract/below/runtime", "only", 9, at=1)
        assert forget(storage.root) == 2
        assert storage.tags("rm-abstract/operator") == ["a", "b"]
        assert storage.revisions("rm-abstract/operator") == [2, 3]
        assert storage.tags("rm-abstract/below/runtime") == ["only"]
        assert known(storage.root) == {digest(2), digest(3), digest(9)}
        assert forget(storage.root) == 0

    def test_that_was_pushed_again_counts_from_then(self, storage):
        for at, (tag, number) in enumerate([("a", 1), ("b", 2), ("c", 3), ("a", 1)]):
            storage.push("rm-abstract/operator", tag, number, at=at)
        forget(storage.root)
        assert storage.tags("rm-abstract/operator") == ["a", "c"]

    def test_keeps_a_manifest_that_another_tag_names(self, storage):
        for at, (tag, number) in enumerate([("old", 1), ("b", 2), ("again", 1)]):
            storage.push("rm-abstract/operator", tag, number, at=at)
        assert forget(storage.root) == 1
        assert (storage.tags("rm-abstract/operator"), storage.revisions("rm-abstract/operator")) == (
            ["again", "b"],
            [1, 2],
        )

    def test_leaves_other_repositories_alone(self, storage):
        for number in range(5):
            storage.push("team/rm-abstract", str(number), number, at=number)
            storage.push("rm-abstract-mine/x", str(number), number, at=number)
        assert forget(storage.root) == 0
        assert len(storage.tags("team/rm-abstract")) == len(storage.tags("rm-abstract-mine/x")) == 5
        assert known(storage.root) == set()

    def test_that_was_never_started_is_none(self, tmp_path):
        assert forget(tmp_path / "absent") == 0
        assert known(tmp_path / "absent") == set()


# As `ctr images list` of containerd 2.2 prints it.
STORED = {
    "10.244.255.2:5000/rm-abstract/operator:new": digest(1),
    "10.244.255.2:5000/rm-abstract/operator:old": digest(2),
    f"10.244.255.2:5000/rm-abstract/operator@{digest(2)}": digest(2),
    "10.231.255.2:5000/rm-abstract/operator:new": digest(1),
    "10.231.255.2:5000/rm-abstract/runtime:old": digest(3),
    "10.244.255.2:5000/vendor/engine:1": digest(4),
    "ghcr.io/x/rm-abstract/operator:1": digest(5),
    "localhost/pause:1": digest(6),
    digest(12): digest(2),
    digest(14): digest(4),
}
_ROW = "{} application/vnd.oci.image.manifest.v1+json {} 58.1 MiB linux/amd64 io.cri-containerd.image=managed\n"
LISTED = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n" + "".join(_ROW.format(*each) for each in STORED.items())


class TestStore:
    def test_is_read_as_it_is_listed(self):
        assert listed(LISTED) == STORED

    def test_loses_under_all_names_what_the_registry_has_no_more(self):
        assert outdated(STORED, {digest(1)}) == [
            "10.231.255.2:5000/rm-abstract/runtime:old",
            "10.244.255.2:5000/rm-abstract/operator:old",
            f"10.244.255.2:5000/rm-abstract/operator@{digest(2)}",
            digest(12),
        ]

    def test_that_is_empty_loses_nothing(self):
        assert outdated(listed("REF TYPE DIGEST SIZE PLATFORMS LABELS\n"), {digest(1)}) == []
