// Numbers and times, as people read them.

const whole = new Intl.NumberFormat("en");
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

export const ACCURACY = "accuracy";
export const count = (value) => whole.format(value);
export const percent = (value) => (value === null ? "" : `${(value * 100).toFixed(1)} %`);
/** The mean of a model's metric: accuracy is a share, and an error has the unit of its labels. */
export const metric = (name, value) => (name === ACCURACY ? percent(value) : loss(value));
export const loss = (value) => (value === null ? "" : value >= 100 ? value.toPrecision(4) : value.toFixed(4));
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const words = (reason) => reason.replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place && value < 99.95 ? value.toFixed(1) : Math.round(value)} ${units[place]}`;
}

export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  if (value < 6000) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

/** The time of day today, else the day as well; `since` is in seconds since 1970. */
export function moment(since) {
  const date = new Date(since * 1000);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}

export const exactly = (since) => exact.format(new Date(since * 1000));
