"""What our images hold: packages, the bill of materials over them, and the examination from inside."""

import io
import json
import os
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from rm_abstract.packaged import examination, packages, sbom
from rm_abstract.packaged.examination import Places, examine
from rm_abstract.packaged.packages import Package, debian, go, locked, operating_system, python

STATUS = """\
Package: libstdc++6
Status: install ok installed
Architecture: amd64
Source: gcc-14
Version: 14.2.0-19
Description: GNU Standard C++ Library v3
 Version: 9 in a description is no field

Package: old-thing
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: ca-certificates
Status: install ok installed
Architecture: all
Version: 1:20250419+deb13u1~x
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: GPL-2+

Files: debian/*
License: GPL-2+

License: MPL-2.0
 Mozilla …
"""
LOCK = "alpha==1.2 \\\n    --hash=sha256:00\nbeta-gamma==2.0+cpu \\\n    --hash=sha256:00\n"

MODULES = (
    "/bin/registry: go1.26.1\n"
    "\tpath\tgithub.com/distribution/distribution/v3/cmd/registry\n"
    "\tmod\trm-abstract.example/registry\t(devel)\t\n"
    "\tdep\tgithub.com/AdaLogics/x\tv1.2.3+incompatible\th1:abc=\n"
    "\tdep\tgithub.com/b/old\tv1.0.0\n"
    "\t=>\tgithub.com/b/new\tv1.0.1\th1:def=\n"
    "\tbuild\tCGO_ENABLED=0\n"
)
SCHEMA = JsonStrictValidator(SchemaVersion.V1_6)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(site: Path, name: str, version: str, more: str = "") -> None:
    write(
        site / f"{name}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}",
    )


