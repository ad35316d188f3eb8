// The engine, seen live: numbers twice a second, and the batches of the last steps.

import { ask } from "./server.js";
import { Plot } from "./plot.js";

const $ = (id) => document.getElementById(id);
const EVERY_MS = 500, HIDDEN_MS = 5000, TIMEOUT_MS = 5000;
const RATE_S = 2; // rates are over this long
const plot = new Plot($("steps"), $("step"));
let seen = []; // {at, counters}, the newest last
let told = false; // whether the model has been asked for its defaults

function rate(name) {
  const first = seen[0], last = seen.at(-1), seconds = last.at - first.at;
  return seconds > 0 ? String(Math.round((last.counters[name] - first.counters[name]) / seconds)) : "–";
}

function remember(at, counters) {
  if (seen.length && counters.steps < seen.at(-1).counters.steps) seen = []; // a new engine
  seen.push({ at, counters });
  while (seen.length > 2 && at - seen[1].at >= RATE_S) seen.shift();
}

function percent(name, share) {
  $(name).textContent = share === null ? "–" : `${Math.round(100 * share)} %`;
  $(`${name}-meter`).value = 100 * (share ?? 0);
}

function numbers(live) {
  const stats = live.stats;
  $("running").textContent = stats ? stats.running : "–";
  $("waiting").textContent = stats ? stats.waiting + stats.swapped : "–";
  percent("kv", stats && 1 - (stats.free_pages + stats.cached_pages) / stats.pages);
  const { prompt_tokens: prompts = 0, cached_tokens: cached = 0 } = stats?.counters ?? {};
  percent("hits", prompts ? cached / prompts : null);
  if (stats) remember(live.at, stats.counters);
  else seen = [];
  $("out").textContent = stats ? rate("generated_tokens") : "–";
  $("in").textContent = stats ? rate("prompt_tokens") : "–";
}

function status(state, text) {
  const line = $("status");
  if (line.textContent !== text) line.textContent = text; // said aloud when it changes
  line.dataset.state = state;
  $("engine").classList.toggle("stale", state !== "ready");
}

/** What the model does when nobody says anything else. */
async function defaults() {
  const [model] = (await (await ask("/v1/models")).json()).data;
  $("model").textContent = model.id;
  document.title = `${model.id} · headrace`;
  const sampling = { temperature: 1, top_p: 1, top_k: 0, ...model.default_sampling };
  for (const name of ["temperature", "top_p", "top_k"]) $(name).placeholder = sampling[name];
  $("max_tokens").max = model.max_model_len;
  told = true;
}

async function look() {
  try {
    const live = await (await ask("/live", { signal: AbortSignal.timeout(TIMEOUT_MS) })).json();
    if (!told) await defaults();
    $("door").hidden = true;
    $("facts").textContent = live.facts;
    status(live.state, live.state === "ready" ? "ready" : live.why);
    numbers(live);
    $("nothing-ran").hidden = live.steps.length > 0;
    plot.show(live.steps);
  } catch (error) {
    const heard = error.name !== "TypeError" && error.name !== "TimeoutError";
    status("lost", heard ? error.message : "no connection to the server; trying again");
  }
  setTimeout(look, document.hidden ? HIDDEN_MS : EVERY_MS);
}

$("door").addEventListener("submit", () => status("starting", "trying the key …"));
look();
