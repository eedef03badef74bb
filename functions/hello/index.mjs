export const info = { name: 'hello', version: '1.0.0', doc: 'greets whom ?name= says' };

const greeting = process.env.GREETING ?? 'Hello';

export default function ({ req, res }) {
  const { name } = req.query;
  if (name === undefined) return res.text(`${greeting}, world!\n`);
  try {
    return res.text(`${greeting}, ${decodeURIComponent(name.replaceAll('+', ' '))}!\n`);
  } catch {
    return res.text('name is not properly percent-encoded\n', 400);
  }
}
