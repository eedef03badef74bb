// The function of tests/workers in Node; main.py is the same in Python. The body is a list of steps, the answer a list of outcomes.
'use strict';
const { EVENTS = 'good', TYPE = '', MIGRATE = '', INITIAL = '', START = '' } = process.env;

let flaky = 0;
const folds = {
  added(state, data) { (state.list ??= []).push(data); },
  replaced: (state, data) => data,
  counted(state) { state.n = (state.n ?? 0) + 1; },
  broken(state) { state.list = 'half'; throw new Error('cannot'); },
  async waits() {},
  flaky() { if (++flaky > 1) throw new Error('only once'); },
};
const events = {
  good: folds, none: undefined, list: [], unlike: { added: 1 }, named: { [TYPE]: folds.counted }, lone: { 'a\ud800': folds.counted },
}[EVENTS];

const wait = () => new Promise((done) => setTimeout(done, 5));
const migrations = {
  sync: (old, version) => ({ old, version }),
  async: async (old, version) => { await wait(); return { old, version }; },
  raise() { throw new Error('cannot migrate'); },
  asyncRaise: async () => { await wait(); throw new Error('cannot migrate'); },
  nothing() {},
  bytes: (old) => Buffer.from(`from ${old}`),
  large: () => 'x'.repeat(200),
  hangs: () => new Promise(() => setTimeout(() => {}, 60_000)),
  says(old) { console.log('migrate'); return old; },
};

const circular = [];
circular.push(circular);
const special = {
  nan: NaN, infinity: Infinity, circular, function: () => 1, bytes: Buffer.from('bytes'), nothing: undefined, lone: 'a\ud800',
  slash: 'a\\ud800', whole: 1.0, created: 201, shared: { 'x-shared': 'always' }, untold: { toString() { throw new Error('untold'); } },
};
function real(value) {
  if (Array.isArray(value)) return value.map(real);
  if (typeof value !== 'object' || value === null) return value;
  if ('$deep' in value) { let deep = 1; for (let n = 0; n < value.$deep; n++) deep = [deep]; return deep; }
  if ('$long' in value) return (value.of ?? 'x').repeat(value.$long);
  if ('$time' in value) return new Date(value.$time);
  if ('$' in value) return special[value.$];
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, real(v)]));
}

const steps = {
  read: (target, name) => target[name],
  on: (state, name, type, ...step) => perform(state.entry(name, type), step),
  changeGot(state) { const got = state.get(); got.list?.push('changed'); got.x = 'changed'; },
  emitThenChange(state, type, data) { state.emit(type, data); data.x = 'changed'; },
  scheduleThenChange(state, name, when, payload) { state.schedule(name, when, payload); payload.x = 'changed'; },
  addThenChange(state, value) { state.add(value); value.x = 'changed'; },
  repeat(state, times, ...step) { for (let n = 0; n < times; n++) perform(state, step.map((part) => (part === '#' ? `n${n}` : part))); },
  kept(state, name, type, ...step) { const entry = state.entry(name, type); state.delete(name); return perform(entry, step); },
};
function perform(target, [name, ...values]) {
  return Object.hasOwn(steps, name) ? steps[name](target, ...values) : target[name](...values);
}
function outcome(state, step) {
  try {
    const value = perform(state, step.map(real));
    return { ok: value instanceof Uint8Array ? { bytes: value.toString() } : value ?? null };
  } catch (error) {
    return { error: `${error.name}: ${error.message}` };
  }
}

async function main({ req, res, state }) {
  if (req.path === '/raise') { for (const step of req.bodyJson) perform(state, step); throw new Error('after all'); }
  if (req.path === '/stream') {
    return res.stream((async function* later() { for (const step of req.bodyJson) yield JSON.stringify(outcome(state, step)); })());
  }
  if (req.path === '/wrong') { state.emit('added', 1); return 5; }
  if (req.path === '/body') return res.json([req.body]);
  if (req.path === '/answer') {
    const [name, values, headers] = real(req.bodyJson), answer = res[name](...values);
    for (const [key, value] of Object.entries(headers)) answer.headers[key] = value;
    return answer;
  }
  return res.json(req.bodyJson.map((step) => outcome(state, step)));
}

function start() { console.log('start'); return {}; }

module.exports = {
  main, events, migrate: migrations[MIGRATE], initial: INITIAL === '' ? undefined : real(JSON.parse(INITIAL)),
  start: START === '' ? undefined : start,
};
