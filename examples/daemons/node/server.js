// A Node.js server on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3)).
'use strict';
const http = require('node:http');
const net = require('node:net');

if (process.env.LISTEN_PID !== String(process.pid)) {
  console.error('start me with: multibinder exec -b 127.0.0.1:8000 -- node server.js');
  process.exit(1);
}

const server = http.createServer((request, response) => response.end(`${process.pid}\n`));

// listen() sets the backlog for every process that has the listener: 511, unless it is given here.
server.listen({ fd: 3 }, 4096, () => console.log('ready'));

process.once('SIGTERM', () => {
  // close() of http.Server also drops clients whose request has not arrived yet. That of net.Server does not.
  net.Server.prototype.close.call(server, () => process.exit());
  // Those that keep their connections open between requests are told to go when they have had time to ask.
  setTimeout(() => server.closeIdleConnections(), 1000);
});
