'use strict';
// The model `crdt`: types that the host can merge, whoever changes them where.
//
// What: reads the host's view of the whole, sends what the function does as operations, and applies each to the view
// here, so that the function reads what it wrote. Rules: runtimes/README.md, “CRDTs” (normative).
//
// Why so: a type is a mixin over two things it needs, its view (`VIEW`) and a way to change it (`CHANGE`): the state
// itself and an entry of an or-map give them, so that both offer the same.
//
// Invariants: a view is read when it is first used. An operation is checked, then kept, then applied; applying cannot fail.

const { own, State, FINISH, EXTRAS, opened, refuseOthers, jsonText, nameText, show } = require('./state.cjs');

const VIEW = Symbol('view'), CHANGE = Symbol('change'), OPEN = Symbol('open'), WHAT = Symbol('what');
const SAFE = Number.MAX_SAFE_INTEGER;
const DEPTH = 64;                    // of a value; the host keeps none that is deeper
const MOST = 10_000;                 // operations of one call

// ---------------------------------------------------------------- values

function valueText(value, what) { return jsonText(value, what, DEPTH); }

// The same text for values that are equal as JSON.
function canonical(text) { return text[0] === '{' || text[0] === '[' ? sorted(JSON.parse(text)) : text; }

function sorted(value) {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(sorted).join(',')}]`;
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${sorted(value[key])}`).join(',')}}`;
}

function setOf(values) {
  const all = new Map();            // JSON text by canonical text
  for (const value of values) all.set(sorted(value), JSON.stringify(value));
  return all;
}

// ---------------------------------------------------------------- the types

function count(self, name, n, sign, grows) {
  const what = `${self[WHAT]()}.${name}`;
  if (typeof n !== 'number') throw new TypeError(`${what}: n must be a whole number, not ${show(n)}`);
  if (!Number.isSafeInteger(n)) throw new RangeError(`${what}: n must be a whole number within ±(2^53 - 1), not ${n}`);
  if (grows && n < 0) throw new RangeError(`${what}: a g-counter only grows, and n is ${n}; a pn-counter can also shrink`);
  const value = self[VIEW]().value + sign * n;
  if (!Number.isSafeInteger(value)) throw new RangeError(`${what}: the counter would leave ±(2^53 - 1)`);
  self[CHANGE](`{"op":"add","n":${sign * n}}`, (view) => { view.value = value; });
}

const counter = (grows) => (Parent) => {
  class Counter extends Parent {
    get value() { return this[VIEW]().value; }
    increment(n = 1) { count(this, 'increment', n, 1, grows); }
  }
  if (!grows) Object.defineProperty(Counter.prototype, 'decrement', { value(n = 1) { count(this, 'decrement', n, -1, false); }, configurable: true });
  return Counter;
};

const set = (grows) => (Parent) => {
  class Members extends Parent {
    get values() { return JSON.parse(`[${[...this[VIEW]().values()].join(',')}]`); }
    has(value) { return this[VIEW]().has(canonical(valueText(value, `${this[WHAT]()}.has`))); }
    add(value) {
      const text = valueText(value, `${this[WHAT]()}.add`), key = canonical(text);
      this[CHANGE](`{"op":"add","v":${text}}`, (view) => { if (!view.has(key)) view.set(key, text); });
    }
  }
  if (grows) return Members;
  return class extends Members {
    remove(value) {
      this[OPEN]();
      const text = valueText(value, `${this[WHAT]()}.remove`), key = canonical(text);
      if (this[VIEW]().has(key)) this[CHANGE](`{"op":"remove","v":${text}}`, (view) => { view.delete(key); });
    }
  };
};

const register = (Parent) => class extends Parent {
  set(value) {
    const text = valueText(value, `${this[WHAT]()}.set`);
    this[CHANGE](`{"op":"set","v":${text}}`, (view) => { view.text = text; });
  }
};

const flag = (Parent) => class extends Parent {
  get value() { return this[VIEW]().value; }
  enable() { this[CHANGE]('{"op":"enable"}', (view) => { view.value = true; }); }
};

const vote = (Parent) => class extends Parent {
  vote(yes, voter = '') {
    const what = `${this[WHAT]()}.vote`;
    if (typeof yes !== 'boolean') throw new TypeError(`${what}: true or false, not ${show(yes)}`);
    nameText(voter, what);
    this[CHANGE](`{"op":"vote","voter":${JSON.stringify(voter)},"v":${yes}}`, (view) => { view.set(voter, yes); });
  }
  tally() {
    const all = [...this[VIEW]().values()], yes = all.filter((v) => v).length;
    return { for: yes, against: all.length - yes, total: all.length };
  }
};

const map = (Parent) => class extends Parent {
  get keys() { return [...this[VIEW]().keys()]; }
  has(name) { return this[VIEW]().has(nameText(name, 'state.has')); }
  entry(name, type) {
    nameText(name, 'state.entry');
    const Kind = entries.get(type);
    if (Kind === undefined) {
      throw new TypeError(`state.entry: ${type === 'or-map' ? 'an or-map holds no or-map' : `there is no type ${show(type)}`}; the second argument is one of ${[...entries.keys()].join(', ')}`);
    }
    const entry = new Kind(this, name, type);
    entry[VIEW]();
    return entry;
  }
  delete(name) {
    this[OPEN]();
    nameText(name, 'state.delete');
    if (this[VIEW]().has(name)) this[CHANGE](`{"op":"delete","k":${JSON.stringify(name)}}`, (view) => { view.delete(name); });
  }
};

// By type: how it is offered, its view from the host's (undefined: the empty one), and the plain view of that.
const TYPES = {
  'g-counter': { mixin: counter(true), read: (view) => ({ value: view?.value ?? 0 }), plain: (view) => view.value, offers: 'increment(n), value, get()' },
  'pn-counter': { mixin: counter(false), read: (view) => ({ value: view?.value ?? 0 }), plain: (view) => view.value, offers: 'increment(n), decrement(n), value, get()' },
  'g-set': { mixin: set(true), read: (view) => setOf(view?.values ?? []), plain: (view) => JSON.parse(`[${[...view.values()].join(',')}]`), offers: 'add(v), has(v), values, get()' },
  'or-set': { mixin: set(false), read: (view) => setOf(view?.values ?? []), plain: (view) => JSON.parse(`[${[...view.values()].join(',')}]`), offers: 'add(v), remove(v), has(v), values, get()' },
  'lww-register': { mixin: register, read: (view) => ({ text: JSON.stringify(view?.value) }), plain: (view) => (view.text === undefined ? undefined : JSON.parse(view.text)), offers: 'set(v), get()' },
  flag: { mixin: flag, read: (view) => ({ value: view?.value ?? false }), plain: (view) => view.value, offers: 'enable(), value, get()' },
  vote: { mixin: vote, read: (view) => new Map(Object.entries(view?.votes ?? {})), plain: (view) => Object.fromEntries(view), offers: 'vote(yes, voter), tally(), get()' },
  'or-map': {
    mixin: map,
    read: (view) => new Map(Object.entries(view?.entries ?? {}).map(([name, entry]) => [name, { type: entry.type, view: TYPES[entry.type].read(entry.view) }])),
    plain: (view) => Object.fromEntries([...view].map(([name, entry]) => [name, TYPES[entry.type].plain(entry.view)])),
    offers: 'entry(name, type), delete(name), keys, has(name), get()',
  },
};

// ---------------------------------------------------------------- what has a view

class Whole extends State {
  #call;
  #view = undefined;
  #operations = [];
  #bytes = 1;
  constructor(call) {
    super(call);
    this.#call = call;
  }
  get() { return TYPES[own.declared.type].plain(this[VIEW]()); }
  [WHAT]() { return 'state'; }
  [OPEN]() { opened(this.#call); }
  [VIEW]() {
    const { state, head: { state: { kind } } } = this.#call;
    return (this.#view ??= TYPES[own.declared.type].read(kind === 'none' ? undefined : JSON.parse(state)));
  }
  [CHANGE](operation, apply) {
    opened(this.#call);
    const view = this[VIEW](), bytes = this.#bytes + Buffer.byteLength(operation) + 1;
    if (this.#operations.length >= MOST) throw new RangeError(`one call may make ${MOST} operations; leave the rest to the next`);
    if (bytes > own.limits.state) throw new RangeError(`the operations of this call have ${bytes} bytes, the limit is ${own.limits.state}`);
    this.#bytes = bytes;
    this.#operations.push(operation);
    apply(view);
    this.#call.entity = this;
  }
  [FINISH]() {
    let change;
    if (this.#operations.length > 0) {
      this.#call.stored = `[${this.#operations.join(',')}]`;
      change = { action: 'merge', kind: 'json', length: this.#bytes };
    }
    this.#call.change = this[EXTRAS](change, change !== undefined || this.#call.head.state.kind !== 'none');
  }
}

