// The console of a running streamer. Data comes as server-sent events, read with fetch so that a token can go with the
// request. Everything that is shown is set as text, never as markup: dead letters speak of what visitors sent.

const WINDOW = 10; // seconds over which rates and percentiles are taken
const KEPT = 300; // seconds that are drawn
const STAGES = ["kafka", "batch", "slot", "request", "backoff"];
const CALL_TYPES = ["identify", "group", "page", "track"];
const samples = [];
let state = null;
let edited = new Set(); // settings that someone is typing in

const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

// --- numbers -----------------------------------------------------------------------------------

function number(value, digits = 0) {
  if (value === null || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function seconds(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${(value / 60).toFixed(1)} min`;
}

function bytes(value) {
  return value < 1e6 ? `${number(value / 1e3)} kB` : `${number(value / 1e6, 1)} MB`;
}

const get = (sample, name) => sample.values[name] ?? 0;

function named(sample, start) {
  return Object.keys(sample.values).filter((name) => name.startsWith(start + "{"));
}

const labels = (name) => name.slice(name.indexOf("{") + 1, -1).split(",");

function total(sample, start) {
  return named(sample, start).reduce((sum, name) => sum + sample.values[name], 0);
}

// The sample that lies a window before the one at an index, or the first there is.
function before(index) {
  const from = samples[index].at - WINDOW - 0.5;
  let at = index;
  while (at > 0 && samples[at - 1].at >= from) at -= 1;
  return samples[at];
}

function rate(index, value) {
  const now = samples[index], then = before(index);
  const passed = now.at - then.at;
  return passed > 0 ? Math.max(value(now) - value(then), 0) / passed : null;
}

function percentile(index, share) {
  const now = samples[index], then = before(index);
  const start = "streamer_event_age_seconds_bucket";
  const counts = named(now, start).map((name) => {
    const edge = labels(name)[0];
    return [edge === "+Inf" ? Infinity : Number(edge), now.values[name] - (then.values[name] ?? 0)];
  }).sort((a, b) => a[0] - b[0]);
  const all = counts.length ? counts[counts.length - 1][1] : 0;
  if (!(all > 0)) return null;
  let lower = 0, below = 0;
  for (const [edge, count] of counts) {
    if (count >= share * all) {
      if (edge === Infinity) return lower;
      return lower + (edge - lower) * (count > below ? (share * all - below) / (count - below) : 1);
    }
    [lower, below] = [edge, count];
  }
  return lower;
}

const delivered = (sample) => get(sample, "streamer_events_settled_total{delivered,}");
const requests = (sample) => total(sample, "streamer_segment_requests_total");
const accepted = (sample) => named(sample, "streamer_segment_requests_total")
  .filter((name) => labels(name)[1] === "delivered").reduce((sum, name) => sum + sample.values[name], 0);
const callsDelivered = (sample) => CALL_TYPES
  .reduce((sum, type) => sum + get(sample, `streamer_calls_total{${type},delivered}`), 0);

function ratio(index, above, below) {
  const now = samples[index], then = before(index);
  const divisor = below(now) - below(then);
  return divisor > 0 ? (above(now) - above(then)) / divisor : null;
}

// --- charts ------------------------------------------------------------------------------------

const CHARTS = [
  { title: "Events per second", unit: (v) => number(v), lines: {
    consumed: (i) => rate(i, (s) => get(s, "streamer_events_consumed_total")),
    delivered: (i) => rate(i, delivered) } },
  { title: "Lateness: Kafka's timestamp to acceptance", unit: seconds, goal: "interval", lines: {
    p50: (i) => percentile(i, 0.5), p95: (i) => percentile(i, 0.95), p99: (i) => percentile(i, 0.99) } },
  { title: "Mean age at delivery, by where it was spent", unit: seconds, stacked: true,
    lines: Object.fromEntries(STAGES.map((stage) =>
      [stage, (i) => ratio(i, (s) => get(s, `streamer_stage_event_seconds_total{${stage}}`), delivered)])) },
  { title: "Requests per second", unit: (v) => number(v, 1), lines: {
    accepted: (i) => rate(i, accepted),
    "not accepted": (i) => rate(i, (s) => requests(s) - accepted(s)) } },
  { title: "Calls per accepted request", unit: (v) => number(v, 1), lines: {
    calls: (i) => ratio(i, callsDelivered, accepted) } },
  { title: "Fill of batches, of their nearer limit", unit: (v) => `${number(v * 100)} %`, most: 1, lines: {
    fill: (i) => ratio(i, (s) => get(s, "streamer_batch_fill_ratio_sum"),
      (s) => get(s, "streamer_batch_fill_ratio_count")) } },
  { title: "Lag: records behind the end of the log", unit: (v) => number(v), lines: {
    lag: (i) => get(samples[i], "streamer_consumer_lag_records") } },
  { title: "Memory held, of the budget", unit: (v) => `${number(v * 100)} %`, most: 1, lines: {
    held: (i) => get(samples[i], "streamer_memory_used_bytes") / get(samples[i], "streamer_memory_budget_bytes") } },
  { title: "Requests under way, and how many may be", unit: (v) => number(v), lines: {
    "under way": (i) => get(samples[i], "streamer_segment_inflight_requests"),
    limit: (i) => get(samples[i], "streamer_segment_concurrency_limit") } },
];
const HEIGHT = 144, LEFT = 50, BOTTOM = 16;

function svg(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function rounded(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function makeCharts() {
  for (const chart of CHARTS) {
    chart.svg = svg("svg", { role: "img" });
    chart.legend = element("ul");
    byId("charts").append(
      element("div", { className: "chart" }, element("h2", { textContent: chart.title }), chart.svg, chart.legend));
  }
}

// What a line shows at a sample: it never changes, so it is computed once.
function valueAt(chart, name, index) {
  const known = samples[index].known ??= new Map();
  const key = `${chart.title}/${name}`;
  if (!known.has(key)) known.set(key, chart.lines[name](index));
  return known.get(key);
}

function drawChart(chart) {
  const WIDTH = chart.svg.clientWidth || 400;
  chart.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const names = Object.keys(chart.lines);
  const points = names.map(() => []);
  let top = 0;
  const first = samples[0].at, span = Math.max(samples[samples.length - 1].at - first, 30);
  const x = (at) => LEFT + (WIDTH - LEFT - 4) * (at - first) / span;
  samples.forEach((sample, index) => {
    let sum = 0;
    names.forEach((name, line) => {
      const value = valueAt(chart, name, index);
      if (chart.stacked) {
        if (value === null) { points[line].push([x(sample.at), null, null]); return; }
        points[line].push([x(sample.at), sum + value, sum]);
        sum += value;
        top = Math.max(top, sum);
      } else {
        points[line].push([x(sample.at), value, 0]);
        if (value !== null) top = Math.max(top, value);
      }
    });
  });
  const last = samples[samples.length - 1];
  const goals = chart.goal === "interval"
    ? samples.map((sample) => [x(sample.at), get(sample, "streamer_config_flush_interval_seconds")]) : [];
  for (const [, goal] of goals) top = Math.max(top, goal);
  const most = chart.most ?? rounded(top);
  const y = (value) => 6 + (HEIGHT - BOTTOM - 6) * (1 - value / most);
  const parts = [0, 0.5, 1].flatMap((share) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(share * most), y2: y(share * most) }),
    svg("text", { x: LEFT - 5, y: y(share * most) + 4, "text-anchor": "end" }, chart.unit(share * most)),
  ]);
  parts.push(
    svg("text", { x: LEFT, y: HEIGHT - 2 }, `${Math.round(last.at - first)} s ago`),
    svg("text", { x: WIDTH - 4, y: HEIGHT - 2, "text-anchor": "end" }, "now"));
  points.forEach((line, n) => {
    let path = "", broken = true;
    for (const [at, value] of line) {
      if (value === null) { broken = true; continue; }
      path += `${broken ? "M" : "L"}${at.toFixed(1)},${y(value).toFixed(1)}`;
      broken = false;
    }
    if (chart.stacked) {
      const known = line.filter(([, value]) => value !== null);
      if (known.length) {
        const upper = known.map(([at, value]) => `${at.toFixed(1)},${y(value).toFixed(1)}`);
        const lower = known.map(([at, , base]) => `${at.toFixed(1)},${y(base).toFixed(1)}`).reverse();
        parts.push(svg("path", { class: `area k${n}`, d: `M${[...upper, ...lower].join("L")}Z` }));
      }
    } else if (path) {
      parts.push(svg("path", { class: `k${n}`, d: path }));
    }
  });
  if (goals.length) { // in steps: it holds until it is changed
    const steps = goals.map(([at, goal], n) => `${n ? `H${at.toFixed(1)}V` : `M${at.toFixed(1)},`}${y(goal).toFixed(1)}`);
    parts.push(svg("path", { class: "goal", d: steps.join("") }));
  }
  chart.svg.replaceChildren(...parts);
  const said = names.map((name) => [name, valueAt(chart, name, samples.length - 1)]);
  chart.svg.setAttribute("aria-label",
    `${chart.title}: ${said.map(([name, value]) => `${name} ${value === null ? "–" : chart.unit(value)}`).join(", ")}`);
  chart.legend.replaceChildren(
    ...said.map(([name, value], n) => element("li", { className: `k${n}` }, `${name} `,
      element("b", { textContent: value === null ? "–" : chart.unit(value) }))),
    ...goals.slice(-1).map(([, goal]) =>
      element("li", {}, "flush.interval ", element("b", { textContent: seconds(goal) }))));
}

// --- tiles and tables --------------------------------------------------------------------------

function fill(id, head, rows, numeric = []) {
  const cell = (name, text, n) => element(name, {
    textContent: text, className: numeric.includes(n) ? "n" : String(text).length > 60 ? "long" : "" });
  const parts = [element("tbody", {}, ...rows.map((row) =>
    element("tr", {}, ...row.map((text, n) => cell("td", text, n)))))];
  if (!rows.length) parts[0].append(element("tr", {}, element("td", { colSpan: head.length, textContent: "none so far" })));
  if (head) parts.unshift(element("thead", {}, element("tr", {}, ...head.map((text, n) => {
    const made = cell("th", text, n);
    made.scope = "col";
    return made;
  }))));
  byId(id).replaceChildren(...parts);
}

function drawTiles(sample, last) {
  const tiles = [
    ["delivered a second", number(rate(last, delivered))],
    ["lateness p95", seconds(percentile(last, 0.95))],
    ["requests a second", number(rate(last, requests), 1)],
    ["calls a request", number(ratio(last, callsDelivered, accepted), 1)],
    ["lag", number(get(sample, "streamer_consumer_lag_records"))],
    ["in flight", number(get(sample, "streamer_inflight_events"))],
    ["dead letters", number(named(sample, "streamer_events_settled_total")
      .filter((name) => labels(name)[0] === "dead_lettered").reduce((sum, name) => sum + sample.values[name], 0))],
    ["memory held", bytes(get(sample, "streamer_memory_used_bytes"))],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value]) =>
    element("div", { className: "tile" }, element("b", { textContent: value }), element("span", { textContent: name }))));
}

function drawTables(sample) {
  const settled = named(sample, "streamer_events_settled_total")
    .map((name) => [...labels(name), sample.values[name]])
    .filter(([outcome, , count]) => outcome === "delivered" || count > 0)
    .map(([outcome, reason, count]) => [`${outcome.replace("_", " ")}${reason ? `: ${reason}` : ""}`, number(count)]);
  fill("account", null, [
    ["consumed", number(get(sample, "streamer_events_consumed_total"))], ...settled,
    ["released", number(get(sample, "streamer_events_released_total"))],
    ["in flight", number(get(sample, "streamer_inflight_events"))],
  ], [1]);
  const count = (type, outcome) => get(sample, `streamer_calls_total{${type},${outcome}}`);
  const outcomes = ["delivered", "merged", "suppressed", "refused", "released"] // the last three are rare
    .filter((outcome, n) => n < 2 || CALL_TYPES.some((type) => count(type, outcome)));
  fill("calls", ["type", ...outcomes], CALL_TYPES.map((type) =>
    [type, ...outcomes.map((outcome) => number(count(type, outcome)))]),
    [1, 2, 3, 4, 5]);
  const closed = named(sample, "streamer_batches_closed_total").map((name) => [labels(name)[0], sample.values[name]]);
  const all = closed.reduce((sum, [, count]) => sum + count, 0);
  fill("triggers", null, closed.map(([trigger, count]) =>
    [trigger, number(count), all ? `${number(100 * count / all)} %` : "–"]), [1, 2]);
}

function drawState() {
  const ready = byId("ready");
  ready.textContent = state.ready ? "ready" : "not ready";
  ready.className = state.ready ? "good" : "bad";
  byId("version").textContent = `streamer ${state.version}`;
  byId("reasons").replaceChildren(...[...state.reasons, ...state.held].map((text) => element("li", { textContent: text })));
  fill("destinations", ["name", "state", "why"], state.destinations.map((one) => [one.name, one.state, one.reason]));
  fill("lag", ["topic", "partition", "lag", "committed"], state.lag.map((one) =>
    [one.topic, one.partition, number(one.lag), number(one.committed)]), [1, 2, 3]);
  fill("letters", ["time", "reason", "what", "topic", "partition", "offset", "detail"], state.letters.map((one) =>
    [new Date(one.at * 1000).toLocaleTimeString("en-GB"), one.reason, one.kind, one.topic, one.partition, one.offset, one.detail]),
    [4, 5]);
  drawSettings();
}

// --- settings ----------------------------------------------------------------------------------

function drawSettings() {
  const form = byId("settings");
  for (const { key, value, origin } of state.settings) {
    let input = byId(key);
    if (!input) {
      input = element("input", { id: key, name: key, autocomplete: "off", spellcheck: false, required: true });
      const small = element("small");
      const name = key.split(/(?<=[._])/).flatMap((part) => [part, element("wbr")]); // where it may break
      form.append(element("label", { htmlFor: key }, ...name, small), input,
        element("button", { textContent: "Set", ariaLabel: `Set ${key}` }));
      input.origin = small;
      input.button = form.lastChild;
      input.button.dataset.key = key;
      input.addEventListener("input", () => {
        edited.add(key);
        input.button.disabled = false;
        input.removeAttribute("aria-invalid");
      });
      input.button.disabled = true;
    }
    input.origin.textContent = `from ${origin}`;
    if (!edited.has(key)) {
      input.value = value.replace(/^"|"$/g, "");
      input.button.disabled = true;
    }
  }
}

async function change(key) {
  const input = byId(key), answer = byId("answer");
  answer.className = "";
  answer.textContent = `setting ${key}…`;
  try {
    const response = await ask("config", {
      method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ [key]: input.value }) });
    const page = await response.json();
    if (!response.ok) throw new Error(page.errors.join("\n").replace(/^\/config: /gm, "")); // that is here
    edited.delete(key);
    input.button.disabled = true;
    const changes = Object.keys(page.after).map((name) => `${name}: ${page.before[name]} → ${page.after[name]}`);
    answer.textContent = changes.join("\n") || `${key} is what it was`;
  } catch (error) {
    input.setAttribute("aria-invalid", "true");
    answer.className = "error";
    answer.textContent = `${error.message}\nNothing has changed.`;
  }
}

byId("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = event.submitter?.dataset.key ?? document.activeElement?.id;
  if (key) change(key);
});
byId("settings").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.button) { // the submitter would be the first setting's button
    event.preventDefault();
    change(event.target.id);
  }
});

// --- the stream --------------------------------------------------------------------------------

function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

function take(event, data) {
  if (event === "names") {
    take.names = data;
  } else if (event === "sample") {
    const [at, ...values] = data;
    samples.push({ at, values: Object.fromEntries(take.names.map((name, n) => [name, values[n]])) });
    while (samples[0].at < at - KEPT) samples.shift();
  } else if (event === "state") {
    state = data;
  }
}

function draw() {
  if (!state || !samples.length || document.hidden) return;
  document.querySelector("main").hidden = false;
  byId("login").hidden = true;
  drawState();
  const last = samples.length - 1;
  drawTiles(samples[last], last);
  drawTables(samples[last]);
  CHARTS.forEach(drawChart);
}

async function read() {
  const response = await ask("events");
  if (response.status === 401 || response.status === 403) {
    const page = await response.json();
    byId("ready").textContent = "";
    document.querySelector("main").hidden = true;
    byId("login").hidden = false;
    byId("login-error").textContent = sessionStorage.getItem("token") ? "That isn't the token." : page.errors[0];
    sessionStorage.removeItem("token");
    return false;
  }
  if (!response.ok) throw new Error(`status ${response.status}`);
  samples.length = 0;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return true;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const one of events) {
      const [head, body] = one.split("\ndata: ");
      take(head.slice("event: ".length), JSON.parse(body));
    }
    draw();
  }
}

async function follow() {
  for (;;) {
    try {
      if (!await read()) return;
    } catch { /* said below */ }
    const ready = byId("ready");
    ready.textContent = "no answer from streamer; trying again";
    ready.className = "bad";
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  follow();
});
document.addEventListener("visibilitychange", draw);
makeCharts();
follow();
