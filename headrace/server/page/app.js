"use strict";
// The playground, and the engine seen live. No library, and no request to anybody but this server.

const $ = (id) => document.getElementById(id);
const messages = [];
let asking = null; // AbortController of the answer under way

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function show(role, text) {
  const turn = document.createElement("p");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  $("talk").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function body() {
  const asked = { messages: [...messages], stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") asked[name] = Number($(name).value);
  }
  if ($("system").value) asked.messages.unshift({ role: "system", content: $("system").value });
  if ($("schema").value) {
    asked.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse($("schema").value) } };
  }
  return asked;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    unread += value;
    const lines = unread.split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function answer() {
  const asked = body();
  const turn = show("assistant", "");
  const begin = performance.now();
  let first = null;
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(asked), signal: asking.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const text = event.choices[0]?.delta?.content ?? "";
    if (text && first === null) first = performance.now();
    turn.textContent += text;
    if (event.usage && first !== null) {
      const tokens = event.usage.completion_tokens, seconds = (performance.now() - first) / 1000;
      const rate = tokens > 1 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
      $("timing").textContent = `first token ${((first - begin) / 1000).toFixed(2)} s${rate}, ${tokens} tokens`;
    }
  }
  messages.push({ role: "assistant", content: turn.textContent });
}

async function send(event) {
  event.preventDefault();
  if (asking) return;
  asking = new AbortController();
  $("send").disabled = true; $("stop").disabled = false;
  messages.push({ role: "user", content: $("prompt").value });
  show("user", $("prompt").value);
  $("prompt").value = "";
  try {
    await answer();
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  } finally {
    asking = null;
    $("send").disabled = false; $("stop").disabled = true;
  }
}

// ---- the engine ----

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

function draw(steps) {
  const canvas = $("steps"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const width = canvas.width / 100, unit = canvas.height / Math.max(24, ...steps.map((s) => height(s)));
  steps.forEach((step, i) => {
    let y = canvas.height;
    for (const [, start, stop, draft, sampled] of step.spans) {
      const tokens = stop - start + draft, tall = Math.sqrt(tokens) * unit;
      pen.fillStyle = colour(tokens === 1 && sampled ? "--decode" : "--prompt");
      pen.fillRect((100 - steps.length + i) * width + 1, y - tall + 1, width - 2, tall - 1);
      y -= tall;
    }
  });
}

const height = (step) => step.spans.reduce((sum, [, start, stop, draft]) => sum + Math.sqrt(stop - start + draft), 0);

function rates(now, before) {
  const seconds = now.at - before.at;
  const per = (name) => seconds > 0 ? ((now.counters[name] - before.counters[name]) / seconds).toFixed(0) : "–";
  return { out: per("generated_tokens"), in: per("prompt_tokens") };
}

let before = null;

async function look() {
  try {
    const response = await fetch("/live", { headers: headers() });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const live = await response.json();
    $("facts").textContent = live.facts;
    const stats = live.stats;
    if (stats) {
      const now = { at: live.at, counters: stats.counters };
      if (before && now.counters.steps >= before.counters.steps) {
        const found = rates(now, before);
        $("out").textContent = found.out; $("in").textContent = found.in;
      }
      before = now;
      $("running").textContent = stats.running;
      $("waiting").textContent = stats.waiting + stats.swapped;
      $("kv").textContent = `${Math.round(100 * (1 - (stats.free_pages + stats.cached_pages) / stats.pages))} %`;
      const prompts = stats.counters.prompt_tokens;
      $("hits").textContent = prompts ? `${Math.round(100 * stats.counters.cached_tokens / prompts)} %` : "–";
      draw(live.steps);
    }
  } catch (error) {
    $("facts").textContent = error.message;
  }
  setTimeout(look, document.hidden ? 5000 : 500);
}

$("ask").addEventListener("submit", send);
$("stop").addEventListener("click", () => asking?.abort());
$("clear").addEventListener("click", () => { messages.length = 0; $("talk").textContent = ""; });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) $("ask").requestSubmit();
});
look();
