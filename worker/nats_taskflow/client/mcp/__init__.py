"""A server of the Model Context Protocol: durable flows as a tool for LLM agents, on top of `nats_taskflow.client` and the official SDK.

Read in this order: `schema` says what a model is offered, `advice` what it is told, `once` how a call that is repeated is done once,
`calls` carries calls out, `reading` shows flows as resources and prompt; `line` is the connection to NATS. All these know nothing of
the SDK. `server` puts them behind it; `serving` runs it on stdio or HTTP.

The package is not called `mcp`: that is the SDK's name.
"""
