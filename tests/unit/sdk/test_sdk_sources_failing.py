"""Downloads that go wrong on the way: broken off, replaced, redirected, and volumes that are too small."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from rm_abstract.core.errors import BadInput, SourceUnreachable, Transient
from rm_abstract.http import Changed, Http
from rm_abstract.s3 import S3, Account
from rm_abstract.sources import fetch_model, open_source, resolve_model
from sdk_support import Answer, Request, WebServer, ranged

WHOLE, OTHER = bytes(range(256)) * 40, bytes(reversed(range(256))) * 40


def download(web: WebServer) -> bytes:
    with closing(Http()) as http:
        return b"".join(http.download(f"http://{web.host}/file"))


def fetched(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_a_download_that_breaks_off_is_gone_on_with_and_names_what_it_goes_on_with(web: WebServer) -> None:
    def answer(request: Request) -> Answer:
        found = ranged(request, WHOLE, {"ETag": '"one"'})
        found.cut = 3000 if len(found.body) > 3000 else None
        return found

    web.answer = answer
    assert download(web) == WHOLE
    assert len(web.requests) > 2
    assert {request.headers.get("if-range") for request in web.requests[1:]} == {'"one"'}


@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "without ranges"])
def test_pieces_of_two_files_are_never_joined(web: WebServer, ranges: bool) -> None:
    def answer(request: Request) -> Answer:
        if len(web.requests) == 1:
            return Answer(200, WHOLE, {"ETag": '"one"'}, cut=3000)
        # As of a server that ignores If-Range, or that obeys it and gives the whole of the other file.
        return ranged(request, OTHER, {"ETag": '"two"'}) if ranges else Answer(200, OTHER, {"ETag": '"two"'})

    web.answer = answer
    with pytest.raises(Changed, match="since the download began"):
        download(web)


def test_a_server_that_gives_another_range_than_it_was_asked_for_is_not_believed(web: WebServer) -> None:
    def answer(request: Request) -> Answer:
        if len(web.requests) == 1:
            return Answer(200, WHOLE, cut=3000)
        return Answer(206, WHOLE[10:], {"Content-Range": f"bytes 10-{len(WHOLE) - 1}/{len(WHOLE)}"})

    web.answer = answer
    with pytest.raises(Changed, match="when asked for bytes from 3000"):
        download(web)


def test_a_connection_that_breaks_again_and_again_ends_with_a_reason_and_stores_nothing(
    web: WebServer, model: Path, tmp_path: Path
) -> None:
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    whole = web.answer

    def answer(request: Request) -> Answer:
        found = whole(request)
        if request.method == "GET" and request.path.endswith(".safetensors"):
            found.cut = 100 if "range" not in request.headers else 0
        return found

    web.answer = answer
    with pytest.raises(SourceUnreachable, match="does not answer"):
        fetch_model(uri, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert not fetched(tmp_path / "dest")


def test_a_model_that_does_not_fit_the_volume_is_not_begun(web: WebServer, model: Path, tmp_path: Path) -> None:
    web.serve_directory(model)
    whole = web.answer

    def answer(request: Request) -> Answer:
        found = whole(request)
        if request.method == "HEAD" and request.path.endswith(".safetensors"):
            found.headers["Content-Length"] = str(1 << 60)
        return found

    web.answer = answer
    uri = f"https://{web.host}/"
    with open_source(uri) as source:
        revision = source.revision
    web.requests.clear()
    with pytest.raises(Transient, match=r"no room for the model of 115\d+ bytes; give it more space"):
        fetch_model(uri, revision, "sha256:" + "0" * 64, tmp_path / "dest")
    assert not [request for request in web.requests if request.method == "GET"]


def test_a_volume_that_is_full_in_the_middle_is_named_and_left_empty(
    web: WebServer, model: Path, tmp_path: Path
) -> None:
    web.serve_directory(model)
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from rm_abstract.core.errors import Transient
        from rm_abstract.sources import fetch_model

        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        try:
            fetch_model(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        except Transient as error:
            print(error)
    """)
    arguments = [uri, facts["revision"], facts["weightsDigest"], str(tmp_path / "dest")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert "has no room for the model" in done.stdout
    assert "File too large" in done.stdout
    assert not fetched(tmp_path / "dest")


def test_neither_signature_nor_session_token_follows_a_redirect_of_a_bucket(
    new_web_server: Callable[[], WebServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, elsewhere = new_web_server(), new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{front.host},{elsewhere.host}")
    front.answer = lambda request: Answer(
        307, headers={"Location": f"http://{elsewhere.host}{request.path}", "X-Amz-Bucket-Region": "eu-central-1"}
    )
    account = Account(f"http://{front.host}", "us-east-1", "key", "hush-hush", "token")
    with S3(account) as s3, pytest.raises(BadInput, match="in the region eu-central-1; set region") as raised:
        list(s3.list("bucket", ""))
    assert front.requests[0].headers["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in front.requests[0].headers["authorization"]
    assert not elsewhere.requests
    assert "hush-hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "expected", "message"),
    [
        (403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>", SourceUnreachable, "clocks"),
        (503, b"<Error><Code>SlowDown</Code></Error>", SourceUnreachable, "cannot answer now"),
        (400, b"<Error><Code>ExpiredToken</Code></Error>", BadInput, "ExpiredToken.*credentials"),
        (403, b"not XML", BadInput, "credentials"),
        (200, b"<html>a web page", BadInput, "is it a server of S3"),
        (
            200,
            b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            BadInput,
            "without an end",
        ),
        (
            200,
            b"<ListBucketResult><Contents><Key>elsewhere/x</Key><Size>1</Size></Contents></ListBucketResult>",
            BadInput,
            "not understood",
        ),
    ],
)
def test_what_a_server_of_buckets_may_answer(
    web: WebServer, status: int, body: bytes, expected: type[Exception], message: str
) -> None:
    web.answer = lambda _request: Answer(status, body)
    with S3(Account(f"http://{web.host}")) as s3, pytest.raises(expected, match=message):
        list(s3.list("bucket", "m/"))
