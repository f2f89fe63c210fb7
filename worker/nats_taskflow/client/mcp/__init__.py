"""An MCP server: durable flows as a tool for LLM agents.

It stands on the client and on the official SDK (the extra `mcp`). Begin with `schema` (what a model is offered), then `calls` (what becomes
of a call), with `call_keys` (repeated calls), `next_steps` and `task_states` (what a model reads), `resources` (flows to read) and
`lazy_client` (the connection). None of these knows the SDK: `server` puts them behind it, and `serving` runs that on stdio or HTTP. May
import the client, `http` and what the client may.
"""
