"""What the worker answers over HTTP, on the listener of `nats_taskflow.http`.

So far that is `health`: `/livez /readyz /startupz /healthz /metrics`. What it says of the worker comes in as `observe.health`'s values; it
imports no service and no adapter. Begin with `health`.
"""
