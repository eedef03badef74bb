'use strict';
// The Node worker: the program inside an instance that loads one function and serves its calls.
//
// What: dials the host, speaks the link protocol of runtimes/README.md (normative), and does only
// what must be done in the language: load, hooks, Contexts, req/res/log/state, native output.
// State is in state.cjs beside this file, which is loaded when the function has some.
// Header rules, limits on requests, deadlines and log limits are the host's.
//
// Invariants:
// - A call ends exactly once (`close`); whatever its code does later is ignored, and what it still
//   prints belongs to the instance (call id 0). Every frame of a call is written before its end.
// - Bytes given to the function are its own: the read buffer is reused for the next chunk.
// - No user code runs between `open` and `shut`, so frames never interleave.
// - Code started by a call carries that call in AsyncLocalStorage, across every await, timer and
//   callback. On Node 20 that costs about 0.1 us per promise; no cheaper way is always right.
//
// Failure: a broken link, a protocol fault or an exception no call owns ends the process; the host
// sees the end of file and replaces the instance. An error that a call owns ends only that call.

const net = require('node:net');
const { AsyncLocalStorage } = require('node:async_hooks');
const { setImmediate } = globalThis;      // a function may replace the global one, as fake timers do

const HELLO = 1, INIT = 2, READY = 3, FAILED = 4, CALL = 5, RESULT = 6, ERROR = 7, DATA = 8, END = 9;
const CREDIT = 10, LOG = 11, CANCEL = 12, STOP = 13, STOPPED = 14;
const FRAME_MAX = 33_554_432, PIECE = 65_536, WINDOW = 262_144;
const OUT = 131_072;               // the write buffer; a larger frame gets a buffer of its own
const LOG_MAX = 8_001;             // one more than the host keeps, so that it sees what it cuts
const BACKLOG = 16 * 1_048_576;    // unsent bytes above which log lines are dropped
const LINGER = 1;                  // ms of work after which finished answers are sent, not kept for a shared write
const NONE = Object.freeze({});
const JSON_TYPE = 'application/json';
const JSON_ONLY = Object.freeze({ 'content-type': JSON_TYPE });
const EMPTY = Buffer.alloc(0);
const HOOKS = ['init', 'start', 'stop', 'migrate'];
const OWN = [__filename, ...['state', 'events', 'crdt'].map((name) => `${__dirname}/${name}.cjs`)];

const scope = new AsyncLocalStorage();
const calls = new Map();           // running calls by id
const free = [];                   // Contexts waiting for a call
const hooks = {};
let settings, handler, states, last = 0, ready = false, stopping = false;
let unsettled = 0;                 // starts of cancelled calls and stops, which STOP waits for

// ---------------------------------------------------------------- writing

let out = Buffer.allocUnsafeSlow(OUT), used = 0, armed = false, since = 0, dropped = 0;

function put32(at, value) {
  out[at] = value >>> 24; out[at + 1] = value >>> 16; out[at + 2] = value >>> 8; out[at + 3] = value;
}

// Begins a frame with at most `most` payload bytes; answers where the payload goes.
function open(type, id, most) {
  if (used + 9 + most > out.length) {
    flush();
    if (9 + most > out.length) out = Buffer.allocUnsafeSlow(9 + most);
  }
  out[used + 4] = type;
  put32(used + 5, id);
  return used + 9;
}

function shut(end) {
  put32(used, end - used - 4);
  used = end;
}

function flush() {
  if (used === 0) return;
  socket.write(out.subarray(0, used));
  // Mostly the kernel has taken the bytes already, and the buffer is ours again.
  if (socket.writableLength > 0 || out.length > OUT) out = Buffer.allocUnsafeSlow(OUT);
  used = 0;
}

function flushArmed() { armed = false; flush(); }

// An immediate runs after the microtasks of all calls of this chunk: their answers share one write.
function flushSoon() {
  if (armed || used === 0) return;
  armed = true;
  setImmediate(flushArmed);
}

// Answers share a write only while calls are quick: none waits behind a call that holds the thread.
function finished() {
  const now = Date.now();
  if (now - since <= LINGER) return;
  since = now;
  flush();
}

function sendText(type, id, text) {
  const at = open(type, id, text.length * 3);
  shut(at + out.write(text, at));
}

function sendJson(type, id, value) { sendText(type, id, JSON.stringify(value)); }

function sendCredit(id, bytes) {
  const at = open(CREDIT, id, 4);
  put32(at, bytes);
  shut(at + 4);
}

