// The function that the conformance tests deploy (tests/conformance). What it does is chosen by the header x-action.
// A plain Open Runtimes function: nothing here is known only to this executor.
const crypto = require('node:crypto');

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const actions = {
  plaintextResponse: ({ res }) => res.text('Hello World 👋'),
  jsonResponse: ({ res }) => res.json({ json: true, message: 'Developers are awesome.' }),
  customCharsetResponse: ({ res }) => res.text('ÅÆ', 200, { 'content-type': 'text/plain; charset=iso-8859-1' }),
  uppercaseCharsetResponse: ({ res }) => res.text('ÅÆ', 200, { 'content-type': 'TEXT/PLAIN' }),
  multipartResponse: ({ res }) => res.text(
    '--12345\r\nContent-Disposition: form-data; name="partOne"\r\n\r\nWhy just have one part?\r\n--12345--\r\n',
    200,
    { 'content-type': 'multipart/form-data; boundary=12345' },
  ),
  redirectResponse: ({ res }) => res.redirect('https://github.com/'),
  emptyResponse: ({ res }) => res.empty(),
  noResponse: ({ res }) => { res.text('This should be ignored, as it is not returned.'); },
  doubleResponse: ({ res }) => {
    res.text('This should be ignored.');
    return res.text('This should be returned.');
  },
  headersResponse: ({ req, res }) => res.text('OK', 200, {
    'first-header': 'first-value',
    'second-header': req.headers['x-open-runtimes-custom-in-header'] ?? 'missing',
    cookie: req.headers.cookie ?? 'missing',
    'x-open-runtimes-custom-out-header': 'third-value',
  }),
  statusResponse: ({ res }) => res.text('FAIL', 404),

  requestMethod: ({ req, res }) => res.text(req.method),
  requestUrl: ({ req, res }) => res.json({
    url: req.url, scheme: req.scheme, host: req.host, port: req.port,
    path: req.path, query: req.query, queryString: req.queryString,
  }),
  requestHeaders: ({ req, res }) => res.json(req.headers),
  requestBodyText: ({ req, res }) => res.text(req.bodyText),
  requestBodyJson: ({ req, res }) => res.json(req.bodyJson),
  requestBodyBinary: ({ req, res }) => res.binary(req.bodyBinary),
  requestBodyTextAuto: ({ req, res }) => res.text(req.body),
  requestBodyJsonAuto: ({ req, res }) => res.json(req.body),
  enforcedHeaders: ({ req, res }) => res.json({
    'x-custom': req.headers['x-custom'],
    'x-custom-uppercase': req.headers['x-custom-uppercase'],
    'x-open-runtimes-custom': req.headers['x-open-runtimes-custom'],
  }),
  envVars: ({ res }) => res.json({
    var: process.env.CUSTOM_ENV_VAR,
    emptyVar: process.env.NOT_DEFINED_VAR ?? null,
  }),

  binaryResponse1: ({ res }) => res.binary(Buffer.from([0, 10, 255])),
  binaryResponse2: ({ res }) => res.binary(Uint8Array.from([0, 20, 255]).buffer),
  binaryResponse3: ({ res }) => res.binary(Uint8Array.from([0, 30, 255])),
  binaryResponse4: ({ res }) => res.binary(new DataView(Uint8Array.from([0, 40, 255]).buffer)),
  binaryResponse5: ({ res }) => res.binary(Uint8Array.from([9, 0, 50, 255]).subarray(1)),
  binaryResponseLarge: ({ req, res }) => {
    const hash = crypto.createHash('md5').update(req.bodyBinary).digest('hex');
    return res.text(hash, 200, { 'x-method': req.method });
  },

  logs: ({ log, error, res }) => {
    console.log('Native log');
    log('Debug log');
    error('Error log');
    log('Log+With+Plus+Symbol');
    log(42);
    log(4.2);
    log(true);
    log({ objectKey: 'objectValue' });
    log(['arrayValue']);
    log('A'.repeat(9000));
    error('B'.repeat(9000));
    return res.text('');
  },
  spreadOperatorLogs: ({ log, error, res }) => {
    log('engine:', 'open-runtimes');
    error('engine:', 'open-runtimes');
    return res.text('OK');
  },
  timeout: async ({ log, res }) => {
    log('Timeout start.');
    await sleep(3000);
    log('Timeout end.');
    return res.text('Successful response.');
  },
  errorTest: ({ log }) => {
    log('Before error...');
    throw new Error('Error!');
  },

  setCookie: ({ res }) => res.text('OK', 200, {
    'set-cookie': ['cookie=value; path=/', 'cookie2=value2; path=/'],
    'some-header': 'some-value',
  }),
  setCookie2: ({ res }) => {
    const headers = { 'some-header': 'some-value' };
    headers['Set-Cookie'] = ['cookie=value; path=/'];
    headers['Set-Cookie'].push('cookie2=value2; path=/');
    return res.text('OK', 200, headers);
  },
  deprecatedMethods: ({ req, res }) => res.send(req.bodyRaw),
  deprecatedMethodsUntypedBody: ({ res }) => res.send(50),
  deprecatedMethodsBytesBody: ({ res }) => res.send(
    Buffer.from('89504e470d0a1a0a', 'hex'), 200, { 'content-type': 'image/png' },
  ),
  library: async ({ req, res }) => {
    const answer = await fetch(req.headers['x-url']);
    return res.json({ status: answer.status, text: await answer.text() });
  },

  // Beyond the usual actions: what only a runtime that can interrupt, and one that serves many at once, does well.
  loop: ({ log }) => {
    log('Loop start.');
    for (;;);
  },
  // Says when it has begun, and goes on when it is answered.
  held: async ({ req, res, log, error }) => {
    const name = req.query.name;
    log('log before', name);
    console.log(`native before ${name}`);
    await fetch(req.headers['x-url']);
    console.log(`native after ${name}`);
    error('error after', name);
    return res.text(name);
  },
};

module.exports = async (context) => {
  const action = actions[context.req.headers['x-action']];
  if (action === undefined) throw new Error('Unknown action');
  return action(context);
};
