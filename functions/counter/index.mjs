export const info = { name: 'counter', version: '1.0.0', doc: 'counts calls, for each ?id= by itself' };

export default function ({ req, res, state }) {
  if (req.method === 'DELETE') {
    state.delete();
    return res.empty();
  }
  // Calls for one id run one after the other, so nothing can come between get and set.
  const n = (state.get()?.n ?? 0) + 1;
  state.set({ n });
  return res.json({ id: state.key, n });
}
