// The panels under the curves: cohorts, devices, abandoned rounds, versions, rounds.

import { $, el, fill, tag, when } from "./dom.js";
import { bytes, capital, count, exactly, loss, metric, moment, seconds, words } from "./format.js";
import { isEvaluation, isVersion, sum } from "./history.js";

const FEW_VERSIONS = 6;
const MOST_ABANDONED = 5;
const MOST_RUNTIMES = 12;
const MOST_CHOICES = 50;
const KINDS = { committed: "good", abandoned: "bad" };
const FEW_ROUNDS = 15;
const MORE_ROUNDS = 50;
let allVersions = false;
let mostRounds = FEW_ROUNDS;

export const titleOf = (round) =>
  round.task === "evaluation" ? `Evaluation of ${round.number}` : round.task === "rollback" ? `Rollback ${round.number}` : `Round ${round.number}`;

export function showAllVersions() {
  allVersions = true;
}

/** Show more of the rounds; whether more have to be fetched for it. */
export function showMoreRounds(known) {
  mostRounds = (mostRounds === FEW_ROUNDS ? 0 : mostRounds) + MORE_ROUNDS;
  return mostRounds > known;
}

/** What became of the devices that checked in, in the open round, in all rounds, or in one that is over. */
export function cohort(status, rounds) {
  const select = $("funnel-of");
  const past = rounds.filter((round) => round.task !== "rollback").reverse().slice(0, MOST_CHOICES);
  const choices = [["now", "the current round"], ["all", "all rounds"], ...past.map((round) => [String(round.id), titleOf(round).toLowerCase() + (round.outcome === "abandoned" ? " (abandoned)" : "")])];
  when("funnel-of", choices, () => {
    const chosen = select.value || "now";
    select.replaceChildren(...choices.map(([value, text]) => el("option", { value }, text)));
    select.value = choices.some(([value]) => value === chosen) ? chosen : "now";
  });
  const round = past.find((record) => String(record.id) === select.value);
  const counts = round ? round.counts : select.value === "all" ? status.counts : status.round_counts;
  const stages = [
    stage("Checked in", counts.checked_in),
    stage("Accepted", counts.accepted, "accent"),
    stage("Rejected", sum(counts.rejected), "soft", counts.rejected),
  ];
  if (round) stages.push(stage("Had a seat", round.cohort, "accent"));
  if (select.value === "now") stages.push(stage("Have a seat", status.cohort, "accent"));
  stages.push(stage("Reported", counts.reported, "accent"), stage("Late", counts.late, "warn"), stage("Refused", sum(counts.refused), "bad", counts.refused));
  if (round) stages.push(stage("Dropped: a seat without a report", Math.max(round.cohort - round.clients, 0), "soft"));
  if (select.value === "now") stages.push(stage("Still out: a seat without a report yet", Math.max(status.cohort - status.reports, 0), "soft"));
  bars("funnel", stages);
}

export function devices(summary) {
  const states = Object.entries(summary.states).map(([name, value]) => stage(capital(name), value, name === "revoked" ? "soft" : "accent"));
  bars("states", states);
  const runtimes = Object.entries(summary.runtimes).sort((a, b) => b[1] - a[1]);
  const others = runtimes.slice(MOST_RUNTIMES).reduce((total, [, value]) => total + value, 0);
  const shown = runtimes.slice(0, MOST_RUNTIMES).map(([name, value]) => stage(name || "not said", value, "accent"));
  bars("runtimes", others ? [...shown, stage("Others", others, "soft")] : shown, "No device has checked in yet.");
}

export function abandoned(rounds, complete) {
  const found = rounds.filter((round) => round.outcome === "abandoned").reverse();
  const reasons = {};
  for (const round of found) reasons[round.reason] = (reasons[round.reason] || 0) + 1;
  const among = `${complete ? "all" : "the last"} ${count(rounds.length)} rounds`;
  $("abandoned-note").textContent = found.length ? `${count(found.length)} of ${among}` : `None of ${among}`;
  bars("abandoned-reasons", Object.entries(reasons).sort((a, b) => b[1] - a[1]).map(([reason, value]) => stage(capital(words(reason)), value, "bad")));
  when("abandoned", found.slice(0, MOST_ABANDONED).map((round) => round.id), (list) => {
    list.replaceChildren(...found.slice(0, MOST_ABANDONED).map((round) => el("li", {}, el("span", {}, `${titleOf(round)}: ${words(round.reason)}`), time(round.ended))));
  });
}

