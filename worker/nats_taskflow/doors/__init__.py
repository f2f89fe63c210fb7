"""The doors: who asks the worker for something, and by which way.

`api` answers agents, and `admin/` answers operators; neither knows a transport. `micro_service` is the door that NATS sees, `http/` serves
health and metrics, and `flow_manager` is for callers in the process. `request_times` reads the times in requests. A door imports the
engine, the ports and `wire`, never a service or an adapter. Begin with `api`.
"""
