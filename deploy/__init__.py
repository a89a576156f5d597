"""How Trivium is run: the embedded stack, containers, Kubernetes, and what watches them."""