// Holds the name only: the entry may be deleted, and made again, behind it.
class Entry {
  #map; #name; #type;
  constructor(all, name, type) {
    this.#map = all;
    this.#name = name;
    this.#type = type;
  }
  get() { return TYPES[this.#type].plain(this[VIEW]()); }
  [WHAT]() { return `entry(${show(this.#name)}, ${show(this.#type)})`; }
  [OPEN]() { this.#map[OPEN](); }
  [VIEW]() {
    const entry = this.#map[VIEW]().get(this.#name);
    if (entry === undefined) return TYPES[this.#type].read(undefined);
    if (entry.type !== this.#type) throw new TypeError(`${this[WHAT]()}: the entry is a ${entry.type}; ask for that, or delete it first`);
    return entry.view;
  }
  [CHANGE](operation, apply) {
    this[VIEW]();
    const name = JSON.stringify(this.#name);
    this.#map[CHANGE](`{"op":"entry","k":${name},"type":"${this.#type}","do":${operation}}`, (all) => {
      if (!all.has(this.#name)) all.set(this.#name, { type: this.#type, view: TYPES[this.#type].read(undefined) });
      apply(all.get(this.#name).view);
    });
  }
}

const entries = new Map(Object.keys(TYPES).filter((type) => type !== 'or-map').map((type) => {
  const { mixin, offers } = TYPES[type];
  return [type, refuseOthers(class extends mixin(Entry) {}, { what: 'entry', is: `it is a ${type}` }, offers)];
}));

// The class of `state` for a type; undefined: there is no such type.
function stateOf(type) {
  if (!Object.hasOwn(TYPES, type)) return undefined;
  const { mixin, offers } = TYPES[type];
  return refuseOthers(class extends mixin(Whole) {}, { what: 'state', is: `this function has type = "${type}" in its [state]` }, offers);
}

module.exports = { stateOf };