class Image:
    """A tree as that of an image, whole until a test breaks it."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root=root, environment=root / "opt/rma", shared_memory=root / "dev/shm")
        self.site = root / "opt/rma/lib/python3.13/site-packages"
        self.places.shared_memory.mkdir(parents=True)
        write(root / "etc/os-release", 'ID=debian\nVERSION_ID="13"\n')
        write(root / "var/lib/dpkg/status", STATUS)
        write(root / "usr/share/doc/ca-certificates/copyright", COPYRIGHT)
        write(self.places.environment / "requirements.txt", LOCK)
        install(self.site, "alpha", "1.2", "License-Expression: MIT\n")
        install(self.site, "Beta.Gamma", "2.0+cpu", "Classifier: License :: OSI Approved :: BSD License\n")
        install(self.site, "rm_abstract", "0.1.0")
        self.describe()
        self.list()

    def describe(self, **changes: object) -> None:
        whole = {"name": "rm-abstract/x", "modules": ["json"], "programs": ["sh"], "mayBeRoot": True, "maxMegabytes": 1}
        write(self.places.description, json.dumps(whole | changes))

    def list(self) -> None:
        found = [*debian(self.places.root), *python(self.site)]
        write(self.places.bill, sbom.encode(sbom.document("rm-abstract/x", "0.1.0", found)).decode())

    def problems(self) -> dict[str, str]:
        return {one.check: one.message for one in examine(self.places) if one.severity == "problem"}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return Image(tmp_path / "root")


class TestPackages:
    def test_of_debian_are_those_that_are_installed(self, image):
        assert debian(image.places.root) == [
            Package("pkg:deb/debian/ca-certificates@1:20250419%2Bdeb13u1~x?arch=all&distro=debian-13",
                    "ca-certificates", "1:20250419+deb13u1~x"),
            Package("pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=debian-13", "libstdc++6", "14.2.0-19"),
        ]  # fmt: skip
        assert [one.licences for one in debian(image.places.root)] == [("GPL-2+", "MPL-2.0"), ()]
        assert operating_system(image.places.root) == ("debian", "13")

    def test_of_debian_are_none_where_there_is_no_dpkg(self, tmp_path):
        assert debian(tmp_path) == []
        assert operating_system(tmp_path) is None

    def test_of_python_have_one_spelling_and_the_licence_that_they_declare(self, image):
        found = {one.name: (one.url, one.expression, one.licences) for one in python(image.site)}
        assert found == {
            "alpha": ("pkg:pypi/alpha@1.2", "MIT", ()),
            "beta-gamma": ("pkg:pypi/beta-gamma@2.0%2Bcpu", None, ("BSD License",)),
            "rm-abstract": ("pkg:pypi/rm-abstract@0.1.0", None, ()),
        }

    def test_that_carry_a_licences_text_for_its_name_declare_none(self, tmp_path):
        install(tmp_path, "wordy", "1", f"License: {'Permission is hereby granted ' * 9}\n")
        assert [one.licences for one in python(tmp_path)] == [()]

    def test_of_a_lock_are_its_pins(self):
        assert locked(LOCK) == {"alpha": "1.2", "beta-gamma": "2.0+cpu"}

    def test_of_a_program_of_go_are_its_modules_as_they_were_replaced(self):
        assert [(one.url, one.version) for one in go(MODULES)] == [
            ("pkg:golang/github.com/adalogics/x@v1.2.3%2Bincompatible", "v1.2.3+incompatible"),
            ("pkg:golang/github.com/b/new@v1.0.1", "v1.0.1"),
            ("pkg:golang/stdlib@1.26.1", "1.26.1"),
        ]


class TestBill:
    FOUND = (Package("pkg:pypi/b@2", "b", "2", ("A licence",)), Package("pkg:pypi/a@1", "a", "1", (), "MIT"))

    def test_is_the_same_for_the_same_packages_in_any_order(self):
        first = sbom.encode(sbom.document("r/x", "1", self.FOUND, system=("debian", "13")))
        assert first == sbom.encode(sbom.document("r/x", "1", self.FOUND[::-1], system=("debian", "13")))

    def test_has_another_number_for_another_image(self):
        bills = [
            sbom.document("r/x", "1", self.FOUND),
            sbom.document("r/y", "1", self.FOUND),
            sbom.document("r/x", "2", self.FOUND),
            sbom.document("r/x", "1", self.FOUND[:1]),
        ]
        assert len({bill["serialNumber"] for bill in bills}) == 4

    def test_refers_only_to_what_it_lists_and_to_each_once(self):
        bill = sbom.document("r/x", "1", self.FOUND, system=("debian", "13"))
        listed = [bill["metadata"]["component"], *bill["components"]]
        references = [one["bom-ref"] for one in listed]
        assert len(set(references)) == len(references) == 4
        (edges,) = bill["dependencies"]
        assert [edges["ref"], *edges["dependsOn"]] == references

    def test_tells_names_of_licences_from_expressions(self):
        licences = [one["licenses"] for one in sbom.document("r/x", "1", self.FOUND)["components"]]
        assert licences == [[{"expression": "MIT"}], [{"license": {"name": "A licence"}}]]

    @pytest.mark.parametrize(
        "bill",
        [
            sbom.encode(sbom.document("r/x", "1", FOUND, system=("debian", "13"))),
            sbom.encode(sbom.document("r/x", "1", [], system=("debian", ""))),
            sbom.of_program("r/x", "1", MODULES),
        ],
        ids=["Debian and Python", "nothing", "Go"],
    )
    def test_keeps_to_the_published_schema(self, bill):
        assert SCHEMA.validate_str(bill.decode()) is None
        # That it is looked at closely: the schema has no such key.
        assert SCHEMA.validate_str(json.dumps(json.loads(bill) | {"time": 1})) is not None

    def test_of_a_program_lists_its_modules_and_gos_library(self, capsys, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO(MODULES))
        assert sbom.main(["--program-of", "rm-abstract/x"]) == 0
        bill = json.loads(capsys.readouterr().out)
        assert bill["metadata"]["component"]["name"] == "rm-abstract/x"
        assert sbom.versions(bill)["pkg:golang/stdlib"] == "1.26.1"
        monkeypatch.setattr("sys.stdin", io.StringIO("could not read Go build info\n"))
        assert sbom.main(["--program-of", "rm-abstract/x"]) == 1
        assert "names no module" in capsys.readouterr().err

    def test_is_not_written_for_an_image_that_says_nothing_of_itself(self, image, capsys):
        image.places.description.unlink()
        assert sbom.main(["--root", str(image.places.root)]) == 1
        assert "is missing: the Dockerfile is to copy" in capsys.readouterr().err

    def test_is_not_written_over_another_system_than_debian(self, image, capsys):
        (image.places.root / packages.DPKG_STATUS).unlink()
        assert sbom.main(["--root", str(image.places.root)]) == 1
        assert "the base is to be a Debian" in capsys.readouterr().err

    def test_lists_the_systems_packages_and_those_of_this_environment(self, image):
        assert sbom.main(["--root", str(image.places.root)]) == 0
        listed = sbom.versions(json.loads(image.places.bill.read_text()))
        assert listed["pkg:deb/debian/ca-certificates?arch=all&distro=debian-13"] == "1:20250419+deb13u1~x"
        assert listed["pkg:pypi/rm-abstract"] == "0.1.0"


class TestExamination:
    def test_of_a_whole_image_finds_no_problem(self, image):
        assert image.problems() == {}
        assert {one.check for one in examine(image.places)} >= {
            "user",
            "packages",
            "bill of materials",
            "HOME",
            "cache",
        }

    def test_names_a_package_of_another_version_than_the_lock_has(self, image):
        (image.site / "alpha-1.2.dist-info").rename(image.site / "alpha-1.3.dist-info")
        install(image.site, "alpha", "1.3")
        assert image.problems()["packages"] == "differ from the lock: alpha is 1.3, not 1.2"

    def test_names_a_package_that_nobody_locked_and_the_bill_lacks(self, image):
        install(image.site, "stowaway", "6")
        assert image.problems() == {
            "packages": "differ from the lock: stowaway 6 is extra",
            "bill of materials": "is not about what is installed: pkg:pypi/stowaway 6 is missing",
        }

    def test_names_a_package_that_is_missing(self, image):
        (image.site / "alpha-1.2.dist-info/METADATA").unlink()
        (image.site / "alpha-1.2.dist-info").rmdir()
        image.list()
        assert image.problems() == {"packages": "differ from the lock: alpha 1.2 is missing"}

    def test_names_what_was_installed_by_dpkg_after_the_bill_was_made(self, image):
        status = image.places.root / packages.DPKG_STATUS
        status.write_text(STATUS.replace("14.2.0-19", "14.3.0-1"))
        assert (
            "libstdc%2B%2B6?arch=amd64&distro=debian-13 is 14.2.0-19, not 14.3.0-1"
            in (image.problems()["bill of materials"])
        )

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"components":[{"purl":"pkg:pypi/x@1"}]}'])
    def test_refuses_a_bill_that_is_none(self, image, text):
        image.places.bill.write_text(text)
        assert "is no CycloneDX document" in image.problems()["bill of materials"]

    def test_needs_the_bill_and_the_lock(self, image):
        image.places.bill.unlink()
        (image.places.environment / "requirements.txt").unlink()
        assert image.problems().keys() == {"packages", "bill of materials"}

    def test_needs_the_description_before_all_else(self, image):
        image.describe(mayBeRoot="no")
        assert image.problems().keys() == {"image"}

    def test_imports_what_the_image_is_for(self, image, monkeypatch, tmp_path):
        write(tmp_path / "path/broken_engine.py", "raise RuntimeError('no such symbol')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "path"))
        image.describe(modules=["json", "broken_engine"], programs=["sh", "no-such-compiler"])
        problems = image.problems()
        assert problems["modules"] == "broken_engine cannot be imported: RuntimeError: no such symbol"
        assert problems["programs"].startswith("no-such-compiler not on the PATH")

    def test_keeps_what_modules_say_apart_from_what_it_says(self, image, monkeypatch, tmp_path, capsys):
        write(tmp_path / "path/talking_engine.py", "print('accelerator: cpu')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "path"))
        image.describe(modules=["talking_engine"])
        assert "modules" not in image.problems()
        assert capsys.readouterr() == ("", "accelerator: cpu\n")

    def test_names_a_place_that_cannot_be_written_to(self, image, monkeypatch):
        monkeypatch.setenv("HOME", "/proc/1")
        problems = image.problems()
        assert problems.keys() == {"HOME", "cache"}
        assert problems["HOME"].startswith("/proc/1 cannot be written to: ")

    def test_makes_no_cache_that_is_not_there(self, image, tmp_path):
        examine(image.places)
        assert not (tmp_path / ".cache").exists()
        assert os.listdir(image.places.shared_memory) == []

    @pytest.mark.parametrize(("uid", "allowed", "problem"), [(0, False, True), (0, True, False), (65532, False, False)])
    def test_lets_root_in_only_where_the_image_needs_it(self, image, monkeypatch, uid, allowed, problem):
        monkeypatch.setattr(examination.os, "geteuid", lambda: uid)
        image.describe(mayBeRoot=allowed)
        assert ("user" in image.problems()) is problem
