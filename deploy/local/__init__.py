"""The embedded stack: the whole platform on one Linux machine, without containers.

`Stack` in `stack.py` runs everything; `Servers` in `servers.py` only Postgres, Redis and S3.
"""
