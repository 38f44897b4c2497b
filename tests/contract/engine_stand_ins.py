"""Stand-ins for vendors' engines at their command line: they take the flags that the vendor documents, and no other.

Run as ``python -S engine_stand_ins.py NAME ARGUMENTS``; nothing but the standard library is used. One that starts
prints what it was told as a line of JSON, and serves ``/health``, ``/version``, ``/v1/models`` and ``/v1/completions``
with the text of the file ``says.txt`` beside the model.
"""

import argparse
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def vllm() -> argparse.ArgumentParser:
    """``vllm serve``, as of 0.32, with what matters here of its some two hundred options."""
    parser = argparse.ArgumentParser("vllm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"], default="auto")
    for name in ("max-model-len", "max-num-seqs", "tensor-parallel-size", "pipeline-parallel-size", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    return parser


def furiosa_llm() -> argparse.ArgumentParser:
    """``furiosa-llm serve``, as of 2026.4.0."""
    parser = argparse.ArgumentParser("furiosa-llm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fxb", type=Path)
    parser.add_argument("--devices")
    for name in ("max-model-len", "max-concurrency", "max-num-batched-tokens"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("-pp", "--pipeline-parallel-size", type=int)
    parser.add_argument("-dp", "--data-parallel-size", type=int)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    return parser


def trtllm_serve() -> argparse.ArgumentParser:
    """``trtllm-serve``, as of 1.0."""
    parser = argparse.ArgumentParser("trtllm-serve", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", choices=["pytorch", "tensorrt", "trt", "_autodeploy"], default="pytorch")
    for name in ("max_beam_width", "max_batch_size", "max_num_tokens", "max_seq_len", "tp_size", "pp_size", "ep_size"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--extra_llm_api_options")
    parser.add_argument("--trust_remote_code", action="store_true")
    return parser


def acme_serve() -> argparse.ArgumentParser:
    """A server of nobody in particular: that of examples/any-chip."""
    parser = argparse.ArgumentParser("acme-serve", allow_abbrev=False)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--tokenizer", dest="model", required=True)
    parser.add_argument("--name", dest="served_model_name", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    return parser


PARSERS = {"vllm": vllm, "furiosa-llm": furiosa_llm, "trtllm-serve": trtllm_serve, "acme-serve": acme_serve}


def main() -> None:
    """Serve until SIGTERM."""
    told = PARSERS[sys.argv[1]]().parse_args(sys.argv[2:])
    host, _, port = told.listen.rpartition(":") if hasattr(told, "listen") else (told.host, ":", told.port)
    if hasattr(told, "fxb") and not (told.fxb and told.fxb.is_file()):
        sys.exit(f"no bundle in {told.fxb}")
    model = Path(told.model)
    name = getattr(told, "served_model_name", None) or model.name
    name = name[0] if isinstance(name, list) else name
    # trtllm-serve answers to every name.
    strict = hasattr(told, "served_model_name")
    text = (model / "says.txt").read_text()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            known = {"/health": {}, "/version": {"version": "1.2.3"}, "/v1/models": {"data": [{"id": name}]}}
            self.answer(200 if self.path in known else 404, known.get(self.path, {}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/completions" or (strict and asked["model"] != name):
                self.answer(404, {"error": f"no {asked['model']} here"})
                return
            self.answer(200, {"choices": [{"text": text}], "usage": {"completion_tokens": len(text.split())}})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((host or "0.0.0.0", int(port)), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    variables = ("HF_HUB_OFFLINE", "VLLM_CACHE_ROOT", "RBLN_VISIBLE_DEVICES")
    seen = {key: os.environ[key] for key in variables if key in os.environ}
    print(json.dumps({"told": vars(told), "environment": seen, "path": sys.path}, default=str), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
