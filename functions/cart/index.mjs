export const info = { name: 'cart', version: '1.0.0', doc: 'a shopping cart for each user (header x-user)' };

const MAX_ITEMS = 100;
const MAX_QUANTITY = 999;

// How long a filled cart may wait before its owner is reminded, unless ?remind= says otherwise.
const PATIENCE = '1d';

// State: { items: { [name]: quantity }, reminded }
export default function ({ req, res, log, state }) {
  const cart = state.get() ?? {};
  const items = new Map(Object.entries(cart.items ?? {}));
  // Timers come as requests that only the executor can make.
  if (req.path === '/__timer/remind') {
    log(`${state.key} left ${items.size} items in the cart`);
    state.set({ ...cart, reminded: (cart.reminded ?? 0) + 1 });
    return res.empty();
  }
  const fail = (status, error, headers) => res.json({ error }, status, headers);
  const save = (status) => {
    // Set and cancelled in the same commit as the cart; a name has one timer, so this one replaces an earlier one.
    // It comes first, because a ?remind= that is no duration must leave the cart as it was.
    try {
      if (items.size > 0) state.schedule('remind', { after: req.query.remind ?? PATIENCE });
      else state.cancel('remind');
    } catch (error) {
      return fail(422, error.message);
    }
    state.set({ ...cart, items: Object.fromEntries(items) });
    return show(status);
  };
  const show = (status) => {
    const list = [...items].map(([item, quantity]) => ({ item, quantity }));
    const total = list.reduce((sum, { quantity }) => sum + quantity, 0);
    return res.json({ user: state.key, items: list, total, reminded: cart.reminded ?? 0 }, status);
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
