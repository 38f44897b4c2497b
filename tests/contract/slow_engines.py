"""What takes minutes, and so is no part of ``make test``: ``make test-slow-engines``.

vLLM on the CPU, warmed up: a build that starts the engine, compiles, and keeps the cache; then a serving pod that
starts from it. Both pods are those of the operator, as processes, with a registry between.
"""

import shutil
from pathlib import Path

import vllm_image
from build_profile_driver import files_in
from build_profile_shop import Shop, original, registry, shop, stranger
from rm_api import names
from scripted_model import expected_text
from scripted_model.texts import SAMPLES
from scripted_model.tokenizer import Tokenizer

FIXTURES = (original, registry, shop, stranger)
EXAMPLE = ("vllm-cpu/build-profile.yaml", "vllm-cpu/accelerator.yaml")
WORKLOAD = {"inputTokens": 128, "outputTokens": 64, "concurrency": 4}


def test_a_warm_vllm_starts_from_its_cache(shop: Shop, original: Path, tmp_path: Path) -> None:
    build = shop.build(tmp_path, EXAMPLE, {"vllm-openai-cpu": vllm_image.image(tmp_path / "image")}, workload=WORKLOAD)
    run = build.run().succeeded()
    warm = run.containers["warm"].report.facts
    pod = shop.serving_pod(EXAMPLE, build, run, workload=WORKLOAD)

    # The pod is another one, with volumes of its own at the same places.
    shutil.rmtree(build.directory)
    (engine,) = pod["containers"]
    build.pod(pod, lambda container: container is not engine).succeeded()
    port, report_port = (
        next(word.partition("=")[2] for word in engine["command"] if word.startswith(flag))
        for flag in ("--port=", "--report-port=")
    )
    kept = build.place(f"{names.ARTIFACT_DIR}/cache")
    with vllm_image.ready(build.start(engine, {}), report_port, tmp_path / "log") as seconds:
        prompt = SAMPLES[0].prompt
        tokens = Tokenizer(build.model).encode(prompt)
        assert vllm_image.completion(port, "hello", tokens, 60) == expected_text(original, prompt, 60)
        # It found everything that it would otherwise have compiled.
        compiled = {file for file in files_in(build.place(names.CACHE_DIR)) if file.endswith((".so", ".cpp", ".py"))}
        assert compiled
        assert compiled == {file for file in files_in(kept) if file.endswith((".so", ".cpp", ".py"))}
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    print(f"warm after {warm['readySeconds']:.0f} s; from the cache of {size} bytes ready after {seconds:.0f} s")
