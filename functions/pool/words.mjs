import { parentPort } from 'node:worker_threads';

parentPort.on('message', (text) => {
  const counts = new Map();
  let words = 0;
  for (const [word] of text.toLowerCase().matchAll(/[\p{L}\p{N}]+/gu)) {
    words += 1;
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const top = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 5);
  parentPort.postMessage({ words, different: counts.size, top: Object.fromEntries(top) });
});
