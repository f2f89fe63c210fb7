// An agent in JavaScript, without any library but the NATS client. It has a service add two numbers; the service is here, too.
//
//     npm install --prefix examples/raw_messages && node examples/raw_messages/agent.mjs
import { randomUUID } from "node:crypto";
import { connect, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });

// A command: a request, answered after the commit. Its id makes it safe to repeat until there is an answer.
async function command(verb, body, id) {
  const named = headers();
  named.set("Nats-Msg-Id", `kate/${id}`);
  for (;;) {
    const options = { headers: named, timeout: 5000 };
    const answer = await nc.request(`taskflow.api.kate.${verb}`, JSON.stringify(body), options).then((m) => m.json(), (lost) => lost);
    if (answer.ok) return answer.flow;
    const code = answer.error?.code; // none: nobody answered
    if (code && code !== "unavailable" && code !== "internal") throw new Error(`${verb}: ${code}: ${answer.error.message}`);
    await new Promise((again) => setTimeout(again, 250));
  }
}

// A delegate: any responder. Its answer is stored, and resumes the flow even if the worker is down when it comes.
async function add(_, asked) {
  const { a, b } = asked.json();
  asked.respond(JSON.stringify({ sum: a + b }));
}
nc.subscribe("svc.add", { queue: "svc.add", callback: add });

const flow_id = randomUUID(); // whoever starts a flow may name it, and so can listen before it starts
const events = nc.subscribe(`taskflow.evt.kate.${flow_id}.*`);
await nc.flush();
await command("start", { flow_id, controller_id: "kate/js", goal: "have two numbers added" }, `${flow_id}-start`);
await command("delegate", { flow_id, to: "svc.add", payload: { a: 1, b: 2 }, timeout: "10m" }, `${flow_id}-ask`);

for await (const message of events) {
  const { kind, payload } = message.json().data;
  console.log(kind);
  if (kind === "resumed") {
    const { sum } = payload.patch.resume_event;
    const flow = await command("finish", { flow_id, final_state: { sum } }, `${flow_id}-finish`);
    console.log(`${flow.status}: ${flow.state.sum}`);
    break;
  }
}
await nc.close();
