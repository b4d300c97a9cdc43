// Asks the server for its status, again and again, and shows it.

import { charts, redraw } from "./charts.js";
import { $, again, fill, say, when } from "./dom.js";
import { ACCURACY, bytes, capital, count, metric, moment, plural, words } from "./format.js";
import { History, isEvaluation, isVersion } from "./history.js";
import { abandoned, cohort, devices, showAllVersions, showMoreRounds, table, titleOf, versions } from "./panels.js";

const EVERY = 1500; // milliseconds between two questions
const PATIENCE = 10_000;
const LAST = 5; // rounds in a status; more are fetched when they are needed
const KINDS = { selection: "accent", reporting: "accent", committing: "accent", paused: "warn", complete: "good" };

const history = new History(get);
let status = null;
let heard = null; // when the server last answered
let timer = 0;
let asking = false;

// Where the server is: behind a proxy it may have but a part of an address. The page's own address may hold a name and a
// key, which fetch takes in none.
const SERVER = new URL(".", location.origin + location.pathname);

async function get(path) {
  const answer = await fetch(new URL(path, SERVER), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) throw new Error("the key is no longer valid: load the page anew");
  if (!answer.ok) throw new Error(`the server answers with status ${answer.status}`);
  return answer.json();
}

async function ask() {
  if (asking || document.hidden) return;
  asking = true;
  clearTimeout(timer);
  try {
    const found = await get(`v1/status?history=${LAST}`);
    await history.update(found.history);
    status = found;
    heard = Date.now();
    connected(true);
    show();
  } catch (error) {
    connected(false, error instanceof TypeError || error.name === "TimeoutError" ? "the server does not answer" : error.message);
  } finally {
    asking = false;
    timer = setTimeout(ask, EVERY);
  }
}

function connected(live, why = "") {
  const since = heard === null ? "" : ` since ${moment(heard / 1000)}`;
  $("connection").dataset.state = live ? "live" : "lost";
  say("connection", live ? "live" : `no connection${since}: ${why}`);
  document.body.classList.toggle("lost", !live);
}

function show() {
  const { task } = status;
  const { rounds, complete } = history;
  document.title = `${task.population} · pocketfed`;
  say("population", task.population);
  const goal = task.rounds === null ? "" : ` · ${count(task.rounds)} rounds in all`;
  say("work", `${plural(task.goal_count, "report")} a round · ${plural(task.work.epochs, "epoch")}, learning rate ${task.work.learning_rate} · codec ${task.work.codec}, downlink ${task.downlink}${goal}`);
  say("identity", `Model ${task.model} (${task.model_id}) · bundle ${task.bundle.slice(0, 16)}…`);
  const titled = capital(words(task.metric));
  for (const title of document.querySelectorAll(".metric")) title.textContent = titled;
  now(task);
  cards(rounds, task);
  charts(rounds, task);
  cohort(status, rounds);
  devices(status.devices);
  abandoned(rounds, complete);
  versions(status, rounds, complete);
  table(status, rounds, complete);
}

function now(task) {
  const open = status.round_task !== null;
  say("round", open ? titleOf({ task: status.round_task, number: status.round }) : status.complete ? "All rounds done" : "No open round");
  when("phase", status.phase, (element) => {
    element.hidden = false;
    element.dataset.kind = KINDS[status.phase] ?? "soft";
    element.textContent = capital(status.phase);
  });
  const wanted = status.phase === "selection" ? task.goal_count : Math.min(task.goal_count, status.cohort);
  say("seats", open ? `${count(status.cohort)} of ${count(task.cohort_size)}` : "–");
  say("reports", open ? `${count(status.reports)} of ${count(wanted)}` : "–");
  fill($("seats-bar"), open ? status.cohort / task.cohort_size : 0);
  fill($("reports-bar"), open && wanted ? status.reports / wanted : 0);
}

function cards(rounds, task) {
  const latest = rounds.filter(isVersion).at(-1);
  const evaluations = rounds.filter(isEvaluation);
  const evaluated = evaluations.at(-1);
  say("version", String(status.committed_rounds));
  const released = status.released === null ? "none released" : `${status.released} released`;
  say("version-note", latest ? `${moment(latest.ended)} · ${released}` : `the bundle's weights · ${released}`);
  say("metric", evaluated ? metric(task.metric, evaluated.accuracy) : "–");
  const before = evaluations.at(-2);
  const change = before ? evaluated.accuracy - before.accuracy : 0;
  const size = Math.abs(change);
  const by = task.metric === ACCURACY ? `${(size * 100).toFixed(1)} points` : metric(task.metric, size);
  const trend = before ? `, ${change >= 0 ? "+" : "−"}${by}` : "";
  say("metric-note", evaluated ? `version ${evaluated.number}${trend}` : "not evaluated yet");
  const { states } = status.devices;
  say("active", count(states.active));
  say("active-note", `${count(states.enrolled)} enrolled only, ${count(states.revoked)} revoked`);
  say("upload", bytes(status.counts.upload_bytes));
  say("download", `${bytes(status.counts.download_bytes)} down`);
}

function refresh() {
  if (status !== null) show();
}

$("funnel-of").addEventListener("change", refresh);
$("more-versions").addEventListener("click", () => {
  showAllVersions();
  refresh();
});
$("more-rounds").addEventListener("click", async () => {
  try {
    if (showMoreRounds(history.byId.size) && !history.complete) await history.earlier();
    refresh();
  } catch (error) {
    connected(false, error.message);
  }
});
$("plotly").addEventListener("load", refresh);
document.addEventListener("visibilitychange", ask);
window.addEventListener("online", ask);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  redraw();
  again();
  refresh();
});
ask();
