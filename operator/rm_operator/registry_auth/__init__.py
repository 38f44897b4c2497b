"""The token service of the artifact registry: who may do what with which repository.

A client shows the ServiceAccount token of its pod as the password; the Kubernetes API server says whose it is; the
answer is a token that the registry believes, for the client's own namespace only. The protocol is that of the
distribution project, so that docker, skopeo and oras speak it too.
"""
