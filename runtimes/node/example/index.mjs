export const info = { name: 'example', version: '0.1.0', doc: 'greets, and says what it was asked' };

// Runs once per call. What it returns is sent; what it raises is a 500, with the stack in the log.
export default async function ({ req, res, log }) {
  log('called', req.method, req.path);
  if (req.method === 'GET') {
    return res.text(`${process.env.GREETING}, ${req.query.name ?? 'world'}!\n`);
  }
  return res.json({ method: req.method, path: req.path, query: req.query, body: req.body });
}
