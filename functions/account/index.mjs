export const info = { name: 'account', version: '1.0.0', doc: 'bank accounts as logs of events: /<account>/deposit and so on' };

// What an account is before anything happened to it.
export const initial = { balance: 0, closed: false };

// Each event, applied to the account as it was. Nothing else may change it, so the log explains every cent.
export const events = {
  deposited: (account, { amount }) => ({ ...account, balance: account.balance + amount }),
  withdrawn: (account, { amount }) => ({ ...account, balance: account.balance - amount }),
  closed: (account) => ({ ...account, closed: true }),
};

export default function ({ req, res, state }) {
  const account = state.get();
  const fail = (status, error) => res.json({ error }, status);
  if (req.method === 'GET' || req.method === 'HEAD') return res.json({ account: state.key, ...account });
  if (req.method !== 'POST') return res.json({ error: 'use GET or POST' }, 405, { allow: 'GET, HEAD, POST' });
  if (account.closed) return fail(409, 'the account is closed');

  const order = req.path.split('/')[2];
  if (order === 'close') {
    if (account.balance !== 0) return fail(409, `${account.balance} cents are still in it`);
    state.emit('closed', {});
    return res.json({ account: state.key, ...state.get() });
  }
  const amount = Number(req.query.amount);
  if (!Number.isSafeInteger(amount) || amount <= 0 || amount > 1e12) {
    return fail(422, 'amount must be a whole number of cents above 0');
  }
  if (order === 'deposit') state.emit('deposited', { amount });
  else if (order !== 'withdraw') return fail(404, 'POST to /<account>/deposit, /withdraw or /close');
  else if (amount > account.balance) return fail(409, `only ${account.balance} cents are in it`);
  else state.emit('withdrawn', { amount });
  return res.json({ account: state.key, ...state.get() });
}
