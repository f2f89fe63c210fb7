#!/usr/bin/env bash
# An agent in any language: every message that it sends, with the `nats` command line. What it gets is printed as it is on the wire.
#
#     bash examples/raw_messages/raw.sh
set -euo pipefail
FLOW=${FLOW:-$(python3 -c 'import uuid; print(uuid.uuid4())')} # whoever starts a flow may name it, and then needs to read no answer before the next command

echo "# start: stored by JetStream, and decided even if the worker is down now"
START='{"flow_id": "'$FLOW'", "controller_id": "kate/shell", "goal": "have two numbers added"}'
nats req --raw -H "Nats-Msg-Id:kate/$FLOW-start" taskflow.cmd.kate.start "$START"

echo "# the same once more, because the answer might have been lost: nothing happens twice"
nats req --raw -H "Nats-Msg-Id:kate/$FLOW-start" taskflow.cmd.kate.start "$START"

echo "# the event that says it runs: from the stream, whether it is there already or comes later"
nats sub --raw --all --count=1 "taskflow.evt.kate.$FLOW.started"

echo "# wait for a reply: a request this time, answered after the commit"
nats req --raw taskflow.api.kate.wait '{"flow_id": "'$FLOW'", "wait_condition":
  {"kind": "external_event", "topic": "agent.delegate.reply", "correlation_id": "'$FLOW'-sum", "timeout": "10m", "on_timeout": "fail"}}'

echo "# the reply: what the delegate sends, whenever it is done; and the event that it brings about"
nats pub -H "Nats-Msg-Id:$FLOW-answer" agent.delegate.reply '{"correlation_id": "'$FLOW'-sum", "payload": {"sum": 3}}'
nats sub --raw --all --count=1 "taskflow.evt.kate.$FLOW.resumed"

echo "# finish, and what is refused then"
nats req --raw -H "Nats-Msg-Id:kate/$FLOW-finish" taskflow.api.kate.finish '{"flow_id": "'$FLOW'", "final_state": {"done": true}}'
nats req --raw taskflow.api.kate.finish '{"flow_id": "'$FLOW'"}'
