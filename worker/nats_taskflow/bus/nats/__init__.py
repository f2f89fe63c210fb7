"""The bus on NATS JetStream, and all else that talks to NATS.

Begin with `bus`, which implements the port with one promise a module: `publisher` (into streams), `pull` (from consumers), `requests` (core
requests), `service` (the micro service) and `topology` (streams and consumers, with `consumers`, `storage_share`, `atomic_batches` and
`js_api`). All stand on `connection`: it dials (`dial`, by its `options`), writes in order (`outbound`, `frames`) and reads through
`direct_delivery`, on a `client` that mends nats-py. The agents' client shares `dial`, `options`, `client`, `denials` (a missing permission
is silence) and `pull_protocol`. `inspect` is for people's commands, `desired_topology` derives streams and consumers from the settings,
`server` runs a nats-server for development and tests. May import `bus`, `wire`, `config` and the base modules, never `bus.memory`.
"""
