"""The broker, as the worker sees it.

Begin with `port`: what the worker needs from a broker, with every promise. Two sibling packages implement it and pass the same contract
suite: `nats` (JetStream) and `memory` (in the process, for tests). Only `app`, the commands and the test kit name them; neither imports
the other. What both use lies beside the port: `stream_rules`, `consumer_rules` and `filters` say what a broker's streams and consumers must
be like (in the columns of `setting_rules`), `claims` whose a consumer is, `message_limits` which messages a broker takes, and `endpoints`
and `admission` how requests are served. The port and these may import `wire` and the base modules, nothing of the worker above them.
"""
