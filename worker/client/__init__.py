"""The agents' side: everything here speaks CONTRACT.md over NATS, and imports no server module but message types.

`transport` is the port, `over_nats` fills it.
"""
