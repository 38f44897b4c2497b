"""The index of community plugins: whom to believe, what to find, and what exactly is installed."""

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from plugin_support import threads
from rm_abstract.core.community_index import (
    SeenVersions,
    UntrustedIndex,
    key_id,
    load_private_key,
    load_public_key,
    open_index,
    parse_index,
    sign,
    verify,
)
from rm_abstract.core.community_install import install, requirements
from rm_abstract.core.errors import ArtifactMismatch, BadInput, ToolchainFailure
from rm_abstract.core.versions import VersionInfo
from rm_cli.main import main
from sdk_support import WebServer

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HASH = "sha256:" + "0" * 64
PLUGIN = '''
from rm_abstract.core.plugin import Plugin, PluginMetadata

class HallPlugin(Plugin):
    """Answers from afar."""

    @classmethod
    def metadata(cls):
        return PluginMetadata("hall", "Hall", "1.2.0", device_types=("npu",))

    def is_available(self):
        return True

    def prepare_resource(self, resource, config=None):
        return resource

    def execute(self, resource, inputs, **kwargs):
        return f"{inputs} ... {inputs}"
'''


def wheel(directory: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    """A wheel, which is a zip file with metadata and a list of hashes."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{member},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        f"{len(text.encode())}"
        for member, text in members.items()
    ]
    path = directory / f"{name}-{version}-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**members, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,", ""])}.items():
            archive.writestr(member, text)
    return path


def digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def release(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {"version": version, "requirements": [{"name": "x", "version": version, "hashes": [HASH]}], **more}


def document(**more: Any) -> dict[str, Any]:
    plugins = [
        {"name": "hall", "summary": "An echo from afar", "vendor": "Acme", "device_types": ["npu"],
         "releases": [release("1.0.0"), release("1.10.0"), release("1.9.0")]},
        {"name": "attic", "summary": "Stores things", "device_types": ["pim"], "releases": []},
    ]  # fmt: skip
    return {"schema": 1, "name": "test", "version": 3, "expires": "2030-06-01T00:00:00Z", "plugins": plugins, **more}


def encoded(**more: Any) -> bytes:
    return json.dumps(document(**more)).encode()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def seen(tmp_path: Path) -> SeenVersions:
    return SeenVersions(tmp_path / "state/seen.json")


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, key: Ed25519PrivateKey) -> Publish:
    """Writes a signed index."""

    def write(**more: Any) -> Path:
        path = tmp_path / "index.json"
        path.write_bytes(sign(encoded(**more), [key]))
        return path

    return write


def test_a_signed_index_is_read(publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions) -> None:
    index = open_index(publish(), [key.public_key()], seen=seen, now=NOW)
    assert (index.name, index.version, [plugin.name for plugin in index.plugins]) == ("test", 3, ["hall", "attic"])
    assert [str(one.version) for one in index.plugin("hall").releases] == ["1.10.0", "1.9.0", "1.0.0"]
    with pytest.raises(BadInput, match="has no plugin cellar; it has attic, hall"):
        index.plugin("cellar")


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ["attic", "hall"]), ("ECHO", ["hall"]), ("npu acme", ["hall"]), ("npu pim", []), ("things", ["attic"])],
)
def test_a_search_looks_for_every_word(text: str, found: list[str]) -> None:
    assert [plugin.name for plugin in parse_index(encoded()).search(text)] == found


def altered(envelope: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    raw = json.loads(envelope)
    change(raw)
    return json.dumps(raw).encode()


def _payload(raw: dict[str, Any]) -> None:
    raw["payload"] = base64.b64encode(base64.b64decode(raw["payload"]).replace(b"1.9.0", b"1.9.1")).decode()


def _signature(raw: dict[str, Any]) -> None:
    raw["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_payload, "was changed after key"),
        (_signature, "was changed after key"),
        (lambda raw: raw["signatures"].clear(), "signed by 0 of the trusted keys .*it is signed by nobody"),
        (lambda raw: raw["signatures"][0].update(keyid="other"), "signed by 0 of .*it is signed by other"),
        (lambda raw: raw.update(payloadType="application/json"), "no signed index"),
        (lambda raw: raw.update(payload="no base64!"), "no signed index"),
        (lambda raw: raw.pop("payload"), "no signed index"),
        (lambda raw: raw.update(signatures={}), "no signed index"),
        (lambda raw: raw["signatures"][0].pop("sig"), "no signed index"),
    ],
)
def test_what_was_changed_is_not_believed(
    publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = publish()
    path.write_bytes(altered(path.read_bytes(), change))
    with pytest.raises(UntrustedIndex, match=message):
        open_index(path, [key.public_key()], seen=seen, now=NOW)
    assert not seen.path.exists(), "an index that is not believed is not remembered either"


def test_an_index_of_somebody_else_is_not_believed(publish: Publish, seen: SeenVersions) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(UntrustedIndex, match=f"signed by 0 of the trusted keys \\({key_id(other)}\\)"):
        open_index(publish(), [other], seen=seen, now=NOW)
    with pytest.raises(UntrustedIndex, match="no signed index"):
        verify(encoded(), [other])


def test_several_keys_and_how_many_must_have_signed() -> None:
    one, two, three = (Ed25519PrivateKey.generate() for _ in range(3))
    trusted = [key.public_key() for key in (one, two, three)]
    by_one = sign(encoded(), [one])
    by_two = sign(by_one, [two])
    assert verify(by_one, trusted, 1) == verify(by_two, trusted, 2) == encoded()
    with pytest.raises(UntrustedIndex, match=r"signed by 1 of the trusted keys .*but 2 must"):
        verify(sign(by_one, [one]), trusted, 2)
    with pytest.raises(BadInput, match="2 signatures are wanted, but 1 different keys"):
        verify(by_two, [trusted[0], trusted[0]], 2)
    assert len(json.loads(by_two)["signatures"]) == 2
    twice = altered(by_one, lambda raw: raw["signatures"].extend(raw["signatures"]))
    with pytest.raises(UntrustedIndex, match="signed by 1 of the trusted keys"):
        verify(twice, trusted, 2)


def test_an_index_is_good_until_it_expires(publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions) -> None:
    expires = datetime(2030, 6, 1, tzinfo=UTC)
    keys = [key.public_key()]
    assert open_index(publish(), keys, seen=seen, now=expires - timedelta(seconds=1)).expires == expires
    with pytest.raises(UntrustedIndex, match="has expired at 2030-06-01"):
        open_index(publish(), keys, seen=seen, now=expires)
    with pytest.raises(UntrustedIndex, match="has expired at 2000"):
        open_index(publish(version=4, expires="2000-01-01T00:00:00+02:00"), keys, seen=seen)


def test_an_old_index_does_not_come_back(publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions) -> None:
    keys = [key.public_key()]

    def read(**more: Any) -> int:
        return open_index(publish(**more), keys, seen=SeenVersions(seen.path), now=NOW).version

    assert [read(version=3), read(version=3), read(version=5)] == [3, 3, 5]
    with pytest.raises(UntrustedIndex, match="version 4, but version 5 was seen before"):
        read(version=4)
    with pytest.raises(UntrustedIndex, match="two different indexes of version 5"):
        read(version=5, plugins=[])
    assert read(name="another", version=1) == 1, "each index counts for itself"
    assert read(version=6) == 6


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"x": {"version": "1", "digest": ""}}'])
def test_where_the_memory_is_damaged_nothing_is_believed(
    publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions, content: str
) -> None:
    seen.path.parent.mkdir()
    seen.path.write_text(content)
    with pytest.raises(BadInput, match=r"seen.json, which protects from old indexes, is damaged"):
        open_index(publish(), [key.public_key()], seen=seen, now=NOW)


def test_where_nothing_can_be_remembered_nothing_is_believed(
    publish: Publish, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be used"):
        open_index(publish(), [key.public_key()], seen=SeenVersions(tmp_path / "file/seen.json"), now=NOW)


def test_readers_at_the_same_time_remember_the_newest(seen: SeenVersions) -> None:
    refused = []

    def read(version: int) -> None:
        try:
            SeenVersions(seen.path).check("one", version, str(version))
        except UntrustedIndex:
            refused.append(version)

    with threads() as start:
        for done in [start(read, version) for version in range(1, 25)]:
            done.result()
    assert json.loads(seen.path.read_text())["one"]["version"] == 24
    assert 24 not in refused


def with_release(**more: Any) -> dict[str, Any]:
    return {"plugins": [{"name": "hall", "summary": "s", "releases": [release(**more)]}]}


def with_requirement(**more: Any) -> dict[str, Any]:
    return with_release(requirements=[{"name": "x", "version": "1", "hashes": [HASH], **more}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, which this version does not know"),
        ({"version": 0}, "version 0, but must have a whole number"),
        ({"version": True}, "version True"),
        ({"name": ""}, "the index: name is ''"),
        ({"expires": "soon"}, "expires: Invalid isoformat"),
        ({"expires": "2030-01-01T00:00:00"}, "expires has no time zone"),
        ({"plugins": {}}, "plugins is no list"),
        ({"plugins": ["hall"]}, "plugin 0 is no object"),
        ({"plugins": [{"name": "a b", "summary": "s"}]}, "plugin 0: name is 'a b'"),
        ({"plugins": [{"name": "a"}]}, "plugin a: summary is None"),
        ({"plugins": [{"name": "a", "summary": "s"}] * 2}, "names a plugin twice: a"),
        (with_release(version="1"), "'1' is no version"),
        (with_release(requirements=[]), "release 0 has no requirements"),
        (with_release(requires_python="3 or so"), "release 0: '3 or so'"),
        (with_release(min_host_version="new"), "release 0: 'new' is no version"),
        (with_requirement(hashes=[]), "at least one sha256"),
        (with_requirement(hashes=["md5:00"]), "at least one sha256"),
        (with_requirement(hashes=[HASH + " --trusted-host evil"]), "at least one sha256"),
        (with_requirement(name="x --pre"), "requirement 0: name is"),
        (with_requirement(name="x\n--index-url=https://evil"), "requirement 0: name is"),
        (with_requirement(version="1 ; y"), "requirement 0: version is"),
        (with_requirement(url="http://host/x.whl"), "must be a path relative to the index, or begin with https"),
        (with_requirement(url="https://host/x.whl --pre"), "must be a path relative"),
    ],
)
def test_what_is_no_index_is_neither_read_nor_signed(
    key: Ed25519PrivateKey, change: dict[str, Any], message: str
) -> None:
    for attempt in (lambda: parse_index(encoded(**change)), lambda: sign(encoded(**change), [key])):
        with pytest.raises(BadInput, match=message):
            attempt()


@pytest.mark.parametrize(
    ("releases", "versions", "chosen"),
    [
        ([release("1.0.0"), release("1.10.0"), release("1.9.0")], "", "1.10.0"),
        ([release("1.0.0"), release("1.10.0"), release("1.9.0")], "<1.10", "1.9.0"),
        ([release("1.0.0"), release("2.0.0-rc.1")], "", "1.0.0"),
        ([release("1.0.0"), release("2.0.0-rc.1")], "2.0.0-rc.1", "2.0.0-rc.1"),
        ([release("1.0.0"), release("2.0.0", min_host_version="99.0.0")], "", "1.0.0"),
        ([release("1.0.0"), release("2.0.0", requires_python=">=99")], "", "1.0.0"),
        ([release("1.0.0"), release("2.0.0", withdrawn="it eats weights")], "", "1.0.0"),
        ([release("1.0.0")], "^2", BadInput(r"hall has no release in ^2; there are 1.0.0")),
        ([release("2.0.0", withdrawn="it eats weights")], "", BadInput("hall 2.0.0 was withdrawn: it eats weights")),
        ([release("2.0.0", min_host_version="99.0.0")], "", BadInput("needs RM Abstract 99.0.0 or newer")),
        ([release("2.0.0", requires_python=">=99")], "", BadInput("hall 2.0.0 needs Python >=99")),
    ],
)
def test_the_newest_release_that_works_here_is_chosen(
    releases: list[dict[str, Any]], versions: str, chosen: str | BadInput
) -> None:
    plugin = parse_index(encoded(plugins=[{"name": "hall", "summary": "s", "releases": releases}])).plugin("hall")
    if isinstance(chosen, BadInput):
        with pytest.raises(BadInput) as raised:
            plugin.choose(versions)
        assert str(chosen) in str(raised.value)
    else:
        assert str(plugin.choose(versions).version) == chosen


def test_places_of_files_are_relative_to_the_index(tmp_path: Path) -> None:
    index = parse_index(encoded(), "https://plugins.example/v1/index.json")
    assert index.url("wheels/x.whl") == "https://plugins.example/v1/wheels/x.whl"
    assert index.url("https://other.example/x.whl") == "https://other.example/x.whl"
    with pytest.raises(UntrustedIndex, match="names a file of it"):
        index.url("file:///etc/shadow")
    local = parse_index(encoded(), str(tmp_path / "index.json"))
    assert local.url("wheels/x.whl") == (tmp_path / "wheels/x.whl").as_uri()


def test_an_index_comes_over_http(
    web: WebServer, publish: Publish, key: Ed25519PrivateKey, seen: SeenVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.serve_directory(publish().parent)
    index = open_index(f"http://{web.host}/index.json", [key.public_key()], seen=seen, now=NOW)
    assert index.version == 3
    monkeypatch.delenv("RMA_PLAIN_HTTP_HOSTS")
    with pytest.raises(BadInput, match="without TLS"):
        open_index(f"http://{web.host}/index.json", [key.public_key()], seen=seen, now=NOW)


def test_keys_are_ed25519_in_pem(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(key))
    assert load_private_key(path).private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(BadInput, match="no public Ed25519 key"):
        load_public_key(path)
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----\n"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="no public Ed25519 key in PEM; openssl genpkey"):
            load_public_key(path)
    with pytest.raises(BadInput, match="cannot be read"):
        load_public_key(tmp_path / "none.pem")


def pem(key: Ed25519PrivateKey, *, public: bool = False) -> bytes:
    if public:
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Any]:
    """An index with one plugin, whose wheel needs another one; nothing is signed yet."""
    helper = wheel(tmp_path / "wheels", "hall_helper", "0.3", {"hall_helper.py": "FACTOR = 2\n"})
    entry = "[rm_abstract.plugins]\nruntime.hall = hall_plugin:HallPlugin\n"
    plugin = wheel(
        tmp_path / "wheels", "hall_plugin", "1.2.0",
        {"hall_plugin.py": PLUGIN, "hall_plugin-1.2.0.dist-info/entry_points.txt": entry}, ("hall_helper>=0.3",),
    )  # fmt: skip
    pinned = [
        {"name": name, "version": version, "url": f"wheels/{path.name}", "hashes": [digest(path)]}
        for name, version, path in (("hall_plugin", "1.2.0", plugin), ("hall_helper", "0.3", helper))
    ]
    expires = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    releases = [release("1.2.0", requirements=pinned), release("2.0.0", min_host_version="99.0.0")]
    about = {"name": "hall", "summary": "An echo from afar", "vendor": "Acme", "device_types": ["npu"]}
    return document(version=1, expires=expires, plugins=[{**about, "releases": releases}])


class Shopper:
    """Runs the commands as a person would, with keys and files of their own."""

    def __init__(self, home: Path, shop: dict[str, Any]) -> None:
        self.home, self.shop, self.key = home, shop, Ed25519PrivateKey.generate()
        (home / "private.pem").write_bytes(pem(self.key))
        (home / "public.pem").write_bytes(pem(self.key, public=True))
        self.environment = {
            "RM_PLUGIN_INDEX": str(home / "index.json"),
            "RM_PLUGIN_INDEX_KEYS": str(home / "public.pem"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["plugins", *arguments], env=self.environment)

    def sign(self) -> Result:
        (self.home / "index.src.json").write_text(json.dumps(self.shop))
        paths = [str(self.home / name) for name in ("index.src.json", "private.pem", "index.json")]
        return self.run("sign-index", paths[0], "--key", paths[1], "--out", paths[2])


@pytest.fixture
def shopper(tmp_path: Path, shop: dict[str, Any]) -> Shopper:
    return Shopper(tmp_path, shop)


def test_from_signing_to_a_plugin_that_runs(shopper: Shopper) -> None:
    signed = shopper.sign()
    assert signed.exit_code == 0, signed.output
    assert signed.output.endswith(f"is signed by {key_id(shopper.key.public_key())}\n")
    found = shopper.run("search", "echo")
    assert found.output.split() == ["hall", "2.0.0", "npu", "An", "echo", "from", "afar"]
    shown = shopper.run("show", "hall").output
    assert "2.0.0     plugin hall 2.0.0 needs RM Abstract 99.0.0 or newer" in shown
    assert "1.2.0     can be installed" in shown
    target = shopper.home / "site"
    done = shopper.run("install", "hall", "--target", str(target))
    assert (done.exit_code, done.output) == (0, "hall 1.2.0 is installed\n"), done.output
    code = (
        "from rm_abstract import get_registry\n"
        "plugin = get_registry().auto_select('hall')\n"
        "print(plugin.execute(plugin.prepare_resource('m'), 'hello'), plugin.metadata().version)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "hello ... hello 1.2.0\n"


def test_a_file_that_is_not_the_signed_one_is_not_installed(shopper: Shopper) -> None:
    shopper.sign()
    bad = wheel(shopper.home / "wheels", "hall_helper", "0.3", {"hall_helper.py": "FACTOR = 666\n"})
    target = shopper.home / "site"
    done = shopper.run("install", "hall", "--target", str(target))
    assert done.exit_code == ArtifactMismatch.code
    assert f"{bad} is not the file that was signed: it has {digest(bad)}" in done.output
    assert not target.exists()


def test_pip_itself_refuses_a_file_that_is_not_the_signed_one(
    shopper: Shopper, web: WebServer, seen: SeenVersions, tmp_path: Path
) -> None:
    shopper.sign()
    web.serve_directory(shopper.home)
    index = open_index(f"http://{web.host}/index.json", [shopper.key.public_key()], seen=seen)
    wheel(shopper.home / "wheels", "hall_plugin", "1.2.0", {"hall_plugin.py": PLUGIN.replace("...", "!!!")})
    with pytest.raises(ArtifactMismatch, match="is not the one that was signed; pip says: DO NOT MATCH THE HASHES"):
        install(index, "hall", target=tmp_path / "site", options=["--no-deps", "--no-cache-dir"])
    assert not (tmp_path / "site").exists()


def test_what_the_index_does_not_name_is_not_installed(shopper: Shopper) -> None:
    del shopper.shop["plugins"][0]["releases"][0]["requirements"][1]
    shopper.sign()
    done = CliRunner().invoke(
        main, ["plugins", "install", "hall", "--target", str(shopper.home / "site")],
        env={**shopper.environment, "PIP_NO_INDEX": "1"},
    )  # fmt: skip
    assert done.exit_code == ToolchainFailure.code
    assert "pip cannot install hall 1.2.0" in done.output
    assert not (shopper.home / "site").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("install", "cellar"), 64, "has no plugin cellar; it has hall"),
        (("install", "hall", "--version", "^3"), 64, "hall has no release in ^3"),
        (("install", "hall", "--version", "2.0.0"), 64, "needs RM Abstract 99.0.0"),
        (("install", "hall", "--python", "/no/such/python"), 64, "/no/such/python cannot be run"),
        (("show", "cellar"), 64, "has no plugin cellar"),
        (("search", "--key", "/no/such.pem"), 64, "/no/such.pem cannot be read"),
        (("search", "--threshold", "2"), 64, "2 signatures are wanted"),
    ],
)
def test_commands_that_cannot_be_done_say_why(
    shopper: Shopper, arguments: tuple[str, ...], code: int, message: str
) -> None:
    shopper.sign()
    done = shopper.run(*arguments)
    assert done.exit_code == code
    assert message in done.output


def test_an_old_or_unsigned_index_installs_nothing(shopper: Shopper) -> None:
    assert shopper.run("search").exit_code == 64, "there is none"
    shopper.shop["version"] = 2
    shopper.sign()
    assert shopper.run("search").exit_code == 0
    shopper.shop["version"] = 1
    shopper.sign()
    done = shopper.run("install", "hall", "--target", str(shopper.home / "site"))
    assert (done.exit_code, "somebody offers an old one" in done.output) == (64, True)
    (shopper.home / "index.json").write_text(json.dumps(shopper.shop))
    done = shopper.run("install", "hall", "--target", str(shopper.home / "site"))
    assert (done.exit_code, "no signed index" in done.output) == (64, True)
    assert not (shopper.home / "site").exists()
    done = CliRunner().invoke(main, ["plugins", "search"], env={})
    assert "--index" in done.output


def test_what_cannot_be_signed_leaves_the_old_index(shopper: Shopper) -> None:
    shopper.sign()
    before = (shopper.home / "index.json").read_bytes()
    shopper.shop["plugins"][0]["releases"][0]["requirements"][0]["hashes"] = []
    assert shopper.sign().exit_code == 64
    assert (shopper.home / "index.json").read_bytes() == before


def test_a_distribution_of_pips_own_index_is_pinned_too() -> None:
    index = parse_index(encoded())
    chosen = index.plugin("hall").choose()
    assert chosen.version == VersionInfo(1, 10)
    assert requirements(index, chosen) == f"x==1.10.0 --hash={HASH}\n"
    twice = replace(chosen.requirements[0], hashes=(HASH, HASH.replace("0", "1")))
    assert requirements(index, replace(chosen, requirements=(twice,))).count("--hash=sha256:") == 2


def test_the_installed_plugins_are_listed() -> None:
    done = CliRunner().invoke(main, ["plugins", "list"])
    assert done.exit_code == 0
    assert {"openvino", "simulated-npu"} <= {line.split()[0] for line in done.output.splitlines()}
    raw = json.loads(CliRunner().invoke(main, ["plugins", "list", "-o", "json"]).output)
    assert raw["simulated-npu"]["device_types"] == ["npu"]
    only = json.loads(CliRunner().invoke(main, ["plugins", "list", "-o", "json", "--available"]).output)
    assert all(about["available"] for about in only.values())
