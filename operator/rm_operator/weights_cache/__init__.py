"""Weights on the node: a process of the system namespace keeps them by digest, and gives them to pods of its node.

It need not believe anybody: what is stored is what has the digest, and who gets it checks that, too. Whom it gives what
is told by the namespace of a pod's ServiceAccount token: what was read with credentials is for the namespaces that have
stored it, each having had all of it; the rest is for all.
"""
