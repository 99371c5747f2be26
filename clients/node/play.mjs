// Plays ten chunks of a served world with stock gRPC packages, and prints what came as one JSON line.
//
//   npm ci && node play.mjs [HOST:PORT]     (else WORLDTREE_ADDRESS, else localhost:7070)

import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const PROTO = "worldtree/video/v1/video_generator.proto";
const MODEL = "minigrid";
const START = "four-rooms";
const SEED = 7;
const ACTIONS = ["forward", "forward", "left", "forward", "right", "forward", "forward", "left", "left", "forward"];
const CALL_MS = 60_000;

const address = process.argv[2] ?? process.env.WORLDTREE_ADDRESS ?? "localhost:7070";

try {
  console.log(JSON.stringify(await run(address)));
} catch (error) {
  // the status's code by name, and the server's own words
  console.error(`${grpc.status[error.code] ?? error.name}: ${error.details ?? error.message}`);
  process.exitCode = 1;
}

async function run(target) {
  // longs as strings: a JavaScript number does not hold every int64; defaults: a chunk_index of 0 is there too
  const options = { includeDirs: [PROTOS], longs: String, enums: String, defaults: true, oneofs: true };
  const definition = loadSync(PROTO, options);
  const { VideoGenerator } = grpc.loadPackageDefinition(definition).worldtree.video.v1;
  const client = new VideoGenerator(target, grpc.credentials.createInsecure());
  try {
    const { session, frames } = await unary(client, "CreateSession", {
      model: { name: MODEL },
      origin: { start: START },
      seed: SEED,
    });
    try {
      const chunks = await play(client, session.session);
      return {
        model: session.model,
        session: session.session,
        startShape: frames.tensor.shape.map(Number),
        chunkCount: chunks.length,
        indices: chunks.map((chunk) => Number(chunk.index)),
        actions: chunks.map((chunk) => chunk.action.id),
        chunkShape: chunks[0].frames.tensor.shape.map(Number),
        framesSha256: sha256(chunks.map((chunk) => chunk.frames.tensor.data)),
        stateHash: chunks.at(-1).stateHash,
      };
    } finally {
      await unary(client, "Delete", { session: session.session });
    }
  } finally {
    client.close();
  }
}

// All chunks of one Play call, as fast as they come. Closing our side ends the play once the queued actions are done.
function play(client, session) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    const call = client.Play({ deadline: Date.now() + CALL_MS });
    call.on("data", ({ played }) => played && chunks.push(played.chunk));
    call.on("error", reject);
    call.on("end", () => resolve(chunks));
    call.write({ session, begin: { fps: 0, lookaheadChunks: 4, actions: ACTIONS.map((name) => ({ name })) } });
    call.end();
  });
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + CALL_MS }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

function sha256(parts) {
  const hash = createHash("sha256");
  parts.forEach((part) => hash.update(part));
  return hash.digest("hex");
}
