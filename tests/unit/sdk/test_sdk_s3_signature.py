"""Requests to buckets: signatures, against the examples that Amazon publishes, and accounts from credentials files."""

from pathlib import Path

import httpx2
import pytest
from rm_abstract.core.errors import BadInput
from rm_abstract.s3 import Account, signature

EXAMPLE = Account("", "us-east-1", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HOST = "examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "target", "headers", "expected"),
    [
        (
            "GET",
            "/test.txt",
            {"range": "bytes=0-9", "x-amz-content-sha256": EMPTY},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            {
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            },
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/?lifecycle",
            {"x-amz-content-sha256": EMPTY},
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/?prefix=J&max-keys=2",
            {"x-amz-content-sha256": EMPTY},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["part of an object", "put", "parameter without a value", "parameters in another order"],
)
def test_the_published_examples(method: str, target: str, headers: dict[str, str], expected: str) -> None:
    sent = {"host": HOST, "x-amz-date": "20130524T000000Z", **headers}
    value = signature(EXAMPLE, method, httpx2.URL(f"https://{HOST}{target}"), sent, sent)
    assert value == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={';'.join(sorted(sent))},Signature={expected}"
    )


def test_an_account_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "aws"
    path.write_text(
        "[default]\naws_access_key_id = one\naws_secret_access_key = a%s\n"
        "[profile lab]\naws_access_key_id=two\naws_secret_access_key=b=\naws_session_token=c\n"
        "region=eu-central-1\nendpoint_url=https://store.example.com:9000/\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    assert Account.from_environment() == Account("", "us-east-1", "one", "a%s")
    assert Account.from_environment().url == "https://s3.us-east-1.amazonaws.com"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert Account.from_environment() == Account("https://store.example.com:9000", "eu-central-1", "two", "b=", "c")
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    assert Account.from_environment() == Account()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hush-hush", "no valid credentials file"),
        ("[default]\nhush-hush\n", r"no valid credentials file"),
        ("[default]\naws_access_key_id = x\naws_access_key_id = hush-hush\n", r"no valid credentials file \(line 3\)"),
        ("[other]\naws_access_key_id = hush-hush\n", r"no profile default; add a section"),
        ("[default]\naws_access_key_id = hush-hush\n", "needs both"),
        ("[default]\nendpoint_url = store.example.com\n", "endpoint_url"),
        ("[default]\nendpoint_url = https://me:hush-hush@store.example.com\n", "endpoint_url"),
        ("[default]\nendpoint_url = https://store.example.com/bucket\n", "endpoint_url"),
    ],
)
def test_credentials_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "aws"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as raised:
        Account.read(path, "default")
    assert "hush-hush" not in str(raised.value)


def test_a_credentials_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="does not exist"):
        Account.from_environment()