export function versions(status, rounds, complete) {
  const name = status.task.metric;
  const found = new Map(rounds.filter(isEvaluation).map((round) => [round.number, round.accuracy]));
  const made = rounds.filter(isVersion).reverse();
  const shown = allVersions ? made : made.filter((round, place) => place < FEW_VERSIONS || round.number === status.released);
  const rows = shown.map((round) => ({
    number: round.number, ended: round.ended, weights: round.weights, metric: found.get(round.number) ?? null,
    by: round.task === "rollback" ? `rollback ${round.reason}` : `${count(round.clients)} reports`,
  }));
  if (complete && shown.length === made.length) rows.push({ number: 0, ended: null, weights: status.initial_weights, metric: null, by: "the bundle" });
  when("versions", [rows, status.committed_rounds, status.released, name], (body) => {
    body.replaceChildren(...rows.map((row) => el("tr", {},
      el("th", { scope: "row" }, String(row.number)),
      cell("Made", row.ended === null ? "" : time(row.ended)), cell("By", row.by), cell(capital(words(name)), metric(name, row.metric)),
      cell("Weights", el("code", { title: row.weights }, row.weights.slice(0, 12))),
      el("td", { class: "marks whole" }, ...marks(row, status).flatMap((mark) => [mark, " "])),
    )));
  });
  $("more-versions").hidden = allVersions || made.length <= FEW_VERSIONS;
}

function marks(row, status) {
  const found = [];
  if (row.number === status.committed_rounds) found.push(tag("in force", "accent"));
  if (row.number === status.released) found.push(tag("released", "good"));
  if (row.by.startsWith("rollback")) found.push(tag("rollback", "warn"));
  return found;
}

export function table(status, rounds, complete) {
  const name = status.task.metric;
  const newest = [...rounds].reverse().slice(0, mostRounds);
  when("rounds", [name, newest.map((round) => [round.id, round.ended])], (body) => {
    body.replaceChildren(...newest.map((round) => row(round, name)));
  });
  $("more-rounds").hidden = (complete && rounds.length <= mostRounds) || !rounds.length;
}

function row(round, name) {
  const { counts } = round;
  const begin = [el("th", { scope: "row" }, titleOf(round)), cell("Ended", time(round.ended))];
  if (round.task === "rollback") return el("tr", {}, ...begin, el("td", { "data-name": "Outcome", colspan: 12 }, tag(`back ${round.reason}`, "warn")));
  return el("tr", {},
    ...begin,
    cell("Outcome", el("span", {}, tag(round.outcome, KINDS[round.outcome]), round.reason ? ` ${words(round.reason)}` : null)),
    number("Checked in", count(counts.checked_in)), number("Seats", count(round.cohort)), number("Reports", count(round.clients)),
    number("Late", count(counts.late)), number("Refused", count(sum(counts.refused)), reasons(counts.refused)), number("No report", count(Math.max(round.cohort - round.clients, 0))),
    number("Loss", loss(round.loss)), number(capital(words(name)), metric(name, round.accuracy)),
    number("Up", bytes(counts.upload_bytes)), number("Down", bytes(counts.download_bytes)), number("Took", seconds(round.seconds)),
  );
}

const stage = (name, value, kind = "soft", by = {}) => ({ name, value, kind, note: reasons(by) });
const reasons = (by) => Object.entries(by).sort((a, b) => b[1] - a[1]).map(([reason, value]) => `${words(reason)} ${count(value)}`).join(" · ");
const time = (since) => el("time", { datetime: new Date(since * 1000).toISOString(), title: exactly(since) }, moment(since));
const cell = (name, content) => el("td", { "data-name": name }, content);
const number = (name, text, title = "") => el("td", { "data-name": name, class: "number", title: title || null }, text);

function bars(id, stages, none = "") {
  when(id, stages, (list) => {
    const most = Math.max(...stages.map((one) => one.value), 1);
    list.replaceChildren(...stages.map((one) => {
      const bar = el("span", { "data-kind": one.kind });
      fill(bar, one.value / most);
      return el("li", {}, el("span", { class: "name" }, one.name), el("span", { class: "value" }, count(one.value)), el("span", { class: "bar", "aria-hidden": "true" }, bar), one.note ? el("span", { class: "note soft" }, one.note) : null);
    }));
    if (!stages.length && none) list.replaceChildren(el("li", { class: "soft" }, none));
  });
}
