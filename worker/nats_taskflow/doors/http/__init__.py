"""What the worker answers over HTTP, on the listener of `nats_taskflow.http`. So far `health`: `/livez /readyz /startupz /healthz /metrics`.

What it may say of the worker comes in by `observe.health`; it imports no service and no adapter. Begin with `health`.
"""
