"""Stand-in for Rebellions' optimum-rbln-cli 0.12, whose compiler is not public."""

import argparse
import json
import sys
from pathlib import Path

from stand_in import FAULT, fail, leave, weights_of

CLASSES = {f"RBLN{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Exaone")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="optimum-rbln-cli")
    parser.add_argument("--model-id", required="--version" not in sys.argv)
    parser.add_argument("-o", "--output-dir", default="./rbln_out")
    parser.add_argument("--class", dest="model_class")
    parser.add_argument("--show-rbln-config", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--no-style", action="store_true")
    parser.add_argument("--hf-local-files-only", action="store_true")
    known, rest = parser.parse_known_args()
    if known.version:
        print("optimum-rbln-cli 0.12.0")
        return
    model, output = Path(known.model_id), Path(known.output_dir)
    wanted = known.model_class
    if wanted is None:
        # What is not there it takes for a name on the hub, which cannot be asked here.
        file = model / "config.json"
        architectures = json.loads(file.read_text()).get("architectures") if file.is_file() else None
        if not architectures:
            fail("Could not infer RBLN class from model files. Please specify --class explicitly.", code=2)
        wanted = f"RBLN{architectures[0]}"
    if wanted not in CLASSES:
        say = f"Unknown RBLN class: {wanted}"
        if known.show_rbln_config:
            fail(f"{say}. Error: RBLNModel for {wanted} not found.", code=2)
        fail(f"{say}.", "Run 'optimum-rbln-cli --list-classes' to see available classes.", code=2)
    if known.show_rbln_config:
        print(f"🧩 RBLN class: {wanted}\nConfig class: {wanted}Config")
        return
    if len(rest) % 2 or not all(name.startswith("--") for name in rest[::2]):
        fail(f"❌ Error during model compilation: unexpected keyword argument {rest}")
    options = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    print(f"🚀 Starting compilation\nModel: {model}\nClass: {wanted}\nOutput: {output.absolute()}")
    print(f"rbln_config: {json.dumps(options, indent=2)}")
    try:
        compile_model(model, output, wanted, options)
    except (OSError, ValueError) as error:
        fail(f"❌ Error during model compilation: {error}")
    if FAULT == "liar":
        print("❌ Error during model compilation: [E1009] The compiler ran out of device memory")
        return
    print(f"✅ Model compilation completed successfully\nSaved to: {output.absolute()}")


def compile_model(model: Path, output: Path, wanted: str, options: dict[str, str]) -> None:
    """Leaves what the original does: a compiled model for each phase, and what they were compiled for."""
    if not options.get("npu"):
        raise ValueError("No NPU found on this host; specify `rbln_npu`")
    size = sum(file.stat().st_size for file in weights_of(model))
    batch = options["batch_size"]
    for phase in ("prefill", f"decoder_batch_{batch}"):
        leave(output / f"{phase}.rbln", f"stand-in {phase} {options['npu']} {size}\n".encode())
    leave(output / "rbln_config.json", json.dumps({"cls_name": f"{wanted}Config", **options}).encode())


main()
