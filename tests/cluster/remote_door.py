"""The front of a provider of models, run in a pod: TLS, and a key that is asked for. Behind it is a server of ours."""

import os
from pathlib import Path

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEYS, TLS = Path("/keys"), Path("/tls")
BUSY = "come again"
"""A prompt with these words is one too many."""
RETRY_AFTER = "17"

behind = httpx2.AsyncClient(base_url=os.environ.get("BEHIND", "http://localhost"), timeout=None, trust_env=False)


def _error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": None}}, status_code=status, headers=headers)


def _named(shown: str) -> list[str]:
    """Names of the keys that this one is; the kubelet changes the files."""
    return [each.name for each in sorted(KEYS.iterdir()) if each.is_file() and each.read_text() == shown]


async def _answer(request: Request) -> Response:
    shown = request.headers.get("authorization", "").removeprefix("Bearer ")
    used = _named(shown)
    if not used:
        # As providers do: they quote what they were shown.
        return _error(401, f"Incorrect API key provided: {shown}")
    print(f"{request.url.path} with {used[0]}", flush=True)
    body = await request.body()
    if BUSY.encode() in body:
        return _error(429, "too many requests", **{"Retry-After": RETRY_AFTER})
    asked = behind.build_request(
        request.method, request.url.path, content=body, headers={"Content-Type": "application/json"}
    )
    answer = await behind.send(asked, stream=True)
    told = {name: answer.headers[name] for name in ("content-type",) if name in answer.headers}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, told, background=BackgroundTask(answer.aclose))


if __name__ == "__main__":
    uvicorn.run(
        Starlette(routes=[Route("/{path:path}", _answer, methods=["GET", "POST"])]),
        host="",
        port=8443,
        ssl_certfile=str(TLS / "tls.crt"),
        ssl_keyfile=str(TLS / "tls.key"),
        access_log=False,
    )
