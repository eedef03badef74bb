// A counter that keeps its number in Redis itself. Two calls at once may count as one: GET and SET are not one step.

import { Redis } from './redis.mjs';

const redis = new Redis(Number(process.env.REDIS_PORT));

export default async ({ req, res }) => {
  const key = `counter:${req.query.id}`;
  const text = await redis.ask('GET', key);
  const n = (text === null ? 0 : JSON.parse(text).n) + 1;
  await redis.ask('SET', key, JSON.stringify({ n }));
  return res.text(`${n}\n`);
};
