// The playground: a conversation, streamed. What the model says is only ever text.

import { ask } from "./server.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const EXAMPLE = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" }, admin: { type: "boolean" } },
  required: ["name", "age", "admin"],
  additionalProperties: false,
};
const ENDS = { length: "reached max_tokens", stopped: "stopped by you", cancelled: "cancelled" };
const messages = []; // what the model is told; a turn that failed is not part of it
let asking = null; // AbortController of the answer under way

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function show(role, who, text) {
  $("nothing-said").hidden = true;
  const turn = element("article", `turn ${role}`, "");
  const said = element("p", "said", text);
  turn.append(element("p", "who", who), said);
  following(() => $("talk").append(turn), true);
  return { turn, said };
}

/** Changes the conversation; whoever reads its end goes on reading its end. */
function following(change, always = false) {
  const talk = $("talk");
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
  change();
  if (always || atEnd) talk.scrollTop = talk.scrollHeight;
}

/** The schema; null without one. A text that is no schema is pointed at, and throws. */
function schema() {
  const text = $("schema").value.trim();
  let problem = "", value = null;
  try {
    value = text ? JSON.parse(text) : null;
    if (value !== null && typeof value !== "object") problem = "A schema is an object in braces.";
  } catch (error) {
    problem = `This is not JSON: ${error.message}`;
  }
  $("schema-error").textContent = problem;
  $("schema-error").hidden = !problem;
  $("schema").setAttribute("aria-invalid", String(Boolean(problem)));
  if (problem) {
    $("parameters").open = true;
    $("schema").focus();
    throw new SyntaxError(problem);
  }
  return value;
}

function body(question, form) {
  const asked = { messages: [...messages, question], stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if ($(name).value !== "") asked[name] = Number($(name).value);
  if ($("system").value) asked.messages.unshift({ role: "system", content: $("system").value });
  if (form) asked.response_format = { type: "json_schema", json_schema: { name: "answer", schema: form } };
  return JSON.stringify(asked);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection was lost before the answer was complete");
    unread += value;
    const lines = unread.split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

/** Shows the answer as it comes; returns why it ended. */
async function stream(response, said, cost, begin) {
  let first = null, end = "";
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    end = choice?.finish_reason ?? end;
    if (choice?.delta?.content) {
      first ??= performance.now();
      following(() => said.append(choice.delta.content));
    }
    if (event.usage) following(() => { cost.textContent = price(event.usage.completion_tokens, begin, first); });
  }
  return end;
}

function price(tokens, begin, first) {
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (first !== null) {
    parts.push(`first after ${((first - begin) / 1000).toFixed(2)} s`);
    const seconds = (performance.now() - first) / 1000;
    if (tokens > 1 && seconds > 0) parts.push(`then ${((tokens - 1) / seconds).toFixed(0)} tokens/s`);
  }
  return parts.join(" · ");
}

async function answer(question, form) {
  const { turn, said } = show("assistant", "Model", "");
  const cost = element("p", "cost", "");
  turn.append(cost);
  $("talk").setAttribute("aria-busy", "true");
  const keep = () => messages.push(question, { role: "assistant", content: said.textContent });
  try {
    const begin = performance.now();
    const options = { method: "POST", body: body(question, form), signal: asking.signal };
    const end = await stream(await ask("/v1/chat/completions", options), said, cost, begin);
    if (ENDS[end]) cost.append(` · ${ENDS[end]}`);
    keep();
  } catch (error) {
    if (error.name === "AbortError") {
      cost.textContent = ENDS.stopped;
      keep();
    } else {
      failed(turn, question, error);
    }
  } finally {
    $("talk").setAttribute("aria-busy", "false");
  }
}

/** Says what went wrong; the question is back where it can be sent again. */
function failed(turn, question, error) {
  const why = error instanceof TypeError ? "the server cannot be reached" : error.message;
  for (const part of turn.querySelectorAll(".said, .cost")) if (!part.textContent) part.remove();
  turn.classList.add("failed");
  following(() => turn.append(element("p", "problem", `No answer: ${why}`)));
  turn.lastChild.setAttribute("role", "alert");
  if (!$("prompt").value) $("prompt").value = question.content;
}

async function send(event) {
  event.preventDefault();
  if (asking || !$("prompt").value.trim()) return;
  let form;
  try {
    form = schema();
  } catch {
    return;
  }
  const question = { role: "user", content: $("prompt").value };
  asking = new AbortController();
  busy(true);
  $("prompt").value = "";
  show("user", "You", question.content);
  try {
    await answer(question, form);
  } finally {
    asking = null;
    busy(false);
    $("prompt").focus();
  }
}

function busy(yes) {
  $("send").disabled = yes;
  $("stop").disabled = !yes;
}

$("ask").addEventListener("submit", send);
$("stop").addEventListener("click", () => asking?.abort());
$("clear").addEventListener("click", () => {
  asking?.abort();
  messages.length = 0;
  $("talk").replaceChildren($("nothing-said"));
  $("nothing-said").hidden = false;
  $("prompt").focus();
});
$("example").addEventListener("click", () => {
  $("schema").value = JSON.stringify(EXAMPLE, null, 2);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
