"""Runs a vendor's module as the plugin does, in a process of its own: prints what it discovers each time it is asked.

Lines on standard input: ``discover``, ``power``, or ``allocate ID,ID``; answers are lines of JSON.
"""

import asyncio
import json
import sys
from dataclasses import asdict

from rm_device_plugins.vendor_class import vendor_class


async def main(name: str, settings: str) -> None:
    vendor = vendor_class(name)(json.loads(settings))
    prepared = False
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        try:
            if not prepared:
                await vendor.prepare()
                prepared = True
            found = await vendor.discover()
            found.check()
            if verb == "discover":
                answer = asdict(found)
            elif verb == "power":
                answer = dict(await vendor.power())
            else:
                wanted = [device for device in found.devices if device.id in rest.split(",")]
                answer = asdict(await vendor.allocate(wanted))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


asyncio.run(main(*sys.argv[1:]))
