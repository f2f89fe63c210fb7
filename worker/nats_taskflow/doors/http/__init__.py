"""HTTP within bounds, for whatever is served: no connection can keep the others out.

`server` listens and has uvicorn do the HTTP; `bounds` says what connections, requests and peers may take, and `connection` enforces it.
`health` answers `/livez /readyz /startupz /healthz /metrics`. The MCP server of an agent listens here too. Imports nothing but `errors`,
`tasks` and `config`. Begin with `server`.
"""
