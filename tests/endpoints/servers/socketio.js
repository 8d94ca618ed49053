// socket.io with acknowledgements, rooms for all and binary attachments. Prints its port when it can be used.

import { createServer } from "node:http";
import { Server } from "socket.io";

const [token] = process.argv.slice(2);
const http = createServer();
const io = new Server(http, { pingInterval: 300, pingTimeout: 300, transports: ["websocket"] });
let farewells = 0;

io.use((socket, next) => {
  next(socket.handshake.auth.token === token ? undefined : new Error("wrong token"));
});
io.on("connection", (socket) => {
  const held = [];
  socket.on("disconnect", (reason) => {
    if (reason === "client namespace disconnect") farewells += 1;
  });
  socket.on("echo", (value, acknowledge) => acknowledge(value));
  socket.on("hold", (value, acknowledge) => {
    held.push(() => acknowledge(value));
    if (held.length === 5) for (const release of held.splice(0).reverse()) release();
  });
  socket.on("connections", (_, acknowledge) => acknowledge(io.engine.clientsCount));
  socket.on("farewells", (_, acknowledge) => acknowledge(farewells));
  socket.on("say", (text) => io.emit("said", { text }));
  socket.on("count", (to) => {
    for (let n = 1; n <= to; n += 1) socket.emit("number", n);
    socket.emit("counted", to);
  });
  socket.on("length", (content, acknowledge) => acknowledge(content.length));
  socket.on("bytes", (length) => socket.emit("content", Buffer.from([...Array(length).keys()])));
});

http.listen(0, "127.0.0.1", () => console.log(`port ${http.address().port}`));
