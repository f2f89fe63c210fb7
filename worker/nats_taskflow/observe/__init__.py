"""What can be seen of a worker: logs, metrics, traces, health.

Begin with `log` (how a record looks; `log_limit` and `line_writer` are its parts) and `metrics` (every metric with its help text), which
`recorder` feeds: from committed batches, and from the samples that `probes` take. `probes` also answers the questions of `health`, whoever
carries them; `systemd` reports to the service manager. `span` is what a trace shows: `trace` records it, `otel` exports it. `log`, `health`
and their parts may be imported from everywhere above `wire`; the rest stands beside `services` and `doors`, imports neither, and is named
by `app` only.
"""
