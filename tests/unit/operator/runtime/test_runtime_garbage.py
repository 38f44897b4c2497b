"""What the garbage collector is left with: nothing that was loaded, and all that comes."""

import subprocess
import sys

LOADED = """
import gc, weakref
from rm_operator.runtime import garbage

class Thing:
    pass

def cycle():
    one, other = Thing(), Thing()
    one.other, other.one = other, one
    return weakref.ref(one)

garbage.begin_loading()
runs = gc.get_stats()[0]["collections"]
kept = [{"number": [number]} for number in range(200_000)]
print("collected while loading:", gc.get_stats()[0]["collections"] - runs)
garbage.begin_working()
print("looked at afterwards:", sum(map(len, (gc.get_objects(generation=each) for each in range(3)))) < 1000)
gone = cycle()
more = [[] for _ in range(200_000)]
print("cycles that come are found:", gone() is None)
"""


def test_a_start_is_not_looked_through_and_cycles_are_found_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "collected while loading: 0",
        "looked at afterwards: True",
        "cycles that come are found: True",
    ]
