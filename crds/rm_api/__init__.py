"""The API of RM Abstract: its four kinds, and every name that two parts have to agree on.

Importing this package is cheap; the kinds are in ``rm_api.kinds`` (pydantic), the names in
``rm_api.names`` (standard library only), so that images without pydantic can use the latter.
"""
