"""The edge in bytes: every subject, header and body, both ways.

It is pure: no clock, no I/O, no logging; randomness comes in as a `Mint`.

It may import the base modules and `flow`. For a command begin with `codec` (bytes → `Inbound`), for a reply with `replies`, for an operator
with `admin_codec`. Each takes off the `envelope`, holds the body against `limits` and reads it by its types (`requests`, `reply_bindings`,
`admin_requests`). What comes out is in `inbound`; `commands` turns a request into a stimulus, `field_errors` a bad one into a sentence. On
the way out `outcomes` encodes `answers`, `events` encodes journal entries, `dead_letters` what could not be used. `subjects` and `headers`
hold every name on the wire; `schema` describes all of it.
"""