// Leaves once the host can have read everything.
function leave(code) {
  process.removeListener('exit', lastWords);
  socket.write(out.subarray(0, used), () => process.exit(code));
  out = Buffer.allocUnsafeSlow(OUT);
  used = 0;
}

// ---------------------------------------------------------------- logs

// Written at once, as Node does for a pipe: the line must survive a loop, an abort or a kill right after it.
function log(call, level, text) {
  if (socket.writableLength > BACKLOG) { dropped++; return; }
  if (dropped > 0) {
    const lines = dropped;
    dropped = 0;
    log(outside, 2, `${lines} log lines were dropped: they came faster than the host reads`);
  }
  if (text.length > LOG_MAX) text = cut(text);
  const at = open(LOG, call.ended ? 0 : call.id, 1 + text.length * 3);
  out[at] = level;
  shut(at + 1 + out.write(text, at + 1));
  if (socket.writableLength === 0) flush();
  else flushSoon();                 // the kernel takes no more now: each write would keep a whole buffer waiting
}

// Counts code points: the host counts characters, and half of a surrogate pair is none.
function cut(text) {
  let at = 0;
  for (let n = 0; n < LOG_MAX && at < text.length; n++) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return text.slice(0, at);
}

function isError(value) {
  return value instanceof Error || Object.prototype.toString.call(value) === '[object Error]';
}

function show(value) {
  if (typeof value === 'string') return value;
  try {
    if (isError(value)) return stackOf(value) || String(value);
    if (typeof value === 'object' && value !== null) return JSON.stringify(value) ?? inspect(value);
    return typeof value === 'function' ? inspect(value) : String(value);
  } catch {
    return inspect(value);
  }
}

function inspect(value) {
  try { return require('node:util').inspect(value); } catch { return '[unprintable]'; }
}

function say(call, level, values) {
  log(call, level, values.length === 1 ? show(values[0]) : values.map(show).join(' '));
}

// The frames of the worker say nothing to a user.
function stackOf(error) {
  const stack = typeof error.stack === 'string' ? error.stack : '';
  const cause = isError(error.cause) && typeof error.cause.stack === 'string' ? `\ncaused by: ${error.cause.stack}` : '';
  return (stack + cause).split('\n').filter((line) => !OWN.some((file) => line.includes(file))).join('\n');
}

function failure(kind, error) {
  let message, stack = '';
  try {
    message = isError(error) ? String(error.message || error.name) : show(error);
    stack = isError(error) ? stackOf(error) : '';
  } catch {
    message = 'an error that cannot be read';
  }
  return { kind, message, stack };
}

// Native output comes in any pieces; per call and stream, the piece after the last newline waits.
function native(stream, chunk, encoding) {
  const store = scope.getStore();
  const call = store === undefined || store.ended ? outside : store;
  call.partial ??= [null, '', ''];
  let text = chunk;
  if (typeof chunk !== 'string') {
    call.decoders ??= [];
    text = (call.decoders[stream] ??= new (require('node:string_decoder').StringDecoder)('utf8')).write(chunk);
  } else if (encoding && !/^utf-?8$/i.test(encoding) && Buffer.isEncoding(encoding)) {
    text = Buffer.from(chunk, encoding).toString();
  }
  const lines = (call.partial[stream] + text).split('\n');
  const rest = lines.pop();
  call.partial[stream] = rest.length > 4 * LOG_MAX ? cut(rest) : rest;
  for (const line of lines) log(call, 3, line);
}

function flushPartial(call) {
  for (const stream of [1, 2]) {
    const text = call.partial[stream] + (call.decoders?.[stream]?.end() ?? '');
    call.partial[stream] = '';
    if (text !== '') log(call, 3, text);
  }
}

// Made on first use: a function that prints nothing does not pay for two streams at start.
function captureOutput(name, stream) {
  let writable;
  const make = () => {
    const { Writable } = require('node:stream');
    writable = new Writable({ write(chunk, encoding, done) { native(stream, chunk, encoding); done(); } });
    writable.fd = stream;
    const ignored = console[`_${name}ErrorHandler`];
    // Past the queue of Writable, whose deferred writes would run in another call's scope.
    writable.write = (chunk, encoding, done) => {
      if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) throw new TypeError('chunk must be a string or bytes');
      if (typeof encoding === 'function') { done = encoding; encoding = undefined; }
      native(stream, chunk, encoding);
      // console's own callback only looks for an error; a tick for each line would be most of its cost.
      if (typeof done === 'function' && done !== ignored) process.nextTick(done, null);
      return true;
    };
    writable.end = writable.destroy = (chunk, encoding) => {
      if (typeof chunk === 'string' || chunk instanceof Uint8Array) writable.write(chunk, encoding);
      return writable;
    };
    return writable;
  };
  Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => writable ?? make() });
}

