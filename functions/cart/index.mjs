export const info = { name: 'cart', version: '1.0.0', doc: 'a shopping cart for each user (header x-user)' };

const MAX_ITEMS = 100;
const MAX_QUANTITY = 999;

// State: { items: { [name]: quantity } }
export default function ({ req, res, state }) {
  const items = new Map(Object.entries(state.get()?.items ?? {}));
  const fail = (status, error, headers) => res.json({ error }, status, headers);
  const save = (status) => {
    state.set({ items: Object.fromEntries(items) });
    return show(status);
  };
  const show = (status) => {
    const list = [...items].map(([item, quantity]) => ({ item, quantity }));
    return res.json({ user: state.key, items: list, total: list.reduce((sum, { quantity }) => sum + quantity, 0) }, status);
  };

  if (req.path === '/') {
    if (req.method === 'GET' || req.method === 'HEAD') return show(200);
    if (req.method !== 'POST') return fail(405, 'use GET or POST', { allow: 'GET, HEAD, POST' });
    let wish;
    try {
      wish = req.bodyJson;
    } catch {
      return fail(400, 'the body must be JSON, as {"item": "tea", "quantity": 2}');
    }
    const { item, quantity = 1 } = wish ?? {};
    if (typeof item !== 'string' || !/^[\w.-]{1,64}$/.test(item) || item === '__proto__') {
      return fail(422, 'item must be 1 to 64 letters, digits, "_", "-" or "."');
    }
    const total = (items.get(item) ?? 0) + quantity;
    if (!Number.isInteger(quantity) || quantity < 1 || total > MAX_QUANTITY) {
      return fail(422, `quantity must be a whole number from 1, at most ${MAX_QUANTITY} in all`);
    }
    if (!items.has(item) && items.size >= MAX_ITEMS) return fail(409, `the cart holds at most ${MAX_ITEMS} different items`);
    items.set(item, total);
    return save(201);
  }

  if (req.method !== 'DELETE') return fail(405, 'use DELETE', { allow: 'DELETE' });
  const item = req.path.slice(1);
  if (!items.delete(item)) return fail(404, 'that is not in the cart');
  return save(200);
}
