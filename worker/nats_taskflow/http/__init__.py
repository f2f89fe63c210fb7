"""Listen for HTTP within bounds: the one listener of whatever this package serves (health, metrics, MCP), whatever room it is in.

Imports `errors` and uvicorn only, so that every room may import it. Begin with `server`; `bounds` says what peers may take, `connection`
holds them to it.
"""
