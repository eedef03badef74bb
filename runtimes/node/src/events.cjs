'use strict';
// The model `events`: the state is what folding its events gives.
//
// What: folds what the host handed over before the handler runs, takes new events, and makes a snapshot when enough
// have gathered. Rules: runtimes/README.md, “State in the worker” (normative).
//
// Invariants:
// - A fold gets its own copy of `data` and of `initial`, and `get` gives a copy: nobody else holds a part of the state.
// - A fold that raises in `emit` may have changed the state half; it is then folded anew from what is kept as text.
//
// Failure: an event that cannot be folded before the handler runs fails the call, with its type in the message.

const { own, State, PREPARE, FINISH, EXTRAS, opened, outdated, migrated, refuseOthers, jsonText, show } = require('./state.cjs');

const TYPE = 128;          // bytes of a type that the host keeps

const folds = new Map();
let initial = '{}';

// Takes what the function exports: → why it cannot be served, or undefined.
function open(events, first) {
  const hint = 'export events = { added(state, data) { … } }, a function (state, data) for each type of event';
  if (events === undefined || events === null) return `[state] has model = "events", and the function exports no events: ${hint}.`;
  if (typeof events !== 'object' || Array.isArray(events)) return `events is not an object: ${hint}.`;
  for (const [type, fold] of Object.entries(events)) {
    if (typeof fold !== 'function') return `events[${show(type)}] is not a function: ${hint}.`;
    const wrong = wrongType(type);
    if (wrong !== undefined) return `events[${show(type)}]: ${wrong}: rename it.`;
    folds.set(type, fold);
  }
  try { initial = jsonText(first === undefined ? {} : first, 'initial'); } catch (error) { return `${error.message}: initial is the state before the first event, as JSON can hold it.`; }
  return undefined;
}

// Why nobody can emit it, or undefined.
function wrongType(type) {
  if (!type.isWellFormed()) return 'the type of an event must not hold half of a surrogate pair';
  const bytes = Buffer.byteLength(type);
  return bytes < 1 || bytes > TYPE ? `the type of an event has 1 to ${TYPE} bytes of UTF-8, this one has ${bytes}` : undefined;
}

function step(state, type, data) {
  const fold = folds.get(type), event = show(type);
  if (fold === undefined) throw new Error(`the stored event ${event} has no function in events: keep one for every type that was ever emitted`);
  let next;
  try { next = fold(state, data); } catch (error) {
    const why = typeof error?.message === 'string' ? error.message : show(error);
    throw new Error(`the event ${event} could not be folded: ${why}`, { cause: error });
  }
  if (next === undefined) return state;
  if (typeof next?.then !== 'function') return next;
  next.then(undefined, () => {});
  throw new TypeError(`the event ${event} could not be folded: its function is asynchronous; do what waits in the handler, before state.emit`);
}

class Events extends State {
  #call;
  #base = initial;         // JSON text of what the events are folded onto
  #handed = '';            // events handed over, as text
  #count = 0;
  #emitted = [];           // events of this call, as text
  #bytes = 1;              // of them, in an array
  #folded = undefined;
  #fresh = false;          // `#folded` is made
  #text = undefined;       // of `#folded`
  #migrated = false;
  #broken = undefined;     // folding the same again did not give the same

