"""nats-taskflow: durable flows for agents, over NATS JetStream, on SQLite.

Read in this order; imports point down.

`flow` is the core: what a flow is and what may happen to it, pure. `wire` is the edge in bytes: subjects, requests, replies, events; pure
too. `store.base` and `bus.base` are the ports: what the worker needs of a database and a broker; `store.sqlite` and `bus.jetstream` (or
`bus.memory`) fill them. `engine` decides and commits in groups: `submission` says what is asked, `queueing` in which order, `deciding`
decides it in memory. On it stand the services: `consumer` takes messages in, `relay` sends events out, `dispatcher` asks delegates,
`wait_engine` lets time act, `api` answers requests, `pruner` tidies up. `manager.FlowManager` is the in-process face. `supervisor` gives
them their life, `app` wires everything together, `cli` starts it. `invariants` looks whether what they promise holds.
"""
