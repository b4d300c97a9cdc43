// The rounds that are over, as far as this page knows them.

const PAGE = 100;

export class History {
  /** `get` fetches JSON by path and query, the path without a slash in front. */
  constructor(get) {
    this.get = get;
    this.byId = new Map();
    this.complete = false; // whether there are none before the first one
  }

  /** The rounds, the oldest first. */
  get rounds() {
    return [...this.byId.values()].sort((a, b) => a.id - b.id);
  }

  /** Take in the last rounds of a status; fetch more where some may lie between them and those that are known. */
  async update(last) {
    const known = this.rounds.at(-1);
    const newest = last.at(-1);
    const other = (record) => this.byId.has(record.id) && this.byId.get(record.id).ended !== record.ended;
    if ((known && (!newest || newest.id < known.id)) || last.some(other)) {
      this.byId.clear(); // another database
      this.complete = false;
    }
    const joined = last.some((record) => this.byId.has(record.id));
    if (last.length && !joined) this.take(await this.get(`v1/rounds?limit=${PAGE}`), true);
    this.take(last);
    if (!last.length) this.complete = true;
  }

  /** Fetch the rounds before those that are known. */
  async earlier() {
    const first = this.rounds[0];
    if (first) this.take(await this.get(`v1/rounds?limit=${PAGE}&before=${first.id}`), true);
  }

  take(records, page = false) {
    const first = this.rounds[0];
    for (const record of records) this.byId.set(record.id, record);
    const gap = first && records.length && records[0].id > first.id; // not the earliest that are known
    if (page && records.length < PAGE && !gap) this.complete = true;
  }
}

export const isVersion = (record) => record.outcome === "committed" && record.task !== "evaluation";
export const isEvaluation = (record) => record.outcome === "committed" && record.task === "evaluation";
export const sum = (reasons) => Object.values(reasons).reduce((total, count) => total + count, 0);
