"""Decide and commit every change of a flow, whoever asks for it.

It may import the base modules, `flow`, `wire`, `config` and the ports of store and bus; services and doors stand on it. Begin with `engine`
(one queue, one transaction at a time, then the announcement) and go on with `batch` (load, `dedupe`, decide in order, record in
`batch_rows`), which ends at `flow.decide`. `submission` says what comes in and out, `queue` in which order, `follow_ups` what the end of
a flow causes, `deferral` what waits for the check of a schema (`payload_schema`, `json_schema`). At the edge, `reader` turns a delivery
into something to submit, `id_mint` makes ids, `quota` limits rates, and `stored_outcomes` answers repeats.
"""
