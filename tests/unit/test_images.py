"""What the images are made of, how they are identified, and what is done to bring them to a registry."""

import fcntl
import os
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rm_local_cluster.errors import LocalClusterError
from rm_local_cluster.images import IMAGES
from rm_local_cluster.images.base import base_key
from rm_local_cluster.images.catalogue import Image, Part, select
from rm_local_cluster.images.keys import image_tag, wheel_digest
from rm_local_cluster.images.locks import SOURCES
from rm_local_cluster.images.parts import Made, checkout, file_digests, write_context
from rm_local_cluster.images.plan import Action, outdated, plan, speaks_plain_http
from rm_local_cluster.images.process import duration, run_logged
from rm_local_cluster.images.settings import apt_configuration, certificate_bundle, pip_configuration

ROOT = Path(__file__).parents[2]
OPERATOR = IMAGES["operator"]
INPUTS = (OPERATOR.dockerfile, *OPERATOR.files)
LAUNCHER = IMAGES["launcher"]
PYTHON_IMAGES = [image for image in IMAGES.values() if image.part is Part.WHEEL]


def tag(image: Image = OPERATOR, **changes: object) -> str:
    given = {
        "files": {name: f"digest of {name}" for name in (image.dockerfile, *image.files)},
        "part": "p",
        "base": "b",
        "epoch": 0,
        "architecture": "amd64",
    }
    return image_tag(image, **(given | changes))


class TestTag:
    def test_is_a_short_digest_that_a_registry_takes(self):
        assert re.fullmatch(r"[0-9a-f]{16}", tag())
        assert tag() == tag()

    @pytest.mark.parametrize(
        "change",
        [
            {"part": "another wheel"},
            {"base": "another base"},
            {"architecture": "arm64"},
            {"epoch": 1},
            *(
                {"files": {name: "changed" if name == changed else f"digest of {name}" for name in INPUTS}}
                for changed in INPUTS
            ),
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_changes_with_everything_that_goes_into_the_image(self, change):
        assert tag(**change) != tag()

    def test_differs_between_images_of_the_same_content(self):
        twins = [Image(name, Part.LAUNCHER) for name in ("one", "two")]
        assert len({tag(image) for image in twins}) == 2

    def test_ignores_the_base_of_an_image_that_starts_from_nothing(self):
        assert tag(LAUNCHER, base="another base") == tag(LAUNCHER)

    @pytest.mark.parametrize(
        "files", [{}, {"runtime_images/operator/Dockerfile": "d", "requirements/runtime.txt": "d"}]
    )
    def test_refuses_to_leave_an_input_out(self, files):
        with pytest.raises(ValueError, match=r"requirements/operator\.txt"):
            tag(files=files)

    def test_of_the_base_depends_on_the_architecture(self):
        assert base_key("amd64") != base_key("arm64")


class TestWheel:
    METADATA = "Metadata-Version: 2.4\nName: x\nVersion: 1\nRequires-Dist: kopf\n\n# A README\n"

    def wheel(
        self,
        directory: Path,
        *,
        code: str = "x = 1\n",
        metadata: str = METADATA,
        year: int = 2020,
        compression: int = zipfile.ZIP_STORED,
    ) -> Path:
        path = directory / f"{len(list(directory.iterdir()))}.whl"
        files = {"x/__init__.py": code, "x-1.dist-info/METADATA": metadata, "x-1.dist-info/RECORD": f"{year}"}
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), text)
        return path

    def test_of_the_same_files_has_the_same_digest_whenever_it_was_built(self, tmp_path):
        first = self.wheel(tmp_path)
        second = self.wheel(tmp_path, year=2030, compression=zipfile.ZIP_DEFLATED)
        assert wheel_digest(first) == wheel_digest(second)

    def test_is_not_changed_by_the_readme(self, tmp_path):
        changed = self.METADATA.replace("A README", "Another README")
        assert wheel_digest(self.wheel(tmp_path)) == wheel_digest(self.wheel(tmp_path, metadata=changed))

    @pytest.mark.parametrize(
        "change", [{"code": "x = 2\n"}, {"metadata": METADATA.replace("kopf", "kopf>=1")}], ids=["code", "requirements"]
    )
    def test_is_changed_by_what_runs(self, tmp_path, change):
        assert wheel_digest(self.wheel(tmp_path)) != wheel_digest(self.wheel(tmp_path, **change))