// ---------------------------------------------------------------- what the function sees

class Request {
  #query; #text;
  constructor(head, body) {
    this.method = head.method;
    this.scheme = head.scheme;
    this.host = head.host;
    this.port = head.port;
    this.path = head.path;
    this.queryString = head.query;
    this.headers = head.headers;
    this.bodyBinary = body;
  }
  get query() { return (this.#query ??= parseQuery(this.queryString)); }
  get url() {
    const port = this.port === (this.scheme === 'https' ? 443 : 80) ? '' : ':' + this.port;
    return `${this.scheme}://${this.host}${port}${this.path}${this.queryString && '?' + this.queryString}`;
  }
  get bodyText() { return (this.#text ??= this.bodyBinary.toString()); }
  get bodyRaw() { return this.bodyText; }
  get bodyJson() { return JSON.parse(this.bodyText); }
  get body() {
    const type = this.headers['content-type'];
    if (type === undefined || !type.toLowerCase().startsWith('application/json')) return this.bodyText;
    return this.bodyBinary.length === 0 ? {} : this.bodyJson;
  }
}

function parseQuery(text) {
  const query = {};
  for (const item of text.split('&')) {
    const at = item.indexOf('=');
    const key = at < 0 ? item : item.slice(0, at);
    if (key === '') continue;
    const value = at < 0 ? '' : item.slice(at + 1);
    // An assignment to this one name would be lost.
    if (key === '__proto__') Object.defineProperty(query, key, { value, enumerable: true, configurable: true, writable: true });
    else query[key] = value;
  }
  return query;
}

class Response {
  constructor(body, statusCode, headers, source) {
    this.body = body;
    this.statusCode = statusCode;
    this.headers = headers;
    if (source !== undefined) this.source = source;
  }
}

// Into headers of our own.
function typed(headers, name, value, override) {
  for (const key of Object.keys(headers)) {
    if (key.toLowerCase() !== name) continue;
    if (!override) return headers;
    delete headers[key];
  }
  headers[name] = value;
  return headers;
}

// A copy: what the function writes into an answer's headers must go out with no other answer.
function plainHeaders(headers) {
  if (headers === NONE || headers === null) return {};
  if (typeof headers !== 'object') throw new TypeError('headers must be an object');
  if (typeof headers[Symbol.iterator] !== 'function') return { ...headers };
  const all = {};       // Headers, Map, list of pairs: a repeated name becomes a list
  for (const [key, value] of headers) all[key] = key in all ? [].concat(all[key], value) : value;
  return all;
}

function bytesOf(value) {
  if (value instanceof Uint8Array) return value;
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return value instanceof ArrayBuffer ? Buffer.from(value) : undefined;
}

function text(body, status = 200, headers = NONE) {
  if (typeof body !== 'string') {
    const bytes = bytesOf(body);
    if (bytes !== undefined) body = bytes;
    else if (body === undefined || body === null) body = '';
    else if (typeof body === 'object' || typeof body === 'function') throw new TypeError('the body is an object: use res.json');
    else body = String(body);
  }
  return new Response(body, status, plainHeaders(headers));
}

const res = Object.freeze({
  text,
  send: text,
  json(value, status = 200, headers = NONE) {
    const body = JSON.stringify(value);
    if (body === undefined) throw new TypeError(`res.json: JSON has no ${typeof value}`);
    return new Response(body, status, headers === NONE ? { 'content-type': JSON_TYPE } : typed(plainHeaders(headers), 'content-type', JSON_TYPE, false));
  },
  binary(bytes, status = 200, headers = NONE) {
    const body = bytesOf(bytes);
    if (body === undefined) throw new TypeError('res.binary: the body must be a Buffer, a typed array or an ArrayBuffer');
    return new Response(body, status, plainHeaders(headers));
  },
  empty: () => new Response('', 204, {}),
  redirect: (url, status = 301, headers = NONE) => new Response('', status, typed(plainHeaders(headers), 'location', String(url), true)),
  stream(source, status = 200, headers = NONE) {
    if (typeof source === 'string' || bytesOf(source) !== undefined) source = [source];
    if (typeof source?.[Symbol.asyncIterator] !== 'function' && typeof source?.[Symbol.iterator] !== 'function') {
      throw new TypeError('res.stream: the source must be an iterable, an async iterable or a readable stream');
    }
    return new Response(undefined, status, plainHeaders(headers), source);
  },
});

function noState() { throw new Error('this function has no [state] in its function.toml'); }
const STATELESS = Object.freeze(Object.defineProperties({}, Object.fromEntries([
  'get', 'set', 'delete', 'key', 'version', 'expire', 'schedule', 'cancel', 'emit', 'value', 'increment', 'decrement',
  'values', 'add', 'has', 'remove', 'enable', 'vote', 'tally', 'entry', 'keys',
].map((name) => [name, { get: noState }]))));

// Loads what the function needs for its state: → why it cannot be served, or undefined.
// An older host says nothing in INIT: then the first call with state comes here.
function openStates(exported) {
  states = require('./state.cjs');
  const report = (call, error) => say(call, 2, [error]);
  return states.open({ limits: settings.limits, declared: settings.state, exported, bytesOf, report });
}

function stateOf(call) {
  if (call.entity !== undefined) return call.entity;
  if (states === undefined) openStates(() => undefined);
  return states.make(call);
}

class Call {
  constructor(id, head, state) {
    this.id = id;
    this.head = head;
    this.state = state;         // bytes or text, as it came
    this.ended = false;
    this.settled = false;       // RESULT is sent
    this.pooled = false;        // holds a Context
    this.context = undefined;
    this.entity = undefined;    // its state, if RESULT must ask it what to say
    this.change = undefined;    // of the state, for RESULT
    this.stored = '';
    this.parts = undefined;     // of a body that comes in pieces
    this.owed = 0;              // bytes of it not yet returned as credit
    this.credit = WINDOW;
    this.wake = undefined;      // of a stream waiting for credit
    this.close = undefined;     // of a stream's source
    this.partial = undefined;
    this.decoders = undefined;
  }
}

// ---------------------------------------------------------------- one call

function begin(call, body) {
  const meta = call.head.state;
  if (meta === undefined || states === undefined || !states.early(meta)) return enter(call, body);
  let waiting;
  try { waiting = states.prepare(call); } catch (error) { return raised(call, error); }
  if (waiting === undefined) return enter(call, body);
  waiting.then(
    () => { if (!call.ended) enter(call, body); flushSoon(); },
    (error) => { raised(call, error); flushSoon(); },
  );
}

// A Context is lent for the whole call, streamed answer included.
function enter(call, body) {
  if (hooks.start === undefined) return run(call, body, undefined);
  call.pooled = true;
  if (free.length > 0) {
    call.context = free.pop();
    return run(call, body, undefined);
  }
  const failed = (error) => {
    call.pooled = false;
    if (!call.ended) run(call, body, error ?? new Error('start failed'));
  };
  const started = (context) => {
    call.context = context;
    if (call.ended) discard(context);
    else run(call, body, undefined);
  };
  let made;
  try { made = hooks.start(); } catch (error) { return failed(error); }
  if (typeof made?.then !== 'function') return started(made);
  call.pooled = false;          // there is nothing to give back until it is made
  unsettled++;
  made.then(
    (context) => { unsettled--; call.pooled = true; started(context); drained(); },
    (error) => { unsettled--; failed(error); drained(); },
  );
}

function run(call, body, startError) {
  const meta = call.head.state;
  let answer;
  try {
    answer = handler({
      req: new Request(call.head, body),
      res,
      log: (...values) => say(call, 1, values),
      error: (...values) => say(call, 2, values),
      state: meta === undefined ? STATELESS : stateOf(call),
      context: call.context,
      startError,
    });
  } catch (error) {
    return raised(call, error);
  }
  if (answer instanceof Response || typeof answer?.then !== 'function') return respond(call, answer);
  answer.then((value) => { respond(call, value); flushSoon(); }, (error) => { raised(call, error); flushSoon(); });
}

function raised(call, error) { refuse(call, failure('raised', error)); }

// Ends a call with ERROR. `reuse` is false when its code may still run, and use its Context.
function refuse(call, problem, reuse = true) {
  if (call.ended) return;
  if (call.partial !== undefined) flushPartial(call);
  if (call.settled) sendJson(END, call.id, { error: problem.message });
  else sendJson(ERROR, call.id, problem);
  close(call, reuse);
}

function close(call, reuse) {
  call.ended = true;
  calls.delete(call.id);
  call.wake?.();
  if (call.pooled) {
    call.pooled = false;
    if (reuse) free.push(call.context);
    else discard(call.context);
  }
  finished();
  if (stopping) drained();
}

function respond(call, answer) {
  if (call.ended) return answer instanceof Response ? abandon(answer.source) : undefined;
  if (answer === undefined || answer === null) {
    return refuse(call, { kind: 'nothing', message: 'Return statement missing. return context.res.empty() if no response is expected.', stack: '' });
  }
  if (call.entity !== undefined) {
    try { states.finish(call); } catch (error) { abandon(answer.source); return raised(call, error); }
  }
  let head, body, source, length;
  try {
    if (!(answer instanceof Response)) answer = fromPlain(answer);
    ({ body, source } = answer);
    // Up to this length the text fits in one frame however it encodes, and goes there directly.
    if (source === undefined && (typeof body !== 'string' || body.length * 3 > PIECE)) {
      body = typeof body === 'string' ? Buffer.from(body) : bytesOf(body);
      if (body === undefined) throw new TypeError('the body of the response is neither text nor bytes');
      length = body.length;
      if (length > settings.limits.response) throw new TypeError(`the response has ${length} bytes, the limit is ${settings.limits.response}`);
      if (length > PIECE) source = [body];
      else length = undefined;
    }
    head = resultHead(call, answer, source !== undefined, length);
  } catch (error) {
    abandon(source);
    return refuse(call, { kind: 'response', message: error.message, stack: '' });
  }
  if (source === undefined) {
    if (call.partial !== undefined) flushPartial(call);
    writeResult(call, head, body);
    return close(call, true);
  }
  writeResult(call, head, '');
  call.settled = true;
  scope.run(call, pump, call, source);
}

function fromPlain(value) {
  const kind = Array.isArray(value) ? 'an array' : typeof value === 'object' ? `an object with ${Object.keys(value).slice(0, 5).join(', ') || 'nothing in it'}` : `a ${typeof value}`;
  const known = typeof value === 'object' && !Array.isArray(value) && ('body' in value || 'statusCode' in value)
    && Object.keys(value).every((key) => key === 'body' || key === 'statusCode' || key === 'headers');
  if (!known) throw new TypeError(`the function returned ${kind}, not a response: use context.res`);
  return text(value.body, value.statusCode ?? 200, value.headers ?? NONE);
}

const plainHeads = [], jsonHeads = [];    // by status: most answers need no other head

function resultHead(call, answer, stream, length) {
  const { statusCode: status, headers } = answer;
  if (!Number.isInteger(status) || status < 200 || status > 999) throw new TypeError(`the status ${inspect(status)} is not an integer from 200 to 999`);
  const common = commonHeads(headers), clean = common === plainHeads ? undefined : common === jsonHeads ? JSON_ONLY : wireHeaders(headers);
  if (common === undefined || stream || call.change !== undefined) {
    return Buffer.from(JSON.stringify({ status, headers: clean, stream, length, state: call.change }));
  }
  return (common[status] ??= Buffer.from(JSON.stringify({ status, headers: clean })));
}

// By what is in them: the function may have written there.
function commonHeads(headers) {
  let count = 0;
  for (const name in headers) if (count++ > 0 || name !== 'content-type') return undefined;
  if (count === 0) return plainHeads;
  return headers['content-type'] === JSON_TYPE ? jsonHeads : undefined;
}

function wireHeaders(headers) {
  const clean = {};
  for (const [key, value] of Object.entries(headers)) {
    if (value !== undefined && value !== null) clean[key] = Array.isArray(value) ? value.map(String) : String(value);
  }
  return clean;
}

function writeResult(call, head, body) {
  const stored = call.stored;
  let at = open(RESULT, call.id, 4 + head.length + stored.length * 3 + body.length * 3);
  put32(at, head.length);
  out.set(head, at + 4);
  at += 4 + head.length;
  if (stored.length > 0) at = put(stored, at);
  if (body.length > 0) at = put(body, at);
  shut(at);
}

function put(data, at) {
  if (typeof data === 'string') return at + out.write(data, at);
  out.set(data, at);
  return at + data.length;
}

// ---------------------------------------------------------------- streams

async function pump(call, source) {
  let problem = '';
  try {
    const iterator = iterate(source);
    call.close = () => { source.destroy?.(); return iterator.return?.(); };
    for (;;) {
      let step = iterator.next();
      if (typeof step?.then === 'function') step = await step;
      if (call.ended) return;
      if (step.done) break;
      // A synchronous source may give promises, as in `for await`.
      const value = typeof step.value?.then === 'function' ? await step.value : step.value;
      const chunk = typeof value === 'string' ? Buffer.from(value) : bytesOf(value);
      if (chunk === undefined) {
        throw new TypeError(`a streamed chunk must be a string or bytes, not ${value === null ? 'null' : typeof value}`);
      }
      for (let at = 0; at < chunk.length && !call.ended;) {
        if (call.credit === 0) await new Promise((wake) => { call.wake = wake; });
        else at += sendPiece(call, chunk, at);
      }
      if (call.ended) return;
    }
  } catch (error) {
    if (call.ended) return;
    say(call, 2, [error]);
    problem = JSON.stringify({ error: failure('raised', error).message });
    ignore(call.close);
  }
  if (call.partial !== undefined) flushPartial(call);
  sendText(END, call.id, problem);
  close(call, true);
  flushSoon();
}

// A web stream's own iterator cannot be closed while it waits; its reader can.
function iterate(source) {
  if (typeof source.getReader === 'function') {
    const reader = source.getReader();
    return { next: () => reader.read(), return: () => reader.cancel() };
  }
  return source[Symbol.asyncIterator]?.() ?? source[Symbol.iterator]();
}

// Copied, so that the function may use its buffer again.
function sendPiece(call, chunk, from) {
  const length = Math.min(chunk.length - from, call.credit, PIECE);
  const at = open(DATA, call.id, length);
  out.set(length === chunk.length ? chunk : chunk.subarray(from, from + length), at);
  shut(at + length);
  call.credit -= length;
  flushSoon();
  return length;
}

function abandon(source) {
  if (source === undefined || source === null) return;
  ignore(() => (source.destroy ? source.destroy() : source.cancel ? source.cancel() : source.return?.()));
}

function ignore(action) {
  try { Promise.resolve(action?.()).catch(() => {}); } catch { /* the caller is past caring */ }
}

// ---------------------------------------------------------------- the end of Contexts and of the instance

function discard(context) {
  if (hooks.stop === undefined) return;
  unsettled++;
  const done = () => { unsettled--; drained(); };
  const broken = (error) => { log(outside, 2, `stop failed: ${show(error)}`); done(); };
  // Never inside the caller: the last call's end must be written before `drained` can say STOPPED.
  Promise.resolve().then(() => hooks.stop(context)).then(done, broken);
}

function drained() {
  if (!stopping || calls.size > 0) return flushSoon();
  while (free.length > 0) discard(free.pop());
  if (unsettled > 0) return flushSoon();
  stopping = false;
  if (outside.partial !== undefined) flushPartial(outside);
  shut(open(STOPPED, 0, 0));
  leave(0);
}

// An exception that left the call's own code: a timer, an event, a promise nobody awaits.
function stray(error, what) {
  const call = scope.getStore();
  if (call === undefined || call.ended) return log(outside, 2, `${what}: ${show(error)}`);
  const problem = failure('raised', error);
  log(call, 2, call.settled ? `${what}: ${show(error)}` : `${what}: ${problem.message}`);
  ignore(call.close);
  refuse(call, problem, false);
  flush();
}

process.on('unhandledRejection', (error) => stray(error, 'Unhandled rejection'));
process.on('uncaughtException', (error) => {
  if (scope.getStore() === undefined && !ready && settings !== undefined) return failed('load', error);
  stray(error, 'Uncaught exception');
  if (scope.getStore() === undefined) process.exit(1);
});

function lastWords() {
  for (const call of [...calls.values(), outside]) if (call.partial !== undefined) flushPartial(call);
  flush();
}
process.on('exit', lastWords);

// ---------------------------------------------------------------- loading

async function init(message) {
  settings = message;
  Object.assign(process.env, settings.env);
  try { process.chdir(settings.directory); } catch { /* it can still be loaded by its full path */ }
  const file = require('node:path').resolve(settings.directory, settings.entrypoint);
  if (!require('node:fs').existsSync(file)) {
    return failed('absent', `Failed to load entrypoint, file ${settings.entrypoint} does not exist.`);
  }
  let loaded;
  const warn = process.emitWarning;
  try {
    // `export` in a plain .js file is what our own examples show; no reason to warn about it.
    process.emitWarning = (warning, ...rest) => rest.some((part) => (part?.code ?? part) === 'MODULE_TYPELESS_PACKAGE_JSON') || warn.call(process, warning, ...rest);
    loaded = await import(require('node:url').pathToFileURL(file).href);
  } catch (error) {
    return isSyntax(error) ? failed('syntax', withPlace(error, file)) : failed('load', error);
  } finally {
    process.emitWarning = warn;
  }
  const inner = loaded.default;      // of a CommonJS module: module.exports
  handler = [inner, loaded.main, inner?.main, inner?.default].find((value) => typeof value === 'function');
  if (handler === undefined) {
    return failed('signature', "Function signature invalid. Did you forget to export a 'main' function?");
  }
  const exported = (name) => loaded[name] ?? inner?.[name];
  for (const name of HOOKS) {
    const hook = exported(name);
    if (typeof hook === 'function') hooks[name] = hook;
  }
  if (settings.state !== undefined) {
    const problem = openStates(exported);
    if (problem !== undefined) return failed('signature', problem);
  }
  if (hooks.init !== undefined && !settings.info_only) {
    try { await hooks.init(); } catch (error) { return failed('init', error); }
  }
  ready = true;
  const found = Object.keys(hooks), events = exported('events');
  if (typeof events === 'object' && events !== null && !Array.isArray(events)) found.push('events');
  sendJson(READY, 0, { info: infoOf(exported('info')), hooks: found });
  flush();
}

function infoOf(info) {
  if (typeof info === 'string') return { doc: info };
  try {
    const plain = typeof info === 'object' && info !== null ? JSON.parse(JSON.stringify(info)) : null;
    return typeof plain === 'object' && !Array.isArray(plain) ? plain : null;
  } catch {
    return null;
  }
}

function failed(kind, error) {
  if (outside.partial !== undefined) flushPartial(outside);
  sendJson(FAILED, 0, typeof error === 'string' ? { kind, message: error, stack: '' } : failure(kind, error));
  leave(1);
}

// A SyntaxError made by Node's loader, not one that running code raised (JSON.parse, eval).
function isSyntax(error) {
  return error instanceof SyntaxError && /^ {4}at [^\n]*node:internal\//.test(String(error.stack).split('\n').find((line) => line.startsWith('    at ')));
}

// Node keeps the place of an ES module's syntax error for its own output, out of the error. A second
// Node parses the entrypoint and what it imports by relative path, and runs nothing.
const PLACE = `const fs = require('fs'), vm = require('vm'), path = require('path'), [, file, message] = process.argv;
const files = new Set([file]);
for (const name of files) try {
  if (files.size > 99 || /\\.(cjs|json|node)$/.test(name)) continue;
  const code = fs.readFileSync(name, 'utf8');
  for (const [, next] of code.matchAll(/(?:from|import)\\s*['"](\\.{1,2}\\/[^'"]+)['"]/g)) files.add(path.resolve(name, '..', next));
  new vm.SourceTextModule(code, { identifier: name });
} catch (error) { if (error.message === message) throw error; }`;

function withPlace(error, file) {
  let stack = error.stack;
  if (stack.startsWith('SyntaxError')) {
    try {
      const found = require('node:child_process').spawnSync(process.execPath,
        ['--no-warnings', '--experimental-vm-modules', '-e', PLACE, file, error.message], { encoding: 'utf8', timeout: 2000, env: {} }).stderr;
      if (found) stack = found.split('\n    at ', 1)[0];
    } catch { /* then without the place */ }
  }
  const place = /^(?:file:\/\/)?(\/.*):(\d+)\n/.exec(stack);
  if (place === null) return error;
  const name = require('node:path').relative(settings.directory, place[1]);
  return Object.assign(new SyntaxError(`${error.message} (${name}:${place[2]})`), { stack });
}

// ---------------------------------------------------------------- reading

let pending = null, have = 0;     // a frame of which only a part has come

function read(n, chunk) {
  since = Date.now();
  let at = pending === null ? 0 : resume(chunk, 0, n);
  while (n - at >= 4) {
    const end = at + 4 + sizeAt(chunk, at);
    if (end > n) break;
    receive(chunk, at + 4, end, false);
    at = end;
  }
  if (at < n) {
    pending = Buffer.allocUnsafeSlow(4);
    have = 0;
    resume(chunk, at, n);
  }
  // A call that still runs may be done in a microtask; else there is nothing to wait for.
  if (calls.size > 0) flushSoon();
  else flush();
}

function resume(chunk, at, n) {
  while (at < n) {
    const take = Math.min(pending.length - have, n - at);
    chunk.copy(pending, have, at, at + take);
    have += take;
    at += take;
    if (have < pending.length) break;
    if (have === 4) {
      const whole = Buffer.allocUnsafeSlow(4 + sizeAt(pending, 0));
      pending.copy(whole);
      pending = whole;
    } else {
      const whole = pending;
      pending = null;
      receive(whole, 4, whole.length, true);
      break;
    }
  }
  return at;
}

function sizeAt(chunk, at) {
  const size = chunk.readUInt32BE(at);
  if (size < 5 || size > FRAME_MAX) fault(`a frame of ${size} bytes`);
  return size;
}

function fault(what) {
  process._rawDebug(`executor worker: protocol fault: ${what}`);
  process.exit(1);
}

// `owned`: the bytes may be kept without a copy.
function receive(chunk, at, end, owned) {
  const type = chunk[at], id = chunk.readUInt32BE(at + 1);
  at += 5;
  if (type === CALL) return receiveCall(id, chunk, at, end, owned);
  if (type === STOP) { stopping = true; return drained(); }
  if (type === INIT) return void init(JSON.parse(chunk.toString('utf8', at, end)));
  if (type < DATA || type > CANCEL || type === LOG) fault(`frame type ${type}`);
  const call = calls.get(id);
  if (call === undefined) {
    if (((id - last) | 0) > 0) fault(`a frame for the unknown call ${id}`);   // ids may wrap around
    return;
  }
  if (type === CREDIT) {
    call.credit += chunk.readUInt32BE(at);
    if (call.wake !== undefined) { const wake = call.wake; call.wake = undefined; wake(); }
  } else if (type === CANCEL) {
    ignore(call.close);
    refuse(call, { kind: 'cancelled', message: 'cancelled', stack: '' }, false);
  } else if (call.parts === undefined) {
    fault(`a piece of a body that call ${id} does not have`);
  } else if (type === DATA) {
    call.parts.push(keep(chunk, at, end, owned));
    call.owed += end - at;
    if (call.owed >= WINDOW / 2) { sendCredit(id, call.owed); call.owed = 0; }
  } else if (end > at) {
    refuse(call, { kind: 'cancelled', message: 'the request broke off', stack: '' });
  } else {
    const body = call.parts.length === 1 ? call.parts[0] : Buffer.concat(call.parts);
    call.parts = undefined;
    scope.run(call, begin, call, body);
  }
}

function receiveCall(id, chunk, at, end, owned) {
  if (!ready || calls.has(id)) fault(`call ${id} out of turn`);
  if (((id - last) | 0) > 0) last = id;       // calls may arrive out of order
  const headEnd = at + 4 + chunk.readUInt32BE(at);
  const head = JSON.parse(chunk.toString('utf8', at + 4, headEnd));
  let state, bodyAt = headEnd;
  if (head.state !== undefined) {
    bodyAt += head.state.length;
    // What a snapshot is a part of is cut by bytes.
    const { kind, snapshot } = head.state;
    state = kind === 'binary' || snapshot !== undefined ? keep(chunk, headEnd, bodyAt, owned) : chunk.toString('utf8', headEnd, bodyAt);
  }
  const call = new Call(id, head, state);
  calls.set(id, call);
  const body = keep(chunk, bodyAt, end, owned);
  if (head.stream) call.parts = body.length > 0 ? [body] : [];
  else scope.run(call, begin, call, body);
}

function keep(chunk, from, to, owned) {
  if (from === to) return EMPTY;
  return owned ? chunk.subarray(from, to) : Buffer.from(chunk.subarray(from, to));
}

// ---------------------------------------------------------------- start

const outside = new Call(0, null, '');      // what no running call owns
captureOutput('stdout', 1);
captureOutput('stderr', 2);

const { EXECUTOR_LINK, EXECUTOR_TOKEN } = process.env;
delete process.env.EXECUTOR_LINK;
delete process.env.EXECUTOR_TOKEN;

const socket = net.connect({
  path: EXECUTOR_LINK,
  onread: { buffer: Buffer.allocUnsafeSlow(65_536), callback: read },
});
socket.on('error', () => process.exit(1));
socket.on('end', () => process.exit(0));
sendJson(HELLO, 0, { protocol: 1, token: EXECUTOR_TOKEN, runtime: 'node', version: process.versions.node, pid: process.pid });
flush();
