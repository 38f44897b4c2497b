"""Stand-in for AWS's neuronx-cc, which Optimum calls; here it says its version only."""

import sys

from stand_in import fail

if sys.argv[1:] != ["--version"]:
    fail("neuronx-cc: error: the following arguments are required: command", code=2)
print("NeuronX Compiler version 2.20.9961.0+0acef03a", "", "Python version 3.11.2", "NumPy version 1.26.4", sep="\n")
