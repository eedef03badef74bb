//! Functions that several test files use.

/// Answers with what it was given.
pub const ECHO: &str = r"
export default ({ req, res }) => res.json({
  method: req.method, path: req.path, query: req.query, queryString: req.queryString, headers: req.headers,
  scheme: req.scheme, host: req.host, port: req.port, url: req.url,
  text: req.bodyText, hex: req.bodyBinary.length > 64 ? undefined : req.bodyBinary.toString('hex'), length: req.bodyBinary.length,
});";

/// `hello`.
pub const HELLO: &str = "export default ({ res }) => res.text('hello');";

/// Answers with its process id.
pub const PID: &str = "export default ({ res }) => res.text(String(process.pid));";

/// Writes `begin`, waits until there is a file `$HOME_FILE.go` (or the one `?go=` says), writes `end`, answers `done`.
/// With `?n=` that is written too. The test decides when it goes on.
pub const GATE: &str = r"
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
const file = process.env.HOME_FILE;
const write = (text) => fs.appendFileSync(file, text + '\n');
export default async ({ req, res }) => {
  const n = req.query.n ?? '';
  write('begin' + n);
  while (!fs.existsSync(file + '.go')) await sleep(10);
  write('end' + n);
  return res.text('done' + n);
};";

/// Increments what `state` holds.
pub const COUNT: &str = r"
export default ({ res, state }) => {
  const n = (state.get()?.n ?? 0) + 1;
  state.set({ n });
  return res.json({ n, key: state.key, version: state.version });
};";