class TestSelection:
    def test_keeps_the_order_of_the_catalogue(self):
        assert [image.name for image in select(["runtime", "registry", "runtime"])] == ["registry", "runtime"]
        assert [name for name in IMAGES if IMAGES[name] not in select(None)] == ["deepspeed"]
        assert select(["deepspeed"]) == [IMAGES["deepspeed"]]

    def test_says_which_images_there_are(self):
        with pytest.raises(
            LocalClusterError, match="no image is called gateway; there are registry, launcher, operator"
        ):
            select(["operator", "gateway"])


LOCAL = "localhost/rm-abstract/operator:t"
REMOTE = "10.0.0.1:5000/rm-abstract/operator:t"


class TestPlan:
    @pytest.mark.parametrize(
        ("push", "existing", "action"),
        [
            (None, set(), Action.BUILD),
            (None, {LOCAL}, Action.KEEP),
            (None, {REMOTE}, Action.BUILD),
            ("10.0.0.1:5000", set(), Action.BUILD),
            ("10.0.0.1:5000", {LOCAL}, Action.PUSH),
            ("10.0.0.1:5000", {REMOTE}, Action.KEEP),
            ("10.0.0.1:5000", {LOCAL, REMOTE}, Action.KEEP),
            ("10.0.0.1:5000", {LOCAL + "2", REMOTE + "2"}, Action.BUILD),
        ],
    )
    def test_does_what_is_missing(self, push, existing, action):
        (job,) = plan([OPERATOR], {"operator": "t"}, push=push, existing=existing)
        assert (job.action, job.local) == (action, LOCAL)
        assert job.remote == (REMOTE if push else None)

    def test_pushes_below_a_path(self):
        (job,) = plan([OPERATOR], {"operator": "t"}, push="ghcr.io/someone/", existing=set())
        assert job.remote == "ghcr.io/someone/rm-abstract/operator:t"

    def test_removes_only_other_tags_of_what_it_was_asked_for(self):
        jobs = plan([OPERATOR], {"operator": "t"}, push=None, existing=set())
        other = "localhost/rm-abstract/runtime:old"
        assert outdated({LOCAL, "localhost/rm-abstract/operator:old", other}, jobs) == [
            "localhost/rm-abstract/operator:old"
        ]

    @pytest.mark.parametrize(
        ("registry", "plain"),
        [
            ("127.0.0.1:5000", True),
            ("localhost:5000/x", True),
            ("10.244.255.2:5000/rm-abstract/operator:t", True),
            ("[::1]:5000", True),
            ("192.168.1.2", True),
            ("8.8.8.8:5000", False),
            ("ghcr.io/someone", False),
            ("localhost.example.com", False),
            ("registry.example.com:5000", False),
        ],
    )
    def test_leaves_tls_out_only_where_no_one_is_in_between(self, registry, plain):
        assert speaks_plain_http(registry) is plain


class TestContext:
    def checkout(self, directory: Path, mode: int) -> Path:
        for name in (OPERATOR.dockerfile, *OPERATOR.files, "operator/rm_operator/secret.py"):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(mode)
        return directory

    def listing(self, directory: Path) -> dict[str, tuple[int, float]]:
        return {
            str(path.relative_to(directory)): (path.stat().st_mode & 0o777, path.stat().st_mtime)
            for path in directory.rglob("*")
        }

    def test_holds_only_what_the_image_takes_and_nothing_of_the_machine(self, tmp_path):
        found = []
        for number, mode in enumerate((0o600, 0o664)):
            root = self.checkout(tmp_path / f"checkout{number}", mode)
            wheel = root / "rm_abstract-1-py3-none-any.whl"
            wheel.write_bytes(b"wheel")
            os.utime(wheel, (number, number))
            context = tmp_path / f"context{number}"
            context.mkdir(mode=0o700)
            write_context(OPERATOR, root, Made(wheel, "d"), context)
            found.append(self.listing(context))
        assert found[0] == found[1]
        assert {name for name in found[0] if "." in name} == {
            "dist/rm_abstract-1-py3-none-any.whl",
            "requirements/operator.txt",
            "runtime_images/operator/image.json",
        }

    def test_names_a_missing_file(self, tmp_path):
        root = self.checkout(tmp_path, 0o644)
        assert file_digests(OPERATOR, root).keys() == {OPERATOR.dockerfile, *OPERATOR.files}
        (root / "requirements/operator.txt").unlink()
        with pytest.raises(LocalClusterError, match=r"requirements/operator\.txt is missing; the image operator"):
            file_digests(OPERATOR, root)

    def test_needs_a_checkout(self, tmp_path):
        with pytest.raises(LocalClusterError, match="clone the repository"):
            checkout(tmp_path / "site-packages" / "module.py")
        assert checkout(Path(__file__)) == ROOT


