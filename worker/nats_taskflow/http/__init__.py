"""Listen for HTTP within bounds, for whichever room serves something.

Health, metrics and MCP use it. Imports `errors` and uvicorn only, so that every room may import it. Begin with `server`; `bounds` says what
peers may take, `connection` holds them to it.
"""
