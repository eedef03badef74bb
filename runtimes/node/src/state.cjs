'use strict';
// The state of an entity as the function sees it: what every model offers, and the model `value`.
//
// What: `context.state`. A copy here until the host commits it with the answer; nothing does I/O. events.cjs and
// crdt.cjs hold the other models. The rules are in runtimes/README.md, “State in the worker” (normative).
//
// Why so: loaded when the function is stateful, so that others do not pay for it. A call that only reads, or only sets
// a value, is never looked at again: just a call whose `entity` is set is asked for what RESULT must say (`FINISH`).
//
// Invariants:
// - What raises leaves the state as it was: everything is checked before anything is kept.
// - What is kept is JSON text, made when it was given: changing a value later changes nothing.
// - A read-only call sends nothing, whatever was migrated or folded for it.

const PREPARE = Symbol('prepare');   // what must happen before `start` and the handler; answers a promise if it waits
const FINISH = Symbol('finish');     // fills in what RESULT says of the state
const EXTRAS = Symbol('extras');

const YEARS = 10 * 365 * 86_400_000; // ms; the longest duration
const UNITS = { ms: 1, s: 1_000, m: 60_000, min: 60_000, h: 3_600_000, d: 86_400_000 };
const DEPTH = 100;                   // of nested JSON; what the host reads has a bound near 128
const PAYLOAD = 65_536;              // bytes of a timer's payload that the host keeps
const NAMES = [
  'get', 'set', 'delete', 'emit', 'value', 'increment', 'decrement', 'values', 'add', 'has', 'remove', 'enable', 'vote',
  'tally', 'entry', 'keys',
];

// Of this worker's one function; `open` sets them.
const own = {
  limits: { state: 0, events: 1000, timers: 100 },
  declared: { model: 'value', type: '', version: 0, snapshot_every: 0 },
  Kind: undefined,           // the class of `state`
  migrate: undefined,
  bytesOf: undefined,
  report: undefined,
};

// ---------------------------------------------------------------- what functions give us

function show(value) {
  try { return typeof value === 'string' ? JSON.stringify(value) : String(value); } catch { return typeof value; }
}

// JSON text of what the host reads as JSON: it must hold neither half of a surrogate pair nor a tower of brackets.
function jsonText(value, what, most = DEPTH) {
  if (typeof value === 'number' && !Number.isFinite(value)) throw new TypeError(`${what}: JSON has no ${value}`);
  if (own.bytesOf(value) !== undefined) throw new TypeError(`${what}: bytes are not JSON; give them as text, say in base64`);
  let text;
  try { text = JSON.stringify(value); } catch (error) { throw new TypeError(`${what}: not JSON: ${error.message}`); }
  if (text === undefined) throw new TypeError(`${what}: JSON has no ${typeof value}`);
  if (text.includes('\\ud') && /(?<!\\)(?:\\\\)*\\ud[89a-f]/.test(text)) throw new TypeError(`${what}: text with half of a surrogate pair`);
  if (tooDeep(text, most)) throw new TypeError(`${what}: nested more than ${most} deep`);
  return text;
}

function tooDeep(text, most) {
  if (text.length <= 2 * most) return false;
  let depth = 0, quoted = false;
  for (let at = 0; at < text.length; at++) {
    const c = text.charCodeAt(at);
    if (c === 92) at++;                                          // \
    else if (c === 34) quoted = !quoted;                         // "
    else if (quoted) continue;
    else if (c === 91 || c === 123) { if (++depth > most) return true; }
    else if (c === 93 || c === 125) depth--;
  }
  return false;
}

function nameText(name, what) {
  if (typeof name !== 'string') throw new TypeError(`${what}: the name must be a string, not ${show(name)}`);
  if (!name.isWellFormed()) throw new TypeError(`${what}: the name holds half of a surrogate pair`);
  return name;
}

// In ms.
function duration(value, what) {
  const hint = 'write seconds, or text like "500ms", "30s", "10m", "2h", "7d"';
  let ms = 0;
  if (typeof value === 'number') ms = value * 1_000;
  else if (typeof value !== 'string') throw new TypeError(`${what}: ${show(value)} is not a duration; ${hint}`);
  else if (!/^(?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d))+$/.test(value)) throw new RangeError(`${what}: ${show(value)} is not a duration; ${hint}`);
  else for (const [, number, unit] of value.matchAll(/([\d.]+)([a-z]+)/g)) ms += Number(number) * UNITS[unit];
  if (!(ms >= 0)) throw new RangeError(`${what}: ${show(value)} is not a duration; ${hint}`);
  if (ms > YEARS) throw new RangeError(`${what}: ${show(value)} is longer than ten years`);
  return Math.round(ms);
}