class TestSettings:
    FILE = "[global]\nindex-url = https://user:word@mirror.example/simple\nfind-links = /opt/wheels\ntimeout=5\n"

    def test_hand_over_the_way_to_the_index_and_nothing_else(self):
        assert pip_configuration({}, [self.FILE], certificates=True) == (
            "[global]\ncert = /run/secrets/ca.crt\nindex-url = https://user:word@mirror.example/simple\ntimeout = 5\n"
        )

    def test_of_a_machine_without_any_are_empty(self):
        assert pip_configuration({"PIP_NO_INPUT": "1"}, [], certificates=False) == "[global]\n"

    def test_prefer_variables_to_files_and_later_files_to_earlier_ones(self):
        files = [self.FILE, "[install]\ntimeout = 7\n"]
        assert "timeout = 7" in pip_configuration({}, files, certificates=False)
        chosen = pip_configuration(
            {"PIP_TIMEOUT": "9", "PIP_EXTRA_INDEX_URL": "https://a  https://b"}, files, certificates=False
        )
        assert "timeout = 9" in chosen
        assert "extra-index-url = https://a https://b" in chosen

    def test_of_apt_are_about_reaching_the_mirror(self):
        dump = (
            'APT::Architecture "amd64";\n'
            'Acquire "";\n'
            'Acquire::http::Proxy "http://proxy.example:3128";\n'
            'Acquire::https::CaInfo "/etc/ssl/mine.crt";\n'
            'Acquire::https::Verify-Peer "";\n'
            'Acquire::Check-Valid-Until "false";\n'
            'Acquire::Languages:: "none";\n'
            'Acquire::Retries "3";\n'
        )
        assert apt_configuration(dump) == (
            'Acquire::http::Proxy "http://proxy.example:3128";\n'
            'Acquire::Check-Valid-Until "false";\n'
            'Acquire::Retries "3";\n'
        )

    def test_take_the_certificates_that_pip_takes(self, tmp_path):
        ours, system = tmp_path / "ours.crt", tmp_path / "system.crt"
        system.touch()
        assert certificate_bundle({"PIP_CERT": str(ours)}, system) == system
        ours.touch()
        assert certificate_bundle({"SSL_CERT_FILE": str(ours)}, system) == ours
        assert certificate_bundle({"SSL_CERT_FILE": str(system), "PIP_CERT": str(ours)}, system) == ours
        assert certificate_bundle({}, tmp_path / "none.crt") is None


class TestCommands:
    def test_keep_their_output_in_the_log(self, tmp_path):
        log = tmp_path / "logs" / "x.log"
        run_logged(
            ["sh", "-c", "echo out; echo err >&2; echo $SEEN"], log, what="x", progress=print, environment={"SEEN": "1"}
        )
        assert log.read_text().splitlines() == ["out", "err", "1"]

    def test_that_fail_show_their_last_lines(self, tmp_path):
        argv = ["sh", "-c", "seq 100; echo no space left >&2; exit 3"]
        with pytest.raises(LocalClusterError, match="building x failed") as caught:
            run_logged(argv, tmp_path / "x.log", what="building x", progress=print)
        lines = str(caught.value).splitlines()
        assert lines[-2:] == ["100", "no space left"]
        assert "1" not in lines

    def test_hold_a_lock_that_they_inherit(self, tmp_path):
        with (tmp_path / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            argv = ["sh", "-c", f"flock --nonblock {lock.fileno()}"]
            run_logged(argv, tmp_path / "x.log", what="x", progress=print, inherit=[lock.fileno()])
            with pytest.raises(LocalClusterError):
                run_logged(argv, tmp_path / "x.log", what="x", progress=print)

    def test_that_are_missing_are_named(self, tmp_path):
        with pytest.raises(LocalClusterError, match="no-such-builder is not installed; building x needs it"):
            run_logged(["no-such-builder"], tmp_path / "x.log", what="building x", progress=print)

    @pytest.mark.parametrize(
        ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (185, "3 min 5 s")]
    )
    def test_say_times_as_people_do(self, seconds, shown):
        assert duration(seconds) == shown


