"""Talk to the broker: `base` is the port, `jetstream` and `memory` are its adapters, and besides only `options`, `policy` and
`mended` are used from outside: the agents' side connects by them as well.

Read `base` first. The JetStream adapter is made of `connection` (by the `policy`; its client is `reading`, on `mended`), `outbound` (what
is written, in order), `publisher`, `pull`, `service` and `topology` (with its rules in `settings`), one promise each; `memory` stands on
`broker` and `streams`, which keep everything in the process.
`server` finds and starts a nats-server for development and tests.
"""
