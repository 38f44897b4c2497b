"""Runs a vendor's module as the plugin does, in a process of its own: prints what it discovers each time it is asked.

Lines on standard input: ``discover``, ``power``, ``allocate ID,ID``, or ``held ID,ID`` for
what the kubelet says that pods have; answers are lines of JSON.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict

from rm_device_plugins.vendor_class import vendor_class


def nobody_has(held: list[str]) -> Callable[[Collection[str]], Awaitable[bool]]:
    async def answer(device_ids: Collection[str]) -> bool:
        return not set(held).intersection(device_ids)

    return answer


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
            elif verb == "held":
                vendor.nobody_has = nobody_has(rest.split(","))
                answer = {}
            elif verb == "power":
                answer = dict(await vendor.power())
            else:
                wanted = [device for device in found.devices if device.id in rest.split(",")]
                answer = asdict(await vendor.allocate(wanted))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


asyncio.run(main(*sys.argv[1:]))
