"""Stand-in for Rebellions' `rbln-smi`: `-j`, `-g -j`, `group -c N -a I,J` and `group -d N`, over a JSON file beside it.

Copied to a host's directory as `rbln-smi`; `rbln-smi.json` holds `{"devices": [...]}` as the vendor's tool prints it,
or `{"answer": TEXT, "code": N}` for a tool that says just that and ends so.
"""

import json
import sys
from pathlib import Path

file = Path(__file__).with_name("rbln-smi.json")
state = json.loads(file.read_text())
arguments = sys.argv[1:]
if "answer" in state:
    print(state["answer"])
    sys.exit(state.get("code", 0))
if arguments[:1] == ["group"]:
    number = int(arguments[2])
    members = [int(text) for text in arguments[4].split(",")] if arguments[1] == "-c" else []
    for device in state["devices"]:
        if arguments[1] == "-d" and device["group_id"] == number:
            device["group_id"] = 0
        if int(device["npu"]) in members:
            if device["group_id"]:
                sys.exit("device is in a group already")
            device["group_id"] = number
    file.write_text(json.dumps(state))
else:
    shown = [
        {**device, "group_id": str(device["group_id"]) if "-g" in arguments else ""} for device in state["devices"]
    ]
    print(json.dumps({"KMD_version": "2.0.1", "devices": shown}))
