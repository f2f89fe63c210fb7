"""The worker's loops: what runs from the start of the process to its end.

Each is a class with a constructor, `run`, and a step that tests call (`prune`, `dispatch`, `inspect`, `tick`).

Begin with `consumer`: deliveries come in, are submitted to the engine, and are settled after the commit (`recovery` is its start,
`outcome_sender` its answers). What is committed goes out by `relay`, which reads rows of the `outbox` and gives them to the
`ordered_publisher`, and by `dispatcher`, which sends the requests of delegations. `wait_engine` fires timers and deadlines, `pruner`
deletes what is no longer needed, `topology_watch` repairs streams and consumers. `supervisor` starts and stops them all, when `signals`
says so. A service may import the engine, the ports of store and bus, and what lies below. It imports no adapter, no
door and nothing of `observe`: they meet in `app`.
"""
