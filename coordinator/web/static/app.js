// The dashboard. Everything that is shown is text: what programs and hosts are called never becomes markup.
import { el, svg, replace, bytes, ms, ago, clock, rate } from "./view.js";

const state = { hosts: [], workloads: [], drains: [], moves: [], history: [], events: [], readOnly: true };
const $ = (id) => document.getElementById(id);
const EVENTS_SHOWN = 200, HISTORY_SHOWN = 50, PAGE = 4096;

async function post(path, body) {
  const r = await fetch("/api/" + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const v = await r.json().catch(() => ({ error: r.statusText }));
  if (!r.ok) throw Object.assign(new Error(v.error || r.statusText), { obstacles: v.obstacles || [] });
  return v;
}

// ask shows a question; yes resolves to true. Without yes it only tells.
function ask(title, body, yes) {
  $("dialog-title").textContent = title;
  replace($("dialog-body"), body);
  $("dialog-yes").hidden = !yes;
  $("dialog-yes").textContent = yes || "";
  $("dialog-no").textContent = yes ? "No" : "Close";
  const d = $("dialog");
  d.showModal();
  return new Promise((done) => {
    const end = (v) => { d.close(); $("dialog-yes").onclick = $("dialog-no").onclick = d.oncancel = null; done(v); };
    $("dialog-yes").onclick = () => end(true);
    $("dialog-no").onclick = () => end(false);
    d.oncancel = () => end(false);
  });
}

async function act(question, detail, yes, path, body) {
  if (!await ask(question, [el("p", {}, detail)], yes)) return;
  try {
    await post(path, body);
  } catch (e) {
    const list = e.obstacles.map((o) => el("li", {}, `${o.host}: ${o.where}: ${o.reason}`, o.remedy ? el("span", { class: "dim" }, " – " + o.remedy) : ""));
    ask("That was refused", [el("p", {}, e.message), list.length ? el("ul", {}, list) : ""]);
  }
}

function hostCards() {
  const drains = new Map(state.drains.map((d) => [d.host, d]));
  replace($("hosts"), state.hosts.map((h) => {
    const drain = drains.get(h.name);
    const tags = [el("span", { class: "tag " + (h.up ? "good" : "bad") }, h.up ? "up" : "down")];
    if (h.leader) tags.push(el("span", { class: "tag" }, "leader")); else if (h.voter) tags.push(el("span", { class: "tag" }, "server"));
    if (h.drain_unix_ns) tags.push(el("span", { class: "tag warn" }, h.workloads ? "draining" : "drained"));
    const used = h.memory_bytes ? (h.memory_bytes - h.memory_free_bytes) / h.memory_bytes : 0;
    const card = el("article", { class: "card", "data-host": h.name }, el("h3", {}, h.name, tags),
      el("dl", {}, el("dt", {}, "Workloads"), el("dd", {}, String(h.workloads)), el("dt", {}, "Memory"), el("dd", {}, `${bytes(h.memory_free_bytes)} of ${bytes(h.memory_bytes)} free`),
        el("dt", {}, "Address"), el("dd", {}, h.address), el("dt", {}, "Heard"), el("dd", {}, ago(h.last_heard_unix_ns) + " ago")),
      el("progress", { max: 1, value: used, "aria-label": `memory of ${h.name} in use` }));
    if (drain) card.append(drainView(drain));
    if (!state.readOnly) {
      const b = h.drain_unix_ns
        ? el("button", { type: "button", onclick: () => act(`Put ${h.name} back into use?`, "Workloads may be started on it and moved to it again.", "Undrain", "undrain", { host: h.name }) }, "Undrain")
        : el("button", { type: "button", onclick: () => act(`Drain ${h.name}?`, `Its ${h.workloads} workloads move to the other hosts, and it gets no more.`, "Drain", "drain", { host: h.name }) }, "Drain");
      b.setAttribute("aria-label", `${b.textContent} ${h.name}`);
      card.append(el("div", { class: "buttons" }, b));
    }
    return card;
  }));
}

function drainView(d) {
  const moved = d.workloads.filter((w) => w.state === "moved").length;
  return el("div", {}, el("p", { class: "dim" }, `drain: ${moved} of ${d.workloads.length} moved${d.expired ? ", its deadline has passed" : ""}`),
    el("progress", { max: Math.max(1, d.workloads.length), value: d.workloads.length ? moved : 1, "aria-label": "drain" }),
    el("ul", {}, d.workloads.filter((w) => w.state !== "moved").map((w) => el("li", { class: w.state === "stuck" ? "bad" : "" }, `${w.workload}: ${w.state}${w.destination && w.state === "moving" ? " to " + w.destination : ""}${w.reason ? " – " + w.reason : ""}`))));
}

function moveCards() {
  if (!state.moves.length) return replace($("moves"), [el("p", { class: "none" }, "Nothing moves.")]);
  replace($("moves"), state.moves.map((m) => {
    const total = m.pages_sent + m.pages_remaining;
    const done = m.state === "copying" ? m.round_fraction || 0 : m.state === "preparing" ? 0 : 1;
    const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    const card = el("article", { class: "card", "data-move": m.id }, el("h3", {}, `${m.workload}: ${m.source} → ${m.destination}`, el("span", { class: "tag" + (m.state === "needs_operator" ? " bad" : "") }, m.state), el("span", { class: "dim" }, m.id)),
      el("progress", { max: 1, value: done, "aria-label": `round ${m.round} of ${m.workload}` }),
      el("dl", { class: "wide" }, fact("Round", String(m.round || 0)), fact("Remaining", `${bytes(m.pages_remaining * PAGE)} (${m.pages_remaining} pages)`), fact("Sent", `${bytes(m.bytes_sent)} (${total - m.pages_remaining} pages)`),
        fact("Rate", rate(m.bytes_per_second)), fact("Dirty rate", rate(m.dirty_pages_per_second * PAGE)), fact("Predicted blackout", ms(m.predicted_downtime_ms)), fact("For", ms(m.total_ms))));
    if (m.copying) card.append(el("p", { class: "dim" }, m.copying));
    if (m.waiting_for) card.append(el("p", { class: "warn" }, m.waiting_for));
    if (m.rounds.length) card.append(roundsTable(m));
    if (!state.readOnly && ["preparing", "copying", "switching", "voted"].includes(m.state))
      card.append(el("div", { class: "buttons" }, el("button", { type: "button", "aria-label": `Cancel the move of ${m.workload}`, onclick: () => act(`Cancel the move of ${m.workload}?`, `It runs on at ${m.source}.`, "Cancel the move", "cancel", { id: m.id }) }, "Cancel")));
    return card;
  }));
}

function roundsTable(m) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "rounds" }, el("table", {}, el("thead", {}, el("tr", {}, ["Round", "Pages", "Zero", "Sent", "Time", "Dirty after"].map((t) => el("th", { class: "n", scope: "col" }, t)))),
    el("tbody", {}, m.rounds.slice(-8).map((r) => el("tr", {}, [r.n, r.pages, r.zero_pages, bytes(r.bytes_sent), ms(r.ms), r.dirty_pages_after].map((v) => el("td", { class: "n" }, String(v))))))));
}