def instructions(image: Image) -> list[str]:
    """The instructions of an image's Dockerfile, one string each, without comments."""
    lines = [line for line in (ROOT / image.dockerfile).read_text().splitlines() if line and not line.startswith("#")]
    return re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()


class TestDockerfiles:
    @pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: image.name)
    def test_copy_what_the_context_holds(self, image):
        part = f"{image.part}/rm_abstract-*-py3-none-any.whl" if image.part is Part.WHEEL else str(image.part)
        given = {part, *image.files, *([image.bill] if image.bill else [])}
        arguments = dict(
            match.groups() for line in instructions(image) if (match := re.match(r"ARG (\w+)=(\S+)", line))
        )
        taken = set()
        for line in instructions(image):
            if line.startswith("COPY") and "--from=" not in line:
                sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
                taken |= {re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], source) for source in sources}
        assert given <= taken
        # The rest is of a stage that is built where the program is not brought along.
        assert {name for name in taken - given if not part.startswith(f"{name}/")} == set()

    @pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: image.name)
    def test_end_as_a_user_without_rights(self, image):
        users = [line for line in instructions(image) if line.startswith("USER")]
        assert users == ["USER 65532:65532"]
        after = instructions(image)[instructions(image).index(users[0]) :]
        assert not any(line.startswith(("RUN", "COPY", "ADD", "FROM")) for line in after)

    @pytest.mark.parametrize("image", PYTHON_IMAGES, ids=lambda image: image.name)
    def test_of_python_images_share_their_first_layers(self, image):
        def shared(one: Image) -> list[str]:
            found = instructions(one)
            return found[: 1 + next(number for number, line in enumerate(found) if line.startswith("RUN"))]

        assert shared(image) == shared(OPERATOR)
        assert any("apt-get install" in line for line in shared(image))

    @pytest.mark.parametrize("image", PYTHON_IMAGES, ids=lambda image: image.name)
    def test_bring_the_project_after_everything_that_takes_long(self, image):
        found = instructions(image)
        (wheel,) = [number for number, line in enumerate(found) if line.startswith("COPY dist/")]
        later = [line for line in found[wheel + 1 :] if line.startswith(("RUN", "COPY", "ADD"))]
        assert len(later) == 1
        assert "--no-index" in later[0]

    @pytest.mark.parametrize("image", PYTHON_IMAGES, ids=lambda image: image.name)
    def test_reach_a_network_only_with_the_machines_settings(self, image):
        for line in instructions(image):
            if "apt-get" in line:
                assert "--mount=type=secret,id=apt.conf" in line
            if "--require-hashes" in line:
                assert "--mount=type=secret,id=pip.conf" in line
                assert "--mount=type=secret,id=ca.crt" in line


def locked(name: str) -> dict[str, str]:
    """The versions that a lock file pins, by canonical name."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pins}


class TestLocks:
    def test_are_there_for_every_image_with_python(self):
        assert [image.name for image in PYTHON_IMAGES] == list(SOURCES)

    @pytest.mark.parametrize("name", SOURCES)
    def test_hold_digests_and_name_no_host(self, name):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert "://" not in text
        entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
        assert entries
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []

    @pytest.mark.parametrize("name", SOURCES)
    def test_fit_what_the_project_asks_for(self, name):
        extras, files = SOURCES[name]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = [
            *project["dependencies"],
            *(line for extra in extras for line in project["optional-dependencies"][extra]),
        ]
        for file in files:
            lines = (ROOT / "requirements" / file).read_text().splitlines()
            wanted += [line for line in lines if line and not line.startswith("#")]
        pins = locked(name)
        for requirement in map(Requirement, wanted):
            pinned = pins.get(canonicalize_name(requirement.name))
            assert pinned is not None, f"{requirement} is not in requirements/{name}.txt; run `make lock`"
            assert requirement.specifier.contains(pinned), f"{requirement}, but {pinned} is locked; run `make lock`"

    def test_leave_out_what_must_not_be_installed(self):
        forbidden = {"torch", "torchvision", "openvino-telemetry"}
        assert forbidden.isdisjoint(locked("openvino-compiler"))
        assert forbidden.isdisjoint(locked("openvino"))

    def test_compile_for_the_openvino_that_serves(self):
        packages = ("openvino", "openvino-tokenizers")
        assert [locked("openvino")[one] for one in packages] == [locked("openvino-compiler")[one] for one in packages]