// In ms since 1970.
function instant(value, what) {
  const hint = 'write ISO 8601 with an offset or Z, as "2030-01-31T09:00:00Z", or milliseconds since 1970';
  let ms = value instanceof Date ? value.getTime() : value;
  if (typeof value === 'string') {
    const parts = /^(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d{1,9}))?)?(?:Z|([+-])([01]\d|2[0-3]):?([0-5]\d))$/.exec(value);
    if (parts === null) throw new RangeError(`${what}: ${show(value)} is not a time; ${hint}`);
    const [, year, month, day, hour, minute, second = 0, fraction = '', sign, hours = 0, minutes = 0] = parts;
    ms = Date.UTC(year, month - 1, day, hour, minute, second, fraction.slice(0, 3).padEnd(3, '0'));
    if (new Date(ms).toISOString().slice(5, 10) !== `${month}-${day}`) throw new RangeError(`${what}: ${show(value)}: there is no such day`);
    ms -= (sign === '-' ? -1 : 1) * (hours * UNITS.h + minutes * UNITS.m);
  } else if (typeof ms !== 'number') {
    throw new TypeError(`${what}: ${show(value)} is not a time; ${hint}`);
  }
  if (!(ms >= 0)) throw new RangeError(`${what}: ${show(value)} is not a time since 1970; ${hint}`);
  if (ms - Date.now() > YEARS) throw new RangeError(`${what}: ${show(value)} is more than ten years from now`);
  return Math.round(ms);
}

function timerName(name, what) {
  nameText(name, what);
  const length = [...name].length;
  if (length < 1 || length > 128 || /\p{Cc}/u.test(name)) {
    throw new RangeError(`${what}: a name has 1 to 128 characters and no control characters, not ${show(name.slice(0, 200))}`);
  }
  return name;
}

// `{after}` or `{at}`, as RESULT has it.
function due(when) {
  const what = 'state.schedule', hint = 'say when: {after: "10m"} or {at: "2030-01-31T09:00:00Z"}';
  if (typeof when !== 'object' || when === null) throw new TypeError(`${what}: ${hint}, not ${show(when)}`);
  const { after, at } = when;
  if ((after === undefined) === (at === undefined)) throw new TypeError(`${what}: ${hint}, one of the two`);
  return after !== undefined ? { after: duration(after, what) } : { at: instant(at, what) };
}

// ---------------------------------------------------------------- all models

function opened(call) {
  if (call.settled || call.ended) throw new Error('the state is settled: the answer has begun');
  if (call.head.state.readonly === true) throw new Error('this request is read-only: its method is listed in [state] shared');
}