function workloadTable() {
  const rows = state.workloads.map((w) => {
    const where = el("td");
    if (!state.readOnly && w.state === "running") {
      const to = el("select", { "aria-label": `move ${w.name} to`, onchange: async (e) => {
        const host = e.target.value;
        e.target.value = "";
        if (host) await act(`Move ${w.name} to ${host}?`, `It runs on ${w.host} now. Its clients see a short pause.`, "Move", "move", { workload: w.name, to: host });
      } }, el("option", { value: "" }, "move to …"), state.hosts.filter((h) => h.up && !h.drain_unix_ns && h.name !== w.host).map((h) => el("option", { value: h.name }, h.name)));
      where.append(to);
    }
    return el("tr", { "data-workload": w.name }, el("td", {}, w.name), el("td", { class: "host" }, w.host), el("td", { class: { running: "good", lost: "bad" }[w.state] || "" }, w.state), el("td", { class: "n" }, w.rss_bytes ? bytes(w.rss_bytes) : "–"),
      el("td", { class: "n" }, String(w.connections)), el("td", {}, w.address || "–"), el("td", { class: "n" }, String(w.epoch)), where);
  });
  table($("workloads"), ["Name", "Host", "State", "n:Memory", "n:Connections", "Address", "n:Epoch", ""], rows, "No workloads.");
}

