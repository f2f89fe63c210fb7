"""The edge in bytes: what the worker reads from and writes to subjects, as pure functions (CONTRACT 1 to 5).

No clock, no randomness, no I/O, no logging; randomness comes in as a `Mint`. Read in this order:

    subjects      the names: format and parse every subject, match NATS patterns
    headers       look headers up, check what they carry, make text fit into one
    limits        size, depth, keys, duplicates: what a body may be before anybody believes it
    pointers      JSON pointers (RFC 6901)
    envelope      the reference system's bus envelope, taken off first
    verdicts      what reading gives: `Inbound`, `Unusable` or `Ignored`, and the `Identity` that dedupes
    requests      the message types of every verb; `complaints` turns their refusals into sentences
    commands      a typed request → what happens to a flow; `codec` is the whole path: bytes → `Inbound`
    bindings      which subjects carry replies; `replies` is the whole path of a reply: bytes → `Inbound`
    acknowledgements  what the broker says of a publication, which is no reply; `reply_message` opens what is one
    documents     the shapes of answers; `outcomes` encodes them, `cursors` says where a page goes on
    cloudevents   a journal entry → the published event;  `deadletters`: what could not be used
    schemas       JSON Schema of all of it, channels     AsyncAPI
"""
