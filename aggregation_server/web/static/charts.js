// The curves, drawn by plotly, which may come later than the numbers do.

import { $, el, say } from "./dom.js";
import { ACCURACY, count, loss, metric, plural } from "./format.js";
import { isEvaluation, isVersion, sum } from "./history.js";

const MOST_COHORTS = 40;
const drawn = new Map();

/** Draw all charts of these rounds, as far as they have changed. */
export function charts(rounds, task) {
  evaluations(rounds, task);
  losses(rounds);
  cohorts(rounds.filter((round) => round.task !== "rollback").slice(-MOST_COHORTS));
}

/** Draw everything anew the next time, in the colours of now. */
export const redraw = () => drawn.clear();

/** The mean of the model's metric, by versions; records have it as `accuracy`, whatever it is. */
function evaluations(rounds, task) {
  const found = rounds.filter((round) => isEvaluation(round) && round.accuracy !== null);
  const last = found.at(-1);
  const share = task.metric === ACCURACY;
  const best = (share ? Math.max : Math.min)(...found.map((round) => round.accuracy));
  say("metric-summary", last ? `On devices' own test examples: ${metric(task.metric, last.accuracy)} at version ${last.number}, at best ${metric(task.metric, best)}` : "On devices' own test examples");
  const none = task.evaluate_every ? "No evaluation yet." : "No evaluations: pocketfed serve --evaluate-every 10 has devices evaluate every tenth version.";
  const line = trace("evaluation", found, (round) => round.accuracy, "--accent", share ? "%{y:.1%}" : "%{y:.4f}");
  const yaxis = share ? { tickformat: ".0%", autorangeoptions: { clipmin: 0, clipmax: 1.02 } } : {};
  draw("metric-chart", found.length ? [line] : [], { yaxis }, none, marks(rounds));
}

function losses(rounds) {
  const trained = rounds.filter((round) => isVersion(round) && round.loss !== null);
  const evaluated = rounds.filter((round) => isEvaluation(round) && round.loss !== null);
  const said = [];
  if (trained.length) said.push(`training ${loss(trained.at(-1).loss)}`);
  if (evaluated.length) said.push(`evaluation ${loss(evaluated.at(-1).loss)}`);
  say("loss-summary", said.length ? `Last: ${said.join(", ")}` : "Of training and of evaluation");
  const traces = [trace("training", trained, (round) => round.loss, "--accent", "%{y:.4f}")];
  if (evaluated.length) traces.push(trace("evaluation", evaluated, (round) => round.loss, "--second", "%{y:.4f}"));
  draw("loss-chart", trained.length + evaluated.length ? traces : [], { showlegend: evaluated.length > 0 }, "No round yet.", marks(rounds));
}

function cohorts(rounds) {
  const x = rounds.map((round, place) => place);
  const names = rounds.map((round) => `${round.task === "evaluation" ? "evaluation of " : "round "}${round.number}${round.outcome === "abandoned" ? ", abandoned" : ""}`);
  const bars = (name, of, colour) => ({
    type: "bar", name, x, y: rounds.map(of), customdata: names, marker: { color: css(colour) },
    hovertemplate: `%{customdata}: %{y} ${name}<extra></extra>`,
  });
  const reports = rounds.reduce((total, round) => total + round.clients, 0);
  const seats = rounds.reduce((total, round) => total + round.cohort, 0);
  say("cohorts-summary", rounds.length ? `${count(reports)} reports of ${plural(seats, "seat")} in ${plural(rounds.length, "round")}` : "What became of each round's seats");
  const traces = [
    bars("reported", (round) => round.clients, "--accent"),
    bars("without a report", (round) => Math.max(round.cohort - round.clients, 0), "--idle"),
    bars("refused", (round) => sum(round.counts.refused), "--bad"),
    bars("late", (round) => round.counts.late, "--second"),
  ];
  const step = Math.ceil(rounds.length / 8);
  const ticks = x.filter((place) => place % step === 0);
  const xaxis = { title: { text: "round" }, tickvals: ticks, ticktext: ticks.map((place) => String(rounds[place].number)) };
  draw("cohorts-chart", rounds.length ? traces : [], { barmode: "stack", bargap: 0.25, showlegend: true, xaxis, yaxis: { rangemode: "tozero" } }, "No round yet.", []);
}

function trace(name, rounds, of, colour, format) {
  return {
    type: "scatter", mode: rounds.length > 60 ? "lines" : "lines+markers", name, x: rounds.map((round) => round.number), y: rounds.map(of),
    line: { color: css(colour), width: 2 }, marker: { size: 5 }, hovertemplate: `version %{x}: ${format}<extra>${name}</extra>`,
  };
}

/** A dotted line where an operator went back to an earlier version. */
function marks(rounds) {
  return rounds.filter((round) => round.task === "rollback").map((round) => ({
    type: "line", xref: "x", yref: "paper", x0: round.number, x1: round.number, y0: 0, y1: 1, line: { color: css("--warn"), width: 1, dash: "dot" },
  }));
}

function draw(id, traces, more, none, shapes) {
  const chart = $(id);
  const data = JSON.stringify([traces, more, shapes, none]);
  if (drawn.get(id) === data) return;
  if (!traces.length) {
    window.Plotly?.purge(chart);
    chart.replaceChildren(el("p", { class: "none soft" }, none));
    drawn.set(id, data);
    return;
  }
  if (!window.Plotly) return;
  if (!chart.querySelector(".plotly")) chart.replaceChildren();
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, fixedrange: true };
  const { xaxis, yaxis, ...rest } = more;
  const numbers = traces.flatMap((trace) => trace.x);
  const few = Math.max(...numbers) - Math.min(...numbers) < 8 ? { dtick: 1 } : {}; // no fractions of a version
  const layout = {
    margin: { l: 44, r: 12, t: 10, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
    xaxis: { ...axis, title: { text: "version" }, tickformat: "d", showgrid: false, zeroline: false, ...few, ...xaxis },
    yaxis: { ...axis, ...yaxis }, showlegend: false, dragmode: false, shapes, ...rest,
  };
  window.Plotly.react(chart, traces, layout, { displayModeBar: false, responsive: true });
  drawn.set(id, data);
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
