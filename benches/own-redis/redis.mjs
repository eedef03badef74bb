// A client for Redis: a pool of connections that stay open, with pipelining, as usual clients have it.
//
// What is asked within one turn of the event loop leaves a connection in one write; answers come in the order of questions.

import net from 'node:net';

const CONNECTIONS = 4;
const CR = 13;

class Connection {
  #socket;
  #asked = [];                    // who waits for an answer, in order
  #out = '';
  #rest = Buffer.alloc(0);        // of what came, not yet a whole answer
  constructor(port) {
    this.#socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    this.#socket.on('data', (chunk) => this.#take(chunk));
    this.#socket.on('error', (error) => this.#end(error));
    this.#socket.on('close', () => this.#end(new Error('Redis closed the connection')));
  }
  ask(words) {
    let text = `*${words.length}\r\n`;
    for (const word of words) text += `$${Buffer.byteLength(word)}\r\n${word}\r\n`;
    if (this.#out === '') process.nextTick(() => this.#flush());
    this.#out += text;
    return new Promise((resolve, reject) => this.#asked.push({ resolve, reject }));
  }
  #flush() {
    const out = this.#out;
    this.#out = '';
    this.#socket.write(out);
  }
  #take(chunk) {
    const bytes = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk;
    let at = 0;
    while (at < bytes.length) {
      const end = bytes.indexOf(CR, at + 1);
      if (end < 0 || end + 2 > bytes.length) break;
      const kind = bytes[at], line = bytes.latin1Slice(at + 1, end);
      let next = end + 2, answer = line;
      if (kind === 36) {          // $: a length, then so many bytes; -1: nothing
        const length = Number(line);
        if (length < 0) answer = null;
        else {
          if (next + length + 2 > bytes.length) break;
          answer = bytes.utf8Slice(next, next + length);
          next += length + 2;
        }
      }
      at = next;
      const { resolve, reject } = this.#asked.shift();
      if (kind === 45) reject(new Error(line));
      else resolve(answer);
    }
    this.#rest = at === bytes.length ? Buffer.alloc(0) : bytes.subarray(at);
  }
  #end(error) {
    for (const { reject } of this.#asked.splice(0)) reject(error);
  }
}

export class Redis {
  #connections;
  #next = 0;
  constructor(port) {
    this.#connections = Array.from({ length: CONNECTIONS }, () => new Connection(port));
  }
  ask(...words) {
    this.#next = (this.#next + 1) % CONNECTIONS;
    return this.#connections[this.#next].ask(words);
  }
}
