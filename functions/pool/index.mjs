// The life of a function: init once, start makes a pooled resource, the handler borrows it, stop ends it.
// The resource is a thread: counting words in a long text would hold up all other calls of the instance.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

export const info = { name: 'pool', version: '1.0.0', doc: 'counts the words of a text in a pooled thread' };

const script = new URL('./words.mjs', import.meta.url);
let made = 0;

export function init() {
  console.log('init: this instance makes threads as calls need them');
}

async function startThread() {
  const thread = new Worker(script);
  await once(thread, 'online');
  return thread;
}

export async function start() {
  return { thread: await startThread(), number: ++made, calls: 0 };
}

export async function stop(context) {
  await context.thread.terminate();
}

export default async function ({ req, res, error, context, startError }) {
  if (startError) {
    error(startError);
    return res.text('no thread could be started\n', 503, { 'retry-after': '1' });
  }
  context.calls += 1;
  try {
    const answer = once(context.thread, 'message');      // raises if the thread fails
    context.thread.postMessage(req.bodyText);
    const [words] = await answer;
    return res.json({ ...words, thread: context.number, calls: context.calls });
  } catch (failure) {
    context.thread = await startThread();                // a dead thread must not go back into the pool
    throw failure;
  }
}
