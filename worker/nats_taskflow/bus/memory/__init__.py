"""The bus in the process, for the test kit: the project's only fake.

It is held to the same contract suite as JetStream. Begin with `broker`, which outlives connections: its streams and consumers are in
`stream`. `bus` is a worker's connection to it, `MemoryClient` (in `broker`) an agent's; `topology` and `service` do here what their
namesakes in `bus.nats` do. Imports the port and what lies beside it, never `bus.nats`.
"""
