"""The core: what a flow is, and what may happen to it.

It is pure: no async, no clock, no I/O, no randomness, no logging.

It may import the base modules (`errors`, `units`, `text`) and nothing else of the package. Begin with `lifecycle` (the status table), then
`model` (what is stored), `conditions` (what a flow can wait for), `stimuli` (what can happen to it) and `policy` (what bounds that). Then
read `decide`: it turns a stimulus into a `decision`, or into the error that refuses it, with `park`, `delegate`, `match`, `held`, `end` and
`cascade` for the larger steps. `fold` rebuilds a flow from its journal and judges the rest; `view` is the memory that decisions look at.
"""
