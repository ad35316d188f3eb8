// The last steps as columns. Above, a batch is as tall as its tokens, decodes at the bottom and prompts on top of them;
// below, the same spans in one row for each sequence. A span is [seq, start, stop, draft, sampled].

const STEPS = 100;
const AXIS = 34, LEGEND = 22, GAP = 34, LANES_SHARE = 0.42;
const MOST_LANE = 16;

const isDecode = ([, start, stop, , sampled]) => sampled && stop - start === 1;
const tokensOf = ([, start, stop, draft]) => stop - start + draft;
const total = (step) => step.spans.reduce((sum, span) => sum + tokensOf(span), 0);

export class Plot {
  #canvas; #text; #steps = []; #chosen = null; // number of the step that is pointed at; null: the newest
  #lanes = new Map(); // seq -> row, while it is in sight

  /** `text`: the element that says what the chosen step had. */
  constructor(canvas, text) {
    this.#canvas = canvas;
    this.#text = text;
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    canvas.addEventListener("pointermove", (event) => this.#choose(this.#indexAt(event.offsetX)));
    canvas.addEventListener("pointerleave", () => this.#choose(null));
    canvas.addEventListener("blur", () => this.#choose(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  show(steps) {
    this.#steps = steps;
    this.#assignLanes();
    if (steps.some((step) => step.spans.some((span) => span[3]))) document.getElementById("draft-legend").hidden = false;
    this.#draw();
  }

  /** A sequence keeps its row; one that is out of sight leaves it to the next. */
  #assignLanes() {
    const inSight = new Set(this.#steps.flatMap((step) => step.spans.map((span) => span[0])));
    for (const seq of this.#lanes.keys()) if (!inSight.has(seq)) this.#lanes.delete(seq);
    const taken = new Set(this.#lanes.values());
    for (const seq of inSight) {
      if (this.#lanes.has(seq)) continue;
      let row = 0;
      while (taken.has(row)) row += 1;
      taken.add(row);
      this.#lanes.set(seq, row);
    }
  }

  #indexAt(x) {
    const width = (this.#canvas.clientWidth - AXIS) / STEPS;
    const index = Math.floor((x - AXIS) / width) - (STEPS - this.#steps.length);
    return index >= 0 && index < this.#steps.length ? index : null;
  }

  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.#steps.length) return;
    event.preventDefault();
    const last = this.#steps.length - 1;
    const now = this.#chosen === null ? last : this.#indexOf(this.#chosen) ?? 0;
    this.#choose(Math.min(Math.max(now + by, 0), last));
  }

  #indexOf(number) {
    const index = this.#steps.findIndex((step) => step.step === number);
    return index < 0 ? null : index;
  }

  #choose(index) {
    this.#chosen = index === null ? null : this.#steps[index].step;
    this.#draw();
  }

  #draw() {
    const canvas = this.#canvas, scale = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    if (!this.#steps.length) return;
    const lanesTop = Math.round((height - LEGEND) * (1 - LANES_SHARE));
    this.#batches(pen, { top: 10, bottom: lanesTop - GAP, width });
    this.#rows(pen, { top: lanesTop, bottom: height - LEGEND, width });
    this.#ends(pen, width, height);
    this.#describe(pen, width, height);
  }

  *#columns(width) {
    const wide = (width - AXIS) / STEPS;
    for (const [index, step] of this.#steps.entries()) {
      const place = STEPS - this.#steps.length + index, x = whole(AXIS + place * wide);
      yield { step, x, wide: whole(AXIS + (place + 1) * wide) - x };
    }
  }

  #batches(pen, { top, bottom, width }) {
    const most = nice(Math.max(8, ...this.#steps.map(total))), unit = (bottom - top) / most;
    label(pen, "tokens in the batch", AXIS, bottom + 12, "left");
    for (const tick of [0, most / 2, most]) {
      const y = Math.round(bottom - tick * unit) + 0.5;
      pen.fillStyle = colour("--line");
      pen.fillRect(AXIS, y - 0.5, width - AXIS, 1);
      label(pen, String(tick), AXIS - 6, y, "right");
    }
    for (const { step, x, wide } of this.#columns(width)) {
      let y = bottom;
      for (const span of [...step.spans].sort((a, b) => isDecode(b) - isDecode(a))) {
        const known = (span[2] - span[1]) * unit, guessed = span[3] * unit;
        block(pen, x, y - known, wide, known, isDecode(span) ? "--decode" : "--prompt");
        if (guessed) block(pen, x, y - known - guessed, wide, guessed, "--draft");
        y -= known + guessed;
      }
    }
  }

  #rows(pen, { top, bottom, width }) {
    const rows = Math.max(6, ...[...this.#lanes.values()].map((row) => row + 1));
    const tall = Math.min(MOST_LANE, (bottom - top) / rows);
    pen.fillStyle = colour("--line");
    pen.fillRect(AXIS, bottom, width - AXIS, 1);
    for (const { step, x, wide } of this.#columns(width)) {
      for (const span of step.spans) {
        const y = top + this.#lanes.get(span[0]) * tall;
        const thin = isDecode(span) ? 0.42 : 0.84; // shape says it, too: not everybody sees the colours
        const name = span[3] ? "--draft" : isDecode(span) ? "--decode" : "--prompt";
        pen.fillStyle = colour(name);
        pen.fillRect(x, y + (tall * (1 - thin)) / 2, between(wide), Math.max(tall * thin, 1));
      }
    }
  }

  #ends(pen, width, height) {
    label(pen, "requests", AXIS, height - LEGEND + 12, "left");
    label(pen, "now", width, height - LEGEND + 12, "right");
  }

  #describe(pen, width, height) {
    const index = this.#chosen === null ? null : this.#indexOf(this.#chosen);
    const step = this.#steps[index ?? this.#steps.length - 1];
    if (!step) return;
    if (index !== null) {
      const wide = (width - AXIS) / STEPS, x = AXIS + (STEPS - this.#steps.length + index) * wide;
      pen.fillStyle = colour("--ink");
      pen.globalAlpha = 0.14;
      pen.fillRect(x - 1, 0, wide + 1, height - LEGEND);
      pen.globalAlpha = 1;
    }
    this.#text.textContent = `${index === null ? "Last step" : "Step"} ${step.step}: ${words(step)}`;
  }
}

/** "32 tokens in 12.3 ms: 4 decodes and a prompt chunk of 28" */
function words(step) {
  const decodes = step.spans.filter(isDecode).length;
  const chunks = step.spans.filter((span) => !isDecode(span)).map(tokensOf);
  const parts = [];
  if (decodes) parts.push(count(decodes, "decode"));
  if (chunks.length) parts.push(`${chunks.length === 1 ? "a prompt chunk" : count(chunks.length, "prompt chunk")} of ${chunks.join(", ")}`);
  return `${count(total(step), "token")} in ${(1000 * step.seconds).toFixed(1)} ms: ${parts.join(" and ")}`;
}

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

/** The next power of two that holds it, at least 8. */
function nice(most) {
  for (let size = 8; ; size *= 2) if (size >= most) return size;
}

/** A whole number of the screen's pixels. */
const whole = (x) => Math.round(x * devicePixelRatio) / devicePixelRatio;

/** A column, with room to the next one. */
const between = (wide) => wide - (wide >= 4 ? 1 : 1 / devicePixelRatio);

function block(pen, x, y, wide, tall, name) {
  pen.fillStyle = colour(name);
  pen.fillRect(x, y, between(wide), Math.max(tall - (tall > 3 ? 1 : 0), 1));
}

function label(pen, text, x, y, align) {
  pen.fillStyle = colour("--faint");
  pen.textAlign = align;
  pen.fillText(text, x, y);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
