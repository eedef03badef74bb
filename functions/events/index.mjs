import { setTimeout as sleep } from 'node:timers/promises';

export const info = { name: 'events', version: '1.0.0', doc: 'server-sent events: the time, ?n= times, every ?ms= milliseconds' };

const HEADERS = { 'content-type': 'text/event-stream', 'cache-control': 'no-store' };

export default function ({ req, res, log }) {
  const n = Number(req.query.n ?? 5);
  const ms = Number(req.query.ms ?? 500);
  if (!Number.isInteger(n) || n < 1 || n > 100 || !Number.isInteger(ms) || ms < 0 || ms > 10_000) {
    return res.json({ error: 'n is 1 to 100, ms is 0 to 10000' }, 400);
  }
  return res.stream(events(n, ms, log), 200, HEADERS);
}

async function* events(n, ms, log) {
  let sent = 0;
  try {
    for (; sent < n; sent++) {
      if (sent > 0) await sleep(ms);
      yield `id: ${sent + 1}\nevent: time\ndata: ${new Date().toISOString()}\n\n`;
    }
  } finally {
    log(`sent ${sent} of ${n} events`);        // also when the client left early
  }
}