  constructor(call) {
    super(call);
    this.#call = call;
  }
  [PREPARE]() {
    const { state: bytes, head: { state: meta } } = this.#call, n = meta.snapshot ?? 0;
    if (n > 0) this.#base = bytes.toString('utf8', 0, n);
    this.#handed = typeof bytes === 'string' ? bytes : bytes.toString('utf8', n);
    if (n === 0 || !outdated(meta)) return this.#fold();
    return migrated(JSON.parse(this.#base), meta.schema, (value) => {
      this.#base = jsonText(value, 'migrate');
      this.#migrated = true;
      this.#fold();
    });
  }
  // With nothing to fold, the snapshot is not even read until somebody wants it.
  #fold() {
    if (this.#handed.length > 2) this.#rebuild();
    else this.#text = this.#base;
  }
  #rebuild() {
    let state = JSON.parse(this.#base);
    const events = this.#handed.length > 2 ? JSON.parse(this.#handed) : [];
    this.#count = events.length;
    for (const { type, data = null } of events) state = step(state, type, data);
    for (const text of this.#emitted) {
      const { type, data } = JSON.parse(text);
      state = step(state, type, data);
    }
    this.#folded = state;
    this.#fresh = true;
    this.#text = undefined;
  }
  #json() {
    if (this.#broken !== undefined) throw this.#broken;
    if (this.#text !== undefined) return this.#text;
    try { this.#text = JSON.stringify(this.#folded); } catch (error) { throw new TypeError(`the folded state is not JSON: ${error.message}`); }
    if (this.#text === undefined) throw new TypeError(`the folded state is not JSON, but a ${typeof this.#folded}`);
    return this.#text;
  }
  get() { return JSON.parse(this.#json()); }
  emit(type, data = null) {
    opened(this.#call);
    if (typeof type !== 'string') throw new TypeError(`state.emit: the type of an event is a string, not ${show(type)}`);
    if (!folds.has(type)) {
      throw new RangeError(`state.emit: ${wrongType(type) ?? `events has no function ${show(type)}; it has ${[...folds.keys()].join(', ') || 'none'}`}`);
    }
    if (this.#emitted.length >= own.limits.events) throw new RangeError(`state.emit: one call may emit ${own.limits.events} events; put more into each`);
    const json = jsonText(data, 'state.emit');
    const text = `{"type":${jsonText(type, 'state.emit')},"data":${json}}`;
    const bytes = this.#bytes + Buffer.byteLength(text) + 1;
    if (bytes > own.limits.state) throw new RangeError(`state.emit: the events of this call have ${bytes} bytes, the limit is ${own.limits.state}`);
    if (this.#broken !== undefined) throw this.#broken;
    if (!this.#fresh) this.#rebuild();
    try {
      this.#folded = step(this.#folded, type, JSON.parse(json));
    } catch (error) {
      try { this.#rebuild(); } catch (again) { this.#broken = again; }
      throw error;
    }
    this.#text = undefined;
    this.#emitted.push(text);
    this.#bytes = bytes;
    this.#call.entity = this;
  }
  [FINISH]() {
    const { readonly, kind, length, snapshot: before = 0 } = this.#call.head.state;
    if (readonly === true) return;
    const emitted = this.#emitted.length, { snapshot_every: every } = own.declared;
    // A few large events are as long to hand over as many small ones.
    const bytes = length - before + (emitted > 0 ? this.#bytes : 0);
    let snapshot = '';
    if (this.#migrated || (every > 0 && this.#count + emitted >= every) || bytes > own.limits.state) {
      snapshot = this.#snapshot(emitted > 0 || this.#migrated);
    }
    let change;
    if (emitted > 0 || snapshot !== '') {
      const events = `[${this.#emitted.join(',')}]`, n = Buffer.byteLength(snapshot);
      change = { action: 'emit', kind: 'json', length: n + Buffer.byteLength(events) };
      if (n > 0) change.snapshot = n;
      this.#call.stored = snapshot + events;
    }
    const stored = emitted > 0 || this.#count > 0 || kind !== 'none';
    this.#call.change = this[EXTRAS](change, stored);
  }
  // Too large: a call that only reads can be answered without one.
  #snapshot(needed) {
    try {
      const text = this.#json(), length = Buffer.byteLength(text);
      if (length > own.limits.state) throw new RangeError(`the folded state has ${length} bytes, the limit is ${own.limits.state}`);
      return text;
    } catch (error) {
      if (needed) throw error;
      own.report(this.#call, error);
      return '';
    }
  }
}
refuseOthers(Events, { what: 'state', is: 'this function has model = "events" in its [state]' }, 'get(), emit(type, data)');

module.exports = { Events, open };
