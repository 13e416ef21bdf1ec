"""The API server, as the operator uses it: plain dicts in and out, a time-out on every call."""