function table(t, columns, rows, none) {
  if (t.contains(document.activeElement) && document.activeElement.tagName === "SELECT") return; // an open list stays
  replace(t, rows.length ? [el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", class: c.startsWith("n:") ? "n" : "" }, c.replace("n:", ""))))), el("tbody", {}, rows)]
    : [el("tbody", {}, el("tr", {}, el("td", { class: "dim" }, none)))]);
}

const OUTCOME = { moved: "good", source_running: "warn", needs_operator: "bad", lost: "bad" };

function historyView() {
  const list = state.history.filter((m) => m.outcome).slice(-HISTORY_SHOWN).reverse();
  table($("history"), ["When", "Workload", "From", "To", "Outcome", "n:Blackout", "n:Total", "n:Rounds", "Why"], list.map((m) => el("tr", { "data-migration": m.id }, el("td", {}, clock(m.begun_unix_ns)),
    el("td", {}, el("button", { type: "button", class: "link", onclick: () => details(m) }, m.workload)), el("td", {}, m.source), el("td", {}, m.destination),
    el("td", { class: OUTCOME[m.outcome] || "" }, m.outcome.replace("_", " ")), el("td", { class: "n" }, m.outcome === "moved" ? ms(m.downtime_ms) : "–"), el("td", { class: "n" }, ms(m.total_ms)),
    el("td", { class: "n" }, String(m.rounds.length)), el("td", { class: "long dim" }, m.error || ""))), "No move yet.");
  chart(list.slice().reverse());
}

function chart(list) {
  if (!list.length) return replace($("chart"), [el("p", { class: "none" }, "Charts come with the first move.")]);
  const W = 1000, H = 120, most = Math.max(1, ...list.map((m) => m.downtime_ms || 0));
  const step = Math.min(40, W / list.length), out = [svg("line", { x1: 0, y1: H, x2: W, y2: H, class: "axis" })];
  list.forEach((m, i) => {
    const moved = m.outcome === "moved", h = moved ? Math.max(2, (m.downtime_ms / most) * (H - 4)) : 6;
    out.push(svg("rect", { x: i * step + step * .15, y: H - h, width: step * .7, height: h, class: moved ? "moved" : "failed" }, svg("title", {}, `${m.workload} ${m.source} → ${m.destination}: ${moved ? ms(m.downtime_ms) : m.outcome}`)));
  });
  replace($("chart"), [el("figure", {}, el("figcaption", {}, `Blackout of the last ${list.length} moves, at most ${ms(most)}; short and red: it did not move`),
    svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": `blackout of ${list.length} moves, at most ${ms(most)}` }, ...out))]);
}

// details of a move: what the blackout was spent on, step by step, and the rounds.
function details(m) {
  const steps = m.steps || [], end = Math.max(m.downtime_ms || 0, ...steps.map((s) => s.start_ms + s.ms), .001);
  const bars = steps.map((s) => el("li", {}, el("span", { class: s.name.includes("/") ? "sub" : "" }, s.name.split("/").pop(), el("span", { class: "dim" }, " " + s.host)),
    svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "bg", x: 0, y: 0, width: 1000, height: 10 }),
      svg("rect", { class: s.host === m.destination ? "dest" : "at", x: s.start_ms / end * 1000, y: 0, width: Math.max(3, s.ms / end * 1000), height: 10 })), el("span", {}, ms(s.ms))));
  ask(`${m.workload}: ${m.source} → ${m.destination}`, [
    el("p", {}, m.outcome === "moved" ? `Moved, ${ms(m.downtime_ms)} of blackout, ${ms(m.total_ms)} in all, ${bytes(m.bytes_sent)} sent.` : `${m.outcome.replace("_", " ")}: ${m.error}`),
    bars.length ? el("figure", { class: "bars" }, el("figcaption", {}, "What the blackout was spent on"), el("ol", {}, bars)) : "", m.rounds.length ? roundsTable(m) : ""]);
}

function eventList() {
  replace($("events"), state.events.slice(-EVENTS_SHOWN).reverse().map((e) => el("li", { "data-kind": e.kind }, el("time", { class: "dim" }, clock(e.unix_ns)),
    el("span", { class: /lost|needs_operator|aborted/.test(e.kind) ? "bad" : "" }, e.text))));
}

function summary() {
  const up = state.hosts.filter((h) => h.up).length, leader = state.hosts.find((h) => h.leader);
  $("summary").textContent = `${up} of ${state.hosts.length} hosts up, ${state.workloads.length} workloads, ${state.moves.length} moving, leader ${leader ? leader.name : "none"}`;
}

const VIEWS = { hosts: [hostCards, workloadTable], drains: [hostCards], workloads: [workloadTable], moves: [moveCards], history: [historyView], event: [eventList] };
const waiting = new Set();

// draw redraws what has changed, once a frame at most.
function draw(name) {
  if (!waiting.size) requestAnimationFrame(() => {
    const todo = new Set([...waiting].flatMap((n) => VIEWS[n]));
    waiting.clear();
    for (const view of todo) view();
    summary();
  });
  waiting.add(name);
}

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

function live(text, on) {
  $("live").textContent = text;
  $("live").className = on ? "on" : "off";
}

const session = await fetch("/api/session").then((r) => r.json());
state.readOnly = session.read_only !== false;
const source = new EventSource("/api/stream");
source.onopen = () => live("live", true);
source.onerror = () => live("not connected: is `migrate dashboard` still running?", false);
for (const name of ["hosts", "workloads", "drains", "moves", "history"])
  source.addEventListener(name, (e) => { state[name] = JSON.parse(e.data); trouble(""); draw(name); });
source.addEventListener("event", (e) => { state.events.push(JSON.parse(e.data)); state.events.splice(0, state.events.length - EVENTS_SHOWN); draw("event"); });
source.addEventListener("trouble", (e) => trouble(JSON.parse(e.data).error));
