"""The proxy before an endpoint outside the cluster: the only one that has the provider's key.

A serving pod shows the ServiceAccount token of its namespace; the Kubernetes API server says whose it is. What may pass
goes to the endpoint with the key, as it is; what comes back is handed on as it comes, and a failure of the provider is
told in the words of the OpenAI API, without anything that it says about the key.
"""
