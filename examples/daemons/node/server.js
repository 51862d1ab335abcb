// A Node.js server on the listener that it inherits (LISTEN_FDS, sd_listen_fds(3)).
'use strict';
const http = require('node:http');

if (process.env.LISTEN_PID !== String(process.pid)) {
  console.error('start me with: multibinder exec -b 127.0.0.1:8000 -- node server.js');
  process.exit(1);
}

const server = http.createServer((request, response) => response.end(`${process.pid}\n`));

// listen() sets the backlog for every process that has the listener: 511, unless it is given here.
server.listen({ fd: 3 }, 4096, () => console.log('ready'));

// close() accepts no more, waits for the requests, and closes connections that are between two requests.
process.once('SIGTERM', () => server.close());