class State {
  #call;
  #expire = undefined;       // ms, or -1
  #timers = undefined;       // what RESULT says, by name
  #bytes = 0;                // of their payloads
  constructor(call) {
    this.#call = call;
    this.key = call.head.state.key;
    this.version = call.head.state.version;
  }
  expire(after) {
    opened(this.#call);
    if (after === undefined) throw new TypeError('state.expire: say after how many seconds, or null for never');
    this.#expire = after === null ? -1 : duration(after, 'state.expire');
    this.#call.entity = this;
  }
  schedule(name, when, payload = null) {
    opened(this.#call);
    timerName(name, 'state.schedule');
    const { after, at } = due(when);
    const text = jsonText(payload, 'state.schedule: payload'), bytes = Buffer.byteLength(text);
    if (bytes > PAYLOAD) {
      throw new RangeError(`state.schedule: a payload has at most ${PAYLOAD} bytes, this one has ${bytes}; keep more in the state`);
    }
    this.#timer({ name, after, at, payload: text }, 'state.schedule');
  }
  cancel(name) {
    opened(this.#call);
    this.#timer({ name: timerName(name, 'state.cancel'), cancel: true }, 'state.cancel');
  }
  #timer(timer, what) {
    const timers = this.#timers ?? new Map(), old = timers.get(timer.name);
    if (old === undefined && timers.size >= own.limits.timers) {
      throw new RangeError(`${what}: one call may set ${own.limits.timers} timers; let a timer set the next ones`);
    }
    const bytes = this.#bytes - Buffer.byteLength(old?.payload ?? '') + Buffer.byteLength(timer.payload ?? '');
    if (bytes > own.limits.state) {
      throw new RangeError(`${what}: the payloads of this call have ${bytes} bytes, the limit is ${own.limits.state}`);
    }
    this.#bytes = bytes;
    this.#timers = timers.set(timer.name, timer);
    this.#call.entity = this;
  }
  // What RESULT says: the change, and what goes with it. `stored`: there is something that can expire.
  [EXTRAS](change, stored) {
    const expire = stored ? this.#expire : undefined;
    if (expire === undefined && this.#timers === undefined) return change;
    change ??= { action: 'keep', length: 0 };
    if (expire !== undefined) change.expire = expire;
    if (this.#timers !== undefined) {
      change.timers = [...this.#timers.values()].map((timer) => (timer.cancel ? timer : { ...timer, payload: JSON.parse(timer.payload) }));
    }
    return change;
  }
}

// Everything that another model has says what this one has.
function refuseOthers(Class, subject, offers) {
  for (const name of NAMES) {
    if (name in Class.prototype) continue;
    const get = () => { throw new Error(`${subject.what}.${name}: ${subject.is}, which offers ${offers}`); };
    Object.defineProperty(Class.prototype, name, { get, configurable: true });
  }
  return Class;
}

// ---------------------------------------------------------------- migration

// Whether `migrate` has to run for this call.
function outdated({ schema, kind, snapshot }) {
  const { version } = own.declared;
  if (schema === undefined || version === 0 || kind === 'none' || snapshot === 0) return false;
  if (schema > version) {
    throw new Error(`the state was written with version ${schema} in [state], and this deployment has version ${version}: deploy the newer one again`);
  }
  return schema < version && own.migrate !== undefined;
}

// Hands what `migrate` returned to `put`: now, or in the promise that is the answer.
function migrated(old, schema, put) {
  const check = (value) => {
    if (value === undefined) throw new TypeError(`migrate returned nothing for version ${schema}: return the migrated state`);
    put(value);
  };
  const value = own.migrate(old, schema);
  return typeof value?.then === 'function' ? value.then(check) : check(value);
}

// ---------------------------------------------------------------- the model `value`

class Value extends State {
  #call; #kind; #bytes;
  constructor(call) {
    super(call);
    this.#call = call;
    this.#kind = call.head.state.kind;
    this.#bytes = call.state;       // JSON text, or a Buffer
  }
  // A new value each time: changing what was got or set must not change what is stored.
  get() {
    if (this.#kind === 'none') return undefined;
    return this.#kind === 'json' ? JSON.parse(this.#bytes) : Buffer.from(this.#bytes);
  }
  set(value) {
    opened(this.#call);
    this.#store(value, 'state.set', '; state.delete() removes the state');
  }
  delete() {
    opened(this.#call);
    this.#kind = 'none';
    this.#call.change = { action: 'delete' };
    this.#call.stored = '';
  }
  #store(value, what, hint) {
    const bytes = own.bytesOf(value);
    let stored = bytes;
    if (bytes === undefined) {
      if (typeof value === 'number' && !Number.isFinite(value)) throw new TypeError(`${what}: JSON has no ${value}`);
      try { stored = JSON.stringify(value); } catch (error) { throw new TypeError(`${what}: not JSON: ${error.message}`); }
      if (stored === undefined) throw new TypeError(`${what}: JSON has no ${typeof value}${hint}`);
    }
    const length = Buffer.byteLength(stored);
    if (length > own.limits.state) throw new RangeError(`${what}: the value has ${length} bytes, the limit is ${own.limits.state}`);
    this.#kind = bytes === undefined ? 'json' : 'binary';
    this.#bytes = bytes === undefined ? stored : Buffer.from(stored);
    this.#call.change = { action: 'set', kind: this.#kind, length };
    this.#call.stored = this.#bytes;
  }
  [PREPARE]() {
    const call = this.#call, { schema, readonly } = call.head.state;
    if (!outdated(call.head.state)) return undefined;
    return migrated(this.get(), schema, (value) => {
      this.#store(value, 'migrate', '');
      if (readonly === true) { call.change = undefined; call.stored = ''; }
    });
  }
  [FINISH]() { this.#call.change = this[EXTRAS](this.#call.change, this.#kind !== 'none'); }
}
own.Kind = Value;
refuseOthers(Value, { what: 'state', is: 'this function has model = "value" in its [state]' }, 'get(), set(value), delete()');

// ---------------------------------------------------------------- for the worker

// Takes what INIT and the function say: → why it cannot be served, or undefined.
// `given`: limits, declared (INIT's `state`; undefined from an older host), exported (by name), bytesOf, report (an error).
function open(given) {
  Object.assign(own.limits, given.limits);
  Object.assign(own.declared, given.declared);
  own.bytesOf = given.bytesOf;
  own.report = given.report;
  const { model, version } = own.declared, { exported } = given;
  own.migrate = typeof exported('migrate') === 'function' ? exported('migrate') : undefined;
  if (version > 1 && own.migrate === undefined) {
    return `[state] has version = ${version}, and the function exports no migrate: export function migrate(old, version), which returns the state as version ${version} has it.`;
  }
  if (model === 'value') return undefined;
  if (model === 'events') {
    const events = require('./events.cjs');
    own.Kind = events.Events;
    return events.open(exported('events'), exported('initial'));
  }
  own.Kind = model === 'crdt' ? require('./crdt.cjs').stateOf(own.declared.type) : undefined;
  return own.Kind === undefined ? `this worker knows no state with model = "${model}" and type = "${own.declared.type}": run one of the executor's own version.` : undefined;
}
// What `open` and the worker know of a call: whether something is to be done before `start` and the handler.
function early(meta) { return own.declared.model === 'events' || meta.schema !== undefined; }

function make(call) { return new own.Kind(call); }

function prepare(call) {
  call.entity = make(call);
  return call.entity[PREPARE]?.();
}

function finish(call) { call.entity[FINISH](); }

module.exports = {
  open, early, make, prepare, finish,
  own, State, PREPARE, FINISH, EXTRAS, opened, outdated, migrated, refuseOthers, jsonText, nameText, show,
};
