// graphql-ws over ws, with a schema that has a bit of everything. Prints its port when it can be used.

import { EventEmitter, once } from "node:events";
import { GraphQLError, GraphQLInt, GraphQLNonNull, GraphQLObjectType, GraphQLSchema, GraphQLString } from "graphql";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";

const [token] = process.argv.slice(2);
const greetings = new EventEmitter();
const greeted = new Set();
const pongs = new WeakMap();
let connections = 0;
let counting = 0;

const required = (type) => ({ type: new GraphQLNonNull(type) });

async function* countdown(_, { from, pause }) {
  counting += 1;
  try {
    for (let n = from; n >= 0; n -= 1) {
      yield { countdown: n };
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  } finally {
    counting -= 1;
  }
}

const schema = new GraphQLSchema({
  query: new GraphQLObjectType({
    name: "Query",
    fields: {
      hello: {
        type: GraphQLString,
        args: { name: required(GraphQLString), after: { type: GraphQLString } },
        resolve: async (_, { name, after }) => {
          if (after && !greeted.has(after)) await once(greetings, after);
          greeted.add(name);
          setImmediate(() => greetings.emit(name));
          return `Hello ${name}`;
        },
      },
      nothing: { type: GraphQLString, resolve: () => null },
      broken: {
        type: GraphQLString,
        resolve: () => {
          throw new GraphQLError("it is broken");
        },
      },
      pongs: { type: GraphQLInt, resolve: (_, args, context) => pongs.get(context.socket) ?? 0 },
      connections: { type: GraphQLInt, resolve: () => connections },
      counting: { type: GraphQLInt, resolve: () => counting },
    },
  }),
  subscription: new GraphQLObjectType({
    name: "Subscription",
    fields: {
      countdown: {
        type: GraphQLInt,
        args: { from: required(GraphQLInt), pause: { type: GraphQLInt, defaultValue: 0 } },
        subscribe: countdown,
      },
    },
  }),
});

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/graphql" });
useServer(
  {
    schema,
    connectionInitWaitTimeout: 2000,
    context: (ctx) => ({ socket: ctx.extra.socket }),
    onConnect: (ctx) => {
      // A ping while the client still waits for its acknowledgement, as the protocol allows.
      ctx.extra.socket.send(JSON.stringify({ type: "ping", payload: { connected: true } }));
      return ctx.connectionParams?.token === token;
    },
  },
  server,
);
server.on("connection", (socket) => {
  connections += 1;
  socket.on("message", (data) => {
    if (JSON.parse(data).type === "pong") pongs.set(socket, (pongs.get(socket) ?? 0) + 1);
  });
  socket.once("close", () => {
    connections -= 1;
  });
});
server.on("listening", () => console.log(`port ${server.address().port}`));
