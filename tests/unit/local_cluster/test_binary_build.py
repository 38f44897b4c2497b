"""Building: by the real toolchain, of a module of our own making."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rm_local_cluster import LocalClusterError, build, families, paths
from rm_local_cluster.families import Family
from rm_local_cluster.logs import last_lines

GO_MOD = "module hello\n\ngo 1.26.0\n\nrequire example.org/lib v1.2.3\n\nreplace example.org/lib => ./lib\n"
# The smallest thing that a Go toolchain can be asked for: no imports, but of a module that is pinned.
SOURCE = (
    'package main\n\nimport "example.org/lib"\n\nvar version = "none"\n\nfunc main() { print(lib.Name, version) }\n'
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compile cache with Go's runtime in it, which takes longer to compile than all else here."""
    root = tmp_path_factory.mktemp("compiled")
    (root / "go.mod").write_text("module warm\n\ngo 1.26.0\n")
    (root / "main.go").write_text("package main\n\nfunc main() {}\n")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(root / "cache")}
    argv = [str(build.go_command()), "build", *families.COMPILE_FLAGS, "-ldflags=-s -w", "-o", "/dev/null", "."]
    subprocess.run(argv, cwd=root, env=environment, check=True)
    return root / "cache"


def resume(compiled: Path) -> None:
    """Leave a compile cache where a build that was interrupted leaves it."""
    shutil.copytree(compiled, paths.binaries_root() / ".gocache", copy_function=os.link)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(families, "MODULES", tmp_path / "go")
    files = {
        "kubernetes/go.mod": "module kubernetes\n\nrequire k8s.io/kubernetes v1.36.1\n",
        "hello/go.mod": GO_MOD,
        "hello/main.go": SOURCE,
        "hello/lib/go.mod": "module example.org/lib\n",
        "hello/lib/lib.go": 'package lib\n\nconst Name = "hello "\n',
    }
    for name, content in files.items():
        path = tmp_path / "go" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "go" / "hello"


def family() -> Family:
    return Family("hello", "hello", {"hello": "."}, "example.org/lib", {"main.version": "{version}"})


def toolchain() -> str:
    go = build.go_command()
    assert go is not None
    return build.go_version(go)


def test_a_binary_is_built_with_its_version_once_and_again_when_its_source_changes(
    module: Path, compiled: Path
) -> None:
    said: list[str] = []
    resume(compiled)
    assert not build.are_built([family()], toolchain())
    first = build.ensure([family()], said.append)["hello"]
    assert subprocess.run([first], capture_output=True, check=True).stderr == b"hello v1.2.3"
    assert first.is_relative_to(paths.binaries_root())
    assert said[0].startswith("building hello v1.2.3 (1 of 1)")
    assert said[-1].startswith("built hello v1.2.3 (1 of 1) in")
    assert build.are_built([family()], toolchain())

    said.clear()
    before = first.stat().st_mtime_ns
    assert build.ensure([family()], said.append) == {"hello": first}
    assert (said, first.stat().st_mtime_ns) == ([], before)

    (module / "lib" / "lib.go").write_text('package lib\n\nconst Name = "bye "\n')
    resume(compiled)
    second = build.ensure([family()], said.append)["hello"]
    assert subprocess.run([second], capture_output=True, check=True).stderr == b"bye v1.2.3"
    assert first.exists(), "the build before is kept for a checkout that still uses it"
    assert sorted(path.name for path in paths.binaries_root().iterdir()) == sorted(
        [".lock", first.parent.name, second.parent.name]
    ), "neither compile cache nor drafts stay"


def test_source_that_does_not_compile_is_an_error_with_the_compilers_words(module: Path, compiled: Path) -> None:
    resume(compiled)
    (module / "main.go").write_text(SOURCE.replace("lib.Name", "lib.Nothing"))
    with pytest.raises(LocalClusterError, match=r"building hello v1\.2\.3 failed(?s:.*)undefined: lib\.Nothing"):
        build.ensure([family()], lambda _: None)
    assert not build.are_built([family()], toolchain())


@pytest.mark.parametrize("change", ["go.mod", "go.sum", "main.go", "toolchain", "flags", "package"])
def test_the_key_changes_with_whatever_the_binary_is_made_from(module: Path, change: str) -> None:
    before = build.family_key(family(), "go1.26.8")
    assert build.family_key(family(), "go1.26.8") == before
    changed, version = family(), "go1.26.8"
    if change == "toolchain":
        version = "go1.27.0"
    elif change == "flags":
        changed = Family("hello", "hello", {"hello": "."}, "example.org/lib", {"main.name": "{version}"})
    elif change == "package":
        changed = Family("hello", "hello", {"hello": "./cmd"}, "example.org/lib", {"main.version": "{version}"})
    else:
        with (module / change).open("a") as file:
            file.write("\n// more\n")
    assert build.family_key(changed, version) != before


def test_old_builds_go_but_for_the_one_before_and_those_that_a_node_uses(module: Path, compiled: Path) -> None:
    resume(compiled)
    root = paths.binaries_root()
    for age, name in enumerate(["newest", "newer", "used", "oldest"]):
        (root / f"hello-{name}").mkdir(parents=True)
        os.utime(root / f"hello-{name}", (1_000_000 - age, 1_000_000 - age))
    (root / "helloworld").mkdir()
    spec = paths.NodePaths("other").spec
    spec.parent.mkdir(parents=True)
    spec.write_text(f'{{"argv": ["{root}/hello-used/hello"]}}')
    current = build.ensure([family()], lambda _: None)["hello"].parent
    kept = {path.name for path in root.iterdir() if path.is_dir()}
    assert kept == {current.name, "hello-newest", "hello-used", "helloworld"}


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", ["go1.25.4", "go1.9", "devel", ""])
def test_a_toolchain_that_is_too_old_or_tells_no_version_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(LocalClusterError, match=r"need Go 1\.26 or newer"):
        build.go_version(script(tmp_path / "go", f"echo {version}"))


@pytest.mark.parametrize("version", ["go1.26", "go1.26.8", "go1.27rc1", "go2.0.1", "go1.26.8-X:nocoverageredesign"])
def test_a_toolchain_that_is_new_enough_is_taken(tmp_path: Path, version: str) -> None:
    assert build.go_version(script(tmp_path / "go", f"echo {version}")) == version


def test_a_toolchain_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="does not run"):
        build.go_version(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("written", "count", "shown"),
    [
        ("a\nb\nc\n", 2, "b\nc"),
        ("a\n", 5, "a"),
        ("", 5, "(nothing)"),
        ("a\npanic: no disk\n\ngoroutine 1\n" + "frame\n" * 50, 3, "panic: no disk\n\ngoroutine 1"),
        ("x" * 200_000 + "\nlast\n", 1, "last"),
    ],
)
def test_the_end_of_a_log_is_its_last_lines_or_the_reason_of_a_crash(
    tmp_path: Path, written: str, count: int, shown: str
) -> None:
    (tmp_path / "log").write_text(written)
    assert last_lines(tmp_path / "log", count) == shown


def test_a_log_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    assert "No such file" in last_lines(tmp_path / "log", 3)
