"""A one-node Kubernetes of the real programs, for the demo and the tests."""
